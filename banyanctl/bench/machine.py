"""Processor time and energy of the machine that `banyan bench` runs on, before and after.

Energy is what the processor packages' own counters say (RAPL, /sys/class/powercap), where the kernel shows them and this user may read
them: on most machines that is root alone, and in most virtual machines nobody. It counts everything that the machine did meanwhile.
"""

import os
import platform
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6


class Reading(Struct, frozen=True, kw_only=True):
    at: float
    busy_seconds: float
    """Of all processors, since the machine was started."""
    own_seconds: float
    """Of this program and the programs that it waited for."""
    energy: dict[str, tuple[float, float]]
    """Package → (joules, the joules at which its counter begins anew)."""


class Spent(Struct, frozen=True, kw_only=True):
    seconds: float
    busy_seconds: float
    own_seconds: float
    joules: float | None
    """None where no counter can be read."""


def reading(folder: Path = POWERCAP) -> Reading:
    times = os.times()
    return Reading(at=time.monotonic(), busy_seconds=_busy(), own_seconds=sum(times[:4]), energy=_energy(folder))


def spent(before: Reading, after: Reading) -> Spent:
    both = [name for name in before.energy if name in after.energy]
    joules = 0.0
    for name in both:
        passed = after.energy[name][0] - before.energy[name][0]
        joules += passed if passed >= 0 else passed + after.energy[name][1]
    return Spent(
        seconds=after.at - before.at,
        busy_seconds=after.busy_seconds - before.busy_seconds,
        own_seconds=after.own_seconds - before.own_seconds,
        joules=joules if both else None,
    )


def host() -> dict[str, Any]:
    """What a reader of a record wants to know of the machine."""
    return {"system": f"{platform.system()} {platform.release()}", "machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}


def why_no_energy(folder: Path = POWERCAP) -> str:
    """One clause, for people."""
    if any(_packages(folder)):
        return "only root may read the processor's energy counters"
    return "this machine shows no energy counters of its processor (RAPL)"


def _busy() -> float:
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = (int(each) for each in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _packages(folder: Path) -> list[Path]:
    """Packages alone: a domain of theirs (core, dram) is in their own sum, or is not there everywhere."""
    return sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)


def _energy(folder: Path) -> dict[str, tuple[float, float]]:
    found = {}
    for path in _packages(folder):
        try:
            joules, most = (int((path / name).read_text(encoding="ascii")) * MICRO for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            continue  # not ours to read
        found[path.name] = (joules, most)
    return found
