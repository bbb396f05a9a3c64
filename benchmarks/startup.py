"""How soon the command line answers, and how soon an edge that lost its power starts what it has in its store."""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import gauges
from benchmarks.harness import APPS, Site, all_ready, application, applied, growing, until
from benchmarks.records import Options, Row

BANYAN = str(Path(sys.executable).with_name("banyan"))
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
KUBEEDGE = "KubeEdge 1.23, killed and restarted offline: served again after"


async def measure(options: Options) -> list[Row]:
    rows = [helped(3 if options.quick else 15)]
    count, objects, times = (1, 20, 1) if options.quick else (5, 1000, 7)
    async with growing(options.folder) as tree:
        root = await tree.root()
        edge = await tree.edge("edge-1", root)
        await all_ready(root, 2)
        for number in range(count):
            await root.pool.request("POST", APPS, application(f"app-{number}"))
        await applied(root, count)
        await store(edge, objects, options.seed)
        await asyncio.sleep(0.2 if options.quick else 5)
        firsts, lasts = [], []
        for _ in range(times):
            edge.destroy()
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            edge.start()
            started = await instances(edge, count)
            firsts.append(started[0] - began)
            lasts.append(started[-1] - began)
            await edge.ready()
            await running(edge, count)
    note = f"median of {times} starts after SIGKILL to the controller and all that it ran; worst {max(firsts):.2f} s"
    what = f"edge killed with all it ran, {objects:,} objects stored: start of the controller → "
    return [
        *rows,
        Row(
            what=f"{what}first cached application's process",
            target=1.5,
            measured=statistics.median(firsts),
            unit="s",
            peer=KUBEEDGE,
            peer_measured=0.8,
            note=note,
        ),
        Row(what=f"{what}all {count} of them", measured=statistics.median(lasts), unit="s"),
    ]


def helped(times: int) -> Row:
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run([BANYAN, "--help"], stdout=subprocess.DEVNULL, timeout=60, check=True)
        took.append(time.perf_counter() - began)
    found = took[1:]  # the first one reads the disk
    note = f"median of {times} after one that warms the disk's cache; worst {max(found):.3f} s"
    return Row(what="banyan --help", target=0.25, measured=statistics.median(found), unit="s", note=note)


async def store(edge: Site, objects: int, seed: int) -> None:
    """ConfigMaps of about 1 KiB, written by the site's own users."""
    dice = random.Random(seed)
    turn = asyncio.Semaphore(8)

    async def put(number: int) -> None:
        async with turn:
            data = {"setting": dice.randbytes(512).hex()}
            document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"settings-{number}"}, "data": data}
            await edge.pool.request("POST", CONFIG_MAPS, document)

    await asyncio.gather(*(put(number) for number in range(objects)))


async def instances(edge: Site, count: int) -> list[float]:
    """When the first ``count`` applications' processes were started, on the boot-time clock."""

    async def check() -> list[float]:
        pids = edge.instances()
        return sorted(gauges.started(pid) for pid in pids) if len(pids) >= count else []

    found: list[float] = await until(f"{count} applications are being started", check, pause=0.01)
    return found


async def running(edge: Site, count: int) -> None:
    async def check() -> bool:
        pods = (await edge.pool.request("GET", "/api/v1/pods"))["items"]
        return [pod["status"].get("phase") for pod in pods].count("Running") >= count

    await until(f"{count} applications run", check)
