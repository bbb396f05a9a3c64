"""What a root costs and how long a change takes with five, twenty-five and a hundred controllers below it, in one tree that grows.

Rows of one series are the same thing at several sizes; docs/performance.md draws lines through them and says where they end.
"""

import asyncio

from benchmarks import gauges, load, records, sizing
from benchmarks.harness import APPS, Site, all_ready, application, applied, growing
from benchmarks.propagation import app, downwards
from benchmarks.records import Options, Row

NAMES = "leaf-{}"


async def measure(options: Options) -> list[Row]:
    sizes, settle, seconds, changes = ((1, 2), 0.3, 1.0, 4) if options.quick else ((5, 25, 100), 6.0, 10.0, 150)
    rows: list[Row] = []
    async with growing(options.folder) as tree:
        root = await tree.root()
        region = await tree.region("region-1", root)
        await all_ready(root, 2)
        sites: list[Site] = []
        for size in sizes:
            more = [NAMES.format(number) for number in range(len(sites), size)]
            sites += await tree.leaves(more, region)
            await all_ready(root, 2 + size)
            for name in more:
                number = int(name.partition("-")[2])
                await root.pool.request("POST", APPS, application(app(number), clusterName=name))
            await applied(root, size)
            records.say(f"{size} leaves are ready; idle for {seconds:g} s")
            rows += await one(root, region, sites, settle, seconds, changes, options.seed)
    return rows


async def one(root: Site, region: Site, sites: list[Site], settle: float, seconds: float, changes: int, seed: int) -> list[Row]:
    """The rows of one size."""
    await asyncio.sleep(settle)
    before = {site.name: gauges.sample(site.pid) for site in (root, region)}
    await asyncio.sleep(seconds)
    cost = {site.name: gauges.cost(before[site.name], gauges.sample(site.pid)) for site in (root, region)}
    memory = {site.name: gauges.pss(site.pid) / gauges.MIB for site in (root, region)}
    order = [number % len(sites) for number in range(changes)]
    down, _ = await downwards(root, sites, order, first=len(sites) * changes + seed)
    size, below = len(sites), "by clusters below"
    values = [
        (sizing.ROOT_MEMORY, memory["root"], "MiB"),
        (sizing.ROOT_PROCESSOR, cost["root"].cpu_percent, "% of a core"),
        (f"region: memory (PSS) {below}", memory[region.name], "MiB"),
        (f"region: processor {below}", cost[region.name].cpu_percent, "% of a core"),
        (f"one change, two hops: applied → stored, P50 {below}", load.p50(down), "ms"),
    ]
    note = f"idle for {seconds:g} s; leaves are `banyan run` processes with a stand-in shim, one Application each; {changes} changes"
    return [
        Row(what=f"{name}: {size}", measured=value, unit=unit, series=name, at=size, note=note if not number else "")
        for number, (name, value, unit) in enumerate(values)
    ]
