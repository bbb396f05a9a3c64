"""A cluster that answers at once: the shim contract served over gRPC, for rows that are about propagation.

The controllers under test are the shipped `banyan run` with ``shim = unix:…``; only what would be processes is played here, in the
process that measures, so that the moment of a change "at the leaf" is known without a second clock.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cluster_shim.contract import (
    ByteStream,
    Description,
    Desired,
    Node,
    Observed,
    ObservedComponent,
    ObservedWork,
    OpenTarget,
    ShimError,
    Work,
)
from cluster_shim.grpc.server import ShimServer

NODE = Node(
    name="stand-in", architecture="amd64", cpu_millis=64_000_000, memory_bytes=1 << 50,
    allocatable_cpu_millis=64_000_000, allocatable_memory_bytes=1 << 50,
)  # fmt: skip


class StandIn:
    """Runs nothing, and says that all of it is ready."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self._unready: set[str] = set()  # those that `flip` has left so: a Desired that comes after it does not heal them
        self._said: asyncio.Queue[Observed] = asyncio.Queue()

    async def describe(self) -> Description:
        return Description(kind="stand-in", version="1")

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        self._said = asyncio.Queue()
        listening = asyncio.create_task(self._listen(desired), name="stand-in")
        try:
            while True:
                yield await self._said.get()
        finally:
            listening.cancel()

    async def _listen(self, desired: AsyncIterator[Desired]) -> None:
        async for state in desired:
            if state.full:
                self.works.clear()
            for uid in state.removed:
                self.works.pop(uid, None)
            self.works |= {work.uid: work for work in state.works}
            seen = tuple(observed(work, ready=work.uid not in self._unready) for work in state.works)
            self._said.put_nowait(Observed(works=seen, removed=state.removed, full=state.full, nodes=(NODE,) if state.full else None))

    async def open(self, target: OpenTarget) -> ByteStream:
        raise ShimError("a stand-in has no logs and serves nothing")

    def flip(self, uid: str, *, ready: bool) -> float:
        """Everything of this application has become ready, or has ceased to be; when (monotonic)."""
        (self._unready.discard if ready else self._unready.add)(uid)
        self._said.put_nowait(Observed(works=(observed(self.works[uid], ready=ready),)))
        return time.monotonic()


def observed(work: Work, *, ready: bool = True) -> ObservedWork:
    return ObservedWork(
        uid=work.uid,
        version=work.version,
        components=tuple(
            ObservedComponent(name=one.name, desired=one.replicas, ready=one.replicas if ready else 0, updated=one.replicas)
            for one in work.components
        ),
    )


async def serve(path: Path) -> tuple[StandIn, Any]:
    """The stand-in and its server, to be closed."""
    shim = StandIn()
    server = ShimServer(shim, f"unix:{path}")
    await server.start()
    return shim, server
