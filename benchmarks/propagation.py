"""A hundred leaves two hops below the root: desired state down, status up, at a steady twenty changes a second.

Each change concerns one leaf, in turn. Down: from the moment before the request is sent to the root until the leaf's own API shows the
Work, which is when the leaf has committed it twice, as received and as what its own cluster shall run. Up: from the moment when the
leaf's shim reports until the root's API shows the Application's status.
"""

import asyncio
import random
import time

from benchmarks import gauges, load, records
from benchmarks.harness import APPS, Site, Tree, all_ready, application, applied, changed, growing
from benchmarks.load import Arrivals, Status, Watches
from benchmarks.records import Options, Row

MERGE = "application/merge-patch+json"
KUBEEDGE = "KubeEdge 1.23, one hop, one edge, 1/s"
KARMADA = "Karmada 1.19, tuned, one hop, 3 members"
PER_SECOND = 20.0


async def measure(options: Options) -> list[Row]:
    leaves, count, settle = (2, 10, 0.5) if options.quick else (100, 1100, 20.0)
    async with growing(options.folder) as tree:
        began = time.monotonic()
        root, sites = await grow(tree, leaves)
        records.say(f"{leaves} leaves are ready after {time.monotonic() - began:.0f} s")
        for number, site in enumerate(sites):
            await root.pool.request("POST", APPS, application(app(number), clusterName=site.name))
        await applied(root, leaves)
        await asyncio.sleep(settle)
        order = [number % leaves for number in range(count)]
        random.Random(options.seed).shuffle(order)
        disk = await asyncio.to_thread(gauges.fdatasync, options.folder, 20 if options.quick else 500)
        down, asked = await downwards(root, sites, order)
        records.say("down: done")
        up = await upwards(root, sites, order)
        loaded = await asyncio.to_thread(gauges.fdatasync, options.folder, 20 if options.quick else 500)
    what = f"two hops, {leaves} leaves, {PER_SECOND:g} changes/s: "
    note = (
        f"{count} changes, each for one leaf; leaves are `banyan run` processes with a stand-in shim that answers at once; stored means"
        " committed at the leaf as its own cluster's Work and shown by its API; a change passes six commits one after the other"
    )
    beside = (
        f"the disk beside it, 4 KiB and fdatasync: P50 {disk[0]:.2f} ms, P99 {disk[1]:.2f} ms before the load,"
        f" {loaded[0]:.2f} and {loaded[1]:.2f} ms after it"
    )
    return [
        Row(
            what=f"{what}applied at the root → stored at the leaf, P50",
            target=20,
            measured=load.p50(down),
            unit="ms",
            peer=KUBEEDGE,
            peer_measured=36,
            note=note,
        ),
        Row(
            what=f"{what}applied at the root → stored at the leaf, P99",
            target=100,
            measured=load.p99(down),
            unit="ms",
            peer=KUBEEDGE,
            peer_measured=76,
        ),
        Row(what="of that until the root has answered, P50", measured=load.p50(asked), unit="ms"),
        Row(what="of that until the root has answered, P99", measured=load.p99(asked), unit="ms"),
        Row(
            what=f"{what}status changed at the leaf → visible at the root, P50",
            measured=load.p50(up),
            unit="ms",
            peer=KARMADA,
            peer_measured=25,
        ),
        Row(
            what=f"{what}status changed at the leaf → visible at the root, P99",
            target=100,
            measured=load.p99(up),
            unit="ms",
            peer=KARMADA,
            peer_measured=51,
        ),
        Row(what="disk: fdatasync of 4 KiB, P50", measured=disk[0], unit="ms", note=beside),
        Row(what="disk: fdatasync of 4 KiB, P99", measured=disk[1], unit="ms"),
    ]


def app(number: int) -> str:
    return f"app-{number}"


async def grow(tree: Tree, leaves: int) -> tuple[Site, list[Site]]:
    """root → region-1 → leaf-0 … leaf-N."""
    root = await tree.root()
    region = await tree.region("region-1", root)
    await all_ready(root, 2)
    sites = await tree.leaves([f"leaf-{number}" for number in range(leaves)], region)
    await all_ready(root, 2 + leaves)
    return root, sites


async def downwards(root: Site, sites: list[Site], order: list[int], first: int = 1) -> tuple[list[float], list[float]]:
    """Milliseconds until stored at the leaf, and until the root had answered. ``first``: a word that no change before has set."""
    arrivals, asked = Arrivals(), []
    latest: dict[str, str] = {}
    async with Watches() as watches:
        for site in sites:
            await watches.works(site, lambda name, word, at: arrivals.arrived((name, word), at))

        async def change(number: int) -> None:
            name, word = app(order[number]), number + first
            before, latest[name] = latest.get(name), str(word)
            while before is not None and (name, before) not in arrivals.took:
                await asyncio.sleep(0.005)  # a change that the next one overtakes would never be seen
            began = arrivals.began[name, str(word)] = time.monotonic()
            await root.pool.request("PATCH", f"{APPS}/{name}", changed(word), MERGE)
            asked.append(1000 * (time.monotonic() - began))

        late = await load.paced(len(order), PER_SECOND, change)
        took = await arrivals.milliseconds()
        watches.check()
    if late > 1:
        records.say(f"the load was late by {late:.1f} s at its end")
    return took, asked


async def upwards(root: Site, sites: list[Site], order: list[int]) -> list[float]:
    """Milliseconds until visible at the root."""
    arrivals = Arrivals()
    turns: dict[int, int] = {}
    waiting: dict[str, tuple[int, int]] = {}  # application → (turn, what the root will show as ready)

    def seen(name: str, status: Status, at: float) -> None:
        turn, ready = waiting.get(name, (0, -1))
        if status.ready == ready:
            arrivals.arrived((name, turn), at)

    uids = await applications(root)
    async with Watches() as watches:
        await watches.applications(root, seen)

        async def change(number: int) -> None:
            leaf = order[number]
            name, turn = app(leaf), turns.get(leaf, 0) + 1
            while turn > 1 and (name, turn - 1) not in arrivals.took:
                await asyncio.sleep(0.005)  # two changes of one application that overtake each other would be one
            turns[leaf], waiting[name] = turn, (turn, (turn + 1) % 2)
            shim = sites[leaf].shim
            assert shim is not None
            arrivals.began[name, turn] = shim.flip(uids[name], ready=turn % 2 == 0)

        await load.paced(len(order), PER_SECOND, change)
        took = await arrivals.milliseconds()
        watches.check()
    return took


async def applications(root: Site) -> dict[str, str]:
    """uid by name."""
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in (await root.pool.request("GET", APPS))["items"]}
