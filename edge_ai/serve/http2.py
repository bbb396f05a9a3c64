"""The server's side of one HTTP/2 connection (RFC 9113), as far as gRPC needs it. Pure: bytes in, callbacks and bytes out; no socket.

It stands on the hot path, so it does what gRPC uses and nothing else: no priorities, no push, no requests other than those that a `Calls`
takes. Header blocks are decoded by hpack (RFC 7541). A client repeats itself, so a block whose bytes came before is not decoded again while
the table that gives them their meaning is the same; blocks that go out are literals, made once.

Invariants
- What a peer may make us keep is bounded: header blocks, streams, frames, data that nobody has taken (`Limits`).
- Nothing is sent beyond the windows that the peer gave, and `Connection.take` gives what is to be written, once.
- A violation ends the connection with GOAWAY, its code and a reason; a stream's own trouble ends that stream alone.
- A peer that begins and resets streams without end is sent away (CVE-2023-44487).
"""

from collections.abc import Callable
from typing import Any, Protocol

from hpack import Decoder
from hpack.exceptions import HPACKError
from msgspec import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITISED = 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0x0, 0x1, 0x3, 0x5
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x6, 0x7, 0x8, 0x9, 0xB
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(1, 7)
LARGEST_WINDOW = (1 << 31) - 1
EVERY_STREAM = b"\x7f\xff\xff\xff"
KNOWN_BLOCKS = 64


class Limits(Struct, frozen=True):
    """``streams`` at once; bytes of a header block; window of a stream and of the connection; ``resets``: streams in a row that end without
    an answer."""

    streams: int = 4096
    headers: int = 16 * 1024
    stream_window: int = 1 << 20
    window: int = 8 << 20
    resets: int = 1000


