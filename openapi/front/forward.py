"""Forward one HTTP/1 request over a byte stream, and its response back: bodies both ways under back-pressure, upgrades spliced.

Used for applications and for descendants' own APIs. A stream whose answer was read to its end may wait for the next request of
the same client connection to the same place (`kept`). What was sent over such a stream and got no answer is asked again on a
stream of its own, if it is safe to repeat; what is not goes only where an answer is promised (`Target.answers_once_more`), else
over a stream of its own from the beginning. What belongs to a hop (RFC 9110, section
7.6.1) stays on its hop; a bearer token is this tree's credential and is never shown to an application. When the client leaves,
the other side is told by an abort at once; when the other side leaves, the client sees a Status if nothing of an answer was sent,
else a connection that breaks off.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from cluster_controller.errors import BanyanError, Unreachable
from cluster_controller.tasks import Tasks
from cluster_shim.contract import ByteStream
from openapi.front import body as bodies
from openapi.front.body import BodyError
from openapi.front.exchange import Disconnected, Exchange
from openapi.front.head import CHUNKED, UNTIL_CLOSE, HeadError, Headers, RequestHead, ResponseHead, find_head_end, parse_response, tokens
from openapi.front.kept import Place
from openapi.front.splice import splice
from openapi.front.status import BadGateway, GatewayTimeout
from openapi.front.streams import STREAM_ERRORS, PushbackStream

MAX_RESPONSE_HEAD = 65536
MAX_INFORMATIONAL = 16  # 1xx heads before the answer
RETIRE_SECONDS = 2.0  # for the other side to close a stream whose answer was read

_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
    }
)
_BEARER = re.compile(rb"\s*bearer\b", re.IGNORECASE)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

T = TypeVar("T")


class NoAnswer(BadGateway):
    """The stream broke before the first byte of an answer; the same request may be sent again if it is safe."""


class Target(Struct, frozen=True, kw_only=True):
    """Where a request goes and what changes on its way."""

    open: Callable[[], Awaitable[ByteStream]]
    path: bytes  # and query, as the other side shall see it
    name: str  # for messages
    request_headers: Headers = ()  # replace what the client sent under these names
    response_headers: Headers = ()  # replace what the other side sent under these names
    answer_seconds: float = 600.0  # from the request to the head of its answer
    place: Place = ()  # equal ones of one user may share a stream, one request after the other; (): never
    answers_once_more: bool = False  # the other side never closes an idle connection in the face of a request


class Forwarder:
    """``tasks`` owns the closing of streams that are done."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def forward(self, exchange: Exchange, targets: Sequence[Target]) -> None:
        """Send the request to the first target that takes it. A request that is safe to repeat may go to the next one."""
        for number, target in enumerate(targets):
            last = number == len(targets) - 1
            if await self._over_kept(exchange, target):
                return
            try:
                stream = PushbackStream(await target.open())
            except STREAM_ERRORS:
                if last:
                    raise
                continue  # nothing was sent: the next one may be asked
            try:
                await self._over(exchange, target, stream)
            except NoAnswer as error:
                if last or not _repeatable(exchange.head):
                    raise _told(error) from None
            else:
                return

    async def _over_kept(self, exchange: Exchange, target: Target) -> bool:
        """True when a kept stream led to the answer. Any other kept stream is let go: the place may serve one connection at a time."""
        place = target.place if _may_share(exchange, target) else ()
        stream = await exchange.kept.take(place, exchange.user)
        if stream is None:
            return False
        try:
            await self._over(exchange, target, stream)
        except NoAnswer as error:
            if not _repeatable(exchange.head):
                raise _told(error) from None
            return False
        return True

    async def _over(self, exchange: Exchange, target: Target, stream: PushbackStream) -> None:
        """One attempt. Whatever happens, ``stream`` is kept, closed or aborted afterwards."""
        clean = False
        try:
            # In the turn of the loop in which it was opened: over a link the two are then one message, and each hop wakes once for both.
            taken = await _send_head(exchange, stream, target)
            head, sent = await self._rest(exchange, target, stream, taken)
            clean = True
        finally:
            if not clean:
                stream.abort("the request was given up")
        if not (sent and _keep(exchange, target, stream, head)):
            self._tasks.spawn("retire", _retire(stream))

    async def _rest(self, exchange: Exchange, target: Target, stream: PushbackStream, taken: bool) -> tuple[ResponseHead, bool]:
        """What follows the request's head. The answer's head, and whether the whole request was sent."""
        sent = asyncio.Event()
        client = asyncio.create_task(_client_side(exchange, stream, taken, sent), name="forward/request")
        answer = asyncio.create_task(_answer_head(exchange.head.method, stream, target), name="forward/answer")
        try:
            head = await _unless_gone(answer, client)
            if head.status == 101:
                await _stop(client)
                await self._upgrade(exchange, target, stream, head)
            else:
                body = asyncio.create_task(_answer_body(exchange, target, stream, head), name="forward/body")
                await _unless_gone(body, client)
            return head, sent.is_set()
        finally:
            await _stop(client)
            await _stop(answer)

    async def _upgrade(self, exchange: Exchange, target: Target, stream: PushbackStream, head: ResponseHead) -> None:
        if not exchange.head.upgrade:
            raise BadGateway(f"{target.name} switched protocols without being asked")
        switch = [(b"connection", b"Upgrade"), (b"upgrade", head.get(b"upgrade") or exchange.head.upgrade)]
        exchange.status = 101
        await exchange.informational(101, [*switch, *_response_headers(head.headers, target)])
        await splice(exchange.hijack(), stream)


