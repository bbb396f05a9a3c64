"""What /proc says of a process, and what the disk does.

A `Sample` is taken twice; the difference over the time between is what the process costs when nobody asks anything of it.
"""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

DAY = 86_400.0
MIB = 1024.0 * 1024.0


class Sample(Struct, frozen=True, kw_only=True):
    """Totals since the process began."""

    at: float  # monotonic seconds
    cpu_seconds: float
    wakeups: int  # voluntary context switches of all threads
    written: int  # bytes that were sent to the disk


class Cost(Struct, frozen=True, kw_only=True):
    cpu_percent: float  # of one core
    wakeups_per_second: float
    written_per_day: float  # bytes


def sample(pid: int) -> Sample:
    return Sample(at=time.monotonic(), cpu_seconds=cpu_seconds(pid), wakeups=wakeups(pid), written=written(pid))


def cost(before: Sample, after: Sample) -> Cost:
    span = after.at - before.at
    return Cost(
        cpu_percent=100 * (after.cpu_seconds - before.cpu_seconds) / span,
        wakeups_per_second=(after.wakeups - before.wakeups) / span,
        written_per_day=(after.written - before.written) / span * DAY,
    )


def pss(pid: int) -> int:
    """Proportional set size in bytes: private memory, and shared memory divided by those who share it."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024


def rss(pid: int) -> int:
    """Resident bytes, shared libraries counted whole: what the process would take if it were alone on its machine."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Rss:") * 1024


def anonymous(pid: int) -> int:
    """Bytes that no file stands behind: what only this process can make grow."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Anonymous:") * 1024


def cpu_seconds(pid: int) -> float:
    """Time on a processor, all threads that live, in nanoseconds where the kernel keeps them (else in ticks)."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            spent += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except FileNotFoundError:
            return _ticks(pid)
    return spent / 1e9


def _ticks(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakeups(pid: int) -> int:
    return sum(_field(task / "status", "voluntary_ctxt_switches:") for task in Path(f"/proc/{pid}/task").iterdir())


def written(pid: int) -> int:
    path = Path(f"/proc/{pid}/io")
    return _field(path, "write_bytes:") - _field(path, "cancelled_write_bytes:")


def started(pid: int) -> float:
    """When the process was started, on the boot-time clock, to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _field(path: Path, name: str) -> int:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise LookupError(f"{path} has no line {name}")


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


def fdatasync(folder: Path, count: int) -> tuple[float, float]:
    """P50 and P99 in milliseconds of appending 4 KiB and making it durable, as a journal does."""
    took = []
    descriptor = os.open(folder / "fdatasync.probe", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            os.write(descriptor, bytes(4096))
            began = time.perf_counter()
            os.fdatasync(descriptor)
            took.append(1000 * (time.perf_counter() - began))
    finally:
        os.close(descriptor)
        (folder / "fdatasync.probe").unlink()
    return statistics.median(took), percentile(took, 99)
