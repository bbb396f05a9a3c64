"""Making connections to a parent: addresses in order, proxies; and the one question of a joining site.

Whom to dial, and when, is what `course` says; how large packets may be on the way there, `segments`. Where this cluster is adopted and
its home takes it back, the new link is made before the old one is let go.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import structlog

from cluster_controller.clock import boottime
from cluster_controller.errors import BanyanError, InvalidInput, ProtocolError, Unreachable
from cluster_controller.identity import peer_identity
from cluster_controller.tasks import end_task
from cluster_controller.tunnel.course import Course, Dial, Parent, Probe, Timing, Wait
from cluster_controller.tunnel.handshake import Dialling, Handshake, HandshakeOwner, Refused
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.link import Link, LinkHost
from cluster_controller.tunnel.messages import (
    CloseCode,
    ControlMessage,
    JoinReply,
    JoinRequest,
    Open,
    Refusal,
    RefusalCode,
    RenewReply,
    RenewRequest,
)
from cluster_controller.tunnel.protocol.stream import StreamState
from cluster_controller.tunnel.proxy import Address, Connect, Proxy, ProxyFailed, ended, parse_address, proxy_for
from cluster_controller.tunnel.segments import FULL, SILENCE, SMALL, Segments
from cluster_controller.tunnel.wire import Wire, Wires

log = structlog.get_logger()
NEVER = float("inf")
Failure = TypeVar("Failure", bound=BanyanError)


async def connect(
    link: Link, context: ssl.SSLContext, address: Address, *, proxy: str | None, wires: Wires, segment: int = FULL
) -> None:  # fmt: skip
    """Give ``link`` a wire to ``address``, with TCP segments of at most ``segment`` bytes. Raises `Unreachable`."""
    through = proxy_for(address, proxy, os.environ)
    target = address if through is None else through.address
    connecting = Connect(through, address) if through is not None else None
    wire = Wire(link, context, wires, name=address.host, connect=connecting)
    limits = wires.limits
    link.attach_wire(wire)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.connect_time):
            if segment == FULL:
                await loop.create_connection(lambda: wire, target.host, target.port)
            else:
                await loop.create_connection(lambda: wire, sock=await _narrow(target, segment))
    except TimeoutError:
        raise _out_of_reach(target, through, f"does not answer within {limits.connect_time:g} s") from None
    except OSError as error:
        raise _out_of_reach(target, through, f"cannot be reached: {error.strerror or error}") from None


async def _narrow(target: Address, segment: int) -> socket.socket:
    """A connection whose two ends send no larger segments: the kernel takes the size only before it connects, which asyncio cannot do."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{target.host} has no address")
    for family, kind, number, _, where in await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            failure = error
        except asyncio.CancelledError:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _out_of_reach(target: Address, through: Proxy | None, why: str) -> Unreachable:
    return Unreachable(f"{target} {why}") if through is None else ProxyFailed(f"{target} {why} (it is the proxy {through})")


