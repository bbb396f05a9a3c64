"""The front: one port for people, kubectl, devices and proxies (ARCHITECTURE section 7).

It owns what all connections share: the listening sockets, the TLS context (swapped as a whole when the certificate rotates;
connections that are open keep theirs), the caps, and the way to shut down. A connection is served by `Connection`, whether it
came over TLS or through the tree (`adopt`).

    front = Front(app, authenticator, routes)
    port = await front.serve("127.0.0.1", 0, context)
    front.replace_context(new_context)
    await front.close(deadline_seconds=5.0)
"""

import asyncio
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, cast

import structlog

from cluster_controller.tasks import Tasks
from cluster_shim.contract import ByteStream
from openapi.front.asgi import ASGIApp
from openapi.front.auth import Adopted, Authenticator, Credentials, peer_chain
from openapi.front.connection import Connection, NoRoutes, RawRoutes, Shared, State
from openapi.front.limits import FrontLimits
from openapi.front.metrics import FrontMetrics
from openapi.front.streams import STREAM_ERRORS, SocketStream

if TYPE_CHECKING:
    from openapi.services import User

log = structlog.get_logger()

# In the order of our preference: a client that speaks both gets HTTP/1.1, which is the whole API. Clients that offer nothing
# but h2 are gRPC clients; they are led to an application (see `grpc`).
ALPN = ["http/1.1", "h2"]
BACKLOG = 512
KEEPALIVE_IDLE_SECONDS = 60
DEFAULT_LIMITS = FrontLimits()
TCP_USER_TIMEOUT_MS = 120_000


class Peer:
    """One connection over TLS, as the front keeps it."""

    def __init__(self, accepted: socket.socket, client: tuple[str, int] | None) -> None:
        self.accepted = accepted
        self.client = client
        self.stream: SocketStream | None = None  # once TLS is up
        self.credentials: Credentials | None = None
        self.connection: Connection | None = None  # once it speaks HTTP/1
        self.task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        return self.connection is not None and self.connection.state is State.IDLE


