"""What gRPC adds to HTTP/2 (PROTOCOL-HTTP2.md of gRPC): messages with a length before them, timeouts, statuses. Pure."""

import zlib
from collections.abc import Iterator

from edge_ai.serve.errors import BadRequest, RequestError, TooLarge
from edge_ai.serve.http2 import literal

HEAD = b"\x88" + literal("content-type", "application/grpc")  # \x88: status 200
OK = literal("grpc-status", "0")
CODES = {
    "OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "RESOURCE_EXHAUSTED": 8,
    "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
}  # fmt: skip
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}
MOST_MESSAGE = 2048  # bytes of a status' text


class Unimplemented(RequestError):
    status = 501
    grpc_code = "UNIMPLEMENTED"


def trailers(code: str, message: str) -> bytes:
    """The header block that ends a call which failed."""
    raw = message.encode()[:MOST_MESSAGE]
    text = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    return literal("grpc-status", str(CODES.get(code, CODES["UNKNOWN"]))) + literal("grpc-message", text)


def framed(message: bytes) -> bytes:
    return b"\x00" + len(message).to_bytes(4, "big") + message


def seconds(timeout: str) -> float | None:
    """The header ``grpc-timeout``: at most eight digits and a unit. None when there is none. Raises `BadRequest`."""
    if not timeout:
        return None
    digits, unit = timeout[:-1], _UNITS.get(timeout[-1])
    if unit is None or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        raise BadRequest(f"grpc-timeout '{timeout[:20]}' is no number with one of the units {', '.join(_UNITS)}")
    return int(digits) * unit


class Messages:
    """Cuts a call's bytes into messages, none larger than ``most`` once it is unpacked."""

    def __init__(self, most: int, encoding: str) -> None:
        self._most = most
        self._encoding = encoding
        self._buffer = bytearray()

    @property
    def empty(self) -> bool:
        return not self._buffer

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now. Raises `TooLarge` as soon as it knows of a length too large, `BadRequest`, `Unimplemented`."""
        if not self._buffer and len(data) >= 5 and data[0] == 0 and int.from_bytes(data[1:5], "big") == len(data) - 5 <= self._most:
            yield data[5:]  # nearly always
            return
        self._buffer += data
        while len(self._buffer) >= 5:
            length = int.from_bytes(self._buffer[1:5], "big")
            if length > self._most:
                raise TooLarge(f"the message has {length} bytes; at most {self._most} are taken")
            if len(self._buffer) < 5 + length:
                return
            packed, message = self._buffer[0], bytes(self._buffer[5 : 5 + length])
            del self._buffer[: 5 + length]
            yield self._unpacked(message) if packed else message

    def _unpacked(self, message: bytes) -> bytes:
        if self._encoding not in ("gzip", "deflate"):
            raise Unimplemented(f"messages packed by '{self._encoding[:20]}' are not understood; send them as they are, or by gzip")
        unpacker = zlib.decompressobj(47)  # either of both heads
        try:
            made = unpacker.decompress(message, self._most + 1)
        except zlib.error as error:
            raise BadRequest(f"the message cannot be unpacked: {error}") from None
        if len(made) > self._most:
            raise TooLarge(f"unpacked, the message has more than the {self._most} bytes that are taken")
        if not unpacker.eof:
            raise BadRequest("the packed message breaks off")
        return made