class Dialer:
    """Keeps one link to a parent: carries out the steps of a `Course`."""

    def __init__(self, owner: HandshakeOwner, context: Callable[[], ssl.SSLContext], wires: Wires) -> None:
        self._owner = owner
        self._context = context
        self._wires = wires
        self._segments = Segments()
        self.last_error: BanyanError | None = None  # why there is no link to the home parent now
        self.last_refusal: Refused | None = None  # of any parent, the newest; None once one took us in

    async def run(self, addresses: Sequence[str], proxy: str | None) -> None:
        """One parent, for ever. Raises `InvalidInput` at once when an address or the proxy is malformed."""
        targets = [parse_address(text) for text in addresses]
        if not targets:
            raise InvalidInput("no address of the parent is known; give at least one as host:port", "addresses")
        proxy_for(targets[0], proxy, os.environ)
        limits = self._owner.limits
        parents = (Parent(addresses=tuple(addresses)),)
        await self.follow(Course(lambda: parents, Timing(backoff_first=limits.backoff_first, backoff_cap=limits.backoff_cap)), proxy)

    async def follow(self, course: Course, proxy: str | None) -> None:
        """For ever."""
        link: Link | None = None
        try:
            while True:
                if link is not None and link.closed:
                    course.lost(boottime())
                    link = None
                link = await self._step(course, link, proxy)
        except asyncio.CancelledError:
            if link is not None:
                link.close(CloseCode.GOING_AWAY, "this controller stops")
            raise

    async def _step(self, course: Course, link: Link | None, proxy: str | None) -> Link | None:
        """One step; the link that stands after it."""
        step = course.next(boottime())
        match step:
            case Wait():
                await self._wait(link, step.seconds)
            case Probe():
                answered = await self._probe(step, proxy, link)
                if answered is not None:
                    course.probed(answered, boottime())
            case Dial():
                link = await self._dial(course, step, proxy) or link
        return link

    async def _wait(self, link: Link | None, seconds: float) -> None:
        if link is None:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await link.gone()

    async def _dial(self, course: Course, step: Dial, proxy: str | None) -> Link | None:
        """Try each address of the parent once. The link, once it is established; None when there is none."""
        parent, wish = step.parent, 0.0
        addresses = parent.addresses
        for text in addresses:
            try:
                bound = step.seconds / min(len(addresses), 2) if step.seconds else None
                link = await self._reach(parse_address(text), parent.uid, proxy, bound)
            except Refused as error:
                wish = max(wish, error.refusal.retry_after)
                self.last_refusal = _bare(error)
                self._failed(course, parent, text, error)
                if error.refusal.code is RefusalCode.HELD and parent.uid == course.home.uid:
                    course.held(boottime(), wish)
                    return None
                if parent.uid:
                    break  # it was the one we wanted to reach
            except (ProtocolError, Unreachable, InvalidInput) as error:
                self._failed(course, parent, text, error)
            else:
                self.last_error = self.last_refusal = None
                course.arrived(parent.uid, boottime())
                return link
        course.failed(boottime(), wish)
        return None

    def _failed(self, course: Course, parent: Parent, address: str, error: BanyanError) -> None:
        if parent.uid == course.home.uid:
            self.last_error = _bare(error)
        log.info("parent.unreachable", parent=parent.name or None, address=address, error=str(error))

    async def _reach(self, address: Address, uid: str, proxy: str | None, seconds: float | None) -> Link:
        """An established link. ``seconds`` bound the first byte of an answer: who has answered at all is only busy, with a crowd perhaps,
        and to begin anew would make it worse; from then on the handshake's own time bounds it."""
        handshake = Dialling(self._owner, uid)
        link = Link(handshake, self._owner.limits, dialled=True)
        try:
            async with asyncio.timeout(seconds) as patience:
                link.on_first_byte = lambda: patience.reschedule(None)
                async with self._measured(link, address, proxy):
                    handshake.start(link)
                    await handshake.outcome
        except TimeoutError:
            link.close(CloseCode.HANDSHAKE_TIMEOUT, f"no answer within {seconds:g} s")
            raise Unreachable(f"{address} does not answer within {seconds:g} s") from None
        except asyncio.CancelledError:
            link.close(CloseCode.GOING_AWAY, "this controller stops")
            raise
        finally:
            link.on_first_byte = None
            if not handshake.outcome.cancel() and not handshake.outcome.cancelled():
                handshake.outcome.exception()  # seen: it is what was raised, or the dialling was cancelled
        return link

    @contextlib.asynccontextmanager
    async def _measured(self, link: Link, address: Address, proxy: str | None, *, knocking: bool = False) -> AsyncIterator[None]:
        """Connected to ``address`` for what is asked there, in packets of a size that gets through: `Segments` learns what became of it.

        Who only knocks has heard large packets and sent none, so an answer proves nothing yet.
        """
        text, size = str(address), self._segments.size(str(address), boottime())
        await connect(link, self._context(), address, proxy=proxy, wires=self._wires, segment=size)
        if size != FULL:
            log.info("dial.small_segments", address=text, bytes=size, reason="connected, and no answer to larger ones")
        began = boottime()
        try:
            yield
        except Refused:
            self._segments.answered(text, boottime())
            raise
        except (Unreachable, ProtocolError, asyncio.CancelledError):  # the last is somebody's patience that ended
            if boottime() - began >= SILENCE:
                self._segments.silent(text)
            raise
        if not knocking:
            self._segments.answered(text, boottime())

    async def _probe(self, step: Probe, proxy: str | None, link: Link | None) -> bool | None:
        """Does the parent answer? One TLS handshake, and nothing is said. None: ``link`` was lost meanwhile, which is more urgent."""
        asking = asyncio.create_task(self._answers(step, proxy), name="probe home")
        gone = asyncio.create_task(link.gone() if link is not None else asyncio.Event().wait(), name="probe link")
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            await end_task(asking)
            await end_task(gone)

    async def _answers(self, step: Probe, proxy: str | None) -> bool:
        for text in step.parent.addresses:
            knock = _Knock()
            link = Link(knock, self._owner.limits, dialled=True)
            try:
                async with asyncio.timeout(step.seconds), self._measured(link, parse_address(text), proxy, knocking=True):
                    answered = await knock.answered
                if answered == step.parent.uid:
                    return True
            except (TimeoutError, BanyanError) as error:
                log.debug("home.silent", address=text, error=str(error))
            finally:
                link.close(CloseCode.NORMAL, "asked whether it is there")
                if not knock.answered.cancel() and not knock.answered.cancelled():
                    knock.answered.exception()  # seen
        return False