def _told(error: NoAnswer) -> BanyanError:
    """What the client is told: the hop that is cut, when that is the reason."""
    return error.__cause__ if isinstance(error.__cause__, Unreachable) else error


def _may_share(exchange: Exchange, target: Target) -> bool:
    """May this request go over a stream that served others, and leave it to others?"""
    head = exchange.head
    return bool(target.place) and exchange.keep_alive and not head.upgrade and (target.answers_once_more or _repeatable(head))


def _keep(exchange: Exchange, target: Target, stream: PushbackStream, head: ResponseHead) -> bool:
    """After an answer that was read whole: keep the stream if it stands exactly at the next one."""
    whole = head.status >= 200 and head.length != UNTIL_CLOSE and head.keep_alive and not stream.pending
    if not whole or exchange.user is None or not _may_share(exchange, target):
        return False
    return exchange.kept.keep(stream, target.place, exchange.user)


def request_head(head: RequestHead, target: Target, *, last: bool = True) -> bytes:
    """The head as the other side shall see it; ``last``: no other request follows on its stream."""
    replaced = {name for name, _ in target.request_headers}
    nominated = tokens(head.headers, b"connection") - {b"host", b"content-length"}
    lines = [b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), target.path)]
    for name, value in head.headers:
        if name in _HOP or name in nominated or name in replaced or name.startswith(b"banyan-"):
            continue
        if name == b"authorization" and _BEARER.match(value):
            continue
        lines.append(b"%b: %b\r\n" % (name, value))
    lines += [b"%b: %b\r\n" % header for header in target.request_headers]
    if head.length == CHUNKED:
        lines.append(b"transfer-encoding: chunked\r\n")
    if head.upgrade:
        lines.append(b"connection: Upgrade\r\nupgrade: %b\r\n" % head.upgrade)
    elif last:
        lines.append(b"connection: close\r\n")
    return b"".join([*lines, b"\r\n"])


async def _send_head(exchange: Exchange, stream: ByteStream, target: Target) -> bool:
    """False when the other side reads no more of it; its answer, or the lack of one, says why."""
    try:
        await stream.write(request_head(exchange.head, target, last=not _may_share(exchange, target)))
    except STREAM_ERRORS:
        return False
    return True


async def _client_side(exchange: Exchange, stream: ByteStream, taken: bool, sent: asyncio.Event) -> None:
    """Send the body if the head was ``taken``, set ``sent``, then watch the client. Ends only by raising what is wrong with the client."""
    try:
        chunked = exchange.head.length == CHUNKED
        while taken and (piece := await exchange.read_body()):
            await stream.write(bodies.chunk(piece) if chunked else piece)
        if taken and chunked:
            await stream.write(bodies.LAST_CHUNK)
        if taken:
            sent.set()
    except Disconnected:
        raise
    except STREAM_ERRORS:
        pass  # as with the head
    if not exchange.body_done:
        await asyncio.get_running_loop().create_future()
    await exchange.disconnected()
    raise Disconnected("the client closed the connection before the answer was complete")


