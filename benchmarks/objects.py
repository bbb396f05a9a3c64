"""A root that holds a hundred thousand objects: how soon it serves after a start, how long a chunk of the list takes, and what it keeps.

The objects are ConfigMaps, written into the root's own store by its own code while it is stopped, because this is not about how fast they
were made (`lists` is). Then `banyan run` is started on that folder.
"""

import asyncio
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import gauges, records
from benchmarks.api import Pool
from benchmarks.harness import growing
from benchmarks.lists import CONFIG_MAPS, config_map
from benchmarks.records import Options, Row
from cluster_controller.store import Key, Store, Tx

CHUNK = 500
A_COMMIT = 1000
SETTLE_SECONDS = 3.0
FILL_SECONDS = 600


async def measure(options: Options) -> list[Row]:
    count, rounds, settle = (1500, 1, 0.2) if options.quick else (100_000, 3, SETTLE_SECONDS)
    async with growing(options.folder) as tree:
        root = await tree.root()
        await root.pool.request("GET", f"{CONFIG_MAPS}?limit=1")
        await asyncio.sleep(settle)
        empty = gauges.anonymous(root.pid)
        await root.stop()
        size = await asyncio.to_thread(filled, root.folder, count)
        records.say(f"{count:,} objects of {size} bytes are on disk")
        started, chunks, held, listed, after = [], [], [], [], 0.0
        for _ in range(rounds):
            began = time.monotonic()
            root.start()
            await root.ready()
            await root.pool.request("GET", f"{CONFIG_MAPS}?limit=1")
            started.append(time.monotonic() - began)
            await asyncio.sleep(settle)
            held.append((gauges.anonymous(root.pid) - empty) / count)
            began = time.monotonic()
            chunks.append(max(await pages(root.pool, count)))
            listed.append(time.monotonic() - began)
            after = (gauges.anonymous(root.pid) - empty) / count
            await root.stop()
    return shown(count, size, started, chunks, listed, held, after)


async def pages(pool: Pool, count: int) -> list[float]:
    """Seconds of each chunk; RuntimeError when they do not hold every object once."""
    took: list[float] = []
    names: set[str] = set()
    path = f"{CONFIG_MAPS}?limit={CHUNK}"
    while path:
        began = time.monotonic()
        page = await pool.request("GET", path)
        took.append(time.monotonic() - began)
        names |= {item["metadata"]["name"] for item in page["items"]}
        more = page["metadata"].get("continue", "")
        path = f"{CONFIG_MAPS}?limit={CHUNK}&continue={more}" if more else ""
    if len([name for name in names if name.startswith("settings-")]) != count:
        raise RuntimeError(f"the list has {len(names)} of {count} objects")
    return took


def filled(folder: Path, count: int) -> int:
    """Bytes of a document."""
    argv = [sys.executable, "-m", "benchmarks.objects", str(folder), str(count)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=FILL_SECONDS, check=False, cwd=records.ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"the objects could not be written: {done.stderr[-1000:]}")
    return int(done.stdout)


async def fill(folder: Path, count: int) -> int:
    """By the store's own code, in a process of its own; as the API would have stored them."""
    store, size = await Store.open(folder), 0
    for first in range(0, count, A_COMMIT):

        def write(tx: Tx, first: int = first) -> None:
            nonlocal size
            for number in range(first, min(count, first + A_COMMIT)):
                uid = str(uuid.UUID(int=number + 1, version=4))
                document: dict[str, Any] = config_map(number)
                made = {"uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
                document["metadata"] |= made
                encoded = msgspec.json.encode(document)
                size += len(encoded)
                tx.put(Key("own", "ConfigMap", "default", f"settings-{number}"), encoded, uid=uid)

        await store.commit(write)
    await store.close()
    return size // count


def shown(
    count: int, size: int, started: list[float], chunks: list[float], listed: list[float], held: list[float], after: float
) -> list[Row]:
    what = f"{count:,} objects at the root"
    note = (
        f"ConfigMaps of {size:,} bytes; start: from the process's beginning until its API has answered a first list of one object;"
        " memory: anonymous memory beyond that of the same root without them, which includes their documents"
    )
    return [
        records.rounds(f"{what}: start", started, "s", target=5, note=note),
        records.rounds(f"{what}: the slowest chunk of {CHUNK}", chunks, "s", target=1),
        records.rounds(f"{what}: the whole list", listed, "s"),
        records.rounds(f"{what}: memory for each, its document included", [each / 1024 for each in held], "KiB", target=1 + size / 1024),
        Row(what=f"{what}: memory for each after the list", measured=after / 1024, unit="KiB"),
    ]


if __name__ == "__main__":
    print(asyncio.run(fill(Path(sys.argv[1]), int(sys.argv[2]))))
