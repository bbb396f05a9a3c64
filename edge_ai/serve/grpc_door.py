"""The gRPC side of the Open Inference Protocol, on connections of the worker's own port: no second socket, no thread, no foreign server.

A unary call is answered where its bytes arrive, or from its model's lane; a stream (`ModelStreamInfer`) has a task of its own. Imported
when the first HTTP/2 client comes, so a worker that no gRPC client ever asks does not pay for protobuf.

Invariants
- What is received and not yet answered counts against the same budget as HTTP/1.1 bodies; beyond it a call ends with RESOURCE_EXHAUSTED.
- A client that does not take its answers is not read any more, and dropped after `Limits.stalled_seconds`; one that is silent is asked
  whether it is there.
- Draining loses no call: GOAWAY asks the client to open no more, those under way are answered, then the connection is closed.
"""

import asyncio
import contextlib
from typing import Any, cast

from google.protobuf.message import DecodeError

from edge_ai.serve import events, grpc_wire, http2
from edge_ai.serve.errors import BadRequest, Busy, RequestError, TooLarge
from edge_ai.serve.grpc_service import Context, Service, Unary
from edge_ai.serve.grpc_wire import Messages, Unimplemented
from edge_ai.serve.http import HttpServer
from edge_ai.serve.http2 import Stream
from edge_ai.serve.repository import CONTROL_ALONE
from edge_ai.serve.tensors import NO_SHARED_MEMORY

SILENT_SECONDS = 60.0  # then it is asked whether it is there
UNREAD_MESSAGES = 16  # of a stream's, before its window is not opened any further


