"""The part of HTTP/2 that the front must understand to lead a gRPC connection to an application.

Pure: bytes in, events out. The client's frames pass through `ClientFrames`, which decodes the header blocks (and nothing else) so
that each request can be looked at, and encodes them again without the credentials of this tree; a request that is refused does
not pass, nor anything that belongs to it. Everything else passes as it came, DATA without being held. `ServerFrames` finds the
places in the instance's frames where an answer of our own fits. Invariants: what the instance gets is a well-formed connection of
its own (its decoder never depends on header fields that it was not sent); a header block is bounded; only the client's first
SETTINGS acknowledgement is taken out, since it answers the SETTINGS that the front itself sent to make the client speak.

Source: RFC 9113, sections 3.4, 4.1, 4.3, 6.2, 6.5, 6.9, 6.10, 8.3; RFC 7541.
"""

from collections.abc import Sequence
from enum import IntEnum

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from msgspec import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER = 9
MAX_BLOCK = 65536  # one header block, compressed and not
MAX_FRAGMENT = 16384  # the smallest limit that a peer may have
MAX_TABLE = 65536  # of the client's encoder, as an instance may allow it
MAX_REFUSED = 1000  # requests of one connection
MAX_SMALL_FRAME = 16384  # of frames that are looked at before they pass

END_STREAM, END_HEADERS, PADDED, PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1

Fields = list[tuple[bytes, bytes]]


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Http2Error(Exception):
    """The client broke the protocol; the connection is closed."""


class Pass(Struct, frozen=True):
    """Bytes that go to the instance as they are."""

    data: bytes


class Request(Struct, frozen=True):
    """A header block: of a request, or the trailers of one."""

    stream: int
    fields: Fields
    end_stream: bool
    trailers: bool

    def get(self, name: bytes) -> bytes:
        return next((value for key, value in self.fields if key == name), b"")


class Dropped(Struct, frozen=True):
    """DATA of a refused request: as many bytes of the connection's window are to be given back."""

    length: int


Event = Pass | Request | Dropped


