"""One request and its response on one HTTP/1 connection.

What a handler (the ASGI application, a proxy) sees. Invariants: a response is framed so that the client finds its end (length,
chunks, or the end of the connection); what was announced is what is sent, or the connection is aborted; the body is read only as
the handler asks for it; after `finish` nothing more is written.
"""

import asyncio
import re
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from cluster_controller.clock import wall
from cluster_controller.errors import BanyanError, Exhausted
from openapi.front import body as bodies
from openapi.front import status as statuses
from openapi.front.head import RequestHead
from openapi.front.kept import Kept
from openapi.front.limits import FrontLimits
from openapi.front.streams import STREAM_ERRORS, WRITE_PIECE, PushbackStream, StreamClosed

if TYPE_CHECKING:
    from openapi.services import User

_BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")
_REASONS = {code.value: code.phrase.encode() for code in HTTPStatus}
PEEK_BYTES = 65536  # of pipelined requests read ahead while a response is being made

HeaderList = Sequence[tuple[bytes, bytes]]


class Disconnected(StreamClosed):
    """The client went away before the exchange was over."""


class Exchange:
    def __init__(
        self, stream: PushbackStream, head: RequestHead, user: "User | None", limits: FrontLimits, *, draining: asyncio.Event, kept: Kept
    ) -> None:
        self.head = head
        self.user = user
        self.status = 0  # of the response, once started
        self.route = "api"  # kind of route, for the counters
        self.client: tuple[str, int] | None = None
        self.kept = kept  # a stream of this client connection that may take the request
        self.draining = draining  # set when the front shuts down: endless responses should end
        self.keep_alive = head.keep_alive
        self.hijacked = False
        self.finished = False
        self._stream = stream
        self._limits = limits
        self._decoder = bodies.decoder(head.length)
        self._continue_due = head.expect_continue and not self._decoder.done
        self._broken = False  # the body's framing: nobody knows where the next request begins
        self._pending_head = b""
        self._chunked = False
        self._bodyless = False
        self._length_left: int | None = None

    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def body_done(self) -> bool:
        """The request's body was read to its end."""
        return self._decoder.done

    async def read_body(self) -> bytes:
        """The next piece of the request's body, b"" at its end. Raises Disconnected and BodyError."""
        while not self._decoder.done:
            await self._send_continue()
            try:
                async with asyncio.timeout(self._limits.body_idle_seconds):
                    data = await self._stream.read()
            except TimeoutError:
                self.keep_alive = False
                raise Disconnected(f"no byte of the request's body came for {self._limits.body_idle_seconds:g} s") from None
            if not data:
                self.keep_alive = False
                raise Disconnected("the client closed the connection in the middle of the request's body")
            piece = self._feed(data)
            if piece:
                return piece
        return b""

    async def disconnected(self) -> None:
        """Return when the client has gone away. To be called once the body was read."""
        await self._stream.peek_end(PEEK_BYTES)

    async def start(self, status: int, headers: HeaderList, reason: bytes = b"") -> None:
        """Fix status and headers. They leave with the first piece of the body, in one write."""
        if self.started:
            raise RuntimeError("the response was already started")
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))]
        has_date = False
        for name, value in headers:
            lower = name.lower()
            if _BAD_NAME.search(name) or not name or _BAD_VALUE.search(value):
                raise ValueError(f"response header {name!r} has a character that HTTP does not allow")
            if lower in (b"connection", b"transfer-encoding", b"keep-alive"):
                continue  # of this hop, and ours to say
            if lower == b"content-length":
                self._length_left = int(value)
            has_date = has_date or lower == b"date"
            lines.append(b"%b: %b\r\n" % (name, value))
        self.status = status
        self._frame(status, lines)
        if not has_date:
            lines.append(b"date: %b\r\n" % _date())
        if self.draining.is_set() or not self._decoder.done:
            # An unread body stands between this response and the next request. `Connection` drains what is small; whoever
            # waits for 100-continue never sends it.
            self.keep_alive = self.keep_alive and not self.draining.is_set() and not self._continue_due
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.head.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._pending_head = b"".join(lines)

    async def write(self, data: bytes) -> None:
        """A piece of the response's body; waits while the client does not read."""
        if not data or self._bodyless:
            return
        if self._length_left is not None:
            if len(data) > self._length_left:
                self.keep_alive = False
                raise ValueError("the response's body is longer than its Content-Length")
            self._length_left -= len(data)
        await self._send(bodies.chunk(data) if self._chunked else data)

    async def flush(self) -> None:
        """Send the head now, before there is a body."""
        await self._send(b"")

    async def finish(self, last: bytes = b"") -> None:
        """The last piece, and the end of the response."""
        if self.finished:
            return
        if last and not self._bodyless:
            if self._chunked:
                await self._send(bodies.chunk(last) + bodies.LAST_CHUNK)
            else:
                await self.write(last)
        elif self._chunked:
            await self._send(bodies.LAST_CHUNK)
        else:
            await self._send(b"")
        self.finished = True
        if self._length_left:
            self.keep_alive = False
            raise ValueError("the response's body is shorter than its Content-Length")

    async def respond(self, status: int, body: bytes, content_type: bytes = b"application/json", headers: HeaderList = ()) -> None:
        """A whole response."""
        length = b"%d" % len(body)
        await self.start(status, [(b"content-type", content_type), (b"content-length", length), *headers])
        await self.finish(body)

    async def refuse(self, status: int, message: str, headers: HeaderList = (), retry_after: float | None = None) -> None:
        """Answer with a Kubernetes Status, unless a response was already started (then the connection breaks off)."""
        if self.started:
            self.keep_alive = False
            raise Disconnected(message)
        if status == 401:
            headers = [*headers, (b"www-authenticate", b'Bearer realm="banyan"')]
        if retry_after is not None:
            headers = [*headers, (b"retry-after", b"%d" % max(1, round(retry_after)))]
        await self.respond(status, statuses.document(status, message, retry_after), headers=headers)

    async def refuse_error(self, error: BanyanError) -> None:
        retry_after = error.retry_after if isinstance(error, Exhausted) else None
        await self.refuse(statuses.code_of(error), str(error), retry_after=retry_after)

    async def informational(self, status: int, headers: HeaderList) -> None:
        """A 1xx response (101 included, after which the connection is `hijack`ed)."""
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b""))]
        lines += [b"%b: %b\r\n" % header for header in headers]
        await self._write(b"".join([*lines, b"\r\n"]))

    def hijack(self) -> PushbackStream:
        """The raw stream, with what was read ahead. The connection ends when the handler returns."""
        self.hijacked = True
        self.keep_alive = False
        return self._stream

    async def drain(self) -> bool:
        """Read the rest of an unwanted body, if it is small and comes soon. True when the next request may be read."""
        if self._broken or (self._continue_due and not self._decoder.done):
            return False
        read = 0
        try:
            async with asyncio.timeout(self._limits.drain_seconds):
                while not self._decoder.done:
                    if read > self._limits.drain_bytes:
                        return False
                    data = await self._stream.read()
                    if not data:
                        return False
                    read += len(data)
                    self._feed(data)
        except (TimeoutError, bodies.BodyError, *STREAM_ERRORS):
            return False
        return True

    def _feed(self, data: bytes) -> bytes:
        try:
            piece = self._decoder.feed(data)
        except bodies.BodyError:
            self.keep_alive = False
            self._broken = True
            raise
        if self._decoder.done:
            self._stream.unread(self._decoder.rest)
        return piece

    def _frame(self, status: int, lines: list[bytes]) -> None:
        self._bodyless = self.head.method == "HEAD" or status in (204, 304) or status < 200
        if self._bodyless:
            self._length_left = None
        elif self._length_left is None:
            if self.head.version == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False  # HTTP/1.0 finds the end of such a body by the end of the connection

    async def _send_continue(self) -> None:
        if self._continue_due:
            self._continue_due = False
            if not self.started:
                await self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _send(self, data: bytes) -> None:
        if self._pending_head:
            data, self._pending_head = self._pending_head + data, b""
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), WRITE_PIECE):
                async with asyncio.timeout(self._limits.write_stall_seconds):
                    await self._stream.write(data if len(data) <= WRITE_PIECE else data[start : start + WRITE_PIECE])
        except TimeoutError:
            self._stream.abort("the client takes nothing")
            raise Disconnected(f"the client took nothing of the response for {self._limits.write_stall_seconds:g} s") from None


_date_cache = (0, b"")


def _date() -> bytes:
    """The Date header's value (RFC 9110, section 6.6.1), made once a second."""
    global _date_cache  # noqa: PLW0603
    now = int(wall().timestamp())
    if _date_cache[0] != now:
        _date_cache = (now, formatdate(now, usegmt=True).encode("ascii"))
    return _date_cache[1]
