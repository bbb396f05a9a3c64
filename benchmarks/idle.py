"""What an idle link costs a day, both ways: an edge's with five applications, and a region's uplink above twenty edges."""

import asyncio
import re

from benchmarks import gauges, records
from benchmarks.harness import APPS, AT_ONCE, Site, Tree, all_ready, application, applied, growing, token
from benchmarks.network import Counter, counted
from benchmarks.records import Options, Row

NETWORK = "a pair of virtual interfaces into a network namespace, not shaped"
KUBEEDGE = "KubeEdge 1.23, 5 pods, TLS bytes without TCP/IP headers"


async def measure(options: Options) -> list[Row]:
    count, edges, settle, seconds = (1, 2, 0.5, 6.0) if options.quick else (5, 20, 20.0, 80.0)
    one, applications = await link(options, "edge-1", 0, count, settle, seconds)
    many, _ = await link(options, "region-1", edges, count, settle, seconds)
    how = f"{one[1]}, over {seconds:g} s with the default heartbeat, extrapolated"
    return [
        Row(
            what=f"idle link of an edge with {applications} applications, both ways",
            target=10,
            measured=one[0],
            unit="MB/day",
            peer=KUBEEDGE,
            peer_measured=22,
            note=how,
        ),
        Row(
            what=f"idle uplink of a region, {edges} idle edges with {applications} applications each below, both ways",
            target=10,
            measured=many[0],
            unit="MB/day",
        ),
    ]


async def link(options: Options, name: str, edges: int, count: int, settle: float, seconds: float) -> tuple[tuple[float, str], int]:
    """((MB a day, how it was counted), applications) on the link of ``name``, a leaf or a region with ``edges`` below."""
    async with counted() as counter, growing(options.folder) as tree:
        root = await tree.root(tunnel_listen=f"{counter.host}:0")
        if edges:
            await member(tree, counter, name, await token(root), "--shim", "none", "--tunnel-listen", "127.0.0.1:0")
            await all_ready(root, 2)
            await below(tree, counter, root, name, edges)
        else:
            await member(tree, counter, name, await token(root), "--tunnel-listen", "")
        await all_ready(root, 2 + edges)
        for number in range(count):
            await root.pool.request("POST", APPS, application(f"app-{number}", strategy="Duplicated"))
        await applied(root, count)
        port = await tunnel_port(root)
        root.forget()
        records.say(f"{name}: idle for {seconds:g} s after {settle:g} s")
        await asyncio.sleep(settle)
        began, before = asyncio.get_running_loop().time(), await counter.bytes(port)
        await asyncio.sleep(seconds)
        passed, span = await counter.bytes(port) - before, asyncio.get_running_loop().time() - began
        if not passed:
            raise RuntimeError(f"nothing was counted on the link of {name}; {counter.how}")
        return (passed / span * gauges.DAY / 1e6, counter.how), count


async def below(tree: Tree, counter: Counter, root: Site, region: str, edges: int) -> None:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turn:
            site_bind = f"127.0.3.{number + 1}"
            word = await token(root, below=region)
            await member(tree, counter, f"edge-{number}", word, "--tunnel-listen", "", BANYAN_SITE_BIND=site_bind)

    async with asyncio.TaskGroup() as group:
        for number in range(edges):
            group.create_task(one(number))


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
