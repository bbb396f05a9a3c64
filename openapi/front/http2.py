"""The part of HTTP/2 that the front must understand to lead a gRPC connection to an application.

Pure: bytes in, events out. The client's frames pass through `ClientFrames`, which decodes the header blocks (and nothing else) so
that each request can be looked at, and encodes them again without the credentials of this tree. Everything else passes as it
came, DATA without being held. Invariants: what the instance gets is a well-formed connection of its own (its decoder never
depends on header fields that it was not sent); a header block is bounded; only the client's first SETTINGS acknowledgement is
taken out, since it answers the SETTINGS that the front itself sent to make the client speak.

Source: RFC 9113, sections 3.4, 4.1, 4.3, 6.2, 6.5, 6.10, 8.3; RFC 7541.
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
MAX_SMALL_FRAME = 16384  # of frames that are looked at before they pass

END_STREAM, END_HEADERS, PADDED, PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1

Fields = list[tuple[bytes, bytes]]


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
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


class ClientFrames:
    """What the client sends, from the preface on."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._preface = False
        self._passing = 0  # bytes of the current frame that pass unseen
        self._acknowledged = False
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends_stream = False
        self._last_stream = 0
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK)
        self._decoder.max_allowed_table_size = MAX_TABLE
        self._encoder = Encoder()
        self._encoder.header_table_size = 0  # whatever table the instance allows, none is always right

    def feed(self, data: bytes) -> list[Pass | Request]:
        """Raises Http2Error."""
        self._buffer += data
        events: list[Pass | Request] = []
        if not self._preface:
            if len(self._buffer) < len(PREFACE) and PREFACE.startswith(self._buffer):
                return events
            if not self._buffer.startswith(PREFACE):
                raise Http2Error("the connection does not begin with HTTP/2's preface")
            self._preface = True
            del self._buffer[: len(PREFACE)]
            events.append(Pass(PREFACE))
        while self._step(events):
            pass
        return events

    def encode(self, request: Request, drop: frozenset[bytes]) -> bytes:
        """The header block for the instance, without the fields named in ``drop``."""
        fields = [pair for pair in request.fields if pair[0] not in drop]
        block: bytes = self._encoder.encode(fields)
        return headers_frames(request.stream, block, end_stream=request.end_stream)

    def _step(self, events: list[Pass | Request]) -> bool:
        if self._passing:
            return self._pass_on(events)
        if len(self._buffer) < FRAME_HEADER:
            return False
        length = int.from_bytes(self._buffer[:3], "big")
        kind, flags = self._buffer[3], self._buffer[4]
        stream = int.from_bytes(self._buffer[5:9], "big") & 0x7FFFFFFF
        if self._block is not None and (kind != Kind.CONTINUATION or stream != self._block_stream):
            raise Http2Error("a header block is interrupted by another frame")
        if kind not in (Kind.HEADERS, Kind.CONTINUATION, Kind.SETTINGS):
            self._passing = FRAME_HEADER + length
            return True
        if length > MAX_SMALL_FRAME:
            raise Http2Error(f"a frame of kind {kind} has {length} bytes; at most {MAX_SMALL_FRAME} are accepted")
        if len(self._buffer) < FRAME_HEADER + length:
            return False
        frame = bytes(self._buffer[: FRAME_HEADER + length])
        del self._buffer[: FRAME_HEADER + length]
        if kind == Kind.SETTINGS:
            if flags & ACK and not self._acknowledged:
                self._acknowledged = True
            else:
                events.append(Pass(frame))
        elif kind == Kind.HEADERS:
            self._begin_block(stream, flags, frame[FRAME_HEADER:], events)
        else:
            self._continue_block(flags, frame[FRAME_HEADER:], events)
        return True

    def _pass_on(self, events: list[Pass | Request]) -> bool:
        if not self._buffer:
            return False
        piece = bytes(self._buffer[: self._passing])
        del self._buffer[: len(piece)]
        self._passing -= len(piece)
        events.append(Pass(piece))
        return True

    def _begin_block(self, stream: int, flags: int, payload: bytes, events: list[Pass | Request]) -> None:
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
        if flags & END_HEADERS:
            events.append(self._end_block())

    def _continue_block(self, flags: int, payload: bytes, events: list[Pass | Request]) -> None:
        if self._block is None:
            raise Http2Error("a CONTINUATION frame continues nothing")
        self._block += payload
        if len(self._block) > MAX_BLOCK or not payload:
            raise Http2Error(f"a header block has more than {MAX_BLOCK} bytes, or an empty continuation")
        if flags & END_HEADERS:
            events.append(self._end_block())

    def _end_block(self) -> Request:
        assert self._block is not None
        try:
            decoded = self._decoder.decode(bytes(self._block), raw=True)
        except HPACKError as error:
            raise Http2Error(f"a header block cannot be decoded: {error}") from error
        self._block = None
        stream = self._block_stream
        trailers = stream <= self._last_stream
        self._last_stream = max(stream, self._last_stream)
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
