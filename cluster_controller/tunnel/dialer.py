"""Making connections to a parent: addresses in order, proxies, backoff with full jitter; and the one question of a joining site.

Full jitter (each wait is uniform between zero and the doubled, capped bound) because a parent that restarts must not see
all its children at one instant, again and again.
"""

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from cluster_controller.errors import BanyanError, InvalidInput, ProtocolError, Unreachable
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
    RenewReply,
    RenewRequest,
)
from cluster_controller.tunnel.protocol.stream import StreamState
from cluster_controller.tunnel.proxy import Address, Connect, Proxy, ProxyFailed, ended, parse_address, proxy_for
from cluster_controller.tunnel.wire import Wire, Wires

log = structlog.get_logger()

SETTLED = 5.0  # seconds that a link must live before the next backoff starts anew
LONGEST_WAIT = 60.0  # that a parent may ask for


class Backoff:
    """How long to wait before the next attempt. Pure but for the dice, which are given."""

    def __init__(self, first: float, cap: float, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._first = first
        self._cap = cap
        self._uniform = uniform
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next(self, at_least: float = 0.0) -> float:
        """Seconds; ``at_least`` is the other side's wish and is honoured up to a minute."""
        bound = min(self._cap, self._first * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return min(at_least, LONGEST_WAIT) + self._uniform(0.0, bound)


async def connect(link: Link, context: ssl.SSLContext, address: Address, *, proxy: str | None, wires: Wires) -> None:
    """Give ``link`` a wire to ``address``. Raises `Unreachable`."""
    through = proxy_for(address, proxy, os.environ)
    target = address if through is None else through.address
    connecting = Connect(through, address) if through is not None else None
    wire = Wire(link, context, wires, name=address.host, connect=connecting)
    limits = wires.limits
    link.attach_wire(wire)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.connect_time):
            await loop.create_connection(lambda: wire, target.host, target.port)
    except TimeoutError:
        raise _out_of_reach(target, through, f"does not answer within {limits.connect_time:g} s") from None
    except OSError as error:
        raise _out_of_reach(target, through, f"cannot be reached: {error.strerror or error}") from None


def _out_of_reach(target: Address, through: Proxy | None, why: str) -> Unreachable:
    return Unreachable(f"{target} {why}") if through is None else ProxyFailed(f"{target} {why} (it is the proxy {through})")


class Dialer:
    """Keeps one link to the parent."""

    def __init__(self, owner: HandshakeOwner, context: Callable[[], ssl.SSLContext], wires: Wires) -> None:
        self._owner = owner
        self._context = context
        self._wires = wires
        self.last_error: BanyanError | None = None  # why there is no link now

    async def run(self, addresses: Sequence[str], proxy: str | None) -> None:
        """For ever. Raises `InvalidInput` at once when an address or the proxy is malformed."""
        targets = [parse_address(text) for text in addresses]
        if not targets:
            raise InvalidInput("no address of the parent is known; give at least one as host:port", "addresses")
        proxy_for(targets[0], proxy, os.environ)
        limits = self._owner.limits
        backoff = Backoff(limits.backoff_first, limits.backoff_cap)
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            wish = await self._round(targets, proxy)
            if loop.time() - started > SETTLED + limits.connect_time:
                backoff.reset()
            await asyncio.sleep(backoff.next(wish))

    async def _round(self, targets: Sequence[Address], proxy: str | None) -> float:
        """Try each address once; when one takes us in, stay until that link ends. How long the parent asks to wait."""
        wish = 0.0
        for address in targets:
            try:
                await self._stay(address, proxy)
                return 0.0
            except Refused as error:
                wish = max(wish, error.refusal.retry_after)
                self._failed(address, error)
            except (ProtocolError, Unreachable) as error:
                self._failed(address, error)
        return wish

    def _failed(self, address: Address, error: BanyanError) -> None:
        self.last_error = error
        log.info("parent.unreachable", address=str(address), error=str(error))

    async def _stay(self, address: Address, proxy: str | None) -> None:
        handshake = Dialling(self._owner)
        link = Link(handshake, self._owner.limits, dialled=True)
        try:
            await connect(link, self._context(), address, proxy=proxy, wires=self._wires)
            handshake.start(link)
            await handshake.outcome
            self.last_error = None
            await link.gone()
        except asyncio.CancelledError:
            link.close(CloseCode.GOING_AWAY, "this controller stops")
            raise
        finally:
            if not handshake.outcome.cancel() and not handshake.outcome.cancelled():
                handshake.outcome.exception()  # seen: it is what was raised, or the dialling was cancelled


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
        asking = _Asking(request, check)
        wires = Wires(limits)
        link = Link(asking, limits, dialled=True)
        try:
            async with asyncio.timeout(limits.connect_time + limits.handshake_time):
                await connect(link, context, address, proxy=proxy, wires=wires)
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
    raise failure


def _no_answer(link: Link, address: Address, seconds: float) -> Unreachable:
    proxy = link.wire.behind
    if proxy is not None:
        return ProxyFailed(str(proxy.failed(f"does not connect to {address} within {seconds:g} s")))
    return Unreachable(f"{address} does not answer within {seconds:g} s")


__all__ = ["Backoff", "Dialer", "Handshake", "ask", "connect"]
