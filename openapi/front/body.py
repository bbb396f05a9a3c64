"""Find the end of an HTTP/1 body: by length, by chunks, or by the end of the connection.

Pure, fed with whatever arrives. A decoder hands out payload as it comes and holds back nothing but an unfinished chunk line
(bounded); what follows the body stays in ``rest`` for the next message. A broken framing raises at once: after it nobody knows
where the next message begins.

Source: RFC 9112, section 7.1.
"""

import re
from typing import Protocol

from openapi.front.head import CHUNKED, UNTIL_CLOSE, HeadError

MAX_CHUNK_LINE = 4096  # size and extensions
MAX_TRAILERS = 16384

_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n\x00]*)?\Z")


class BodyError(HeadError):
    """The body's framing is broken; the connection cannot be used further."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class Decoder(Protocol):
    done: bool  # the whole body was seen
    rest: bytes  # what came after it

    def feed(self, data: bytes) -> bytes:
        """Payload in ``data``. Not to be called once done."""
        ...

    def end(self) -> None:
        """The connection ended. Raises BodyError when the body was not complete."""
        ...


def decoder(length: int) -> Decoder:
    """The decoder for `RequestHead.length` or `ResponseHead.length`."""
    if length == CHUNKED:
        return ChunkedDecoder()
    if length == UNTIL_CLOSE:
        return UntilClose()
    return LengthDecoder(length)


class LengthDecoder:
    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        if len(data) > self.remaining:
            data, self.rest = data[: self.remaining], data[self.remaining :]
        self.remaining -= len(data)
        self.done = self.remaining == 0
        return data

    def end(self) -> None:
        if not self.done:
            raise BodyError(f"the connection ended {self.remaining} bytes before the end of the body")


class UntilClose:
    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> None:
        self.done = True


class ChunkedDecoder:
    """States: a size line, then data, then its CRLF, …, after the size 0 trailers (read, bounded, dropped)."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._line = b""  # an unfinished size line, CRLF or trailer line
        self._left = 0  # bytes of the current chunk still to come
        self._after_data = False  # a CRLF is due
        self._in_trailers = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        payload: list[bytes] = []
        if self._line:
            data, self._line = self._line + data, b""
        position = 0
        while position < len(data):
            if self._left:
                piece = data[position : position + self._left]
                payload.append(piece)
                self._left -= len(piece)
                position += len(piece)
                self._after_data = self._left == 0
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._hold(data[position:])
                break
            self._end_of_line(data[position : end + 1])
            position = end + 1
            if self.done:
                self.rest = data[position:]
                break
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def end(self) -> None:
        if not self.done:
            raise BodyError("the connection ended before the last chunk of the body")

    def _hold(self, line: bytes) -> None:
        if self._after_data and line != b"\r":
            raise BodyError("the data of a chunk is not followed by CRLF")
        if len(line) > (MAX_TRAILERS if self._in_trailers else MAX_CHUNK_LINE):
            raise BodyError("a line of the chunked body is too long")
        self._line = line

    def _end_of_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise BodyError("a line of the chunked body ends in LF without CR")
        if self._after_data:
            if line != b"\r\n":
                raise BodyError("the data of a chunk is not followed by CRLF")
            self._after_data = False
        elif self._in_trailers:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILERS:
                raise BodyError(f"the trailers have more than {MAX_TRAILERS} bytes")
            self.done = line == b"\r\n"
        else:
            self._size_line(line[:-2])

    def _size_line(self, line: bytes) -> None:
        match = _SIZE.match(line) if len(line) <= MAX_CHUNK_LINE else None
        if match is None:
            raise BodyError("the size of a chunk must be a hexadecimal number")
        self._left = int(match[1], 16)
        self._in_trailers = self._left == 0


def chunk(data: bytes) -> bytes:
    """``data`` (not empty: an empty chunk would end the body) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
