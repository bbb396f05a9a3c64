"""A thousand controllers in a tree of four levels: does the root see all of them, and how soon does desired state reach the leaves?

The root is a `banyan run` of its own. The others are whole controllers too, with stores on disk, sync, placement and TLS links to their own
parents, but many share a process (`benchmarks.hosted`), because a thousand interpreters would measure the machine's memory; leaves have a
stand-in for their cluster. All of it, and who asks, runs on the same cores. A change counts as arrived when the leaf has committed it as
what its own cluster shall run; the moment is taken in the leaf's process, on the same monotonic clock.
"""

import asyncio
import time
from collections.abc import Sequence

from msgspec import Struct

from benchmarks import gauges, load, records
from benchmarks.failover import address_of
from benchmarks.harness import APPS, Site, Tree, all_ready, application, applied, changed, growing
from benchmarks.hosted import Host, plant
from benchmarks.propagation import MERGE
from benchmarks.records import Options, Row

ALL = "everywhere"
ARRIVE_SECONDS = 120.0
READY_SECONDS = 600.0


class Shape(Struct, frozen=True):
    """How many processes share the others, and how many each controller of a level has below it."""

    processes: int
    regions: int  # of a process
    districts: int
    leaves: int

    @property
    def total(self) -> int:
        """The root included."""
        regions = self.processes * self.regions
        return 1 + regions * (1 + self.districts * (1 + self.leaves))


