"""The layout of a frame, and the numbers that both sides agree on.

    type u8 | flags u8 | reserved u16 | stream u32 | length u32 | payload

Big-endian. A WebSocket message holds whole frames only. `reserved` is sent as 0 and ignored on receipt; a type that is not
known is skipped, so that a later version may add one that an earlier version can do without.
Credit counts the bytes of DATA frames *with* their headers, so an empty frame is not free and what a window allows is what
it can cost in memory.
"""

import struct

HEADER = struct.Struct("!BBHII")
HEADER_SIZE = HEADER.size
U32 = struct.Struct("!I")

MAX_MESSAGE = 65536  # bytes of one WebSocket message, its own header included
MAX_PAYLOAD = MAX_MESSAGE - 16  # bytes of frames in one message, after the largest WebSocket header
MAX_FRAME = 16384  # bytes of one frame that this side makes, header included

CONTROL, HEARTBEAT, OPEN, DATA, CREDIT, RESET, GO_AWAY = range(1, 8)

END = 0x01  # on DATA: the sender's direction ends here
MORE = 0x02  # on CONTROL: the message goes on in the next CONTROL frame

MAX_STREAM_ID = 0xFFFFFFFF
MAX_CREDIT = 0x7FFFFFFF


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(kind, flags, 0, stream, len(payload)) + payload


def walk(data: bytes | bytearray, limit: int) -> tuple[int, int]:
    """How many bytes at the front of ``data`` (whole frames) are whole frames and no more than ``limit``, and how many frames."""
    position = count = 0
    size = min(len(data), limit)
    unpack = U32.unpack_from
    while position + HEADER_SIZE <= size:
        end: int = position + HEADER_SIZE + unpack(data, position + 8)[0]
        if end > size:
            break
        position = end
        count += 1
    return position, count
