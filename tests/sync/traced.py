"""A parent and a child in one traced process; each acknowledgement that the child puts on the stream is noted in FOLDER/acks.

`python -m tests.sync.traced FOLDER OTHER COUNT`: the child's store is in FOLDER, the parent's in OTHER.
"""

import asyncio
import os
import sys
from pathlib import Path

from cluster_controller.store import Key, Limits, Store
from cluster_controller.sync import SyncSession
from cluster_controller.sync.codec import Decoder
from cluster_controller.sync.messages import Ack
from tests.sync.streams import MemoryStream, pair


class Noting:
    """The child's end of the stream."""

    def __init__(self, stream: MemoryStream, acks: int) -> None:
        self._stream = stream
        self._acks = acks
        self._decoder = Decoder()

    async def read(self, limit: int = 65536) -> bytes:
        return await self._stream.read(limit)

    async def write(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if isinstance(message, Ack):
                os.write(self._acks, b"%d 0\n" % message.revision)
        await self._stream.write(data)

    async def close_write(self) -> None:
        await self._stream.close_write()

    def abort(self, reason: str = "") -> None:
        self._stream.abort(reason)


async def main(folder: Path, other: Path, count: int) -> None:
    child = await Store.open(folder, Limits(wal_bytes=64 * 1024))
    parent = await Store.open(other)
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    above, below = pair()

    async def no_bulk() -> MemoryStream:
        raise AssertionError("nothing large is sent")

    down = SyncSession(parent, send_space="down/kid", receive_space="up/kid", me="parent", peer="kid")
    up = SyncSession(child, send_space="report", receive_space="desired", me="kid", peer="parent")
    sessions = [asyncio.create_task(down.run(above, no_bulk)), asyncio.create_task(up.run(Noting(below, acks), no_bulk))]
    arrived = asyncio.Event()
    child.subscribe(lambda _: arrived.set(), "desired")
    for number in range(count):
        key = Key("down/kid", "Work", "", f"w{number % 20}")
        await parent.commit(lambda tx: tx.put(key, b'{"n":%d,"x":"%s"}' % (number, b"x" * 400), uid=key.name))  # noqa: B023
        if number % 5 == 0:
            await arrived.wait()
            arrived.clear()
    while (
        child.size("desired") < 20
        or child.last("desired") == 0
        or b'"n":%d' % (count - 1) not in b"".join(s.document for s in child.scan("desired"))
    ):
        arrived.clear()
        await arrived.wait()
    for session in sessions:
        session.cancel()
    await asyncio.gather(*sessions, return_exceptions=True)
    os._exit(0)  # closing would put everything into the file


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
