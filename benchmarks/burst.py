"""A thousand Applications as fast as the API takes them: to three clusters, and to ten leaves two hops down."""

import asyncio
import time
from typing import Any

from benchmarks import gauges
from benchmarks.harness import APPS, Site, Tree, all_ready, application, applied, growing
from benchmarks.load import Arrivals, Watches
from benchmarks.records import Options, Row

IN_FLIGHT = 16
KARMADA = "Karmada 1.19, defaults (tuned: 122 s)"


async def measure(options: Options) -> list[Row]:
    count, leaves = (20, 2) if options.quick else (1000, 10)
    rows: list[Row] = []
    async with growing(options.folder) as tree:
        root = await tree.root()
        sites = await tree.leaves(["member-0", "member-1", "member-2"], root)
        await all_ready(root, 4)
        rows += await burst(tree, root, sites, count, "Duplicated", "to three clusters: until stored in all of them", 10)
    for strategy, what in (
        ("Divided", f"over {leaves} leaves two hops down, each on one: until all are stored"),
        ("Duplicated", f"to {leaves} leaves two hops down: until stored in all of them"),
    ):
        async with growing(options.folder) as tree:
            root = await tree.root()
            region = await tree.region("region-1", root)
            await all_ready(root, 2)
            sites = await tree.leaves([f"leaf-{number}" for number in range(leaves)], region)
            await all_ready(root, 2 + leaves)
            rows += await burst(tree, root, sites, count, strategy, what, 20)
    rows[0].peer, rows[0].peer_measured = KARMADA, 625
    return rows


async def burst(tree: Tree, root: Site, sites: list[Site], count: int, strategy: str, what: str, target: float) -> list[Row]:
    before = {site.name: gauges.pss(site.pid) for site in tree.sites.values()}
    arrivals = Arrivals()
    async with Watches() as watches:
        for number, site in enumerate(sites):
            place = number if strategy == "Duplicated" else 0
            await watches.works(site, lambda name, word, at, place=place: arrivals.arrived((name, place), at))  # type: ignore[misc]
        places = len(sites) if strategy == "Duplicated" else 1
        began = time.monotonic()
        arrivals.began = {(f"app-{number}", place): began for number in range(count) for place in range(places)}
        accepted = await create(root, sites, count, strategy) - began
        stored = max(await arrivals.milliseconds()) / 1000
        watches.check()
    await applied(root, count)
    visible = time.monotonic() - began
    await asyncio.sleep(1.0)
    growth = {site.name: (gauges.pss(site.pid) - before[site.name]) / gauges.MIB for site in tree.sites.values()}
    most = max(growth, key=lambda name: growth[name])
    head = f"{count:,} Applications at once {what}"
    note = f"created by {IN_FLIGHT} requests in flight; leaves are `banyan run` processes with a stand-in shim"
    return [
        Row(what=head, target=target, measured=stored, unit="s", note=note),
        Row(what="of that until the API had taken all", measured=accepted, unit="s"),
        Row(what="until the root shows all of them ready", measured=visible, unit="s"),
        Row(what=f"growth of the controller that grew most ({most})", target=64, measured=growth[most], unit="MiB"),
    ]


async def create(root: Site, sites: list[Site], count: int, strategy: str) -> float:
    """When the last was accepted. Divided ones name their leaf, so that all leaves get as many."""
    turn = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        where: dict[str, Any] = {"strategy": strategy} if strategy == "Duplicated" else {"clusterName": sites[number % len(sites)].name}
        async with turn:
            await root.pool.request("POST", APPS, application(f"app-{number}", **where))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    return time.monotonic()