class ClientFrames:
    """What the client sends, from the preface on."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._preface = False
        self._left = 0  # bytes of a frame that nobody looks into
        self._dropping = False  # that frame does not pass
        self._refused: set[int] = set()
        self._acknowledged = False
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends_stream = False
        self._last_stream = 0
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK)
        self._decoder.max_allowed_table_size = MAX_TABLE
        self._encoder = Encoder()
        self._encoder.header_table_size = 0  # whatever table the instance allows, none is always right

    def receive(self, data: bytes) -> None:
        """What came; `next_event` then tells what it means."""
        self._buffer += data

    def next_event(self) -> "Event | None":
        """None when more has to be received. Raises Http2Error."""
        if not self._preface:
            return self._take_preface()
        while True:
            if self._left:
                piece = self._take(self._left)
                self._left -= len(piece)
                if not piece or not self._dropping:
                    return Pass(piece) if piece else None
                continue
            event, more = self._next_frame()
            if event is not None or not more:
                return event

    def refuse(self, stream: int) -> None:
        """Nothing of this request passes, now or later. Raises Http2Error when there were too many."""
        if len(self._refused) >= MAX_REFUSED:
            raise Http2Error(f"more than {MAX_REFUSED} requests on this connection were refused")
        self._refused.add(stream)

    def encode(self, request: Request, drop: frozenset[bytes]) -> bytes:
        """The header block for the instance, without the fields named in ``drop``."""
        fields = [pair for pair in request.fields if pair[0] not in drop]
        block: bytes = self._encoder.encode(fields)
        return headers_frames(request.stream, block, end_stream=request.end_stream)

    def _take_preface(self) -> "Event | None":
        if len(self._buffer) < len(PREFACE) and PREFACE.startswith(self._buffer):
            return None
        if not self._buffer.startswith(PREFACE):
            raise Http2Error("the connection does not begin with HTTP/2's preface")
        self._preface = True
        del self._buffer[: len(PREFACE)]
        return Pass(PREFACE)

    def _take(self, most: int) -> bytes:
        piece = bytes(self._buffer[:most])
        del self._buffer[: len(piece)]
        return piece

    def _next_frame(self) -> tuple["Event | None", bool]:
        """The event of the next frame, if it has one; whether it is worth looking further."""
        if len(self._buffer) < FRAME_HEADER:
            return None, False
        length = int.from_bytes(self._buffer[:3], "big")
        kind, flags = self._buffer[3], self._buffer[4]
        stream = int.from_bytes(self._buffer[5:9], "big") & 0x7FFFFFFF
        if self._block is not None and (kind != Kind.CONTINUATION or stream != self._block_stream):
            raise Http2Error("a header block is interrupted by another frame")
        if kind not in (Kind.HEADERS, Kind.CONTINUATION, Kind.SETTINGS):
            self._left = FRAME_HEADER + length
            self._dropping = stream in self._refused
            return (Dropped(length), True) if self._dropping and kind == Kind.DATA and length else (None, True)
        if length > MAX_SMALL_FRAME:
            raise Http2Error(f"a frame of kind {kind} has {length} bytes; at most {MAX_SMALL_FRAME} are accepted")
        if len(self._buffer) < FRAME_HEADER + length:
            return None, False
        frame = self._take(FRAME_HEADER + length)
        if kind == Kind.SETTINGS:
            return self._settings(flags, frame), True
        if kind == Kind.HEADERS:
            return self._begin_block(stream, flags, frame[FRAME_HEADER:]), True
        return self._continue_block(flags, frame[FRAME_HEADER:]), True

    def _settings(self, flags: int, frame: bytes) -> "Event | None":
        if flags & ACK and not self._acknowledged:
            self._acknowledged = True
            return None
        return Pass(frame)

    def _begin_block(self, stream: int, flags: int, payload: bytes) -> "Event | None":
        if stream == 0 or stream % 2 == 0:
            raise Http2Error("a request must come on a stream of the client's")
        if flags & PADDED:
            if not payload or payload[0] >= len(payload):
                raise Http2Error("the padding of a HEADERS frame is longer than the frame")
            payload = payload[1 : len(payload) - payload[0]]
        if flags & PRIORITY:
            if len(payload) < 5:
                raise Http2Error("a HEADERS frame is too short for its priority")
            payload = payload[5:]
        self._block = bytearray(payload)
        self._block_stream = stream
        self._block_ends_stream = bool(flags & END_STREAM)
        return self._end_block() if flags & END_HEADERS else None

    def _continue_block(self, flags: int, payload: bytes) -> "Event | None":
        if self._block is None:
            raise Http2Error("a CONTINUATION frame continues nothing")
        self._block += payload
        if len(self._block) > MAX_BLOCK or not payload:
            raise Http2Error(f"a header block has more than {MAX_BLOCK} bytes, or an empty continuation")
        return self._end_block() if flags & END_HEADERS else None

    def _end_block(self) -> "Event | None":
        assert self._block is not None
        try:
            decoded = self._decoder.decode(bytes(self._block), raw=True)
        except HPACKError as error:
            raise Http2Error(f"a header block cannot be decoded: {error}") from error
        self._block = None
        stream = self._block_stream
        trailers = stream <= self._last_stream
        self._last_stream = max(stream, self._last_stream)
        if stream in self._refused:
            return None
        fields: Fields = [(bytes(name), bytes(value)) for name, value in decoded]
        return Request(stream, fields, self._block_ends_stream, trailers)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers_frames(stream: int, block: bytes, *, end_stream: bool) -> bytes:
    """HEADERS and as many CONTINUATIONs as needed."""
    pieces = [block[start : start + MAX_FRAGMENT] for start in range(0, len(block), MAX_FRAGMENT)] or [b""]
    frames = []
    for number, piece in enumerate(pieces):
        flags = (END_HEADERS if number == len(pieces) - 1 else 0) | (END_STREAM if end_stream and number == 0 else 0)
        frames.append(frame(Kind.CONTINUATION if number else Kind.HEADERS, flags, stream, piece))
    return b"".join(frames)


def literal_block(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A header block that touches nobody's table (literals without indexing), so it may be put between those of another encoder."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, prefix = len(text) - 127, bytearray((127,))
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    prefix.append(rest)
    return bytes(prefix) + text


SETTINGS = frame(Kind.SETTINGS, 0, 0)
SETTINGS_ACK = frame(Kind.SETTINGS, ACK, 0)


def goaway(last_stream: int, code: int, message: str = "") -> bytes:
    payload = last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + message.encode()[:1024]
    return frame(Kind.GOAWAY, 0, 0, payload)


def window_update(length: int) -> bytes:
    """Give ``length`` bytes of the connection's window back."""
    return frame(Kind.WINDOW_UPDATE, 0, 0, length.to_bytes(4, "big"))


def reset(stream: int, code: int = 0) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


class ServerFrames:
    """Where frames of our own may be put between those of the instance: not inside one, and not inside a header block."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0
        self._in_block = False

    @property
    def between(self) -> bool:
        return not self._left and not self._header and not self._in_block

    def advance(self, data: bytes, *, stop: bool = False) -> int:
        """Note that ``data`` was sent; with ``stop`` only up to the first place `between` frames. Returns the bytes noted."""
        position = 0
        while position < len(data) and not (stop and self.between):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
            else:
                step = min(FRAME_HEADER - len(self._header), len(data) - position)
                self._header += data[position : position + step]
                if len(self._header) == FRAME_HEADER:
                    self._begin()
            position += step
        return position

    def _begin(self) -> None:
        self._left = int.from_bytes(self._header[:3], "big")
        kind, flags = self._header[3], self._header[4]
        if kind in (Kind.HEADERS, Kind.CONTINUATION, Kind.PUSH_PROMISE):
            self._in_block = not flags & END_HEADERS
        self._header.clear()
