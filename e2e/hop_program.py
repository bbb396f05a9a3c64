"""One controller's tunnel as a process: the shipped `Tunnel` with a real identity, told by lines of JSON what to do.

Arguments: the identity's folder, the address to listen on, the parent's address ("" for the root). What `banyan run` would
do with streams is done here on command, so that a test can stall one, fill one and time one. Each line in is
``{"do": NAME, …}``, each line out the answer.
"""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import structlog
import uvloop

from cluster_controller.identity import attach as attaches
from cluster_controller.identity import load
from cluster_controller.tree import wire
from cluster_controller.tunnel import ControlMessage, Hello, Lane, Limits, Link, Refusal, Router, Routes, Stream, Tunnel, Welcome

BLOCK = os.urandom(65536)
HEARTBEAT, DEAD_AFTER = 0.5, 1.5


class Hop:
    """Lets everybody of its tree in; otherwise what the controller's own membership does with links and routes."""

    def __init__(self, folder: Path) -> None:
        self.identity = load(folder)
        self.router = Router(self.identity.uid, wire.is_signed)
        limits = Limits(heartbeat=HEARTBEAT, dead_after=DEAD_AFTER, backoff_first=0.05, backoff_cap=0.2)
        self.tunnel = Tunnel(lambda: self.identity, self, self.router, limits)  # type: ignore[arg-type]
        self.lost: list[str] = []
        self.stalled: list[list[int]] = []
        self.filling: list[asyncio.Task[None]] = []
        for service, handler in (("echo", echo), ("swallow", swallow), ("never", never)):
            self.tunnel.handle(service, handler)

    # -- Membership ---------------------------------------------------------------------------------------------------------

    def hello(self, parent: str) -> Hello:
        me = self.identity
        signed = attaches.sign(me.uid, me.parent_uid, time.time_ns(), me.spki, me.sign)
        return Hello(name=me.name, attach=wire.attach_message(signed, me.name))

    async def welcome(self, hello: Hello, peer: object) -> Welcome | Refusal:
        return Welcome(name=self.identity.name, path=(self.identity.uid,))

    def link_up(self, link: Link) -> None:
        if link.is_parent:
            link.send_control(self.router.announcement())
        elif link.hello is not None and link.hello.attach is not None:
            self._tell(self.router.attach(link.hello.attach))

    def link_down(self, link: Link, reason: str) -> None:
        self.lost.append(reason)
        if not link.is_parent:
            self._tell(self.router.detach(link.peer_uid))

    def control(self, link: Link, message: ControlMessage) -> None:
        if isinstance(message, Routes):
            self._tell(self.router.apply(link.peer_uid, message).onward)

    def _tell(self, routes: Routes | None) -> None:
        if routes is not None and self.tunnel.parent is not None:
            self.tunnel.parent.send_control(routes)

    # -- what a test asks for -----------------------------------------------------------------------------------------------

    async def reaches(self, to: str) -> bool:
        return self.router.next_hop(to) is not None

    async def times(self, to: str, lane: int, rounds: int) -> dict[str, float]:
        """Seconds of round trips of 64 bytes, one after the other."""
        stream = await self.tunnel.open(to, "echo", lane=Lane(lane))
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            await stream.write(b"p" * 64)
            got = 0
            while got < 64:
                got += len(await stream.read())
            taken.append(time.perf_counter() - began)
        stream.abort()
        taken.sort()
        return {"median": statistics.median(taken), "p95": taken[int(0.95 * len(taken))], "worst": taken[-1]}

    async def rate(self, to: str, lane: int, size: int) -> float:
        """Bytes a second that arrive and are read at ``to``."""
        stream = await self.tunnel.open(to, "swallow", lane=Lane(lane))
        began = time.perf_counter()
        for _ in range(size // len(BLOCK)):
            await stream.write(BLOCK)
        await stream.close_write()
        assert await stream.read() == b""  # after everything was read there
        return size / (time.perf_counter() - began)

    async def fill(self, to: str, service: str, lane: int) -> None:
        """Push without end; with ``never`` nobody reads."""
        stream = await self.tunnel.open(to, service, lane=Lane(lane))
        sent = [0]
        self.stalled.append(sent)
        self.filling.append(asyncio.create_task(push(stream, sent)))

    async def sent(self) -> int:
        return sum(count[0] for count in self.stalled)

    async def calm(self) -> None:
        """End what `fill` began."""
        for task in self.filling:
            task.cancel()
        await asyncio.gather(*self.filling, return_exceptions=True)
        self.filling.clear()
        self.stalled.clear()

    async def probe(self) -> bool:
        links = [*self.tunnel.links.values(), *((self.tunnel.parent,) if self.tunnel.parent else ())]
        return all([await link.probe(DEAD_AFTER) for link in links])

    async def losses(self) -> list[str]:
        return self.lost


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def swallow(stream: Stream) -> None:
    while await stream.read():
        pass


async def never(stream: Stream) -> None:
    await asyncio.Event().wait()


async def push(stream: Stream, sent: list[int]) -> None:
    try:
        while True:
            await stream.write(BLOCK)
            sent[0] += len(BLOCK)
    finally:
        stream.abort()


async def main(folder: str, listen: str, parent: str) -> None:
    hop = Hop(Path(folder))
    port = await hop.tunnel.serve(listen, 0)
    dialling = asyncio.create_task(hop.tunnel.dial([parent], "")) if parent else None
    print(json.dumps({"uid": hop.identity.uid, "address": f"{listen}:{port}"}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        asked: dict[str, Any] = json.loads(line)
        print(json.dumps(await getattr(hop, asked.pop("do"))(**asked)), flush=True)
    if dialling is not None:
        dialling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dialling
    await hop.tunnel.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # answers have stdout to themselves
    uvloop.run(main(*sys.argv[1:4]))
