"""What a root costs and how long a change takes with five, twenty-five and a hundred controllers below it, in one tree that grows.

Root and region are `banyan run`; the leaves below the region are whole controllers too, in one process (`benchmarks.hosted`), with a
stand-in for their cluster. Rows of one series are the same thing at several sizes; docs/performance.md draws lines through them and says
where they end.
"""

import asyncio

from benchmarks import gauges, load, records, sizing
from benchmarks.failover import address_of
from benchmarks.harness import APPS, Site, all_ready, application, applied, growing
from benchmarks.hosted import Host
from benchmarks.records import Options, Row
from benchmarks.thousand import Leaves, changed_one_by_one

NAMES = "leaf-{}"
PER_SECOND = 20.0


async def measure(options: Options) -> list[Row]:
    sizes, settle, seconds, changes = ((1, 2), 0.3, 1.0, 4) if options.quick else ((5, 25, 100), 6.0, 10.0, 150)
    rows: list[Row] = []
    async with growing(options.folder) as tree:
        root = await tree.root()
        region = await tree.region("region-1", root)
        await all_ready(root, 2)
        leaves = Leaves(await asyncio.to_thread(Host, tree.folder))
        try:
            for size in sizes:
                more = [NAMES.format(number) for number in range(len(leaves.names), size)]
                await leaves.host.ask("plant", parent=region.name, address=address_of(region), names=more, parents=False)
                await leaves.host.ask("start", names=more, cluster=True)
                await all_ready(root, 2 + size)
                for name in more:
                    await root.pool.request("POST", APPS, application(f"on-{name}", clusterName=name))
                leaves.names += more
                await applied(root, size)
                records.say(f"{size} leaves are ready; idle for {seconds:g} s")
                rows += await one(root, region, leaves, settle, seconds, changes)
        finally:
            await asyncio.to_thread(leaves.host.close)
    return rows


async def one(root: Site, region: Site, leaves: Leaves, settle: float, seconds: float, changes: int) -> list[Row]:
    """The rows of one size."""
    await asyncio.sleep(settle)
    before = {site.name: gauges.sample(site.pid) for site in (root, region)}
    await asyncio.sleep(seconds)
    cost = {site.name: gauges.cost(before[site.name], gauges.sample(site.pid)) for site in (root, region)}
    memory = {site.name: gauges.pss(site.pid) / gauges.MIB for site in (root, region)}
    size, below = len(leaves.names), "by clusters below"
    where = [(leaf, f"on-{leaf}") for leaf in leaves.names]
    down = await changed_one_by_one(root, [leaves], where, changes, PER_SECOND, first=max(leaves.newest.values(), default=0))
    values = [
        (sizing.ROOT_MEMORY, memory["root"], "MiB"),
        (sizing.ROOT_PROCESSOR, cost["root"].cpu_percent, "% of a core"),
        (f"region: memory (PSS) {below}", memory[region.name], "MiB"),
        (f"region: processor {below}", cost[region.name].cpu_percent, "% of a core"),
        (f"one change, two hops: applied → stored, P50 {below}", load.p50(down), "ms"),
    ]
    note = f"idle for {seconds:g} s; leaves share one process, with a stand-in shim and one Application each; {changes} changes"
    return [
        Row(what=f"{name}: {size}", measured=value, unit=unit, series=name, at=size, note=note if not number else "")
        for number, (name, value, unit) in enumerate(values)
    ]