async def read_response_head(stream: PushbackStream, method: str, name: str) -> ResponseHead:
    """The next head that is not merely informational."""
    for _ in range(MAX_INFORMATIONAL):
        raw = await _collect(stream, name)
        try:
            head = parse_response(raw, method)
        except HeadError as error:
            raise BadGateway(f"{name} did not answer in HTTP: {error}") from error
        if head.status >= 200 or head.status == 101:
            return head
    raise BadGateway(f"{name} sent {MAX_INFORMATIONAL} informational heads and no answer")


async def _answer_head(method: str, stream: PushbackStream, target: Target) -> ResponseHead:
    try:
        async with asyncio.timeout(target.answer_seconds):
            return await read_response_head(stream, method, target.name)
    except TimeoutError:
        raise GatewayTimeout(f"{target.name} did not answer within {target.answer_seconds:g} s") from None


async def _collect(stream: PushbackStream, name: str) -> bytes:
    buffer = bytearray()
    scanned = 0
    while True:
        try:
            data = await stream.read()
        except STREAM_ERRORS as error:
            raise (BadGateway if buffer else NoAnswer)(f"{name} broke off before it answered: {error}") from error
        if not data:
            what = "in the middle of its answer's head" if buffer else "before it answered"
            raise (BadGateway if buffer else NoAnswer)(f"{name} closed the connection {what}")
        buffer += data
        try:
            end = find_head_end(buffer, scanned)
        except HeadError as error:
            raise BadGateway(f"{name} did not answer in HTTP: {error}") from error
        if end >= 0:
            stream.unread(bytes(buffer[end:]))
            return bytes(buffer[:end])
        if len(buffer) > MAX_RESPONSE_HEAD:
            raise BadGateway(f"{name} answered with a head of more than {MAX_RESPONSE_HEAD} bytes")
        scanned = len(buffer)


async def _answer_body(exchange: Exchange, target: Target, stream: PushbackStream, head: ResponseHead) -> None:
    await exchange.start(head.status, _response_headers(head.headers, target), head.reason)
    decoder = bodies.decoder(head.length)
    if not decoder.done and not stream.pending:
        await exchange.flush()  # the first event of a stream may come much later than its head
    while not decoder.done:
        await exchange.write(await read_piece(stream, decoder, target.name))
    stream.unread(decoder.rest)
    await exchange.finish()


async def read_piece(stream: PushbackStream, decoder: bodies.Decoder, name: str) -> bytes:
    """The next piece of an answer's body, maybe empty; raises Disconnected when the answer cannot be completed."""
    try:
        data = await stream.read()
        if data:
            return decoder.feed(data)
        decoder.end()
    except (BodyError, *STREAM_ERRORS) as error:
        raise Disconnected(f"the answer of {name} broke off: {error}") from error
    return b""


def _response_headers(headers: Headers, target: Target) -> list[tuple[bytes, bytes]]:
    replaced = {name for name, _ in target.response_headers}
    nominated = tokens(headers, b"connection") - {b"content-length"}
    kept = [header for header in headers if header[0] not in _HOP and header[0] not in nominated and header[0] not in replaced]
    return [*kept, *target.response_headers]


def _repeatable(head: RequestHead) -> bool:
    return head.method in _SAFE and head.length == 0 and not head.upgrade


async def _unless_gone(work: asyncio.Task[T], client: asyncio.Task[None]) -> T:
    """The result of ``work``; what the client's side raises when that comes first."""
    try:
        await asyncio.wait({work, client}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        client.result()
        raise Disconnected("the client has gone")
    finally:
        await _stop(work)


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel and wait; a failure that nobody asked for is not raised here."""
    if not task.done():
        task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


async def _retire(stream: PushbackStream) -> None:
    """Both sides close in their own time; a side that does not is aborted."""
    clean = False
    try:
        async with asyncio.timeout(RETIRE_SECONDS):
            await stream.close_write()
            while await stream.read():
                pass
        clean = True
    except (TimeoutError, *STREAM_ERRORS):
        return
    finally:
        if not clean:
            stream.abort("done")
