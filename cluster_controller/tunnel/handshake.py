"""The first messages of a link, on both sides: who are you, what do you speak, may you come in.

An accepted peer has `Limits.handshake_time` from the first packet to Welcome, however its bytes trickle. A peer without a
certificate may only Join. Nothing of a peer that was not welcomed reaches the rest of the controller: its attach record is judged
before the membership is asked, so what a child lies there is neither stored nor routed nor told upwards.
"""

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Protocol

import msgspec
import structlog

from cluster_controller.clock import wall
from cluster_controller.errors import BanyanError, InvalidInput, ProtocolError
from cluster_controller.identity import PeerCertificate, peer_identity
from cluster_controller.tasks import Tasks
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.link import Link, LinkHost
from cluster_controller.tunnel.messages import (
    CloseCode,
    ControlMessage,
    Hello,
    JoinReply,
    JoinRequest,
    LinkLimits,
    LinkRole,
    Open,
    Refusal,
    RefusalCode,
    RenewReply,
    RenewRequest,
    Welcome,
)
from cluster_controller.tunnel.protocol.stream import StreamState
from cluster_controller.tunnel.proxy import ended
from cluster_controller.tunnel.router import Router, Verdict

log = structlog.get_logger()

VERSIONS = (1,)
ATTACH_REFUSALS = {
    Verdict.NOT_YOURS: RefusalCode.FORBIDDEN,
    Verdict.UNSIGNED: RefusalCode.FORBIDDEN,
    Verdict.STALE: RefusalCode.REPLAYED,
    Verdict.FULL: RefusalCode.BUSY,
}
SKEW = 300.0  # seconds between two clocks that are worth a warning


class Membership(Protocol):
    """What the tunnel asks; implemented by `cluster_controller.tree`."""

    def hello(self, parent: str) -> Hello | Awaitable[Hello]:
        """Child side, after committing start and attach. ``parent``: uid of whom it is said to; "": the one parent there is."""

    async def welcome(self, hello: Hello, peer: PeerCertificate) -> Welcome | Refusal: ...

    async def join(self, request: JoinRequest, address: str) -> JoinReply: ...

    async def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply: ...

    def link_up(self, link: Link) -> None: ...

    def link_down(self, link: Link, reason: str) -> None: ...

    def control(self, link: Link, message: ControlMessage) -> None: ...


class HandshakeOwner(Protocol):
    """The tunnel, as a handshake sees it."""

    uid: str
    limits: Limits
    membership: Membership
    router: Router
    tasks: Tasks

    def admit(self, link: Link) -> None:
        """The link is established; it is the tunnel's from now on."""

    def room_for(self, uid: str) -> bool: ...

    def may_join(self) -> float:
        """0, or seconds after which a join may be tried again."""


class Refused(BanyanError):
    """The other side does not let this one in."""

    exit_code = 6

    def __init__(self, refusal: Refusal, by: str = "") -> None:
        super().__init__(refusal.reason or f"refused ({refusal.code.name.lower()})")
        self.refusal = refusal
        self.by = by  # uid of who refuses