class Leaves:
    """Those of one process, and what has arrived at them: (cluster, application, word) and when."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.names: list[str] = []
        self.seen: dict[tuple[str, str, str], float] = {}
        self.newest: dict[tuple[str, str], int] = {}

    async def look(self) -> None:
        for cluster, name, word, at in (await self.host.ask("arrivals"))["seen"]:
            for earlier in range(self.newest.get((cluster, name), -1) + 1, int(word) + 1):  # one that was overtaken has arrived with it
                self.seen[cluster, name, str(earlier)] = at
            self.newest[cluster, name] = max(int(word), self.newest.get((cluster, name), -1))


class Branch(Leaves):
    """One process with its regions and all below them."""

    def __init__(self, tree: Tree, number: int, shape: Shape) -> None:
        super().__init__(Host(tree.folder))
        self.tree = tree
        self.shape = shape
        self.regions = [f"region-{number}-{one}" for one in range(shape.regions)]

    async def grow(self, address: str) -> None:
        await asyncio.to_thread(plant, self.tree.folder, "root", address, self.regions, parents=True)
        districts = await self._under(await self._start(self.regions), self.shape.districts, parents=True)
        self.names = await self._under(await self._start(districts), self.shape.leaves, parents=False)
        await self.host.ask("start", names=self.names, cluster=True)

    async def _start(self, names: Sequence[str]) -> dict[str, str]:
        addresses: dict[str, str] = (await self.host.ask("start", names=names, cluster=False))["addresses"]
        return addresses

    async def _under(self, above: dict[str, str], each: int, *, parents: bool) -> list[str]:
        made = []
        for parent, address in above.items():
            names = [f"{'district' if parents else 'leaf'}-{parent.partition('-')[2]}-{number}" for number in range(each)]
            await self.host.ask("plant", parent=parent, address=address, names=names, parents=parents)
            made += names
        return made


async def measure(options: Options) -> list[Row]:
    shape = Shape(1, 1, 2, 2) if options.quick else Shape(3, 3, 10, 10)
    singles, changes, rounds, pace = (2, 6, 2, 10.0) if options.quick else (90, 300, 5, 10.0)
    async with growing(options.folder) as tree:
        root = await tree.root()
        began = time.monotonic()
        branches = [await asyncio.to_thread(Branch, tree, number, shape) for number in range(shape.processes)]
        try:
            await asyncio.gather(*(branch.grow(address_of(root)) for branch in branches))
            records.say(f"{shape.total:,} controllers have started")
            await everyone(root, shape.total)
            grown = time.monotonic() - began
            one = await for_one(root, branches, singles, changes, pace)
            every = await for_all(root, branches, rounds)
            memory = gauges.pss(root.pid) / gauges.MIB
        finally:
            for branch in branches:
                await asyncio.to_thread(branch.host.close)
    return shown(shape, grown, one, every, memory)


async def everyone(root: Site, count: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            return await all_ready(root, count)
        except TimeoutError:
            if time.monotonic() > deadline:
                raise


async def arrived(branches: Sequence[Leaves], wanted: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], float]:
    """When each of these was there: (cluster, application, word)."""
    deadline = time.monotonic() + ARRIVE_SECONDS
    while True:
        await asyncio.gather(*(branch.look() for branch in branches))
        found = {key: at for branch in branches for key, at in branch.seen.items() if key in wanted}
        if len(found) == len(wanted):
            return found
        if time.monotonic() > deadline:
            missing = sorted(wanted - found.keys())
            raise RuntimeError(f"{len(missing)} of {len(wanted)} changes never arrived, {missing[0]} among them")
        await asyncio.sleep(0.2)


async def for_one(root: Site, branches: Sequence[Leaves], singles: int, changes: int, pace: float) -> list[float]:
    """Milliseconds of each change of an Application that stands on one leaf."""
    leaves = [leaf for branch in branches for leaf in branch.names]
    chosen = leaves[:: max(1, len(leaves) // singles)][:singles]
    for number, leaf in enumerate(chosen):
        await root.pool.request("POST", APPS, application(f"one-{number}", clusterName=leaf))
    await applied(root, len(chosen))
    return await changed_one_by_one(root, branches, [(leaf, f"one-{number}") for number, leaf in enumerate(chosen)], changes, pace)


async def changed_one_by_one(
    root: Site, branches: Sequence[Leaves], where: Sequence[tuple[str, str]], changes: int, pace: float, first: int = 0
) -> list[float]:
    """Milliseconds of each of so many changes at a steady pace. ``where``: leaves, and the Application that stands there alone."""
    began: dict[tuple[str, str, str], float] = {}

    async def change(number: int) -> None:
        (leaf, name), word = where[number % len(where)], first + number + 1
        began[leaf, name, str(word)] = time.monotonic()
        await root.pool.request("PATCH", f"{APPS}/{name}", changed(word), MERGE)

    await load.paced(changes, pace, change)
    found = await arrived(branches, set(began))
    return [1000 * (at - began[key]) for key, at in found.items()]


async def for_all(root: Site, branches: Sequence[Leaves], rounds: int) -> list[float]:
    """Seconds of each round until the last leaf has it."""
    leaves = [leaf for branch in branches for leaf in branch.names]
    took = []
    for number in range(rounds + 1):
        began = time.monotonic()
        if number:
            await root.pool.request("PATCH", f"{APPS}/{ALL}", changed(number), MERGE)
        else:
            await root.pool.request("POST", APPS, application(ALL, strategy="Duplicated"))
        found = await arrived(branches, {(leaf, ALL, str(number)) for leaf in leaves})
        if number:  # the first places it
            took.append(max(found.values()) - began)
    return took


def shown(shape: Shape, grown: float, one: list[float], every: list[float], memory: float) -> list[Row]:
    leaves = shape.processes * shape.regions * shape.districts * shape.leaves
    tree = f"{shape.total:,} controllers on 4 levels"
    note = (
        f"root, {shape.processes * shape.regions} regions, {shape.processes * shape.regions * shape.districts} districts, {leaves} leaves;"
        f" the root is a `banyan run`, the others share {shape.processes} processes; {len(one)} changes at 10 a second;"
        " committed at three hops below the root one after the other, and once more as the leaf's own Work"
    )
    return [
        Row(what=f"{tree}: a change for one leaf, applied → stored there, P50", measured=load.p50(one), unit="ms"),
        Row(what=f"{tree}: a change for one leaf, applied → stored there, P99", target=250, measured=load.p99(one), unit="ms", note=note),
        Row(what=f"{tree}: a change for all {leaves}, applied → stored in the last, slowest of {len(every)}", target=5, measured=max(every),
            unit="s", rounds=every),
        Row(what=f"{tree}: memory (PSS) of the root", target=512, measured=memory, unit="MiB"),
        Row(what=f"{tree}: from the first start until the root lists all of them Ready", measured=grown, unit="s"),
    ]  # fmt: skip
