"""What a member with 5,000 pods costs its controller, while 200 of them change every second."""

import asyncio
from typing import Any

from benchmarks import clusters, gauges, load, records
from benchmarks.api import Pool
from benchmarks.clusters import IMAGE, PODS
from benchmarks.footprint import others
from benchmarks.harness import all_ready, growing, until
from benchmarks.records import Options, Row
from e2e.testbed import Shape

CLIENT = "the official client's models for as many pods alone"
IN_FLIGHT = 24
PER_NODE = 110


async def measure(options: Options) -> list[Row]:
    pods, per_second, seconds, settle = (60, 50.0, 2.0, 0.5) if options.quick else (5000, 200.0, 40.0, 15.0)
    shape = Shape.kwok(nodes=-(-pods // PER_NODE) + 1, pods=PER_NODE)
    async with clusters.clusters(crowd=shape) as found, growing(options.folder) as tree:
        member = found["crowd"]
        root = await tree.root()
        async with clusters.pool(member) as pool:
            await fill(pool, pods)
            records.say(f"{pods:,} pods run")
            site = await clusters.join(tree, root, member)
            await all_ready(root, 2)
            await asyncio.sleep(settle)
            quiet = gauges.pss(site.pid) / gauges.MIB
            root.destroy()  # on a site of its own a controller shares its libraries with nobody
            before = gauges.sample(site.pid)
            late = await load.paced(int(per_second * seconds), per_second, lambda number: touch(pool, number % pods, number))
            cost = gauges.cost(before, gauges.sample(site.pid))
            loaded = gauges.pss(site.pid) / gauges.MIB
            neighbours = others(site)
    if late > 1:
        records.say(f"the load was late by {late:.1f} s at its end")
    what = f"controller with the Kubernetes shim in its process, {pods:,} pods"
    note = (
        f"pods played by kwok; {per_second:g} changes of pods a second over {seconds:g} s, each an event of the watch;"
        f" {neighbours} other Python processes on the machine to share libraries with"
    )
    return [
        Row(what=f"{what}: memory (PSS), quiet", target=128, measured=quiet, unit="MiB", note=note),
        Row(what=f"{what}, {per_second:g} events/s: memory (PSS)", target=128, measured=loaded, unit="MiB", peer=CLIENT, peer_measured=261),
        Row(what=f"{what}, {per_second:g} events/s: processor", target=20, measured=cost.cpu_percent, unit="% of a core"),
    ]


async def fill(pool: Pool, count: int) -> None:
    """Pods of somebody else, each on its node, and all of them Running."""
    turn = asyncio.Semaphore(IN_FLIGHT)

    async def make(number: int) -> None:
        async with turn:
            await pool.request("POST", PODS, pod(number))

    async def account() -> Any:
        return await pool.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")

    await until("the default service account is there", account)
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(make(number))

    async def run() -> bool:
        left = await pool.request("GET", f"{PODS}?fieldSelector=status.phase!=Running&limit=1")
        return not left["items"]

    await until("all pods run", run, seconds=300, pause=1.0)


def pod(number: int) -> dict[str, Any]:
    container = {"name": "web", "image": IMAGE, "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "labels": {"app": f"app-{number // 10}", "tier": "web"}},
        "spec": {"nodeName": f"kwok-{number // PER_NODE}", "containers": [container]},
    }


async def touch(pool: Pool, number: int, version: int) -> None:
    patch = {"metadata": {"annotations": {"example/changed": str(version)}}}
    await pool.request("PATCH", f"{PODS}/pod-{number}", patch, "application/merge-patch+json")