class Front:
    def __init__(
        self,
        app: ASGIApp,
        authenticate: Authenticator,
        raw: RawRoutes | None = None,
        limits: FrontLimits = DEFAULT_LIMITS,
    ) -> None:
        self.metrics = FrontMetrics()
        self.limits = limits
        self._authenticator = authenticate
        self._shared = Shared(app, raw or NoRoutes(), limits, self.metrics)
        self._shared.routes.attach(self.adopt)
        self._context: ssl.SSLContext | None = None
        self._listeners: list[socket.socket] = []
        self._tasks = Tasks("front")
        self._acceptors = Tasks("front")
        self._peers: dict[Peer, None] = {}  # in the order in which they were last used
        self._handshakes: dict[Peer, None] = {}
        self._adopted: dict[ByteStream, Adopted] = {}
        self._closing: set[SocketStream] = set()  # flushing what was written, and TLS's goodbye; bounded by drain_seconds

    async def serve(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen; returns the bound port. May be called again for another address. ``context`` should ask for client certificates."""
        self.replace_context(context)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, cast("tuple[str, int]", address[:2])) for family, _, _, _, address in found))
        for family, (address, _) in addresses:
            listener = socket.create_server((address, port), family=family, backlog=BACKLOG)
            listener.setblocking(False)
            port = cast(int, listener.getsockname()[1])  # an ephemeral port, once found, is used for every address
            self._listeners.append(listener)
            self._acceptors.keep(f"accept {address}", partial(self._accept_from, listener))
        log.info("front.listening", host=host, port=port)
        return port

    def replace_context(self, context: ssl.SSLContext) -> None:
        """The next connections use ``context``. Sets its ALPN, and no session tickets: a resumed session would lack the chain."""
        context.set_alpn_protocols(ALPN)
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        self._context = context

    async def adopt(self, stream: ByteStream, user: "User", routes: RawRoutes | None = None) -> None:
        """Serve HTTP/1 on a stream that is already authenticated as ``user``. The caller vouches for where it came from.

        ``routes``: where its requests go, when not where everybody's go.
        """
        credentials = Adopted(user)
        self._adopted[stream] = credentials
        shared = self._shared if routes is None else self._shared.leading_to(routes)
        try:
            await self._serve_adopted(stream, credentials, shared)
        finally:
            del self._adopted[stream]

    def disconnect(self, name: str) -> int:
        """Break off every connection on which user ``name`` has asked (they were revoked); returns how many there were."""
        peers = [peer for peer in self._peers if peer.credentials is not None and name in peer.credentials.names]
        for peer in peers:
            self._drop(peer)
        streams = [stream for stream, credentials in self._adopted.items() if name in credentials.names]
        for stream in streams:
            stream.abort(f"{name} may no longer use this controller")
        return len(peers) + len(streams)

    async def close(self, deadline_seconds: float = 5.0) -> None:
        """Stop accepting, close what is idle, let requests in flight finish, break off what is left at the deadline."""
        self._shared.draining.set()
        await self._acceptors.close()
        for listener in self._listeners:
            listener.close()
        for peer in list(self._peers):
            if peer.connection is None or peer.idle:
                self._drop(peer)
        busy = [peer.task for peer in self._peers if peer.task is not None]
        if busy:
            await asyncio.wait(busy, timeout=deadline_seconds)
        for peer in list(self._peers):
            log.info("front.connection.broken_off", client=peer.client, after_s=deadline_seconds)
            self._drop(peer)
        await self._tasks.close()
        await self._shared.routes.close()
        goodbyes = [stream.closed for stream in self._closing]
        if goodbyes:
            await asyncio.wait(goodbyes, timeout=min(deadline_seconds, self.limits.drain_seconds))
        for stream in list(self._closing):
            stream.abort()
        self._listeners.clear()

    # connections

    async def _accept_from(self, listener: socket.socket) -> None:
        """Until the front closes. An error (no file descriptors left) ends it; the task guard starts it again after a pause."""
        loop = asyncio.get_running_loop()
        while not self._shared.draining.is_set():
            accepted, address = await loop.sock_accept(listener)
            self._accepted(accepted, _address(address))

    def _accepted(self, accepted: socket.socket, client: tuple[str, int] | None) -> None:
        """A TCP connection has come: make room for it or refuse it, then TLS in a task of its own."""
        self.metrics.accepted += 1
        if self._shared.draining.is_set() or not self._make_room():
            self.metrics.refused += 1
            accepted.close()
            return
        peer = Peer(accepted, client)
        self._peers[peer] = None
        self._handshakes[peer] = None
        self.metrics.connections = len(self._peers)
        peer.task = self._tasks.spawn("connection", self._serve_peer(peer))
        peer.task.add_done_callback(lambda _: self._ended(peer))

    def _make_room(self) -> bool:
        if len(self._handshakes) >= self.limits.handshakes:
            self._drop(next(iter(self._handshakes)))
            self.metrics.evicted += 1
        if len(self._peers) < self.limits.connections:
            return True
        idle = next((peer for peer in self._peers if peer.idle), None)
        if idle is None:
            return False
        self._drop(idle)
        self.metrics.evicted += 1
        return True

    def _drop(self, peer: Peer) -> None:
        """Idle: close; otherwise break off, whatever is in flight."""
        idle = peer.idle
        self._forget(peer)
        if peer.task is not None:
            peer.task.cancel()
        if peer.stream is not None and idle:
            peer.stream.close()
        elif peer.stream is not None:
            peer.stream.abort("the front closes")

    def _forget(self, peer: Peer) -> None:
        self._handshakes.pop(peer, None)
        self._peers.pop(peer, None)
        self.metrics.connections = len(self._peers)

    async def _serve_peer(self, peer: Peer) -> None:
        if await self._secure(peer):
            await self._speak(peer)

    def _ended(self, peer: Peer) -> None:
        """However the task ended, also when it was cancelled before it began."""
        self._forget(peer)
        if peer.stream is None:
            peer.accepted.close()
            return
        peer.stream.close()
        if not peer.stream.closed.done():
            self._closing.add(peer.stream)
            peer.stream.closed.add_done_callback(partial(self._said_goodbye, peer.stream))
        self.metrics.bytes_in += peer.stream.bytes_in
        self.metrics.bytes_out += peer.stream.bytes_out

    def _said_goodbye(self, stream: SocketStream, _: object) -> None:
        self._closing.discard(stream)

    async def _secure(self, peer: Peer) -> bool:
        """TLS on the accepted connection; False when the other side fails at it."""
        assert self._context is not None
        stream = SocketStream(self.limits.read_buffer)  # not the protocol that comes back: uvloop returns TLS's own
        try:
            _tune(peer.accepted)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: stream,
                peer.accepted,
                ssl=self._context,
                ssl_handshake_timeout=self.limits.handshake_seconds,
                ssl_shutdown_timeout=self.limits.drain_seconds,
            )
        except OSError as error:  # ssl.SSLError, ConnectionError and TimeoutError are OSErrors
            self.metrics.handshake_failures += 1
            log.debug("front.handshake.failed", client=peer.client, reason=str(error))
            return False
        finally:
            self._handshakes.pop(peer, None)
        peer.stream = stream
        return True

    async def _speak(self, peer: Peer) -> None:
        assert peer.stream is not None
        tls = peer.stream.transport_info("ssl_object")
        remote, server = (_address(peer.stream.transport_info(name)) for name in ("peername", "sockname"))
        credentials = peer.credentials = Credentials(self._authenticator, peer_chain(tls), _elsewhere(remote, server))
        if tls.selected_alpn_protocol() == "h2":
            await self._shared.routes.http2(peer.stream, credentials, self._shared)
            return
        peer.connection = Connection(peer.stream, credentials, self._shared, peer.client, server)
        peer.connection.used = partial(self._used, peer)
        await peer.connection.run()

    def _used(self, peer: Peer) -> None:
        """Most recently used last, so that the first idle one is the one that was idle for longest."""
        if peer in self._peers:
            del self._peers[peer]
            self._peers[peer] = None

    async def _serve_adopted(self, stream: ByteStream, credentials: Adopted, shared: Shared) -> None:
        clean = False
        try:
            await Connection(stream, credentials, shared).run()
            async with asyncio.timeout(self.limits.drain_seconds):
                await stream.close_write()
                while await stream.read():
                    pass
            clean = True
        except (TimeoutError, *STREAM_ERRORS) as error:
            log.debug("front.stream.lost", reason=str(error))
        finally:
            if not clean:
                stream.abort("the connection was broken off")


def _tune(sock: socket.socket) -> None:
    """A peer that vanished without a word is noticed by the kernel, also while nothing is sent."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)


def _elsewhere(remote: tuple[str, int] | None, server: tuple[str, int] | None) -> str | None:
    """The address of another machine. Who speaks from the address that was dialled is this machine: the kernel lets no other use it."""
    return None if remote is None or (server is not None and remote[0] == server[0]) else remote[0]


def _address(name: object) -> tuple[str, int] | None:
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return None