class Handshake(LinkHost):
    """Common to both sides: the deadline, and that there are no streams yet."""

    def __init__(self, owner: HandshakeOwner) -> None:
        self.owner = owner
        self.peer: PeerCertificate | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, link: Link) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.owner.limits.handshake_time, self._late, link)

    def link_stream(self, link: Link, stream: StreamState, message: Open) -> None:
        raise ProtocolError("a stream before Welcome", CloseCode.PROTOCOL)

    def link_lost(self, link: Link, code: int, reason: str) -> None:
        self._stop_timer()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def settled(self, link: Link) -> None:
        """The link is established and no longer this handshake's."""
        self._stop_timer()

    def _late(self, link: Link) -> None:
        seconds = self.owner.limits.handshake_time
        proxy = link.wire.behind
        if proxy is not None:
            link.close(CloseCode.PROXY, str(proxy.failed(f"does not connect within {seconds:g} s")))
        else:
            link.close(CloseCode.HANDSHAKE_TIMEOUT, f"no Hello and Welcome within {seconds:g} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _identify(self, link: Link) -> None:
        chain = link.wire.tls.verified_chain()
        if not chain:
            return
        try:
            self.peer = link.peer = peer_identity(chain)
        except InvalidInput as error:
            raise ProtocolError(f"the peer's certificate is refused: {error}", CloseCode.FORBIDDEN) from None
        link.peer_uid, link.peer_name = self.peer.uid, self.peer.name

    def _own_limits(self) -> LinkLimits:
        return LinkLimits(initial_window=self.owner.limits.initial_window, max_streams=self.owner.limits.max_streams)


class Accepting(Handshake):
    """The parent's side."""

    def link_ready(self, link: Link) -> None:
        self._identify(link)

    def link_control(self, link: Link, message: ControlMessage) -> None:
        if self._task is not None:
            raise ProtocolError("a second message before the answer to the first", CloseCode.PROTOCOL)
        self._task = self.owner.tasks.spawn("handshake", self._answer(link, message))

    async def _answer(self, link: Link, message: ControlMessage) -> None:
        try:
            if isinstance(message, Hello):
                await self._hello(link, message)
            elif isinstance(message, JoinRequest):
                await self._join(link, message)
            elif isinstance(message, RenewRequest):
                await self._renew(link, message)
            else:
                self._refuse(link, RefusalCode.INVALID, f"{type(message).__name__} is no first message")
        except BanyanError as error:
            log.warning("handshake.failed", address=link.address, peer=link.peer_name, error=str(error))
            self._refuse(link, RefusalCode.INVALID, str(error))

    async def _hello(self, link: Link, hello: Hello) -> None:
        refusal = self._judge(hello)
        if refusal is not None:
            self._refuse(link, *refusal)
            return
        assert self.peer is not None
        _warn_of_skew(link, hello.unix_time)
        answer = await self.owner.membership.welcome(hello, self.peer)
        if link.closed:
            return
        if isinstance(answer, Refusal):
            self._refuse(link, answer.code, answer.reason, answer.retry_after)
            return
        limits = self.owner.limits
        welcome = msgspec.structs.replace(
            answer,
            version=next(version for version in hello.versions if version in VERSIONS),
            uid=answer.uid or self.owner.uid,
            heartbeat_seconds=answer.heartbeat_seconds or limits.heartbeat,
            dead_after_seconds=answer.dead_after_seconds or limits.dead_after,
            limits=self._own_limits(),
            unix_time=answer.unix_time or wall().timestamp(),
        )
        self.settled(link)
        link.send_control(welcome)
        link.established(welcome, hello)
        self.owner.admit(link)

    def _judge(self, hello: Hello) -> tuple[RefusalCode, str, float] | None:
        if self.peer is None:
            return RefusalCode.FORBIDDEN, "a peer without a certificate may only join; run `banyan join TOKEN`", 0.0
        if hello.uid != self.peer.uid:
            return RefusalCode.FORBIDDEN, f"the certificate is that of {self.peer.uid}, not of {hello.uid}", 0.0
        if not any(version in VERSIONS for version in hello.versions):
            theirs = ", ".join(map(str, hello.versions[:8])) or "none"
            ours = ", ".join(map(str, VERSIONS))
            return RefusalCode.VERSION, f"the child speaks tunnel versions {theirs}, this controller {ours}; upgrade the older one", 0.0
        if hello.role is LinkRole.BULK:
            return RefusalCode.INVALID, "this controller takes one link per child; send bulk over it", 0.0
        if hello.attach is None or hello.attach.uid != hello.uid:
            return RefusalCode.FORBIDDEN, f"Hello of {hello.uid} holds no attach record of its own", 0.0
        verdict = self.owner.router.judge(hello.attach)
        if verdict is not Verdict.ADDED:
            return ATTACH_REFUSALS[verdict], f"the attach record of {hello.uid} is refused: {verdict.value}", 0.0
        if not self.owner.room_for(hello.uid):
            return RefusalCode.BUSY, f"this controller has {self.owner.limits.max_links} links; attach elsewhere or raise max_links", 10.0
        return None

    async def _join(self, link: Link, request: JoinRequest) -> None:
        wait = self.owner.may_join()
        if wait:
            busy = Refusal(code=RefusalCode.BUSY, reason="too many joins at once; try again", retry_after=wait)
            reply = JoinReply(refusal=busy)
        else:
            reply = await self.owner.membership.join(request, link.address)
        link.send_control(reply)
        link.close(CloseCode.NORMAL, "joined" if reply.refusal is None else "not joined")

    async def _renew(self, link: Link, request: RenewRequest) -> None:
        if self.peer is None:
            self._refuse(link, RefusalCode.FORBIDDEN, "a renewal needs the certificate that it renews")
            return
        link.send_control(await self.owner.membership.renew(request, self.peer))
        link.close(CloseCode.NORMAL, "answered")

    def _refuse(self, link: Link, code: RefusalCode, reason: str, retry_after: float = 0.0) -> None:
        log.info("child.refused", address=link.address, peer=link.peer_name, code=code.name.lower(), reason=reason)
        link.send_control(Refusal(code=code, reason=reason, retry_after=retry_after))
        link.close(CloseCode.REFUSED, reason)


class Dialling(Handshake):
    """The child's side. ``outcome`` is set once: None when established, else why not; ``ended`` when the link is gone.

    ``parent``: uid of whom it wants to reach; "": the one that Hello names.
    """

    def __init__(self, owner: HandshakeOwner, parent: str = "") -> None:
        super().__init__(owner)
        self._parent = parent
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[None] = loop.create_future()
        self._hello: Hello | None = None

    def link_ready(self, link: Link) -> None:
        self._identify(link)
        self._task = self.owner.tasks.spawn("hello", self._greet(link))

    async def _greet(self, link: Link) -> None:
        if self._parent and self._parent != link.peer_uid:
            self._someone_else(link, self._parent)
            return
        try:
            made = self.owner.membership.hello(self._parent)
            hello = await made if inspect.isawaitable(made) else made
        except BanyanError as error:
            link.close(CloseCode.INTERNAL, f"no Hello can be made: {error}")
            return
        expected = hello.attach.parent_uid if hello.attach is not None else ""
        if expected and expected != link.peer_uid:
            self._someone_else(link, expected)
            return
        self._hello = msgspec.structs.replace(
            hello,
            versions=hello.versions or VERSIONS,
            uid=hello.uid or self.owner.uid,
            role=LinkRole.MAIN,
            limits=self._own_limits(),
            unix_time=hello.unix_time or wall().timestamp(),
        )
        link.send_control(self._hello)

    def _someone_else(self, link: Link, expected: str) -> None:
        link.close(CloseCode.FORBIDDEN, f"{link.address} is {link.peer_name} ({link.peer_uid}), not the parent {expected}")

    def link_control(self, link: Link, message: ControlMessage) -> None:
        if isinstance(message, Refusal):
            self._settle(Refused(message, link.peer_uid))
            link.close(CloseCode.NORMAL, "refused")
            return
        if not isinstance(message, Welcome) or self._hello is None:
            raise ProtocolError(f"{type(message).__name__} instead of Welcome", CloseCode.PROTOCOL)
        if message.version not in VERSIONS:
            raise ProtocolError(f"the parent chose tunnel version {message.version}, which was not offered", CloseCode.PROTOCOL)
        if message.uid != link.peer_uid:
            raise ProtocolError(f"the parent's certificate is that of {link.peer_uid}, not of {message.uid}", CloseCode.FORBIDDEN)
        if self.owner.uid in message.path:
            raise ProtocolError("the parent is below this controller: a loop; it detaches", CloseCode.LOOP)
        _warn_of_skew(link, message.unix_time)
        self.settled(link)
        link.established(message, self._hello)
        self._settle(None)
        self.owner.admit(link)

    def link_lost(self, link: Link, code: int, reason: str) -> None:
        super().link_lost(link, code, reason)
        self._settle(ended(code, reason))

    def _settle(self, error: BanyanError | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(error)


def _warn_of_skew(link: Link, theirs: float) -> None:
    ours = wall().timestamp()
    if theirs and abs(ours - theirs) > SKEW:
        log.warning("clock.skewed", peer=link.peer_name, here_unix=round(ours), there_unix=round(theirs))
