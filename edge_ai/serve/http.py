"""HTTP/1.1 on an `asyncio.Protocol`: bytes in, `Request`; `Response`, bytes out. Knows nothing of inference.

The hot path of the worker, kept behind one small interface (`Application`) so that it can be replaced by a faster one.

Invariants
- Requests of one connection are answered in their order, one at a time; pipelined ones wait, at most `Limits.pipelined`.
- Heads, bodies, connections, all bodies together, and every wait have a cap in `Limits`, with a stated answer (431, 413, 503,
  429, 408). A peer that does not read its answers is paused, then dropped.
- Draining loses no request: each connection gets to ask once more, is answered with ``Connection: close``, and is closed after
  that answer; one that stays silent is closed after `Limits.idle_drain_seconds`. What was received is always answered.
"""

import asyncio
import contextlib
from collections import deque
from http import HTTPStatus
from typing import Any, cast

import httptools

from edge_ai.serve import http_stream
from edge_ai.serve.http_parts import Application, Client, Limits, Request, Response, Upgrade
from edge_ai.serve.http_stream import Answering, Lines

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KEPT_HEADERS = frozenset({b"inference-header-content-length", b"content-encoding", b"content-type"})
_REASONS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: ".encode() for status in HTTPStatus}


class HttpServer:
    """What the connections of one listening socket share: limits, the budget for bodies, draining, and the sweep."""

    def __init__(self, application: Application, limits: Limits, http2: Upgrade | None = None) -> None:
        self.application = application
        self.limits = limits
        self.http2 = http2
        self.connections: set[Client] = set()
        self.draining = False
        self._bodies = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def connection(self) -> "Connection":
        """The protocol factory."""
        return Connection(self)

    async def drain(self, grace_seconds: float) -> None:
        """Returns when the last connection is gone; at the latest after ``grace_seconds``, when what is left is dropped."""
        self.draining = True
        for connection in list(self.connections):
            connection.retire()
        loop = asyncio.get_running_loop()
        end_idle = loop.call_later(min(self.limits.idle_drain_seconds, grace_seconds), self._close_idle)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
        finally:
            end_idle.cancel()
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None

    def admit(self, connection: Client) -> bool:
        if len(self.connections) >= self.limits.connections:
            return False
        self.connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._schedule_sweep()
        return True

    def forget(self, connection: Client) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def reserve(self, size: int) -> bool:
        """Take ``size`` bytes out of the budget for bodies."""
        if self._bodies + size > self.limits.bodies:
            return False
        self._bodies += size
        return True

    def release(self, size: int) -> None:
        self._bodies -= size

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()

    def _schedule_sweep(self) -> None:
        shortest = min(self.limits.receive_seconds, self.limits.idle_seconds, self.limits.stalled_seconds, self.limits.linger_seconds)
        self._sweeper = asyncio.get_running_loop().call_later(max(shortest / 2, 0.05), self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            connection.expire(now)
        self._sweeper = None
        if self.connections:  # an idle worker without connections does not wake up
            self._schedule_sweep()


class Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._first: bytes | None = b"" if server.http2 else None  # bytes that may yet turn out to be HTTP/2
        self._waiting: deque[Request | Response | Lines] = deque()  # a Response in it is a refusal: the connection's last answer
        self._pending: asyncio.Future[Any] | None = None
        self._lines: Lines | None = None  # the input that is being received
        self._streamed: Lines | None = None  # the one that is being answered
        self._drained = asyncio.Event()  # of a stream's answers
        self._request: Request | None = None  # the one that is being answered
        self._receiving = False
        self._deaf = False  # what still comes is thrown away
        self._writable = True
        self._closing = False  # nothing follows what is being answered
        self._since = self._loop.time()  # of the last progress in either direction
        self._began = self._since  # of the request that is being received
        self._in_head = False
        self._reset_message()

    # --- transport ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        if not self._server.admit(self):
            response = self._server.application.refuse(503, "too many connections; try again", b"Retry-After: 1\r\n")
            self._write(response, close=True)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._deaf = True
        for item in self._waiting:
            if isinstance(item, Lines):
                item.close()
        self._waiting.clear()
        self._drop_body()
        if self._pending is not None:
            self._pending.cancel()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._first is not None:
            data = self._first + data
            if self._switch_to_http2(data):
                return
        if self._deaf:
            return
        self._since = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request was complete and is answered as HTTP/1.1; the parser cannot go on behind it.
            self._stop_reading()
        except httptools.HttpParserError as error:
            if not self._deaf:  # otherwise a callback refused already
                self._refuse(400, f"not HTTP/1.1: {error}")
        self._next()

    def eof_received(self) -> bool:
        # A peer may close its direction and still read the answers to what it sent; not in the middle of a stream: that one is gone.
        if self._lines is not None:
            return False
        self._stop_reading()
        self._drop_body()
        self._closing = self._busy() or not self._writable
        return self._closing

    def pause_writing(self) -> None:
        self._writable = False
        self._since = self._loop.time()

    def resume_writing(self) -> None:
        self._writable = True
        self._since = self._loop.time()
        self._drained.set()
        self._next()

    def _switch_to_http2(self, data: bytes) -> bool:
        """True when these bytes are dealt with: they are HTTP/2, or too few to tell."""
        if data.startswith(HTTP2_PREFACE[:14]):
            assert self._server.http2 is not None
            assert self._transport is not None
            transport, self._transport = self._transport, None
            self._server.connections.discard(self)  # its place goes to the one that takes over
            transport.set_protocol(self._server.http2(transport, data))
            return True
        if len(data) < 14 and HTTP2_PREFACE.startswith(data):
            self._first = data
            return True
        self._first = None
        return False

    # --- parser ------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if not self._deaf:
            self._receiving = self._in_head = True
            self._began = self._since

    def _reset_message(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_size = 0
        self._length = 0
        self._expects = False
        self._chunks: bytes | bytearray = b""
        self._reserved = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        lower = name.lower()
        if lower in KEPT_HEADERS:
            self._headers[lower] = value
        elif lower == b"content-length" and value.isdigit() and len(value) < 19:
            self._length = int(value)
        elif lower == b"expect":
            self._expects = value.lower() == b"100-continue"

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._server.limits.head and not self._deaf:
            self._refuse(431, f"the request's head is over {self._server.limits.head} bytes")

    def _take_room(self, size: int) -> None:
        if self._deaf or size <= self._reserved:
            return
        limits = self._server.limits
        if size > limits.body:
            self._refuse(413, f"the body is over {limits.body} bytes, this worker's cap")
        elif not self._server.reserve(size - self._reserved):
            self._refuse(429, "too many large requests at once; try again", b"Retry-After: 1\r\n")
        else:
            self._reserved = size

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._deaf:
            return
        idle = not self._busy()
        opened = self._server.application.stream(self._parser.get_method(), self._target)
        if opened is None or self._parser.get_http_version() != "1.1":
            self._take_room(self._length)  # an oversized body is refused before it is sent, and the others have theirs at once
        elif isinstance(opened, Response):
            self._stop_reading()
            self._waiting.append(opened)
        else:
            self._open(opened)
        if self._expects and not self._deaf and self._transport is not None and idle:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._lines is not None:
            self._lines.push(body)
            self._pace()
            return
        self._take_room(len(self._chunks) + len(body))
        if self._deaf:
            return
        if not self._chunks:
            self._chunks = body  # nearly always the only one
        elif isinstance(self._chunks, bytes):
            self._chunks = bytearray(self._chunks) + body
        else:
            self._chunks += body

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        keep_alive = self._keeps()
        if self._lines is not None:
            self._lines.end()
            self._lines = None
            self._reset_message()
            self._receiving = False
            if not keep_alive:
                self._stop_reading()
            return
        request = Request(self._parser.get_method(), self._target, self._headers, self._chunks, keep_alive)
        self._drop_body()
        self._reset_message()
        self._receiving = False
        if len(self._waiting) >= self._server.limits.pipelined:
            self._refuse(503, f"more than {self._server.limits.pipelined} requests at once on one connection")
            return
        self._waiting.append(request)
        if not keep_alive:
            self._stop_reading()

    def _keeps(self) -> bool:
        """An HTTP/1.0 client would have to be told that the connection stays; closing is always right."""
        return self._parser.should_keep_alive() and not self._parser.should_upgrade() and self._parser.get_http_version() == "1.1"

    def _drop_body(self) -> None:
        if self._lines is not None:
            self._lines.fail("the request breaks off")
            self._lines = None
        self._server.release(self._reserved)
        self._reserved = 0
        self._chunks = b""

    # --- answers -----------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str, headers: bytes = b"") -> None:
        """Answer what was received before, then this, then close: behind a bad request nothing can be trusted."""
        self._drop_body()
        self._stop_reading()
        self._waiting.append(self._server.application.refuse(status, message, headers))

    def _stop_reading(self) -> None:
        self._deaf = True
        self._receiving = False

    def _busy(self) -> bool:
        return self._pending is not None or bool(self._waiting)

    def _idle(self) -> bool:
        return not self._busy() and not self._receiving and self._writable

    def _next(self) -> None:
        while self._waiting and self._pending is None and self._writable and self._transport is not None:
            item = self._waiting.popleft()
            if isinstance(item, Response):
                self._write(item, close=True)
                self._finish()
                return
            if isinstance(item, Lines):
                self._answer_lines(item)
                return
            self._request = item
            result = self._server.application(item)
            if isinstance(result, Response):
                self._answer(result)
            else:
                self._pending = result
                result.add_done_callback(self._answered)

    def _answered(self, future: "asyncio.Future[Response]") -> None:
        self._pending = None
        if self._transport is None or future.cancelled():
            return
        error = future.exception()
        self._answer(future.result() if error is None else self._server.application.crashed(error))
        self._next()

    def _answer(self, response: Response) -> None:
        request, self._request = self._request, None
        assert request is not None
        assert self._transport is not None
        more = bool(self._waiting) or self._receiving
        close = not request.keep_alive or ((self._closing or self._server.draining) and not more)
        self._since = self._loop.time()
        self._write(response, close, bodiless=request.method == b"HEAD")
        if close:
            self._finish()

    # --- streams -----------------------------------------------------------------------------------------------------

    def _open(self, answering: Answering) -> None:
        """From now on the body goes there, line by line; it is answered in its turn."""
        limits = self._server.limits
        if len(self._waiting) >= limits.pipelined:
            self._refuse(503, f"more than {limits.pipelined} requests at once on one connection")
            return
        self._lines = Lines(answering, self._server, limits.body, self._keeps())
        self._lines.taken = self._pace
        self._waiting.append(self._lines)

    def _pace(self) -> None:
        """Read from the client no faster than its lines are taken."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._lines is not None and self._lines.full:
            if self._transport.is_reading():
                self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _answer_lines(self, lines: Lines) -> None:
        self._streamed = lines
        self._pending = self._loop.create_task(self._stream(lines), name="http/stream")
        self._pending.add_done_callback(self._stream_ended)

    async def _stream(self, lines: Lines) -> None:
        assert self._transport is not None
        self._transport.write(http_stream.HEAD % (b"" if lines.keep_alive and not self._server.draining else http_stream.CLOSE))
        async with contextlib.aclosing(lines.answering(lines.read())) as answers:
            async for answer in answers:
                await self._written(http_stream.chunk(answer))
        await self._written(http_stream.LAST)

    async def _written(self, data: bytes) -> None:
        while not self._writable:
            self._drained.clear()
            await self._drained.wait()
        assert self._transport is not None
        self._since = self._loop.time()
        self._transport.write(data)

    def _stream_ended(self, task: "asyncio.Future[None]") -> None:
        lines, self._streamed, self._pending = self._streamed, None, None
        assert lines is not None
        unfinished = not lines.ended or lines is self._lines  # its input: what comes of it belongs to nobody
        lines.close()
        if self._transport is None or task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._server.application.crashed(error)
            self._transport.abort()  # a body that breaks off is how a client is told, when its head was sent
        elif unfinished or not lines.keep_alive or ((self._closing or self._server.draining) and not (self._waiting or self._receiving)):
            self._finish()
            self._pace()
        else:
            self._next()

    def _write(self, response: Response, close: bool, bodiless: bool = False) -> None:
        assert self._transport is not None
        length = sum(len(part) for part in response.body)
        head = b"%b%b\r\nContent-Length: %d\r\n%b%b\r\n" % (
            _REASONS[response.status],
            response.content_type,
            length,
            response.headers,
            b"Connection: close\r\n" if close else b"",
        )
        if bodiless:
            self._transport.write(head)
        elif length < 65536:
            self._transport.write(head + b"".join(response.body))
        else:
            self._transport.writelines([head, *response.body])

    def _finish(self) -> None:
        """Nothing follows. The peer closes, or the sweep does: closing at once would reset the connection under an answer that
        it has not read yet, when bytes of its own are on their way to us."""
        assert self._transport is not None
        self._stop_reading()
        self._closing = True
        self._since = self._loop.time()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    # --- time --------------------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Its next answer says it (`_answer`)."""

    def close_if_idle(self) -> None:
        if self._idle() and self._transport is not None:
            self._transport.close()
        if self._streamed is not None:
            self._streamed.fail("the worker ends; ask again")

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def expire(self, now: float) -> None:
        """Called now and then with the loop's time."""
        limits, waited = self._server.limits, now - self._since
        if self._transport is None or (self._pending is not None and self._streamed is None):
            return
        if self._streamed is not None and self._writable:
            if waited > limits.idle_seconds:
                self._streamed.fail(f"nothing came for {limits.idle_seconds:g} s")
        elif not self._writable:
            if waited > limits.stalled_seconds:
                self._transport.abort()
        elif self._closing:
            if waited > limits.linger_seconds:
                self._transport.close()
        elif self._receiving or self._first:
            age = now - self._began
            if waited > limits.receive_seconds or age > (limits.receive_seconds if self._in_head else limits.request_seconds):
                self._refuse(408, "the request takes too long to arrive")
                self._next()
        elif waited > limits.idle_seconds:
            self._transport.close()
