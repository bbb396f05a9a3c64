"""A pair of connected byte streams in memory: bounded like a tunnel stream, and cut wherever a test wants."""

import asyncio

from cluster_controller.errors import Unreachable

WINDOW = 256 * 1024


class Reset(Unreachable):
    pass


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = False
        self.reset: str | None = None
        self.passed = 0
        self.largest = 0
        self.cut_after: int | None = None
        self.flip_at: int | None = None  # spoil the byte at this position
        self.changed = asyncio.Condition()

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            part = bytearray(data[start : start + 65536])
            async with self.changed:
                await self.changed.wait_for(lambda: self.reset is not None or len(self.data) < WINDOW)
                if self.reset is None and self.cut_after is not None and self.passed + len(part) > self.cut_after:
                    part = part[: self.cut_after - self.passed]
                    self.data += part
                    self.reset = "the link was cut"
                if self.reset is not None:
                    self.changed.notify_all()
                    raise Reset(self.reset)
                if self.flip_at is not None and self.passed <= self.flip_at < self.passed + len(part):
                    part[self.flip_at - self.passed] ^= 1
                self.data += part
                self.passed += len(part)
                self.largest = max(self.largest, len(self.data))
                self.changed.notify_all()

    async def read(self, limit: int) -> bytes:
        async with self.changed:
            await self.changed.wait_for(lambda: self.data or self.eof or self.reset is not None)
            if not self.data and self.reset is not None:
                raise Reset(self.reset)
            part = bytes(self.data[:limit])
            del self.data[:limit]
            self.changed.notify_all()
            return part

    async def close(self) -> None:
        async with self.changed:
            self.eof = True
            self.changed.notify_all()

    def abort(self, reason: str) -> None:
        if self.reset is None and not self.eof:
            self.reset = reason or "aborted"
            self._wake()

    def _wake(self) -> None:
        async def wake() -> None:
            async with self.changed:
                self.changed.notify_all()

        asyncio.get_running_loop().create_task(wake())


class MemoryStream:
    """A `cluster_shim.contract.ByteStream`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.incoming, self.outgoing = incoming, outgoing

    async def read(self, limit: int = 65536) -> bytes:
        return await self.incoming.read(limit)

    async def write(self, data: bytes) -> None:
        await self.outgoing.write(data)

    async def close_write(self) -> None:
        await self.outgoing.close()

    def abort(self, reason: str = "") -> None:
        self.incoming.abort(reason)
        self.outgoing.abort(reason)


def pair() -> tuple[MemoryStream, MemoryStream]:
    there, back = _Pipe(), _Pipe()
    return MemoryStream(back, there), MemoryStream(there, back)
