"""No acknowledgement is on the stream before what it acknowledges is on the disk: at each one, the power is cut."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

from cluster_controller.store import Store
from cluster_controller.sync.target import cursor_fact
from tests.store.disk import ACK, Disk, build, read_trace

CUTS = int(os.environ.get("BANYAN_CUTS", "40"))
ROOT = Path(__file__).parents[2]


def test_an_acknowledgement_is_sent_after_its_sync(tmp_path: Path) -> None:
    folder, trace = tmp_path / "data", tmp_path / "trace"
    environment = os.environ | {"LD_PRELOAD": str(build(tmp_path)), "BANYAN_DISK_FOLDER": str(folder), "BANYAN_DISK_TRACE": str(trace)}
    command = [sys.executable, "-m", "tests.sync.traced", str(folder), str(tmp_path / "parent"), "300"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=120)
    ops = list(read_trace(trace))
    notes = [at for at, op in enumerate(ops) if op.kind == ACK]
    assert len(notes) >= 50
    chance = random.Random(3)
    cuts = set(chance.sample(notes, min(CUTS, len(notes))))
    disk = Disk(folder)
    for at, op in enumerate(ops):
        disk.play(op)
        if at in cuts:
            left = tmp_path / f"cut{at}"
            left.mkdir()
            disk.cut(left, chance, lucky=0.0)
            asyncio.run(check(left, int(op.data.split()[0])))


async def check(folder: Path, acknowledged: int) -> None:
    store = await Store.open(folder)
    cursor = (store.fact(cursor_fact("desired")) or b" 0").split(b" ")[1]
    await store.close()
    assert int(cursor) >= acknowledged
