"""What asker and holder of a blob say to each other over one byte stream (service ``blob``, lane BULK).

    asker    {"sha256": DIGEST, "offset": BYTES, "chunks": true, "want": [[FIRST, END], …]}\\n          then closes its direction
    holder   {"size": BYTES, "seal": SHA256}\\n, the manifest (32 bytes for each chunk, SHA256 its own), the chunks wanted, in order

    asker    the same with "select": true: it has other files that may hold some of it, and first wants to see the manifest
    holder   {"size": BYTES, "seal": SHA256, "select": true}\\n, the manifest
    asker    a bit for each chunk (`chunks.bitmap`), set for those that it wants                           then closes its direction
    holder   those chunks, in order                        one that does not know `select` answers as if it had not been said

    or       {"size": BYTES}\\n and the bytes from offset on       from one that knows no manifest, or to an asker that does not ask
    or       {"error": TEXT, "code": CODE}\\n

``offset`` is what an asker has without a gap, for a holder that does not know of chunks.
"""

from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from cluster_controller.errors import Conflict, Exhausted, InvalidInput, NotFound, ProtocolError, StoreFull, Unreachable
from cluster_controller.models.chunks import check_ranges
from cluster_shim.contract import ByteStream

MAX_LINE = 4096  # bytes of a request or a reply's head
MAX_TEXT = 1000  # characters of a reason
PART = 1 << 18  # bytes read from a stream at once

T = TypeVar("T")
Code = Literal["not_found", "exhausted", "invalid", "unreachable", "failed"]


class Request(Struct, frozen=True, omit_defaults=True):
    sha256: str
    offset: int = 0
    chunks: bool = False
    want: tuple[tuple[int, int], ...] = ()
    """Empty: all."""
    select: bool = False


class Reply(Struct, frozen=True, omit_defaults=True):
    size: int = -1
    seal: str = ""
    select: bool = False
    error: str = ""
    code: Code | None = None


def encode(message: Request | Reply) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """`InvalidInput` for what is none; the digest is left to be judged by the caller."""
    try:
        request = msgspec.json.decode(line, type=Request)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"not a request for a blob: {error}") from None
    if request.offset < 0:
        raise InvalidInput(f"blob {request.sha256[:80]}: an offset of {request.offset}")
    check_ranges(request.want)
    return request


def decode_reply(digest: str, line: bytes) -> Reply:
    """`ProtocolError` for what is none."""
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"blob {digest}: the reply's head is not understood: {error}") from None


def refusal(error: Exception) -> Reply:
    code: Code = "failed"
    match error:
        case NotFound():
            code = "not_found"
        case Exhausted() | StoreFull():
            code = "exhausted"
        case Unreachable() | Conflict():  # what asking again may heal
            code = "unreachable"
        case InvalidInput():
            code = "invalid"
    return Reply(error=str(error)[:MAX_TEXT], code=code)


class Reading:
    """A stream with what was read of it and not yet taken."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._rest = b""

    async def line(self) -> bytes:
        """Without its end. `EOFError` when the other side sends none within `MAX_LINE` bytes."""
        data = self._rest
        while b"\n" not in data:
            part = await self._stream.read(MAX_LINE)
            data += part
            if not part or (len(data) > MAX_LINE and b"\n" not in data):
                raise EOFError(f"no line within {len(data)} bytes")
        line, _, self._rest = data.partition(b"\n")
        return line

    async def exactly(self, length: int) -> bytearray:
        """`EOFError` when the other side ends before."""
        found = bytearray()
        while len(found) < length:
            part = await self.some(min(PART, length - len(found)))
            if not part:
                raise EOFError(f"the source stopped {length - len(found)} bytes short of {length}")
            found += part
        return found

    async def some(self, limit: int) -> bytes:
        if self._rest:
            part, self._rest = self._rest[:limit], self._rest[limit:]
            return part
        return await self._stream.read(limit)
