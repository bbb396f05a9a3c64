"""Byte streams of the front: a socket as a `ByteStream`, bytes pushed back before one, and a pair in memory.

Everything above this module sees `cluster_shim.contract.ByteStream` and nothing else, so a connection over TLS, one that came
through the tree, and one inside this process are served by the same code. Invariants: what is buffered for reading stops at
``read_buffer`` (then the socket is not read, and TCP tells the sender), what is buffered for writing stops at the transport's
high-water mark (then `write` waits). Reading and writing may be cancelled without losing a byte.
"""

import asyncio
from collections import deque
from typing import Any, cast

from cluster_controller.errors import BanyanError
from cluster_shim.contract import ByteStream, ShimError

READ_BUFFER = 128 * 1024
WRITE_HIGH_WATER = 64 * 1024
WRITE_PIECE = 64 * 1024
STREAM_ERRORS = (BanyanError, ShimError, OSError)  # what a broken stream raises, whichever kind it is


class StreamClosed(ConnectionResetError):
    """The stream was aborted by this side or broken by the other."""


class SocketStream(asyncio.Protocol):
    """A connected transport (TLS or plain) as a ByteStream. One reader and one writer at a time."""

    def __init__(self, read_buffer: int = READ_BUFFER) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.lost = False  # the transport is gone
        self._limit = read_buffer
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._eof = False
        self._write_ended = False
        self._error: Exception | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: set[asyncio.Future[None]] = set()
        self.closed = self._loop.create_future()  # done once the transport is gone

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER, low=WRITE_HIGH_WATER // 4)
        self._pause_when_full()

    def data_received(self, data: bytes) -> None:
        self._chunks.append(bytes(data))
        self._buffered += len(data)
        self.bytes_in += len(data)
        self._pause_when_full()
        self._wake_reader()

    def eof_received(self) -> bool | None:
        self._eof = True
        self._wake_reader()
        # Keep the other direction, if it is open, where that is possible; TLS in asyncio closes both.
        return not self._write_ended and self._transport is not None and self._transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if error is not None and self._error is None:
            self._error = error
        self._eof = True
        self._wake_reader()
        self.resume_writing()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        for waiter in self._writers:
            if not waiter.done():
                waiter.set_result(None)

    # ByteStream

    async def read(self, limit: int = 65536) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise StreamClosed(f"the connection was lost: {self._error}")
            if self._eof:
                return b""
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._chunks.popleft()
        if len(data) > limit:
            self._chunks.appendleft(data[limit:])
            data = data[:limit]
        self._buffered -= len(data)
        if self._reading_paused and self._buffered <= self._limit // 4 and self._transport is not None and not self.lost:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), WRITE_PIECE):
            await self._drained()
            if self.lost or self._transport is None or self._transport.is_closing():
                raise StreamClosed("the connection was closed by the other side")
            piece = data if len(data) <= WRITE_PIECE else data[start : start + WRITE_PIECE]
            self._transport.write(piece)
            self.bytes_out += len(piece)
        await self._drained()

    async def close_write(self) -> None:
        """Plain TCP closes its sending half; asyncio's TLS has no half-close, so what was written is flushed and both end."""
        if self._transport is None or self._transport.is_closing():
            return
        self._write_ended = True
        if self._transport.can_write_eof() and not self._eof:
            self._transport.write_eof()
        else:
            self._transport.close()

    def abort(self, reason: str = "") -> None:
        if self._error is None:
            self._error = StreamClosed(reason or "aborted")
        self._chunks.clear()
        self._buffered = 0
        self._wake_reader()
        if self._transport is not None:
            self._transport.abort()

    # beyond ByteStream

    def transport_info(self, name: str) -> Any:
        """The transport's extra information (asyncio.BaseTransport.get_extra_info)."""
        return None if self._transport is None else self._transport.get_extra_info(name)

    def close(self) -> None:
        """Flush what was written, then close both directions."""
        if self._transport is not None:
            self._transport.close()

    def _pause_when_full(self) -> None:
        if self._buffered >= self._limit and not self._reading_paused and self._transport is not None and not self.lost:
            self._reading_paused = True
            self._transport.pause_reading()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _drained(self) -> None:
        while self._writing_paused and not self.lost:
            waiter = self._loop.create_future()
            self._writers.add(waiter)
            try:
                await waiter
            finally:
                self._writers.discard(waiter)


class PushbackStream:
    """A ByteStream whose read-ahead can be given back: what was read past one message belongs to the next one."""

    def __init__(self, inner: ByteStream) -> None:
        self.inner = inner
        self.reading = False  # somebody waits in `read` or `peek_end`
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0

    @property
    def pending(self) -> int:
        """Bytes that were read ahead."""
        return self._pending_bytes

    async def read(self, limit: int = 65536) -> bytes:
        if self._pending:
            data = self._pending.popleft()
            if len(data) > limit:
                self._pending.appendleft(data[limit:])
                data = data[:limit]
            self._pending_bytes -= len(data)
            return data
        return await self._read(limit)

    def unread(self, data: bytes) -> None:
        if data:
            self._pending.appendleft(data)
            self._pending_bytes += len(data)

    async def peek_end(self, most: int) -> None:
        """Return when the other side has ended or broken the stream, reading ahead at most ``most`` bytes; then wait for ever."""
        while self._pending_bytes < most:
            try:
                data = await self._read(65536)
            except STREAM_ERRORS:
                return
            if not data:
                return
            self._pending.append(data)
            self._pending_bytes += len(data)
        await asyncio.get_running_loop().create_future()

    async def write(self, data: bytes) -> None:
        await self.inner.write(data)

    async def close_write(self) -> None:
        await self.inner.close_write()

    def abort(self, reason: str = "") -> None:
        self.inner.abort(reason)

    async def _read(self, limit: int) -> bytes:
        self.reading = True
        try:
            return await self.inner.read(limit)
        finally:
            self.reading = False


class _Direction:
    """One direction of a pair in memory: at most ``bound`` bytes in flight."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.data = bytearray()
        self.ended = False
        self.aborted = ""
        self.changed = asyncio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryStream:
    """One end of a pair; see `pair`."""

    def __init__(self, incoming: _Direction, outgoing: _Direction) -> None:
        self._in = incoming
        self._out = outgoing

    async def read(self, limit: int = 65536) -> bytes:
        while not self._in.data:
            if self._in.aborted:
                raise StreamClosed(self._in.aborted)
            if self._in.ended:
                return b""
            await self._in.changed.wait()
        data = bytes(self._in.data[:limit])
        del self._in.data[:limit]
        self._in.notify()
        return data

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._out.aborted:
                raise StreamClosed(self._out.aborted)
            if self._out.ended:
                raise StreamClosed("this direction was closed before")
            room = self._out.bound - len(self._out.data)
            if room <= 0:
                await self._out.changed.wait()
                continue
            self._out.data += view[:room]
            view = view[room:]
            self._out.notify()

    async def close_write(self) -> None:
        self._out.ended = True
        self._out.notify()

    def abort(self, reason: str = "") -> None:
        for direction in (self._in, self._out):
            direction.aborted = direction.aborted or reason or "aborted"
            direction.data.clear()
            direction.notify()


def pair(bound: int = 65536) -> tuple[MemoryStream, MemoryStream]:
    """Two connected streams inside this process; each direction holds at most ``bound`` bytes."""
    there, back = _Direction(bound), _Direction(bound)
    return MemoryStream(back, there), MemoryStream(there, back)
