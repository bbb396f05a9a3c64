"""Acknowledged means on the disk: after a power cut or a SIGKILL at any point nothing acknowledged is missing.

`BANYAN_CUTS` sets the number of power cuts, `BANYAN_KILLS` of SIGKILLs, `BANYAN_SEED` where they fall and what survives them by luck;
how many operations there are to fall into depends on how busy the machine is, so a failure says which it was. The stores are in memory
where the machine lets us: the power cuts are played from a trace, and a SIGKILL takes nothing from the kernel, so a real disk would only
make them few.
"""

import asyncio
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_controller.store import Store
from tests.store.disk import ACK, SYNC, Disk, build, read_trace
from tests.store.workload import LIMITS, Model, state, work

CUTS = int(os.environ.get("BANYAN_CUTS", "200"))
KILLS = int(os.environ.get("BANYAN_KILLS", "200"))
SEED = int(os.environ.get("BANYAN_SEED", "1"))
TRACE_SECONDS = 600  # for what takes two, on the busiest machine
COMMITS = 400 if CUTS <= 200 else 2000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, or else one like any other."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def traced(library: Path, folder: Path, trace: Path, *command: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"LD_PRELOAD": str(library), "BANYAN_DISK_FOLDER": str(folder), "BANYAN_DISK_TRACE": str(trace)} | extra
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, cwd=ROOT, check=False, timeout=TRACE_SECONDS, capture_output=True
    )
    assert done.returncode == 0, f"it ended with {done.returncode}:\n{done.stderr.decode(errors='replace')[-4000:]}"
    return done


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


@pytest.mark.needs("cc")
def test_power_cuts_lose_nothing_acknowledged(library: Path, quick: Path) -> None:
    folder, trace = quick / "data", quick / "trace"
    traced(library, folder, trace, "tests.store.workload", str(folder), str(COMMITS))
    ops = list(read_trace(trace))
    assert sum(op.kind == ACK for op in ops) == COMMITS
    chance = random.Random(SEED)
    acks = [at for at, op in enumerate(ops) if op.kind == ACK]
    anywhere = [chance.randrange(len(ops)) for _ in range(CUTS // 2)]
    cuts = sorted(anywhere + [chance.choice(acks) for _ in range(CUTS - len(anywhere))])
    disk, model, at = Disk(folder), Model(), 0
    held = []
    for index, cut in enumerate(cuts):
        while at <= cut:
            disk.play(ops[at])
            at += 1
        left = quick / f"cut{index}"
        left.mkdir()
        lucky = chance.choice([0.0, 0.0, 0.5, 0.9, 1.0])
        disk.cut(left, chance, lucky=lucky)
        try:
            held.append(check(left, model, last_ack(disk.acks)))
        except BaseException as error:
            error.add_note(f"cut {index} of seed {SEED}, after operation {cut} of {len(ops)} ({ops[cut]!r:.200}), luck {lucky}")
            raise
        shutil.rmtree(left)
    assert len(set(held)) > min(CUTS, COMMITS // 8) // 2, "the cuts were spread over the life of the store"


@pytest.mark.needs("cc")
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


def test_sigkills_lose_nothing_acknowledged(quick: Path) -> None:
    folder, model, chance = quick / "data", Model(), random.Random(2)
    acks = folder / "acks"
    before = 0
    forks = multiprocessing.get_context("forkserver")  # importing takes longer than all that is to be killed
    forks.set_forkserver_preload(["tests.store.workload"])
    for _ in range(KILLS):
        process = forks.Process(target=work, args=(folder, 100000))
        process.start()
        try:
            size = acks.stat().st_size if acks.exists() else 0
            deadline = time.monotonic() + 60
            while (not acks.exists() or acks.stat().st_size <= size) and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.02))
        finally:
            process.kill()
            process.join()
            process.close()
        whole, _, _ = acks.read_bytes().rpartition(b"\n")
        acked = last_ack([whole])
        assert acked > before, "it was killed while it worked"
        before = check(folder, model, acked)
