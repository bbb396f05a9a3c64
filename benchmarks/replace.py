"""A branch that is cut off: how soon it replaces a dead leaf by itself, and what it costs to heal.

Replace: root, region, three edges with the process shim; the root is killed, then an edge and all that it ran. From that moment until
the process that stands in for it was started, on the boot-time clock.

Healing: root, region, leaf with a stand-in shim, and a cable between root and region that this process holds, cuts and mends. What is
timed begins at the region's Welcome (its log says `link.up`), because how soon a link is tried again is another promise.
"""

import asyncio
import contextlib
import random
import re
import statistics
import time
from collections.abc import Awaitable, Callable

from banyanctl.demo.ports import free_port
from benchmarks import gauges, records
from benchmarks.harness import APPS, Site, Tree, all_ready, application, applied, changed, growing, until
from benchmarks.load import Arrivals, Status, Watches
from benchmarks.records import Options, Row

MERGE = "application/merge-patch+json"
AFTER = 10  # seconds of silence until Replace
KUBEEDGE = "KubeEdge 1.23, 5 pods, from network back"
GREETING_UP, GREETING_DOWN = 5, 3  # frames of a link that comes up, whatever there is to tell
SAMPLE = re.compile(r'^banyan_link_(received|sent)_(bytes|frames)(?:_total)?\{peer="root"\} ([0-9.e+]+)$', re.MULTILINE)