def _bare(error: Failure) -> Failure:
    """What is kept outlives the attempt: its frames would keep the link that failed, and all that it held, in memory."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


class _Knock(LinkHost):
    """Is somebody there, and who?"""

    def __init__(self) -> None:
        self.answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # uid of who answers

    def link_ready(self, link: Link) -> None:
        try:
            uid = peer_identity(link.wire.tls.verified_chain()).uid
        except BanyanError as error:
            link.close(CloseCode.FORBIDDEN, str(error))
            return
        if not self.answered.done():
            self.answered.set_result(uid)

    def link_control(self, link: Link, message: ControlMessage) -> None:
        raise ProtocolError(f"{type(message).__name__} before Hello", CloseCode.PROTOCOL)

    def link_stream(self, link: Link, stream: StreamState, message: Open) -> None:
        raise ProtocolError("a stream before Welcome", CloseCode.PROTOCOL)

    def link_lost(self, link: Link, code: int, reason: str) -> None:
        if not self.answered.done():
            self.answered.set_exception(ended(code, reason))


Reply = TypeVar("Reply", JoinReply, RenewReply)


class _Asking(LinkHost):
    """Sends one request and waits for its reply."""

    def __init__(self, request: JoinRequest | RenewRequest, check: Callable[[tuple[bytes, ...]], None] | None) -> None:
        self._request = request
        self._check = check
        self.asked = False  # the other side may have the request
        self.reply: asyncio.Future[JoinReply | RenewReply] = asyncio.get_running_loop().create_future()

    def link_ready(self, link: Link) -> None:
        if self._check is not None:
            try:
                self._check(link.wire.tls.presented_chain())
            except BanyanError as error:
                if not self.reply.done():
                    self.reply.set_exception(error)
                link.close(CloseCode.FORBIDDEN, "not the parent that was expected")
                return
        self.asked = True
        link.send_control(self._request)

    def link_control(self, link: Link, message: ControlMessage) -> None:
        if self.reply.done():
            return
        if isinstance(message, JoinReply | RenewReply):
            self.reply.set_result(message)
        elif isinstance(message, Refusal):
            self.reply.set_exception(Refused(message))
        else:
            raise ProtocolError(f"{type(message).__name__} instead of a reply", CloseCode.PROTOCOL)

    def link_stream(self, link: Link, stream: StreamState, message: Open) -> None:
        raise ProtocolError("a stream before Welcome", CloseCode.PROTOCOL)

    def link_lost(self, link: Link, code: int, reason: str) -> None:
        if not self.reply.done():
            self.reply.set_exception(ended(code, reason))
            self.reply.exception()  # seen: whoever waited may be gone, and has closed the link itself


async def ask(
    addresses: Sequence[str],
    context: ssl.SSLContext,
    request: JoinRequest | RenewRequest,
    *,
    proxy: str | None = None,
    check: Callable[[tuple[bytes, ...]], None] | None = None,
    limits: Limits | None = None,
) -> JoinReply | RenewReply:
    """Ask the first of ``addresses`` where a controller answers, once. For `banyan join` and for a renewal without a link.

    ``check`` is given the certificates (DER, leaf first) that the other side presents, before anything is said to it; what it
    raises is raised here. Raises `Unreachable` when no address answers (`ProxyFailed`: it was the proxy), `Refused`, and `ProtocolError`.
    """
    limits = limits or Limits()
    targets = [parse_address(text) for text in addresses]
    failure: BanyanError = InvalidInput("no address of the parent is known; give at least one as host:port", "addresses")
    for address in targets:
        for segment in (FULL, SMALL):
            asking = _Asking(request, check)
            wires = Wires(limits)
            link = Link(asking, limits, dialled=True)
            connected = NEVER
            try:
                async with asyncio.timeout(limits.connect_time + limits.handshake_time):
                    await connect(link, context, address, proxy=proxy, wires=wires, segment=segment)
                    connected = boottime()
                    return await asking.reply
            except TimeoutError:
                failure = _no_answer(link, address, limits.connect_time + limits.handshake_time)
            except Unreachable as error:
                failure = error
            except ProtocolError as error:
                if asking.asked:  # it may have been taken in: a second controller must not be asked the same
                    raise
                failure = error
            finally:
                link.close(CloseCode.NORMAL, "asked")
                await wires.closed()
                if asking.reply.done() and not asking.reply.cancelled():
                    asking.reply.exception()  # seen
            if asking.asked or boottime() - connected < SILENCE:
                break  # smaller packets would meet the same
    raise failure


def _no_answer(link: Link, address: Address, seconds: float) -> Unreachable:
    proxy = link.wire.behind
    if proxy is not None:
        return ProxyFailed(str(proxy.failed(f"does not connect to {address} within {seconds:g} s")))
    return Unreachable(f"{address} does not answer within {seconds:g} s")


__all__ = ["Dialer", "Handshake", "ask", "connect"]
