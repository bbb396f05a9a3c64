"""What a child asks its parent beside the handshake, on streams of service ``membership``: one question, one answer, JSON."""

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.tree.names import Reserve, Reserved
from cluster_controller.tunnel.stream import Stream

SERVICE = "membership"
MAX_BYTES = 8192


class Leave(Struct, frozen=True, tag=True):
    """The child leaves the tree for good."""


class Left(Struct, frozen=True, tag=True):
    """It is forgotten; its name is free."""


def encode(message: Reserve | Leave | Reserved | Left) -> bytes:
    return msgspec.json.encode(message)


def decode(data: bytes) -> Reserve | Leave:
    try:
        return msgspec.json.decode(data, type=Reserve | Leave)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"a membership question that this version does not know: {error}") from error


async def reply(stream: Stream) -> Reserved | Left:
    """Read the whole answer; InvalidInput when it is none."""
    await stream.close_write()
    data = b""
    while part := await stream.read():
        data += part
        if len(data) > MAX_BYTES:
            stream.abort("the answer is too long")
            raise InvalidInput("the parent's answer is too long")
    try:
        return msgspec.json.decode(data, type=Reserved | Left)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the parent's answer cannot be read: {error}") from error
