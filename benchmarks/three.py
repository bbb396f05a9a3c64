"""The work of Karmada's run: three clusters under the root, two Applications a second, each stored in all three; then status back."""

import asyncio
import random
import time

from benchmarks import gauges, load
from benchmarks.harness import APPS, Site, all_ready, application, applied, growing
from benchmarks.load import Arrivals, Status, Watches
from benchmarks.propagation import applications
from benchmarks.records import Options, Row

CLUSTERS = 3
PER_SECOND = 2.0
KARMADA = "Karmada 1.19, defaults"
TUNED = "Karmada 1.19, client limits × 25"


async def measure(options: Options) -> list[Row]:
    count, settle = (4, 0.2) if options.quick else (100, 5.0)
    per_second = 20.0 if options.quick else PER_SECOND
    async with growing(options.folder) as tree:
        root = await tree.root()
        sites = await tree.leaves([f"member-{number}" for number in range(CLUSTERS)], root)
        await all_ready(root, 1 + CLUSTERS)
        await asyncio.sleep(settle)
        disk = await asyncio.to_thread(gauges.fdatasync, options.folder, 20 if options.quick else 500)
        stored = await created(root, sites, count, per_second)
        await applied(root, count)
        back = await reported(root, sites, count, per_second, options.seed)
    what = f"{CLUSTERS} clusters under the root, {PER_SECOND:g} Applications/s"
    note = (
        f"{count} Applications, each duplicated to all {CLUSTERS}; from before the request until the last of them has committed it and its"
        f" API shows it; the disk's fdatasync of 4 KiB: P50 {disk[0]:.2f} ms, P99 {disk[1]:.2f} ms"
    )
    return [
        Row(what=f"{what} → stored in all, P50", measured=load.p50(stored), unit="ms", peer=TUNED, peer_measured=92, note=note),
        Row(what=f"{what} → stored in all, P99", target=40, measured=load.p99(stored), unit="ms", peer=TUNED, peer_measured=241),
        Row(what="the same, beside Karmada as it comes", measured=load.p99(stored), unit="ms", peer=KARMADA, peer_measured=13_800),
        Row(what="status of a member → visible at the root, P50", measured=load.p50(back), unit="ms", peer=KARMADA, peer_measured=30),
        Row(
            what="status of a member → visible at the root, P99",
            target=40,
            measured=load.p99(back),
            unit="ms",
            peer=KARMADA,
            peer_measured=59,
        ),
    ]


async def created(root: Site, sites: list[Site], count: int, per_second: float) -> list[float]:
    """Milliseconds until the last of the clusters has it."""
    arrivals = Arrivals()
    async with Watches() as watches:
        for number, site in enumerate(sites):
            await watches.works(site, lambda name, word, at, number=number: arrivals.arrived((name, number), at))  # type: ignore[misc]

        async def create(number: int) -> None:
            name = f"app-{number}"
            began = time.monotonic()
            arrivals.began |= {(name, site): began for site in range(len(sites))}
            await root.pool.request("POST", APPS, application(name, strategy="Duplicated"))

        await load.paced(count, per_second, create)
        await arrivals.milliseconds()
        watches.check()
    return [max(arrivals.took[f"app-{number}", site] for site in range(len(sites))) for number in range(count)]


async def reported(root: Site, sites: list[Site], count: int, per_second: float, seed: int) -> list[float]:
    """Milliseconds from what one member's shim says until the root's API shows it."""
    arrivals = Arrivals()

    def seen(name: str, status: Status, at: float) -> None:
        if status.ready == len(sites) - 1:
            arrivals.arrived(name, at)

    dice, uids = random.Random(seed), await applications(root)
    async with Watches() as watches:
        await watches.applications(root, seen)

        async def change(number: int) -> None:
            name = f"app-{number}"
            shim = sites[dice.randrange(len(sites))].shim
            assert shim is not None
            arrivals.began[name] = shim.flip(uids[name], ready=False)

        await load.paced(count, per_second, change)
        took = await arrivals.milliseconds()
        watches.check()
    return took