class ConnectionFailed(Exception):
    """The peer broke the protocol; `Connection` sends GOAWAY with it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Stream:
    """One call. ``call`` is for whoever answers it."""

    __slots__ = ("answered", "call", "drained", "ended", "number", "pending", "receivable", "sendable", "taken", "trailers")

    def __init__(self, number: int, sendable: int, receivable: int) -> None:
        self.number = number
        self.call: Any = None
        self.sendable = sendable
        self.receivable = receivable
        self.taken = 0  # of its data, and not yet given back to its window
        self.pending = bytearray()  # of the answer, waiting for the peer's window
        self.trailers: bytes | None = None  # a header block; follows the last of `pending`
        self.answered = False  # its head was sent
        self.ended = False  # the peer's direction
        self.drained: Callable[[], None] | None = None  # told when `pending` is empty again


class Calls(Protocol):
    """Who answers. ``number`` is what `Connection`'s methods are called with."""

    def begin(self, stream: Stream, headers: dict[str, str]) -> None: ...

    def data(self, stream: Stream, data: bytes, ended: bool) -> None:
        """``data`` counts against the stream's window until `Connection.consumed` says it was taken."""
        ...

    def gone(self, stream: Stream) -> None:
        """The peer has reset it, or the connection is over."""
        ...


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A header field that no table remembers (RFC 7541, 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    raw = text.encode()
    length, rest = len(raw), b""
    if length >= 127:
        left, length = length - 127, 127
        while left >= 128:
            rest += bytes((left % 128 + 128,))
            left //= 128
        rest += bytes((left,))
    return bytes((length,)) + rest + raw


class Connection:
    def __init__(self, calls: Calls, limits: Limits) -> None:
        self._calls = calls
        self._limits = limits
        self._decoder = Decoder(max_header_list_size=limits.headers)
        self._known: dict[bytes, dict[str, str]] = {}  # blocks that change no table, and what they mean while it stays as it is
        self._buffer = bytearray()
        self._preface = True
        self._out: list[bytes] = []
        self._block: bytearray | None = None  # of headers that go on in CONTINUATION
        self._block_for = (0, 0)  # stream, flags
        self._last = 0  # the highest stream that the peer has begun
        self._receivable = limits.window
        self._taken = 0  # bytes that the connection's window is to be given back
        self._sendable = 65535
        self._initial = 65535  # what a new stream may be sent
        self._largest = 16384  # of the frames that we send
        self._blocked: dict[int, Stream] = {}
        self._idle = 0  # streams in a row that were reset before an answer
        self._leaving = False
        self.streams: dict[int, Stream] = {}
        self.failed = False  # nothing is read any more; what `take` gives ends with GOAWAY
        self._send(SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in self._settings()))
        self._send(WINDOW_UPDATE, 0, 0, (limits.window - 65535).to_bytes(4, "big"))

    def _settings(self) -> tuple[tuple[int, int], ...]:
        limits = self._limits
        return (
            (MAX_CONCURRENT_STREAMS, limits.streams),
            (INITIAL_WINDOW_SIZE, limits.stream_window),
            (MAX_HEADER_LIST_SIZE, limits.headers),
        )

    # --- what is to be written ---------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """All that is to be written now."""
        if not self._out:
            return b""
        made = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        return made

    def _send(self, kind: int, flags: int, number: int, payload: bytes = b"") -> None:
        self._out.append(frame(kind, flags, number, payload))

    # --- what came ---------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Calls back for all that is whole. Never raises for what a peer sent: `failed` says that it is over."""
        if self.failed:
            return
        self._buffer += data
        try:
            self._read()
        except ConnectionFailed as error:
            self.end(error.code, str(error))
            self.lost()
            return
        if self._taken * 2 > self._limits.window:
            self._give_back()

    def lost(self) -> None:
        """The connection is over: whoever answers a stream is told."""
        self.failed = True
        streams, self.streams = list(self.streams.values()), {}
        self._blocked.clear()
        for stream in streams:
            self._calls.gone(stream)

    def end(self, code: int = NO_ERROR, reason: str = "") -> None:
        """GOAWAY: streams that the peer has begun are answered, none is taken any more."""
        self._leaving = True
        self._send(GOAWAY, 0, 0, self._last.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()[:256])

    def retire(self) -> None:
        """Ask the peer to open no more streams here; those that are on their way are answered (RFC 9113, 6.8)."""
        self._send(GOAWAY, 0, 0, EVERY_STREAM + NO_ERROR.to_bytes(4, "big"))

    def ping(self) -> None:
        self._send(PING, 0, 0, bytes(8))

    def _read(self) -> None:
        buffer, at = self._buffer, 0
        if self._preface:
            if not buffer.startswith(PREFACE[: len(buffer)]):
                raise ConnectionFailed(PROTOCOL_ERROR, "no HTTP/2 preface")
            if len(buffer) < len(PREFACE):
                return
            self._preface, at = False, len(PREFACE)
        size = len(buffer)
        try:
            while size - at >= 9:
                length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
                if length > 16384:
                    raise ConnectionFailed(FRAME_SIZE_ERROR, f"a frame of {length} bytes; at most 16384")
                end = at + 9 + length
                if end > size:
                    return
                kind, flags = buffer[at + 3], buffer[at + 4]
                number = int.from_bytes(buffer[at + 5 : at + 9], "big") & LARGEST_WINDOW
                payload = bytes(buffer[at + 9 : end])
                at = end
                if self._block is not None and (kind != CONTINUATION or number != self._block_for[0]):
                    raise ConnectionFailed(PROTOCOL_ERROR, "header blocks go on without a frame between them")
                if kind < len(_HANDLERS):  # others are to be ignored
                    _HANDLERS[kind](self, flags, number, payload)
        finally:
            del buffer[:at]

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receivable -= size
        if self._receivable < 0:
            raise ConnectionFailed(FLOW_CONTROL_ERROR, "more data than the connection's window")
        if number == 0 or number > self._last:
            raise ConnectionFailed(PROTOCOL_ERROR, f"data on stream {number}, which was not begun")
        stream = self.streams.get(number)
        if stream is None or stream.ended:  # of one that we have reset, or answered early: on its way when it ended
            self._taken += size
            if stream is not None:
                self.reset(stream, STREAM_CLOSED)
                self._calls.gone(stream)
            return
        stream.receivable -= size
        if stream.receivable < 0:
            raise ConnectionFailed(FLOW_CONTROL_ERROR, f"more data than the window of stream {number}")
        data = _unpadded(flags, payload)
        if len(data) < size:  # padding is nobody's to take
            self.consumed(stream, size - len(data))
        ended = bool(flags & END_STREAM)
        stream.ended = ended
        self._calls.data(stream, data, ended)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        block = _unpadded(flags, payload)
        if flags & PRIORITISED:
            if len(block) < 5:
                raise ConnectionFailed(FRAME_SIZE_ERROR, "a priority is 5 bytes")
            block = block[5:]
        if number % 2 == 0:
            raise ConnectionFailed(PROTOCOL_ERROR, f"a client's streams have odd numbers, not {number}")
        if flags & END_HEADERS:
            self._headers(number, flags, block)
        else:
            self._block, self._block_for = bytearray(block), (number, flags)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFailed(PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block += payload
        if len(self._block) > self._limits.headers:
            raise ConnectionFailed(ENHANCE_YOUR_CALM, f"a header block of more than {self._limits.headers} bytes")
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._headers(*self._block_for, block)

    def _headers(self, number: int, flags: int, block: bytes) -> None:
        if len(block) > self._limits.headers:
            raise ConnectionFailed(ENHANCE_YOUR_CALM, f"a header block of more than {self._limits.headers} bytes")
        headers = self._known.get(block)
        if headers is None:
            headers = self._decode(block)
        stream = self.streams.get(number)
        if stream is not None:  # trailers of a request
            if not flags & END_STREAM or stream.ended:
                raise ConnectionFailed(PROTOCOL_ERROR, f"headers twice on stream {number}")
            stream.ended = True
            self._calls.data(stream, b"", True)
            return
        if number <= self._last:
            return  # of a stream that has ended: what it said belongs to the header table, and to nobody else
        self._last = number
        if self._leaving or len(self.streams) >= self._limits.streams:
            self._send(RST_STREAM, 0, number, REFUSED_STREAM.to_bytes(4, "big"))
            return
        made = self.streams[number] = Stream(number, self._initial, self._limits.stream_window)
        made.ended = bool(flags & END_STREAM)
        self._calls.begin(made, headers)
        if made.ended and number in self.streams:
            self._calls.data(made, b"", True)

    def _decode(self, block: bytes) -> dict[str, str]:
        table = self._decoder.header_table.dynamic_entries
        before = len(table), table[0] if table else None
        try:
            headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        except (HPACKError, UnicodeDecodeError) as error:
            raise ConnectionFailed(COMPRESSION_ERROR, f"a header block that cannot be read: {error}") from None
        table = self._decoder.header_table.dynamic_entries
        same = before[0] == len(table) and (before[1] is table[0] if table else True)
        if not same or (block and block[0] & 0xE0 == 0x20):  # it changed the table, or the table's size
            self._known.clear()
        elif len(block) <= 1024:
            if len(self._known) >= KNOWN_BLOCKS:
                self._known.clear()
            self._known[block] = headers
        return headers

    def _on_reset(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4 or number == 0 or number > self._last:
            raise ConnectionFailed(PROTOCOL_ERROR, "a reset of no stream")
        stream = self.streams.pop(number, None)
        if stream is None:
            return
        self._blocked.pop(number, None)
        if not stream.answered:
            self._idle += 1
            if self._idle > self._limits.resets:
                raise ConnectionFailed(ENHANCE_YOUR_CALM, f"{self._idle} streams in a row were begun and reset")
        self._calls.gone(stream)

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFailed(FRAME_SIZE_ERROR, "malformed settings")
        if flags & ACK:
            return
        for at in range(0, len(payload), 6):
            key, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise ConnectionFailed(FLOW_CONTROL_ERROR, "an initial window of more than 2^31-1")
                change, self._initial = value - self._initial, value
                for stream in self.streams.values():
                    stream.sendable += change
            elif key == MAX_FRAME_SIZE:
                if not 16384 <= value < 1 << 24:
                    raise ConnectionFailed(PROTOCOL_ERROR, "a largest frame out of bounds")
                self._largest = min(value, 1 << 20)
        self._send(SETTINGS, ACK, 0)
        self._unblock()

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise ConnectionFailed(FRAME_SIZE_ERROR, "a ping is 8 bytes")
        if not flags & ACK:
            self._send(PING, ACK, 0, payload)

    def _on_window(self, flags: int, number: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if len(payload) != 4 or more == 0:
            raise ConnectionFailed(PROTOCOL_ERROR, "a window update by nothing")
        if number == 0:
            self._sendable += more
            if self._sendable > LARGEST_WINDOW:
                raise ConnectionFailed(FLOW_CONTROL_ERROR, "a window of more than 2^31-1")
            self._unblock()
        elif (stream := self.streams.get(number)) is not None:
            stream.sendable += more
            if stream.sendable > LARGEST_WINDOW:
                self.reset(stream, FLOW_CONTROL_ERROR)
                self._calls.gone(stream)
            else:
                self._flush(stream)
        elif number > self._last:
            raise ConnectionFailed(PROTOCOL_ERROR, f"a window for stream {number}, which was not begun")

    def _on_nothing(self, flags: int, number: int, payload: bytes) -> None:
        """PRIORITY, which is deprecated, and the peer's GOAWAY: it will close when it has its answers."""

    def _on_push(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFailed(PROTOCOL_ERROR, "a client cannot push")

    # --- answers -----------------------------------------------------------------------------------------------------

    def respond(self, stream: Stream, block: bytes) -> None:
        """The head of an answer. Whatever is said of a stream that is gone goes nowhere."""
        if stream.number not in self.streams:
            return
        stream.answered = True
        self._send(HEADERS, END_HEADERS, stream.number, block)

    def write(self, stream: Stream, data: bytes) -> None:
        stream.pending += data
        self._flush(stream)

    def finish(self, stream: Stream, block: bytes) -> None:
        """The trailers, once all before them is sent."""
        stream.trailers = block
        self._flush(stream)

    def answer(self, stream: Stream, head: bytes, data: bytes, trailers: bytes) -> None:
        """A whole answer, which nearly always fits into one write."""
        if stream.number not in self.streams:
            return
        size = len(data)
        if size > stream.sendable or size > self._sendable or size > self._largest or not stream.ended:
            self.respond(stream, head)
            stream.pending += data
            self.finish(stream, trailers)
            return
        number = stream.number.to_bytes(4, "big")
        self._sendable -= size
        self._out.append(
            b"%b\x01\x04%b%b%b\x00\x00%b%b%b\x01\x05%b%b"
            % (len(head).to_bytes(3, "big"), number, head, size.to_bytes(3, "big"), number, data,
               len(trailers).to_bytes(3, "big"), number, trailers)
        )  # fmt: skip
        stream.answered, self._idle = True, 0
        del self.streams[stream.number]

    def reset(self, stream: Stream, code: int) -> None:
        self._send(RST_STREAM, 0, stream.number, code.to_bytes(4, "big"))
        self.streams.pop(stream.number, None)
        self._blocked.pop(stream.number, None)

    def consumed(self, stream: Stream, size: int) -> None:
        """Of its data so much was taken: the peer may send more, which it is told in pieces of half a window."""
        self._taken += size
        if not stream.ended:
            stream.taken += size
            if stream.taken * 2 >= self._limits.stream_window:
                self._send(WINDOW_UPDATE, 0, stream.number, stream.taken.to_bytes(4, "big"))
                stream.receivable += stream.taken
                stream.taken = 0
        if self._taken * 2 > self._limits.window:
            self._give_back()

    def _give_back(self) -> None:
        self._send(WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big"))
        self._receivable += self._taken
        self._taken = 0

    def _unblock(self) -> None:
        for stream in list(self._blocked.values()):
            if self._sendable <= 0:
                return
            self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        if stream.number not in self.streams:
            return
        pending = stream.pending
        while pending and (room := min(len(pending), self._largest, stream.sendable, self._sendable)) > 0:
            self._send(DATA, 0, stream.number, bytes(pending[:room]))
            del pending[:room]
            stream.sendable -= room
            self._sendable -= room
        if pending:
            self._blocked.pop(stream.number, None)  # the others first
            self._blocked[stream.number] = stream
            return
        self._blocked.pop(stream.number, None)
        if stream.trailers is not None:
            self._send(HEADERS, END_HEADERS | END_STREAM, stream.number, stream.trailers)
            self._idle = 0
            if not stream.ended:  # it need not send the rest (RFC 9113, 8.1)
                self._send(RST_STREAM, 0, stream.number, NO_ERROR.to_bytes(4, "big"))
            del self.streams[stream.number]
        elif stream.drained is not None:
            stream.drained()


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFailed(PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


_HANDLERS: tuple[Callable[[Connection, int, int, bytes], None], ...] = (
    Connection._on_data,
    Connection._on_headers,
    Connection._on_nothing,
    Connection._on_reset,
    Connection._on_settings,
    Connection._on_push,
    Connection._on_ping,
    Connection._on_nothing,
    Connection._on_window,
    Connection._on_continuation,
)