class Cable:
    """What lies between a child and its parent: bytes go both ways until it is cut."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.target = 0
        self.whole = True
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def lay(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """At once, at both ends; who dials is turned away."""
        self.whole = False
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        self.whole = True

    async def close(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.transport.abort()
            return
        there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        ends = {writer, onward}
        self._ends |= ends
        try:
            await asyncio.gather(_pump(reader, onward), _pump(there, writer))
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def measure(options: Options) -> list[Row]:
    times = 1 if options.quick else 5
    back = await replaced(options, times)
    records.say("replace: done")
    count, some = (12, 2) if options.quick else (1000, 10)
    async with growing(options.folder) as tree:
        cable = Cable()
        await cable.lay()
        try:
            root, region, leaf = await grow(tree, cable, count)
            idle = await healed_idle(cable, region, 2.0)
            took, busy = await healed_busy(cable, root, region, leaf, Changes(count, some, options.seed))
        finally:
            await cable.close()
    what = f"cut and mended between root and region, {count:,} Applications"
    return [
        Row(
            what=f"leaf killed under a cut-off region, Replace after {AFTER} s → replica started elsewhere",
            target=30,
            measured=max(back),
            unit="s",
            note=f"the worst of {times}, median {statistics.median(back):.1f} s; the root was killed before, the edge with all that it ran",
        ),
        Row(
            what=f"{what}, {some} changed on each side: Welcome → desired = actual and every status right",
            target=3,
            measured=took,
            unit="s",
            peer=KUBEEDGE,
            peer_measured=24,
            note=f"all {count:,} were shown as out of reach while the cable was cut; the last one to be right counts",
        ),
        Row(
            what=f"{what}, no changes: frames up, besides the greeting",
            target=2,
            measured=idle["sent", "frames"] - GREETING_UP,
            unit="frames",
            note=f"the greeting, hello aside: {GREETING_UP} up (routes, how far up, the stream's opening, a heartbeat, an answer),"
            f" {GREETING_DOWN} down (welcome, a heartbeat, an answer);"
            f" {idle['sent', 'frames']:.0f} and {idle['received', 'frames']:.0f} were counted",
        ),
        Row(
            what=f"{what}, no changes: frames down, besides the greeting",
            target=2,
            measured=idle["received", "frames"] - GREETING_DOWN,
            unit="frames",
        ),
        Row(
            what=f"{what}, no changes: both ways, before TLS, greeting and all",
            measured=(idle["sent", "bytes"] + idle["received", "bytes"]) / 1000,
            unit="kB",
        ),
        Row(
            what=f"{what}, {some} changed on each side: both ways, before TLS",
            measured=(busy["sent", "bytes"] + busy["received", "bytes"]) / 1000,
            unit="kB",
        ),
    ]


async def replaced(options: Options, times: int) -> list[float]:
    """Seconds from the kill of an edge until its replica was started elsewhere."""
    took = []
    async with growing(options.folder) as tree:
        root = await tree.root()
        region = await tree.region("region-1", root)
        edges = [await tree.edge(f"edge-{number}", region) for number in range(3)]
        await all_ready(root, 5)
        rule = {"action": "Replace", "afterSeconds": AFTER}
        await root.pool.request("POST", APPS, application("twins", replicas=2, onUnreachable=rule))
        await applied(root, 1)
        for _ in range(times):
            dead, spare = await holder(edges), await holder(edges, holds=False)
            root.destroy()
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            dead.destroy()
            took.append(await started(spare) - began)
            root.start()
            dead.start()
            await asyncio.gather(root.ready(), dead.ready())
            await all_ready(root, 5)
            await until("two of them run again", lambda: exactly(edges, 2), pause=0.2)
    return took


async def holder(edges: list[Site], *, holds: bool = True) -> Site:
    return next(edge for edge in edges if bool(edge.instances()) is holds)


async def exactly(edges: list[Site], count: int) -> bool:
    return sum(len(edge.instances()) for edge in edges) == count


async def started(edge: Site) -> float:
    async def check() -> list[float]:
        return [gauges.started(pid) for pid in edge.instances()]

    found: list[float] = await until(f"{edge.name} stands in", check, pause=0.02)
    return found[0]


async def grow(tree: Tree, cable: Cable, count: int) -> tuple[Site, Site, Site]:
    cable.target = free_port(11500)
    root = await tree.root(tunnel_listen=f"127.0.0.1:{cable.target}", tunnel_advertise=(f"127.0.0.1:{cable.port}",))
    region = await tree.region("region-1", root)
    await all_ready(root, 2)
    leaf = await tree.leaf("leaf-1", region)
    await all_ready(root, 3)
    turn = asyncio.Semaphore(8)

    async def put(number: int) -> None:
        async with turn:
            await root.pool.request("POST", APPS, application(app(number), clusterName=leaf.name))

    await asyncio.gather(*(put(number) for number in range(count)))
    await applied(root, count)
    return root, region, leaf


def app(number: int) -> str:
    return f"app-{number}"


class Changes:
    """Which Applications are changed above, and which below; never the same."""

    def __init__(self, count: int, some: int, seed: int) -> None:
        picked = random.Random(seed).sample(range(count), 2 * some)
        self.count = count
        self.above = [app(number) for number in picked[:some]]
        self.below = [app(number) for number in picked[some:]]


async def healed_idle(cable: Cable, region: Site, settle: float) -> dict[tuple[str, str], float]:
    """What passed over the link of a healing with nothing to tell."""
    await asyncio.sleep(settle)
    await cut(cable, region)
    await mended(cable, region)
    await asyncio.sleep(settle)
    return await passed(region)


async def healed_busy(
    cable: Cable, root: Site, region: Site, leaf: Site, changes: Changes
) -> tuple[float, dict[tuple[str, str], float]]:  # fmt: skip
    """Seconds from Welcome until everything is right on both sides, and what passed."""
    uids = {item["metadata"]["name"]: item["metadata"]["uid"] for item in (await root.pool.request("GET", APPS))["items"]}
    assert leaf.shim is not None
    arrivals = Arrivals()
    async with Watches() as watches:
        await cut(cable, region)
        await until("all are shown as out of reach", lambda: counted(root, 0), pause=0.2)

        def status(name: str, seen: Status, at: float) -> None:
            if seen.ready == (0 if name in changes.below else 1):
                arrivals.arrived(("status", name), at)

        await watches.works(leaf, lambda name, word, at: arrivals.arrived(("work", name, word), at))
        for name in changes.above:
            await root.pool.request("PATCH", f"{APPS}/{name}", changed(1), MERGE)
        for name in changes.below:
            leaf.shim.flip(uids[name], ready=False)
        await asyncio.sleep(1.0)
        await watches.applications(root, status)
        welcome = await mended(cable, region)
        arrivals.began |= {("work", name, "1"): welcome for name in changes.above}
        arrivals.began |= {("status", name): welcome for name in uids if name not in changes.below}
        took = max(await arrivals.milliseconds()) / 1000
        watches.check()
        await until("the others are shown as not ready", lambda: counted(root, len(uids) - len(changes.below)), pause=0.05)
    return took, await passed(region)


async def counted(root: Site, ready: int) -> bool:
    items = (await root.pool.request("GET", APPS))["items"]
    return bool(sum(item.get("status", {}).get("ready", 0) for item in items) == ready)


async def cut(cable: Cable, region: Site) -> None:
    cable.cut()

    async def gone() -> bool:
        return not await passed(region)

    await until("the region has lost its parent", gone)


async def mended(cable: Cable, region: Site) -> float:
    """When the region had its Welcome (monotonic)."""
    ups = links_up(region)
    cable.mend()
    await until("the region has its Welcome", _more(lambda: links_up(region), ups), pause=0.005)
    return time.monotonic()


def _more(now: Callable[[], int], before: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return now() > before

    return check


def links_up(region: Site) -> int:
    """How often it has come to its parent."""
    lines = region.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(1 for line in lines if "link.up" in line and re.search(r"parent\W+true", line, re.IGNORECASE))


async def passed(region: Site) -> dict[tuple[str, str], float]:
    """Bytes and frames of the region's link to the root since it came up; empty without one."""
    text = (await region.pool.request("GET", "/metrics")).decode()
    return {(way, what): float(value) for way, what, value in SAMPLE.findall(text)}
