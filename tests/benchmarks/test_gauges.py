"""What is read of /proc is what a process really did."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gauges
from benchmarks.gauges import Sample

BUSY = """
import os, sys
held = bytearray(b"x" * (32 << 20))
for _ in range(3_000_000):
    pass
with open(sys.argv[1], "wb") as file:
    file.write(os.urandom(8 << 20))
    file.flush()
    os.fsync(file.fileno())
print("done", flush=True)
sys.stdin.read(1)
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[int]:
    """A process that has held 32 MiB, computed, and written 8 MiB to the disk."""
    with subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        yield process.pid
        process.kill()


def test_a_process_is_seen_as_it_is(busy: int) -> None:
    assert gauges.pss(busy) >= 32 << 20
    assert gauges.rss(busy) >= gauges.pss(busy)
    found = gauges.sample(busy)
    assert found.cpu_seconds > 0
    assert found.wakeups > 0
    assert found.written >= 8 << 20
    assert 0 < gauges.started(busy) <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert gauges._ticks(os.getpid()) > 0


def test_cost_is_what_changed_over_the_time_between() -> None:
    before = Sample(at=10.0, cpu_seconds=1.0, wakeups=100, written=1000)
    after = Sample(at=70.0, cpu_seconds=1.3, wakeups=400, written=7000)
    cost = gauges.cost(before, after)
    assert cost.cpu_percent == pytest.approx(0.5)
    assert cost.wakeups_per_second == pytest.approx(5)
    assert cost.written_per_day == pytest.approx(100 * 86_400)


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [([1.0], 50, 1.0), ([3.0, 1.0, 2.0], 50, 2.0), (list(map(float, range(1, 101))), 99, 99.0), ([1.0, 2.0, 3.0, 4.0], 99, 4.0)],
)
def test_percentiles_are_values_that_occurred(values: list[float], percent: float, found: float) -> None:
    assert gauges.percentile(values, percent) == found


def test_the_probe_of_the_disk_leaves_nothing(tmp_path: Path) -> None:
    p50, p99 = gauges.fdatasync(tmp_path, 5)
    assert 0 < p50 <= p99
    assert list(tmp_path.iterdir()) == []
