"""A stream as applications see it: read, write, close, abort.

Reading is what gives the other side new credit, and writing waits for credit, so neither side ever holds more of a stream than
its window. One reader and one writer at a time.
"""

import asyncio

from cluster_controller.errors import BanyanError, Exhausted, Forbidden, NotFound, Unreachable
from cluster_controller.tunnel.messages import Open, Reset, ResetCode
from cluster_controller.tunnel.protocol.stream import StreamState


class StreamReset(BanyanError):
    """The stream ended before its time. ``hop`` is the uid of the controller that ended it, "" when it is not known."""

    def __init__(self, message: str, code: ResetCode, hop: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hop = hop


class StreamUnreachable(StreamReset, Unreachable):
    """A hop on the way has no link to the next one, or lost it."""


class StreamForbidden(StreamReset, Forbidden):
    pass


class StreamNotServed(StreamReset, NotFound):
    """The destination has no such service."""


class StreamExhausted(StreamReset, Exhausted):
    def __init__(self, message: str, code: ResetCode, hop: str = "") -> None:
        StreamReset.__init__(self, message, code, hop)
        self.retry_after = 1.0


ERRORS: dict[ResetCode, type[StreamReset]] = {
    ResetCode.UNREACHABLE: StreamUnreachable,
    ResetCode.LINK_LOST: StreamUnreachable,
    ResetCode.GOING_AWAY: StreamUnreachable,
    ResetCode.FORBIDDEN: StreamForbidden,
    ResetCode.LOOP: StreamForbidden,
    ResetCode.NO_SERVICE: StreamNotServed,
    ResetCode.EXHAUSTED: StreamExhausted,
}


def error_of(reset: Reset) -> StreamReset:
    kind = ERRORS.get(reset.code, StreamReset)
    reason = reset.reason or f"the stream was reset ({reset.code.name.lower()})"
    return kind(reason, reset.code, reset.hop)


class Stream:
    """One end of a stream; a `cluster_shim.contract.ByteStream`."""

    __slots__ = ("_error", "_loop", "_reading", "_state", "_writing", "lane", "metadata", "service", "source")

    def __init__(self, state: StreamState, message: Open, loop: asyncio.AbstractEventLoop) -> None:
        self.service = message.service
        self.metadata = message.metadata
        self.source = message.source  # uids of the hops back to the opener, nearest first; () on the opener's own end
        self.lane = message.lane
        self._state = state
        self._loop = loop
        self._error: StreamReset | None = None
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        state.handle = self

    def __repr__(self) -> str:
        return f"<Stream {self.service} {self._state.id}>"

    async def read(self, limit: int = 65536) -> bytes:
        """Up to ``limit`` bytes; b"" once the other side has closed its direction. Raises `StreamReset`."""
        state = self._state
        while not state.buffer:
            if state.end_received:
                return b""
            if self._error is not None:
                raise self._error
            if self._reading is not None:
                raise RuntimeError(f"{self!r} is being read already")
            self._reading = self._loop.create_future()
            try:
                await self._reading
            finally:
                self._reading = None
        return state.connection.read(state, limit)

    async def write(self, data: bytes) -> None:
        """Returns when ``data`` is taken over; waits while the other side does not read. Raises `StreamReset`."""
        state = self._state
        if state.end_queued:
            raise RuntimeError(f"{self!r}: write after close_write")
        rest = memoryview(data)
        while True:
            if self._error is not None:
                raise self._error
            rest = rest[state.connection.write(state, rest) :]
            if not rest:
                return
            if self._writing is not None:
                raise RuntimeError(f"{self!r} is being written already")
            self._writing = self._loop.create_future()
            try:
                await self._writing
            finally:
                self._writing = None

    async def close_write(self) -> None:
        """No more data from this side; the other direction goes on."""
        self._state.connection.end(self._state)

    def abort(self, reason: str = "", code: ResetCode = ResetCode.CANCELLED) -> None:
        """End both directions now; the other side reads `StreamReset` with ``reason``. Nothing happens when both have ended."""
        state = self._state
        if state.forgotten:
            return
        state.connection.reset(state, code, reason)
        if self._error is None:
            self._error = error_of(Reset(code=code, reason=reason or "the stream was aborted on this side"))
        state.buffer = None
        self.readable()
        self.writable()

    @property
    def closed(self) -> bool:
        """Both directions have ended."""
        return self._state.forgotten

    # -- called by the state machine ----------------------------------------------------------------------------------------

    def readable(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def writable(self) -> None:
        if self._writing is not None and not self._writing.done():
            self._writing.set_result(None)

    def ended(self, reset: Reset) -> None:
        self._error = error_of(reset)
        self.readable()
        self.writable()
