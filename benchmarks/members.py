"""From an Application at the root to the object in a Kubernetes member two hops below, back from a pod, and a thousand at once.

The members are real API servers; those that only have to take objects run no controllers, so that what is measured is not the cost of
Kubernetes making pods of them on the same two cores.
"""

import asyncio
import random
import time

from benchmarks import clusters, load, records
from benchmarks.api import Pool
from benchmarks.clusters import PODS, WORKLOADS
from benchmarks.harness import APPS, Site, Tree, all_ready, growing, until
from benchmarks.load import Arrivals, Status, Watches
from benchmarks.records import Options, Row
from e2e.testbed import Member, Shape

BARE = Shape(controllers=False, kwok_nodes=1)  # takes objects and makes nothing of them
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
PER_SECOND = 10.0
IN_FLIGHT = 16
KARMADA = "Karmada 1.19, one hop, 2/s, tuned"
BURST = "Karmada 1.19, defaults (tuned: 122 s)"


async def measure(options: Options) -> list[Row]:
    apps, count, many, members = (2, 10, 10, 1) if options.quick else (50, 300, 1000, 3)
    rows: list[Row] = []
    async with clusters.clusters(bare=BARE, kwok=Shape.kwok(nodes=3)) as found, growing(options.folder) as tree:
        root, region = await trunk(tree)
        for member in found.values():
            await clusters.join(tree, region, member)
        await all_ready(root, 4)
        down = await downwards(root, found["bare"], apps, count, options.seed)
        records.say("down: done")
        up = await upwards(root, found["kwok"], apps, count, options.seed)
    what = f"two hops, {PER_SECOND:g} changes/s: "
    note = f"{count} changes of {apps} Applications, one container each; from before the request until a watch at the member shows it"
    rows += [
        Row(what=f"{what}applied at the root → object in the member's API, P50", measured=load.p50(down), unit="ms", note=note),
        Row(what=f"{what}applied at the root → object in the member's API, P99", target=150, measured=load.p99(down), unit="ms",
            peer=KARMADA, peer_measured=241),
        Row(what=f"{what}pod Ready in the member → root's status, P50", measured=load.p50(up), unit="ms"),
        Row(what=f"{what}pod Ready in the member → root's status, P99", target=100, measured=load.p99(up), unit="ms"),
    ]  # fmt: skip
    shapes = {f"member_{number}": BARE for number in range(members)}
    async with clusters.clusters(**shapes) as found, growing(options.folder) as tree:
        root = await tree.root()
        for member in found.values():
            await clusters.join(tree, root, member)
        await all_ready(root, 1 + members)
        return rows + await burst(root, list(found.values()), many)


async def trunk(tree: Tree) -> tuple[Site, Site]:
    root = await tree.root()
    region = await tree.region("region-1", root)
    await all_ready(root, 2)
    return root, region


async def downwards(root: Site, member: Member, apps: int, count: int, seed: int) -> list[float]:
    """Milliseconds until the member's own API shows the change."""
    arrivals, dice = Arrivals(), random.Random(seed)
    async with clusters.pool(member) as pool:
        watch = clusters.follow(await pool.watch(WORKLOADS), lambda name, word, at: arrivals.arrived((name, word), at))
        arrivals.began = {(f"app-{number}", "0"): time.monotonic() for number in range(apps)}
        for number in range(apps):
            await root.pool.request("POST", APPS, clusters.application(f"app-{number}", clusterName=member.name))
        await arrivals.milliseconds()
        arrivals.began, arrivals.took = {}, {}

        async def change(number: int) -> None:
            name = f"app-{dice.randrange(apps)}"
            arrivals.began[name, str(number + 1)] = time.monotonic()
            await root.pool.request("PATCH", f"{APPS}/{name}", {"spec": {"components": clusters.components(number + 1)}}, MERGE)

        await load.paced(count, PER_SECOND, change)
        took = await arrivals.milliseconds()
        watch.cancel()
    return took


async def upwards(root: Site, member: Member, apps: int, count: int, seed: int) -> list[float]:
    """Milliseconds until the root's API shows that a pod is ready again, or is not any more."""
    arrivals = Arrivals()
    names = [f"up-{number}" for number in range(apps)]
    for name in names:
        await root.pool.request("POST", APPS, clusters.application(name, clusterName=member.name))

    async def all_up() -> bool:
        items = (await root.pool.request("GET", APPS))["items"]
        return int(sum(item["metadata"]["name"] in names and item.get("status", {}).get("ready", 0) == 1 for item in items)) == apps

    await until(f"{apps} pods are ready", all_up, pause=0.2)
    waiting: dict[str, tuple[int, int]] = {}

    def seen(name: str, status: Status, at: float) -> None:
        turn, ready = waiting.get(name, (0, -1))
        if status.ready == ready:
            arrivals.arrived((name, turn), at)

    async with clusters.pool(member) as pool, Watches() as watches:
        items = (await pool.request("GET", PODS))["items"]
        pods = {item["metadata"]["labels"]["app.kubernetes.io/name"]: item["metadata"]["name"] for item in items}
        await watches.applications(root, seen)
        order = [names[number % apps] for number in range(count)]
        random.Random(seed).shuffle(order)
        turns: dict[str, int] = {}

        async def change(number: int) -> None:
            name = order[number]
            turn = turns.get(name, 0) + 1
            while turn > 1 and (name, turn - 1) not in arrivals.took:
                await asyncio.sleep(0.005)  # two changes of one application that overtake each other would be one
            turns[name], waiting[name] = turn, (turn, (turn + 1) % 2)
            arrivals.began[name, turn] = time.monotonic()
            await ready(pool, pods[name], turn % 2 == 0)

        await load.paced(count, PER_SECOND, change)
        took = await arrivals.milliseconds()
        watches.check()
    return took


async def ready(pool: Pool, pod: str, yes: bool) -> None:
    """As a kubelet says it."""
    condition = {"type": "Ready", "status": "True" if yes else "False"}
    await pool.request("PATCH", f"{PODS}/{pod}/status", {"status": {"conditions": [condition]}}, STRATEGIC)


async def burst(root: Site, members: list[Member], count: int) -> list[Row]:
    arrivals, turn = Arrivals(), asyncio.Semaphore(IN_FLIGHT)
    pools = [clusters.pool(member) for member in members]
    watches = []
    for place, pool in enumerate(pools):
        watches.append(
            clusters.follow(await pool.watch(WORKLOADS), lambda name, word, at, place=place: arrivals.arrived((name, place), at))  # type: ignore[misc]
        )
    before = [clusters.writes(member) for member in members]
    began = time.monotonic()
    arrivals.began = {(f"app-{number}", place): began for number in range(count) for place in range(len(members))}

    async def create(number: int) -> None:
        async with turn:
            await root.pool.request("POST", APPS, clusters.application(f"app-{number}", strategy="Duplicated"))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(create(number))
    accepted = time.monotonic() - began
    there = max(await arrivals.milliseconds()) / 1000
    await asyncio.sleep(5.0)  # for a second write, if somebody makes one
    written = sum(clusters.writes(member) - first for member, first in zip(members, before, strict=True))
    for watch in watches:
        watch.cancel()
    for pool in pools:
        pool.close()
    note = "one Deployment each; writes as the members' own audit logs count them"
    return [
        Row(what=f"{count:,} Applications at once → in all of {len(members)} members", target=40, measured=there, unit="s", peer=BURST,
            peer_measured=625, note=note),
        Row(what="of that until the API had taken all", measured=accepted, unit="s"),
        Row(what="Deployments written more than once", target=0, measured=written - count * len(members), unit="writes"),
    ]  # fmt: skip
