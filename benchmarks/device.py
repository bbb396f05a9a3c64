"""A device that asks its edge how a person feels, beside a cloud far away, and beside computing it by itself.

The device is the one of `examples/emotion`, the model the small one that stands there. Three processes take turns: one asks the worker at
the edge, one asks the same worker through a relay that holds back each way for 50 to 100 ms, as a cloud 100 to 200 ms away, and one has
onnxruntime itself. Each prepares every frame anew. Whoever serves has one core, the device another (where there are two).
"""

import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import device_client, records, serve
from benchmarks.device_client import Tally
from benchmarks.records import Options, Row

MODEL = records.ROOT / "examples" / "emotion" / "model-1"
AWAY = (0.050, 0.100)  # seconds, each way
WHERE = ("edge", "cloud", "local")


async def measure(options: Options) -> list[Row]:
    return await asyncio.to_thread(measured, options)


def measured(options: Options) -> list[Row]:
    rounds, count = (1, 10) if options.quick else (3, 15)
    bench = serve.Bench(options, 0.0)
    picture = options.folder / "picture.npy"
    np.save(picture, photograph())
    port = serve.free_port()
    argv = [sys.executable, "-m", "edge_ai.serve", "--name", "m", "--version", "1", "--model-folder", str(MODEL)]
    found: dict[str, list[Tally]] = {where: [] for where in WHERE}
    with bench.running([*argv, "--listen", f"127.0.0.1:{port}"], port), relay(port, options.seed) as far:
        asked = {"edge": f"127.0.0.1:{port}", "cloud": f"127.0.0.1:{far}", "local": str(MODEL / "model.onnx")}
        for _ in range(rounds):
            for where in WHERE:
                # As many frames as the cloud has time for: what is counted is per frame.
                found[where].append(frames(bench, picture, count if where == "cloud" else 5 * count, asked[where]))
    labels = {label for tallies in found.values() for tally in tallies for label in tally.labels}
    if len(labels) != 1:
        raise RuntimeError(f"edge, cloud and device do not agree on one picture: {', '.join(sorted(labels))}")
    return rows(found)


def photograph() -> np.ndarray:
    from skimage.io import imread

    return np.ascontiguousarray(imread(device_client.DEVICE.with_name("astronaut.png"))[..., :3])


def frames(bench: serve.Bench, picture: Path, count: int, where: str) -> Tally:
    argv = [*serve.pinned(bench.other), sys.executable, "-m", "benchmarks.device_client", str(picture), str(count), where]
    done = subprocess.run(argv, cwd=records.ROOT, capture_output=True, check=False, timeout=serve.PATIENCE)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
    return msgspec.json.decode(done.stdout, type=Tally)


def rows(found: dict[str, list[Tally]]) -> list[Row]:
    made = []
    for where, target, what in (
        ("edge", 40.0, "a device's frame, answered at the edge: P95"),
        ("cloud", None, "the same by a cloud 100 to 200 ms away: P95"),
        ("local", None, "the same computed by the device itself: P95"),
    ):
        each = [p95(tally.milliseconds) for tally in found[where]]
        middle = statistics.median(statistics.median(tally.milliseconds) for tally in found[where])
        note = f"{where}: P50 {middle:.1f} ms, device's processor time {cpu(found[where]):.2f} ms a frame, {serve.spread(each, 1)} (P95)"
        made.append(Row(what=what, target=target, measured=statistics.median(each), unit="ms", note=note))
    shares = [edge.cpu_milliseconds / local.cpu_milliseconds for edge, local in zip(found["edge"], found["local"], strict=True)]
    what = "device's processor time for a frame asked at the edge, times computing it by itself"
    made.append(Row(what=what, target=1.0, measured=statistics.median(shares), unit="×", note=serve.spread(shares, 2)))
    return made


def cpu(tallies: list[Tally]) -> float:
    return statistics.median(tally.cpu_milliseconds for tally in tallies)


def p95(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


# --- the way to the cloud ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def relay(port: int, seed: int) -> Iterator[int]:
    """Another port that leads to ``port``, `AWAY` from it: what is sent arrives in its order, after that time."""
    loop = asyncio.new_event_loop()
    choose = random.Random(seed)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def deliver() -> None:
            while True:
                at, data = await due.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        delivering = loop.create_task(deliver())
        try:
            while data := await reader.read(65536):
                await due.put((loop.time() + choose.uniform(*AWAY), data))
            await due.put((loop.time() + AWAY[1], b""))
            await delivering
        finally:
            delivering.cancel()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            await asyncio.gather(carry(reader, back), carry(there, writer))
        for each in (writer, back):
            each.close()

    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, name="cloud")
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:

        async def end() -> None:
            server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(serve.PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(serve.PATIENCE)
        loop.close()
