"""A connection in memory: one end is a `ByteStream`, the other is what a test says the server does."""

import asyncio

from cluster_shim.contract import ShimError

BOUND = 128 * 1024


class Near:
    """The client's end."""

    def __init__(self) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.server_ended = False
        self.aborted = False
        self.changed = asyncio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def read(self, limit: int = 65536) -> bytes:
        while not self.incoming:
            if self.server_ended or self.aborted:
                return b""
            await self.changed.wait()
        data = bytes(self.incoming[:limit])
        del self.incoming[:limit]
        self.notify()
        return data

    async def write(self, data: bytes) -> None:
        if self.aborted:
            raise ShimError("the connection was broken off")
        self.outgoing += data
        self.notify()

    async def close_write(self) -> None:
        return

    def abort(self, reason: str = "") -> None:
        self.aborted = True
        self.notify()


class End:
    """The server's end."""

    def __init__(self, near: Near) -> None:
        self._near = near
        self.sent = 0

    @property
    def seen(self) -> bytes:
        """All that the client has sent."""
        return bytes(self._near.outgoing)

    @property
    def closed(self) -> bool:
        return self._near.aborted

    async def received(self, mark: bytes) -> bytes:
        while mark not in self._near.outgoing:
            await self._near.changed.wait()
        return self.seen

    def send(self, data: bytes) -> None:
        self._near.incoming += data
        self._near.notify()

    def end(self) -> None:
        self._near.server_ended = True
        self._near.notify()

    async def flood(self) -> None:
        """As much as is taken, for ever."""
        while True:
            while len(self._near.incoming) >= BOUND:
                if self.closed:
                    raise ConnectionError("closed")
                await self._near.changed.wait()
            self.send(b"x" * 10_000)
            self.sent += 10_000


def wire() -> tuple[Near, End]:
    near = Near()
    return near, End(near)
