"""Acknowledged means on the disk: after a power cut or a SIGKILL at any point nothing acknowledged is missing.

`BANYAN_CUTS` sets the number of power cuts, `BANYAN_KILLS` of SIGKILLs.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster_controller.store import Store
from tests.store.disk import ACK, SYNC, Disk, build, read_trace
from tests.store.workload import LIMITS, Model, state

CUTS = int(os.environ.get("BANYAN_CUTS", "40"))
KILLS = int(os.environ.get("BANYAN_KILLS", "4"))
COMMITS = 400 if CUTS < 200 else 2000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("disk"))


def traced(library: Path, folder: Path, trace: Path, *command: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"LD_PRELOAD": str(library), "BANYAN_DISK_FOLDER": str(folder), "BANYAN_DISK_TRACE": str(trace)} | extra
    return subprocess.run([sys.executable, "-m", *command], env=environment, cwd=ROOT, check=True, timeout=120, capture_output=True)


def check(folder: Path, model: Model, acked: int) -> int:
    """The store in ``folder`` opens, holds every commit up to ``acked`` and no half of any; returns the last one it holds."""

    async def look() -> int:
        store = await Store.open(folder, LIMITS)
        try:
            number = int(store.fact("number") or b"0")
            assert number >= acked, f"commit {acked} was acknowledged, but only {number} are there"
            assert (store.revision, state(store)) == model.at(number)
            changes = store.since(store.floor())
            assert [event.revision for event in changes] == list(range(store.floor() + 1, store.revision + 1))
            return number
        finally:
            await store.close()

    return asyncio.run(look())


def last_ack(acks: list[bytes]) -> int:
    """Commits become durable in order, so the highest number stands for all before it."""
    return max((int(line.split()[0]) for note in acks for line in note.splitlines()), default=0)


def test_power_cuts_lose_nothing_acknowledged(library: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "data", tmp_path / "trace"
    traced(library, folder, trace, "tests.store.workload", str(folder), str(COMMITS))
    ops = list(read_trace(trace))
    assert sum(op.kind == ACK for op in ops) == COMMITS
    chance = random.Random(1)
    acks = [at for at, op in enumerate(ops) if op.kind == ACK]
    anywhere = [chance.randrange(len(ops)) for _ in range(CUTS // 2)]
    cuts = sorted(anywhere + [chance.choice(acks) for _ in range(CUTS - len(anywhere))])
    disk, model, at = Disk(folder), Model(), 0
    held = []
    for index, cut in enumerate(cuts):
        while at <= cut:
            disk.play(ops[at])
            at += 1
        left = tmp_path / f"cut{index}"
        left.mkdir()
        disk.cut(left, chance, lucky=chance.choice([0.0, 0.0, 0.5, 0.9, 1.0]))
        held.append(check(left, model, last_ack(disk.acks)))
    assert len(set(held)) > min(CUTS, COMMITS // 8) // 2, "the cuts were spread over the life of the store"


def test_the_trace_would_show_an_early_acknowledgement(library: Path, tmp_path: Path) -> None:
    """The test above can fail: without its syncs the same trace loses what was acknowledged."""
    folder, trace = tmp_path / "data", tmp_path / "trace"
    traced(library, folder, trace, "tests.store.workload", str(folder), "40")
    disk = Disk(folder)
    ops = list(read_trace(trace))
    ops = ops[: max(at for at, op in enumerate(ops) if op.kind == ACK) + 1]  # closing writes everything into the file
    for op in ops:
        if op.kind != SYNC or not op.path.endswith("-wal"):
            disk.play(op)
    (tmp_path / "left").mkdir()
    disk.cut(tmp_path / "left", random.Random(1), lucky=0.0)
    with pytest.raises(AssertionError, match="was acknowledged"):
        check(tmp_path / "left", Model(), last_ack(disk.acks))


def test_sigkills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    folder, model, chance = tmp_path / "data", Model(), random.Random(2)
    acks = folder / "acks"
    before = 0
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-m", "tests.store.workload", str(folder), "100000"], cwd=ROOT)
        try:
            size = acks.stat().st_size if acks.exists() else 0
            deadline = time.monotonic() + 60
            while (not acks.exists() or acks.stat().st_size <= size) and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
        finally:
            process.kill()
            process.wait()
        whole, _, _ = acks.read_bytes().rpartition(b"\n")
        acked = last_ack([whole])
        assert acked > before, "it was killed while it worked"
        before = check(folder, model, acked)
