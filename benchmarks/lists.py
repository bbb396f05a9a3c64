"""Many objects and many watchers: kubectl lists ten thousand in chunks, and a thousand watchers hear of a change."""

import asyncio
import os
import re
import subprocess
import time

from banyanctl.endpoint import ADMIN_KUBECONFIG
from benchmarks import gauges, load
from benchmarks.api import Connection
from benchmarks.harness import Site, growing
from benchmarks.load import Arrivals
from benchmarks.records import Options, Row

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
IN_FLIGHT = 16
# kubectl -v=6: `GET https://…/configmaps?limit=500 200 OK in 12 milliseconds`, since 1.33 `… url="…" status="200 OK" milliseconds=12`.
ASKED = re.compile(r"/configmaps\?\S*limit=\d+\S*\"? .*?(?:in (\d+) milliseconds|milliseconds=(\d+))")


async def measure(options: Options) -> list[Row]:
    objects, watchers, changes = (600, 20, 3) if options.quick else (10_000, 1_000, 30)
    async with growing(options.folder) as tree:
        root = await tree.root()
        before = gauges.pss(root.pid)
        began = time.monotonic()
        await fill(root, objects)
        filled = time.monotonic() - began
        whole, asked = await listed(root, objects)
        stored = (gauges.pss(root.pid) - before) / gauges.MIB
        before = gauges.pss(root.pid)
        first, last = await watched(root, watchers, changes)
        grown = (gauges.pss(root.pid) - before) / gauges.MIB
    what = f"kubectl lists {objects:,} ConfigMaps of 1 KiB in chunks of 500"
    note = f"{changes} updates of one object each, apart in time; from before the request until the last of the watchers has it"
    return [
        Row(what=f"{what}: the slowest of its {len(asked)} requests", target=1, measured=max(asked) / 1000, unit="s"),
        Row(what=f"{what}: the whole command", measured=whole, unit="s"),
        Row(what=f"creating them, {IN_FLIGHT} requests in flight", measured=objects / filled, unit="/s", least=True),
        Row(what="memory that they and the lists take", measured=stored, unit="MiB"),
        Row(
            what=f"a change → all of {watchers:,} watchers, slowest of {changes}", target=1, measured=max(last) / 1000, unit="s", note=note
        ),
        Row(what=f"a change → all of {watchers:,} watchers, P50", measured=load.p50(last) / 1000, unit="s"),
        Row(what="a change → the first watcher, P50", measured=load.p50(first) / 1000, unit="s"),
        Row(what=f"memory that {watchers:,} watchers take", measured=grown, unit="MiB"),
    ]


def config_map(number: int, word: int = 0) -> dict[str, object]:
    data = {"word": str(word), "setting": "x" * 1024}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"settings-{number}", "namespace": "default"}, "data": data}


async def fill(root: Site, objects: int) -> None:
    turn = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        async with turn:
            await root.pool.request("POST", CONFIG_MAPS, config_map(number))

    async with asyncio.TaskGroup() as group:
        for number in range(objects):
            group.create_task(one(number))


async def listed(root: Site, objects: int) -> tuple[float, list[int]]:
    """Seconds of the command, milliseconds of each of its list requests."""
    from tools.needs import kubectl  # it knows how to build one where none is installed

    program = await asyncio.to_thread(kubectl)
    argv = [str(program), "--kubeconfig", str(root.folder / ADMIN_KUBECONFIG), "get", "configmaps", "-v=6", "--chunk-size=500"]
    began = time.monotonic()
    done = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, timeout=300, check=True, env=os.environ | {"HOME": str(root.folder)}
    )
    whole = time.monotonic() - began
    shown = len(done.stdout.splitlines()) - 1
    asked = [int(old or new) for old, new in ASKED.findall(done.stderr)]
    if shown < objects or len(asked) < objects // 500:
        raise RuntimeError(f"kubectl showed {shown} of {objects} objects in {len(asked)} requests:\n{done.stderr[-2000:]}")
    return whole, asked


async def watched(root: Site, watchers: int, changes: int) -> tuple[list[float], list[float]]:
    """Milliseconds until the first, and until the last watcher had each change."""
    version = (await root.pool.request("GET", f"{CONFIG_MAPS}?limit=1"))["metadata"]["resourceVersion"]
    path = f"{CONFIG_MAPS}?watch=1&timeoutSeconds=3600&resourceVersion={version}"
    arrivals = Arrivals()
    connections = await connect(root, watchers, path)
    tasks = [asyncio.create_task(follow(one, number, arrivals)) for number, one in enumerate(connections)]
    first, last = [], []
    try:
        for word in range(1, changes + 1):
            began = time.monotonic()
            arrivals.began |= {(number, word): began for number in range(watchers)}
            await root.pool.request("PUT", f"{CONFIG_MAPS}/settings-{word}", config_map(word, word))
            await arrivals.milliseconds()
            took = [arrivals.took[number, word] for number in range(watchers)]
            first.append(min(took))
            last.append(max(took))
            await asyncio.sleep(0.05 if watchers < 100 else 1.5)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return first, last


async def connect(root: Site, watchers: int, path: str) -> list[Connection]:
    turn = asyncio.Semaphore(32)

    async def one() -> Connection:
        async with turn:
            connection = await root.pool.connect()
            connection.send("GET", path)
            status, headers = await connection.head()
            if status != 200:
                raise RuntimeError(f"watch {path}: {status} {(await connection.body(headers))[:500]!r}")
            return connection

    return list(await asyncio.gather(*(one() for _ in range(watchers))))


async def follow(connection: Connection, number: int, arrivals: Arrivals) -> None:
    """The word of a change is read off its bytes: a thousand documents decoded would be measured with it."""
    async for chunk in connection.chunks():
        now = time.monotonic()
        for found in WORD.findall(chunk):
            arrivals.arrived((number, int(found)), now)


WORD = re.compile(rb'"word":"(\d+)"')
