"""Frames of a WebSocket (RFC 6455), from a client's side: as much as an API server's streams need. Pure.

The API server multiplexes what it streams over a WebSocket by the first byte of each binary message (`v4.channel.k8s.io`).
"""

import base64
import hashlib
from collections.abc import Iterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_MESSAGE = 1 << 20  # bytes; a kubelet sends at most 32 KiB at once


class ProtocolError(Exception):
    """The other side does not speak the protocol; the text says how."""


def accept(key: bytes) -> bytes:
    """What a server answers to ``Sec-WebSocket-Key``."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """One whole message in one frame. ``mask``: four random bytes, without which a server hangs up."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + length.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + length.to_bytes(8)
    return head + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    """All at once as one number: a loop over bytes would be two hundred times slower."""
    length = len(payload)
    pattern = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload) ^ int.from_bytes(pattern)).to_bytes(length)


class Messages:
    """What a server sends, message by message. `feed` may be called with any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._opcode = 0
        self._parts = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(opcode, payload) of each message that is whole now. ProtocolError for what is none."""
        self._buffer += data
        while (found := self._frame()) is not None:
            final, opcode, payload = found
            if opcode >= CLOSE:
                if not final or len(payload) > 125:
                    raise ProtocolError("a control frame in pieces, or of more than 125 bytes")
                yield opcode, payload
                continue
            if (opcode == CONTINUATION) is not bool(self._opcode):
                raise ProtocolError("a message begins in the midst of another, or goes on without having begun")
            self._opcode = self._opcode or opcode
            self._parts += payload
            if len(self._parts) > MAX_MESSAGE:
                raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
            if final:
                whole, kind = bytes(self._parts), self._opcode
                self._opcode, self._parts = 0, bytearray()
                yield kind, whole

    def _frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70 or second & 0x80:
            raise ProtocolError("reserved bits, or a masked frame from a server")
        length, start = second & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start])
        if length > MAX_MESSAGE:
            raise ProtocolError(f"a frame of {length} bytes")
        if len(buffer) < start + length:
            return None
        payload = bytes(buffer[start : start + length])
        del buffer[: start + length]
        return bool(first & 0x80), first & 0x0F, payload
