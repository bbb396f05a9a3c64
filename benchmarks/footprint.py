"""What an edge costs while nobody asks anything of it: controller and supervisor, with five models that serve."""

import asyncio
import contextlib
import os
import re
from pathlib import Path

from benchmarks import gauges, records
from benchmarks.harness import APPS, Site, all_ready, applied, growing
from benchmarks.records import Options, Row

MODEL = records.ROOT / "examples" / "emotion" / "model-1" / "model.onnx"
NEVER = ("kubernetes", "grpc", "numpy", "onnxruntime", "alembic", "rich", "typer")
KUBEEDGE = "KubeEdge 1.23 edgecore, 5 pods, without containerd"
IMPORTED = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)", re.MULTILINE)


async def measure(options: Options) -> list[Row]:
    count, seconds, settle = (1, 2.0, 0.5) if options.quick else (5, 90.0, 25.0)
    async with growing(options.folder) as tree:
        root = await tree.root()
        edge = await tree.edge("edge-1", root)
        await all_ready(root, 2)
        await root.run("model", "publish", "emotion", str(MODEL), "--version", "1")
        for number in range(count):
            await root.pool.request("POST", APPS, model(f"emotion-{number}", 8600 + number))
        await applied(root, count)
        root.forget()
        records.say(f"{count} models serve; idle for {seconds:g} s after {settle:g} s")
        await asyncio.sleep(settle)
        return await idle(root, edge, count, seconds) + [await imports(edge)]


async def idle(root: Site, edge: Site, count: int, seconds: float) -> list[Row]:
    controller, supervisor, workers = edge.pid, edge.supervisor(), edge.instances()
    before = gauges.sample(controller), gauges.sample(supervisor)
    await asyncio.sleep(seconds)
    mine, its = (gauges.cost(first, gauges.sample(pid)) for first, pid in zip(before, (controller, supervisor), strict=True))
    root.destroy()  # on a site of its own an edge shares its libraries with nobody but what it runs
    what = f"edge controller, process shim, {count} application(s), idle"
    over = (
        f"processor, wakeups and bytes written over {seconds:g} s; bytes extrapolated to a day, as the kernel counts them towards the disk;"
        f" memory right after its parent was ended, with {others(edge)} other Python processes on the machine to share libraries with"
    )
    each = [gauges.pss(pid) / gauges.MIB for pid in workers]
    return [
        Row(
            what=f"{what}: memory (PSS)",
            target=64,
            measured=gauges.pss(controller) / gauges.MIB,
            unit="MiB",
            peer=KUBEEDGE,
            peer_measured=90,
            note=over,
        ),
        Row(what="the same with all that it shares with other processes (RSS)", measured=gauges.rss(controller) / gauges.MIB, unit="MiB"),
        Row(what="its supervisor: memory (PSS)", target=12, measured=gauges.pss(supervisor) / gauges.MIB, unit="MiB"),
        Row(what=f"its {len(workers)} model workers, each: memory (PSS)", measured=sum(each) / max(1, len(each)), unit="MiB"),
        Row(what=f"{what}: processor", target=0.5, measured=mine.cpu_percent, unit="% of a core"),
        Row(what=f"{what}: wakeups", target=5, measured=mine.wakeups_per_second, unit="/s"),
        Row(what=f"{what}: written", target=20, measured=mine.written_per_day / 1e6, unit="MB/day"),
        Row(what="its supervisor: processor", measured=its.cpu_percent, unit="% of a core"),
        Row(what="its supervisor: wakeups", measured=its.wakeups_per_second, unit="/s"),
        Row(what="its supervisor: written", measured=its.written_per_day / 1e6, unit="MB/day"),
    ]


def others(edge: Site) -> int:
    """Python processes besides this one and the edge's: what they share with it would make its memory look smaller than on a site."""
    mine = {*edge.everything(), *edge.instances(), os.getpid()}
    found = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found += entry.name.isdigit() and int(entry.name) not in mine and "python" in (entry / "exe").readlink().name
    return found


async def imports(edge: Site) -> Row:
    """The same edge again, with the interpreter saying what it loads."""
    await edge.stop()
    edge.start(PYTHONPROFILEIMPORTTIME="1")
    await edge.ready()
    await asyncio.sleep(1.0)
    # A package counts once something inside it was loaded: that somebody looked for it in vain is logged just the same.
    names = IMPORTED.findall(edge.log_file.read_text(encoding="utf-8", errors="replace"))
    loaded = {name.partition(".")[0] for name in names if "." in name}
    if "cluster_controller" not in loaded:
        raise RuntimeError(f"{edge.log_file} does not say what was imported")
    found = sorted(loaded & set(NEVER))
    note = f"never imported: {', '.join(NEVER)}" if not found else f"imported, but never should be: {', '.join(found)}"
    return Row(
        what=f"of {len(NEVER)} packages that a controller must never import, imported",
        target=0,
        measured=len(found),
        unit="packages",
        note=note,
    )


def model(name: str, port: int) -> dict[str, object]:
    component = {
        "name": "serve",
        "model": {"name": "emotion", "version": "1"},
        "resources": {"cpu": "100m", "memory": "192Mi"},
        "expose": {"port": port},
    }
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"components": [component]},
    }
