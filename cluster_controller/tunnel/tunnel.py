"""The tunnel of one controller: its links, the services that end here, and the relay between links.

Law 7 at this door: a stream is taken from a child only toward this controller or, when the policy says so, further; a child may
name as sources only clusters of its own subtree; from the parent only what is for this subtree. A relayed stream is joined
inside the state machines (`protocol.stream.join`), so nothing here runs per frame.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

import structlog

from cluster_controller.clock import boottime
from cluster_controller.errors import BanyanError, Exhausted, InvalidInput, ProtocolError, Unreachable
from cluster_controller.identity import Identity
from cluster_controller.tasks import Tasks
from cluster_controller.tunnel.course import Course
from cluster_controller.tunnel.dialer import Dialer
from cluster_controller.tunnel.handshake import Membership, Refused
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.link import Link, LinkHost
from cluster_controller.tunnel.messages import (
    CloseCode,
    ControlMessage,
    Held,
    Lane,
    Open,
    Path,
    RenewReply,
    RenewRequest,
    ResetCode,
    Revoked,
    Routes,
    Standing,
)
from cluster_controller.tunnel.protocol.stream import StreamState, join
from cluster_controller.tunnel.router import Router
from cluster_controller.tunnel.server import Server, TokenBucket
from cluster_controller.tunnel.stream import Stream
from cluster_controller.tunnel.wire import Wires

log = structlog.get_logger()

Handler = Callable[[Stream], Awaitable[None]]
Policy = Callable[[str, str, str], bool]

FROM_CHILD = (Routes, RenewRequest, Revoked, Held)
FROM_PARENT = (RenewReply, Revoked, Held, Path, Standing)


def stay_below(source: str, destination: str, service: str) -> bool:
    """The default policy: nothing leaves the subtree upwards."""
    return False


class Tunnel(LinkHost):
    """One per controller. ``policy(source uid, destination uid, service)``: may a stream for outside the subtree go up?"""

    def __init__(
        self,
        identity: Callable[[], Identity],
        membership: Membership,
        router: Router,
        limits: Limits | None = None,
        policy: Policy = stay_below,
    ) -> None:
        self.limits = limits or Limits()
        self.membership = membership
        self.router = router
        self.policy = policy
        self.uid = identity().uid
        self.tasks = Tasks("tunnel")
        self.parent: Link | None = None
        self._links: dict[str, Link] = {}
        self.links: Mapping[str, Link] = MappingProxyType(self._links)  # by uid of the child
        self._identity = identity
        self._handlers: dict[str, Handler] = {}
        self._wires = Wires(self.limits)
        self._servers: list[Server] = []
        self._dialer = Dialer(self, lambda: self._identity().client_context(), self._wires)
        self._joins = TokenBucket(self.limits.joins_per_second, boottime())

    # -- the door -----------------------------------------------------------------------------------------------------------

    def handle(self, service: str, handler: Handler) -> None:
        """Streams of ``service`` that end here go to ``handler``. When it returns, what it wrote still leaves and the stream ends."""
        self._handlers[service] = handler

    async def serve(self, host: str, port: int) -> int:
        """Accept children; the bound port."""
        server = Server(self, lambda: self._identity().server_context(), self._wires)
        bound = await server.listen(host, port)
        self._servers.append(server)
        log.info("tunnel.listening", host=host, port=bound)
        return bound

    async def dial(self, addresses: Sequence[str], proxy: str | None = None) -> None:
        """Keep the link to the parent, for ever. ``proxy``: its URL; "" for none; None to follow HTTPS_PROXY and NO_PROXY."""
        await self._dialer.run(addresses, proxy)

    async def follow(self, course: Course, proxy: str | None = None) -> None:
        """Keep a link to the parent that ``course`` names, for ever: home, or an alternate that has taken this cluster in."""
        await self._dialer.follow(course, proxy)

    async def open(self, uid: str, service: str, metadata: bytes = b"", lane: Lane = Lane.INTERACTIVE) -> Stream:
        """A stream to the cluster ``uid``, wherever it is in reach.

        Raises `Unreachable`, which names the hop that has no link, and `Exhausted`. A hop further away that cannot go on
        resets the stream: reading raises `StreamUnreachable` then.
        """
        if uid == self.uid:
            raise InvalidInput("a stream to this controller itself; call the service instead", "uid")
        return await self._toward(uid, self.uid, service).open(uid, service, metadata, lane)

    @property
    def dial_error(self) -> BanyanError | None:
        """Why there is no link to the home parent now; None when there is one to a parent, or none was tried."""
        return self._dialer.last_error

    @property
    def refusal(self) -> Refused | None:
        """What the last parent said that did not let this cluster in; None once one did."""
        return self._dialer.last_refusal

    def _pending(self) -> int:
        return sum(server.pending for server in self._servers)

    pending = property(_pending, doc="Connections in handshake.")

    async def close(self) -> None:
        """Stop listening, close every link, end every handler."""
        for server in self._servers:
            server.close()
        for link in (*self._links.values(), *((self.parent,) if self.parent else ())):
            link.close(CloseCode.GOING_AWAY, "this controller stops")
        await self.tasks.close()
        await self._wires.closed()

    # -- routing ------------------------------------------------------------------------------------------------------------

    def _toward(self, uid: str, source: str, service: str) -> Link:
        parent = self.parent
        if parent is not None and uid == parent.peer_uid:
            return parent
        hop = self.router.next_hop(uid)
        if hop is not None:
            link = self._links.get(hop)
            if link is None or link.closed:
                raise Unreachable(f"{uid} is reached by way of {hop}, which has no link to this controller now")
            return link
        if parent is not None and self.policy(source, uid, service):
            return parent
        raise Unreachable(f"{uid} is not in the subtree of {self.uid}; ask a controller above it")

    def link_stream(self, link: Link, stream: StreamState, message: Open) -> None:
        source = (link.peer_uid, *message.source)
        destination = message.destination[-1] if message.destination else ""
        refusal = self._judge(link, source, message)
        if refusal is not None:
            stream.connection.reset(stream, *refusal, hop=self.uid)
        elif destination == self.uid:
            self._serve_stream(link, stream, message, source)
        else:
            self._relay(link, stream, destination, message, source)

    def _judge(self, link: Link, source: tuple[str, ...], message: Open) -> tuple[ResetCode, str] | None:
        if self.uid in source or len(source) > self.limits.max_hops:
            return ResetCode.LOOP, f"the stream went in a circle or over more than {self.limits.max_hops} hops"
        if not link.is_parent:
            for claimed in message.source:
                if self.router.next_hop(claimed) != link.peer_uid:
                    return ResetCode.FORBIDDEN, f"{claimed} is not below {link.peer_uid}"
        return None

    def _serve_stream(self, link: Link, state: StreamState, message: Open, source: tuple[str, ...]) -> None:
        handler = self._handlers.get(message.service)
        if handler is None:
            reason = f"{self.uid} serves no {message.service[:64]!r}"
            state.connection.reset(state, ResetCode.NO_SERVICE, reason, self.uid)
            return
        opened = Open(service=message.service, metadata=message.metadata, source=source, lane=message.lane)
        stream = Stream(state, opened, asyncio.get_running_loop())
        self.tasks.spawn(f"stream/{message.service}", self._run(handler, stream, state))

    async def _run(self, handler: Handler, stream: Stream, state: StreamState) -> None:
        try:
            await handler(stream)
            state.connection.abandon(state)
        except BanyanError as error:
            stream.abort(str(error), ResetCode.INTERNAL)
            log.debug("stream.failed", service=stream.service, error=str(error))
        finally:
            if state.parting is None:
                stream.abort("the service failed", ResetCode.INTERNAL)

    def _relay(self, link: Link, stream: StreamState, destination: str, message: Open, source: tuple[str, ...]) -> None:
        try:
            above = self.router.next_hop(destination) is None
            if not link.is_parent and above and not self.policy(source[-1], destination, message.service):
                reason = f"{destination} is not below {self.uid}, and streams do not leave its subtree"
                stream.connection.reset(stream, ResetCode.FORBIDDEN, reason, self.uid)
                return
            out = self._toward(destination, source[-1], message.service)
            if out is link:
                raise Unreachable(f"{destination} is not reached by way of {self.uid}")
            onward = out.connection.open(
                Open(destination=message.destination, service=message.service, metadata=message.metadata, source=source, lane=message.lane)
            )
        except Unreachable as error:
            stream.connection.reset(stream, ResetCode.UNREACHABLE, str(error), self.uid)
        except (Exhausted, InvalidInput) as error:
            stream.connection.reset(stream, ResetCode.EXHAUSTED, str(error), self.uid)
        else:
            join(stream, onward)

    # -- what handshakes ask ------------------------------------------------------------------------------------------------

    def room_for(self, uid: str) -> bool:
        return uid in self._links or len(self._links) < self.limits.max_links

    def may_join(self) -> float:
        return self._joins.take(boottime())

    def admit(self, link: Link) -> None:
        link.host = self
        if link.is_parent:
            previous, self.parent = self.parent, link
        else:
            previous = self._links.get(link.peer_uid)
            self._links[link.peer_uid] = link
        if previous is not None:
            previous.close(CloseCode.SUPERSEDED, "a newer connection of the same cluster took its place")
        log.info("link.up", peer=link.peer_name, uid=link.peer_uid, parent=link.is_parent, address=link.address)
        self.membership.link_up(link)

    # -- what established links tell ----------------------------------------------------------------------------------------

    def link_ready(self, link: Link) -> None:
        raise ProtocolError("a second handshake", CloseCode.PROTOCOL)

    def link_control(self, link: Link, message: ControlMessage) -> None:
        if not isinstance(message, FROM_PARENT if link.is_parent else FROM_CHILD):
            raise ProtocolError(f"a {type(message).__name__} is not the {'parent' if link.is_parent else 'child'}'s to send")
        if isinstance(message, Path) and self.uid in message.uids:
            raise ProtocolError("the parent is now below this controller: a loop; it detaches", CloseCode.LOOP)
        if isinstance(message, RenewRequest):
            self.tasks.spawn("renew", self._renew(link, message))
            return
        self.membership.control(link, message)

    async def _renew(self, link: Link, request: RenewRequest) -> None:
        if link.peer is not None:
            link.send_control(await self.membership.renew(request, link.peer))

    def link_lost(self, link: Link, code: int, reason: str) -> None:
        if link.is_parent:
            if self.parent is link:
                self.parent = None
        elif self._links.get(link.peer_uid) is link:
            del self._links[link.peer_uid]
        stats = link.stats
        log.info(
            "link.lost",
            peer=link.peer_name,
            uid=link.peer_uid,
            code=code,
            reason=reason,
            bytes_in=stats.bytes_in,
            bytes_out=stats.bytes_out,
        )
        self.membership.link_down(link, reason)
