"""The tunnel's port: accepting links, and bounding what strangers can cost.

A connection costs a socket until its first byte, and a TLS state only then. At most `Limits.max_pending` connections are in
handshake; the next one takes the place of the oldest that has shown no certificate, so a crowd that never says hello
cannot keep a child out: a child needs a few round trips, the crowd must win every one of them.
"""

import asyncio
import resource
import ssl
from collections.abc import Callable

import structlog

from cluster_controller.errors import Conflict, InvalidInput, Unreachable
from cluster_controller.tunnel.handshake import Accepting, HandshakeOwner
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import CloseCode
from cluster_controller.tunnel.wire import Wire, Wires

log = structlog.get_logger()

BACKLOG = 1024
FILES_SHARE = 4  # of the process's files, one part in this many may be connections in handshake


class TokenBucket:
    """At most ``rate`` a second, and a burst of two seconds' worth. Pure."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._full = max(1.0, 2 * rate)
        self._tokens = self._full
        self._at = now

    def take(self, now: float) -> float:
        """0 when allowed, else seconds until it will be."""
        self._tokens = min(self._full, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate


class Server:
    """One listening port."""

    def __init__(self, owner: HandshakeOwner, context: Callable[[], ssl.SSLContext], wires: Wires) -> None:
        self._owner = owner
        self._context = context
        self._wires = wires
        self._pending: dict[Link, Accepting] = {}  # in order of arrival
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._cap = max(1, min(owner.limits.max_pending, files // FILES_SHARE))
        self._server: asyncio.Server | None = None
        self.evicted = 0  # connections that lost their place in handshake to newer ones

    @property
    def pending(self) -> int:
        return len(self._pending)

    async def listen(self, host: str, port: int) -> int:
        """The bound port. Raises `Conflict` when it is taken, `Unreachable` when the address is not of this machine."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port, backlog=BACKLOG)
        except PermissionError:
            raise InvalidInput(f"port {port} needs more rights; choose one above 1023", "port") from None
        except OSError as error:
            if error.errno == 98:
                raise Conflict(f"the port {host}:{port} is in use; stop the other program or choose another port") from None
            raise Unreachable(f"{host}:{port} cannot be listened on: {error.strerror or error}") from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._pending):
            link.close(CloseCode.GOING_AWAY, "this controller stops")

    def _accept(self) -> Wire:
        if len(self._pending) >= self._cap:
            self._evict()
        handshake = _Pending(self._owner, self._leave)
        link = Link(handshake, self._owner.limits, dialled=False)
        wire = Wire(link, self._context(), self._wires, name=None)
        link.attach_wire(wire)
        self._pending[link] = handshake
        handshake.start(link)
        return wire

    def _evict(self) -> None:
        victim = next((link for link, handshake in self._pending.items() if handshake.peer is None), None)
        victim = victim or next(iter(self._pending))
        self.evicted += 1
        victim.close(CloseCode.BUSY, "too many connections in handshake; try again")

    def _leave(self, link: Link) -> None:
        self._pending.pop(link, None)


class _Pending(Accepting):
    """Tells the server when the link is no longer in handshake."""

    def __init__(self, owner: HandshakeOwner, leave: Callable[[Link], None]) -> None:
        super().__init__(owner)
        self._leave = leave

    def link_lost(self, link: Link, code: int, reason: str) -> None:
        self._leave(link)
        super().link_lost(link, code, reason)
        log.debug("handshake.ended", address=link.address, code=code, reason=reason)

    def settled(self, link: Link) -> None:
        super().settled(link)
        self._leave(link)


__all__ = ["Server", "TokenBucket"]
