"""An in-memory pair of duplex byte streams with bounded buffers, cut at arbitrary places like the real ones."""

import asyncio
import random


class StreamLost(Exception):
    """The other side, or the test, broke the stream."""


class _Pipe:
    def __init__(self, limit: int, seed: int) -> None:
        self.buffer = bytearray()
        self.limit = limit
        self.closed = False
        self.lost = False
        self.changed = asyncio.Condition()
        self.random = random.Random(seed)
        self.carried = 0


class MemoryStream:
    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._in = incoming
        self._out = outgoing

    async def read(self, limit: int = 65536) -> bytes:
        async with self._in.changed:
            await self._in.changed.wait_for(lambda: self._in.buffer or self._in.closed or self._in.lost)
            if self._in.lost:
                raise StreamLost
            size = self._in.random.randint(1, max(1, min(limit, len(self._in.buffer))))
            data = bytes(self._in.buffer[:size])
            del self._in.buffer[:size]
            self._in.changed.notify_all()
            return data

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            async with self._out.changed:
                await self._out.changed.wait_for(lambda: len(self._out.buffer) < self._out.limit or self._out.lost)
                if self._out.lost:
                    raise StreamLost
                room = self._out.limit - len(self._out.buffer)
                self._out.buffer += view[:room]
                self._out.carried += len(view[:room])
                view = view[room:]
                self._out.changed.notify_all()

    async def close_write(self) -> None:
        async with self._out.changed:
            self._out.closed = True
            self._out.changed.notify_all()

    def abort(self, reason: str = "") -> None:
        for pipe in (self._in, self._out):
            pipe.lost = True
            asyncio.get_running_loop().create_task(_wake(pipe))

    @property
    def written(self) -> int:
        return self._out.carried


async def _wake(pipe: _Pipe) -> None:
    async with pipe.changed:
        pipe.changed.notify_all()


def pair(limit: int = 64 * 1024, seed: int = 0) -> tuple[MemoryStream, MemoryStream]:
    one, two = _Pipe(limit, seed), _Pipe(limit, seed + 1)
    return MemoryStream(one, two), MemoryStream(two, one)
