"""What an idle link costs a day, both ways: an edge's with five applications, the same one metered, and a region's uplink above a hundred.

Three trees at once, each with its own pair of interfaces, counted over the same time. Edges that are measured have processes of their own
and the process shim; the hundred below the region are whole controllers in one process (`benchmarks.hosted`) with a stand-in for their
clusters, for it is the region's uplink that is counted, and the region and the root are `banyan run`. Metered means: the parent asks for a
sign of life every thirty seconds (`heartbeat_seconds = 30`), and takes a link for dead after ninety.
"""

import asyncio
import re

from msgspec import Struct

from benchmarks import gauges, records
from benchmarks.failover import address_of
from benchmarks.harness import APPS, Site, Tree, all_ready, application, applied, growing, token
from benchmarks.hosted import Host
from benchmarks.network import Counter, counted
from benchmarks.records import Options, Row

NETWORK = "pairs of virtual interfaces into network namespaces, not shaped"
KUBEEDGE = "KubeEdge 1.23, 5 pods, TLS bytes without TCP/IP headers"
OTE = "ote-stack, without TLS"
METERED_SECONDS = 30.0


class Shape(Struct, frozen=True, kw_only=True):
    """``applications`` on each edge; the link is that of an edge, or of a region with so many ``edges`` below."""

    which: int
    name: str
    applications: int
    edges: int = 0
    heartbeat: float = 5.0


class Window:
    """Nobody counts before everybody is set up and has settled."""

    def __init__(self, parties: int, settle: float, seconds: float) -> None:
        self._ready = asyncio.Barrier(parties)
        self._done = asyncio.Barrier(parties)
        self.settle = settle
        self.seconds = seconds

    async def bytes_per_day(self, counter: Counter, port: int, name: str) -> float:
        await self._ready.wait()
        await asyncio.sleep(self.settle)
        began, before = asyncio.get_running_loop().time(), await counter.bytes(port)
        await asyncio.sleep(self.seconds)
        passed, span = await counter.bytes(port) - before, asyncio.get_running_loop().time() - began
        await self._done.wait()
        if not passed:
            raise RuntimeError(f"nothing was counted on the link of {name}; {counter.how}")
        return passed / span * gauges.DAY


async def measure(options: Options) -> list[Row]:
    count, edges, settle, seconds = (1, 2, 0.5, 6.0) if options.quick else (5, 100, 10.0, 65.0)
    heartbeat = 1.0 if options.quick else METERED_SECONDS
    shapes = (
        Shape(which=0, name="edge-1", applications=count),
        Shape(which=1, name="edge-1", applications=count, heartbeat=heartbeat),
        Shape(which=2, name="region-1", applications=count, edges=edges),
    )
    window = Window(len(shapes), settle, seconds)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(link(options, shape, window)) for shape in shapes]
    (one, how), (metered, _), (uplink, _) = (task.result() for task in tasks)
    note = f"{how}, over {seconds:g} s with the default heartbeat unless it says metered, extrapolated"
    return [
        Row(
            what=f"idle link of an edge with {count} applications, both ways",
            target=10, measured=one / 1e6, unit="MB/day", peer=KUBEEDGE, peer_measured=22, note=note,
        ),
        Row(
            what=f"metered: idle link of an edge with {count} applications, a sign of life every {heartbeat:g} s, both ways",
            target=2, measured=metered / 1e6, unit="MB/day", peer=KUBEEDGE, peer_measured=22,
        ),
        Row(
            what=f"idle uplink of a region, {edges} idle edges with {count} applications each below, both ways",
            target=10, measured=uplink / 1e6, unit="MB/day", peer=OTE, peer_measured=140,
        ),
    ]  # fmt: skip


async def link(options: Options, shape: Shape, window: Window) -> tuple[float, str]:
    """(bytes a day, how they were counted) on the link of one shape."""
    async with counted(shape.which) as counter, growing(options.folder) as tree:
        root = await tree.root(tunnel_listen=f"{counter.host}:0", heartbeat_seconds=shape.heartbeat)
        listen = "127.0.0.1:0" if shape.edges else ""
        shim = ("--shim", "none") if shape.edges else ()
        site = await member(tree, counter, shape.name, await token(root), "--tunnel-listen", listen, *shim)
        await all_ready(root, 2)
        host = await asyncio.to_thread(Host, tree.folder, prefix=counter.prefix) if shape.edges else None
        try:
            if host is not None:
                await below(host, site, shape)
            await all_ready(root, 2 + shape.edges)
            for number in range(shape.applications):
                await root.pool.request("POST", APPS, application(f"app-{number}", strategy="Duplicated"))
            await applied(root, shape.applications)
            port = await tunnel_port(root)
            root.forget()
            records.say(f"{shape.name}: idle for {window.seconds:g} s, once all are there")
            return await window.bytes_per_day(counter, port, shape.name), counter.how
        finally:
            if host is not None:
                await asyncio.to_thread(host.close)


async def below(host: Host, region: Site, shape: Shape) -> None:
    names = [f"edge-{number}" for number in range(shape.edges)]
    await host.ask("plant", parent=region.name, address=address_of(region), names=names, parents=False)
    await host.ask("start", names=names, cluster=True)


async def member(tree: Tree, counter: Counter, name: str, word: str, *options: str, **environment: str) -> Site:
    """By the command line, on the child's side of the link."""
    capacity = {"BANYAN_CAPACITY": "cpu=4,memory=4Gi"}
    site = tree.site(name, counter.prefix, **capacity, **environment)
    await site.run("join", word, "--name", name, "--api-listen", "127.0.0.1:0", "--no-run", *options)
    site.start()
    return await site.ready()


async def tunnel_port(root: Site) -> int:
    """Where its children dial in, as a token says."""
    log = root.log_file.read_text(encoding="utf-8")
    return int(re.findall(r"children join at port (\d+)", log)[-1])