class Call(Context):
    """What a connection keeps of a stream."""

    __slots__ = ("future", "held", "messages", "method", "reserved", "size", "task", "unread")

    def __init__(self, method: "Unary | None", messages: Messages, deadline: float | None) -> None:
        super().__init__(deadline)
        self.method = method  # None: it streams
        self.messages = messages
        self.held: list[bytes] = []  # of a unary call
        self.size = 0
        self.reserved = 0  # of the budget that all connections share
        self.future: asyncio.Future[Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.unread: asyncio.Queue[tuple[bytes, int] | None] | None = None  # of a stream: messages, and what each used of its window


class GrpcConnection(asyncio.Protocol):
    """One HTTP/2 client: an asyncio protocol below, `http2.Calls` above."""

    def __init__(self, server: HttpServer, service: Service, most: int) -> None:
        """``most``: bytes of a message."""
        self._server = server
        self._service = service
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._http2 = http2.Connection(self, http2.Limits())
        self._writable = True
        self._retiring = False
        self._heard = self._loop.time()  # from the peer, or that it took what was written
        self._asked = False

    # --- transport ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._http2.lost()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self._heard, self._asked = self._loop.time(), False
        self._http2.feed(data)
        self._write()
        if self._http2.failed and self._transport is not None:
            self._transport.close()

    def eof_received(self) -> bool:
        return False  # HTTP/2 knows no half of a connection

    def pause_writing(self) -> None:
        self._writable, self._heard = False, self._loop.time()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable, self._heard = True, self._loop.time()
        if self._transport is not None:
            self._transport.resume_reading()

    def _write(self) -> None:
        if (data := self._http2.take()) and self._transport is not None:
            self._transport.write(data)
        if self._retiring and not self._http2.streams and self._transport is not None:
            self._transport.close()

    # --- life: as `http.HttpServer` asks of its connections -------------------------------------------------------------

    def retire(self) -> None:
        self._http2.retire()
        self._write()

    def close_if_idle(self) -> None:
        """The client had its time to go elsewhere: no more calls, and the end with the last one's answer."""
        self._http2.end()
        self._retiring = True
        self._write()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def expire(self, now: float) -> None:
        limits, silent = self._server.limits, now - self._heard
        if self._transport is None:
            return
        if not self._writable:
            if silent > limits.stalled_seconds:
                self._transport.abort()
        elif silent > SILENT_SECONDS + limits.receive_seconds:
            self._transport.abort()
        elif silent > SILENT_SECONDS and not self._asked:
            self._asked = True
            self._http2.ping()
            self._write()

    # --- calls -------------------------------------------------------------------------------------------------------

    def begin(self, stream: Stream, headers: dict[str, str]) -> None:
        if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith("application/grpc"):
            stream.call = None
            self._http2.respond(stream, http2.literal(":status", "415"))
            self._http2.finish(stream, b"")
            return
        path, encoding = headers.get(":path", ""), headers.get("grpc-encoding", "identity")
        unary, streams = self._service.unary.get(path), path == self._service.stream_path
        try:
            left = grpc_wire.seconds(headers.get("grpc-timeout", ""))
            if unary is None and not streams:
                raise Unimplemented(_why_not(path))
        except RequestError as error:
            self._fail(stream, error)
            return
        deadline = None if left is None else self._service.now() + left
        call = stream.call = Call(unary, Messages(self._most, encoding), deadline)
        if streams:
            call.unread = asyncio.Queue()
            call.task = self._loop.create_task(self._stream(stream, call), name="grpc/stream")

    def data(self, stream: Stream, data: bytes, ended: bool) -> None:
        call: Call | None = stream.call
        if call is None:  # refused already
            self._http2.consumed(stream, len(data))
            return
        try:
            if call.method is None:
                self._data_of_stream(stream, call, data, ended)
                return
            self._hold(call, len(data))
            self._http2.consumed(stream, len(data))
            for message in call.messages.feed(data):
                call.held.append(message)
            if ended:
                if len(call.held) != 1 or not call.messages.empty:
                    raise BadRequest("a call has one whole message")
                self._answer(stream, call, call.method, call.held[0])
        except RequestError as error:
            self._fail(stream, error)

    def gone(self, stream: Stream) -> None:
        call: Call | None = stream.call
        if call is None:
            return
        self._release(call)
        if call.future is not None:
            call.future.cancel()
        if call.task is not None:
            call.task.cancel()

    def _hold(self, call: Call, size: int) -> None:
        """Raises `TooLarge`, `Busy`."""
        call.size += size
        if call.size > self._most + 5:
            raise TooLarge(f"the message has more than the {self._most} bytes that are taken")
        if not self._server.reserve(size):
            raise Busy("too many large requests at once; try again")
        call.reserved += size

    def _release(self, call: Call) -> None:
        self._server.release(call.reserved)
        call.reserved = 0

    def _answer(self, stream: Stream, call: Call, method: Unary, message: bytes) -> None:
        try:
            made = method(message, call)
        except DecodeError:
            raise BadRequest("the message is not what this method takes") from None
        if isinstance(made, bytes):
            self._done(stream, call, made)
        else:
            call.future = made
            made.add_done_callback(lambda future: self._answered(stream, call, future))

    def _answered(self, stream: Stream, call: Call, future: "asyncio.Future[bytes]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._done(stream, call, future.result())
        else:
            self._fail(stream, error)
        self._write()

    def _done(self, stream: Stream, call: Call, answer: bytes) -> None:
        self._release(call)
        self._http2.answer(stream, grpc_wire.HEAD, grpc_wire.framed(answer), grpc_wire.OK)

    def _fail(self, stream: Stream, error: BaseException) -> None:
        """What was begun may have its head already; then the trailers say it."""
        call: Call | None = stream.call
        if call is not None:
            self._release(call)
            stream.call = None
        if isinstance(error, RequestError):
            code, text = error.grpc_code, str(error)
        else:
            events.error("request.crashed", error=repr(error))
            code, text = "INTERNAL", "the worker failed on this request; its log says why"
        if not stream.answered:
            self._http2.respond(stream, grpc_wire.HEAD)
        self._http2.finish(stream, grpc_wire.trailers(code, text))

    # --- streams -----------------------------------------------------------------------------------------------------

    def _data_of_stream(self, stream: Stream, call: Call, data: bytes, ended: bool) -> None:
        """What it may send ahead is bounded by its window: it is opened again as messages are taken."""
        assert call.unread is not None
        size = len(data)
        for message in call.messages.feed(data):
            call.unread.put_nowait((message, size))
            size = 0
        if size:  # a part of one that is to come; it needs room to become whole
            self._http2.consumed(stream, size)
        if ended:
            if not call.messages.empty:
                raise BadRequest("the stream ends in the middle of a message")
            call.unread.put_nowait(None)

    async def _stream(self, stream: Stream, call: Call) -> None:
        unread = call.unread
        assert unread is not None
        drained = asyncio.Event()
        stream.drained = drained.set

        async def requests() -> Any:
            while (item := await unread.get()) is not None:
                message, size = item
                self._http2.consumed(stream, size)
                self._write()
                yield message

        try:
            async with contextlib.aclosing(self._service.stream(requests(), call)) as answers:
                async for answer in answers:
                    if not stream.answered:
                        self._http2.respond(stream, grpc_wire.HEAD)
                    drained.clear()
                    self._http2.write(stream, grpc_wire.framed(answer))
                    self._write()
                    if stream.pending:
                        await drained.wait()
        except (RequestError, DecodeError) as error:
            self._fail(stream, error if isinstance(error, RequestError) else BadRequest("a message is not what this method takes"))
        except Exception as error:  # a defect: the client is told, the log has it
            self._fail(stream, error)
        else:
            if not stream.answered:
                self._http2.respond(stream, grpc_wire.HEAD)
            self._http2.finish(stream, grpc_wire.OK)
        self._write()


def _why_not(path: str) -> str:
    """What is said of a method that is not there; of Triton's many, why."""
    if "SharedMemory" in path:
        return NO_SHARED_MEMORY
    if "/Repository" in path:
        return CONTROL_ALONE
    return f"no such method: {path[:200]}"


def take_over(server: HttpServer, service: Service, most: int, transport: asyncio.Transport, first: bytes) -> GrpcConnection:
    """The protocol for a connection whose ``first`` bytes are HTTP/2's; ``most``: bytes of a message."""
    made = GrpcConnection(server, service, most)
    made.connection_made(transport)
    if server.admit(made):
        if server.draining:
            made.retire()
        made.data_received(first)
    else:
        transport.close()
    return made
