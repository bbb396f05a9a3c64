"""What this machine is and has, and what an instance uses; read from /proc, /sys and /dev, never asked of a subprocess."""

import os
from pathlib import Path

from msgspec import Struct

from cluster_controller.clock import boot_id
from cluster_shim.contract import Node

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
_DEVICES = {  # device nodes by the resource name that their vendors use with Kubernetes
    "nvidia.com/gpu": "nvidia[0-9]*",
    "google.com/coral": "apex_*",
    "hailo.ai/npu": "hailo*",
    "habana.ai/gaudi": "accel/accel[0-9]*",
}
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Reserve(Struct, frozen=True):
    """What is kept for the machine itself, the controller, and the one more instance that a swap needs for a while."""

    cpu_millis: int = 100
    memory_bytes: int = 256 << 20


class Capacity(Struct, frozen=True):
    """Instead of what the machine has: a smaller share of it, for several clusters on one machine."""

    cpu_millis: int
    memory_bytes: int
    accelerators: dict[str, int] = {}


class Usage(Struct, frozen=True):
    cpu_seconds: float
    memory_bytes: int


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _meminfo() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def accelerators(dev: Path = Path("/dev")) -> dict[str, int]:
    counts = {name: sum(1 for path in dev.glob(pattern) if path.is_char_device()) for name, pattern in _DEVICES.items()}
    return {name: count for name, count in counts.items() if count}


def node(name: str, labels: dict[str, str], reserve: Reserve, capacity: Capacity | None) -> Node:
    """The machine, without usage."""
    system = os.uname()
    has = capacity or Capacity(_cpus() * 1000, _meminfo()["MemTotal"], accelerators())
    kept = Reserve(0, 0) if capacity is not None else reserve
    architecture = _GO_NAMES.get(system.machine, system.machine)
    return Node(
        name=name,
        architecture=architecture,
        kernel=system.release,
        boot_id=boot_id(),
        cpu_millis=has.cpu_millis,
        memory_bytes=has.memory_bytes,
        allocatable_cpu_millis=max(has.cpu_millis - kept.cpu_millis, 0),
        allocatable_memory_bytes=max(has.memory_bytes - kept.memory_bytes, 0),
        accelerators=has.accelerators,
        labels={"kubernetes.io/hostname": name, "kubernetes.io/arch": architecture, "kubernetes.io/os": "linux", **labels},
    )


def machine_usage() -> Usage:
    words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    busy = sum(int(word) for word in (*words[1:4], *words[6:9]))  # all but idle and iowait
    memory = _meminfo()
    return Usage(busy / _TICKS, memory["MemTotal"] - memory["MemAvailable"])


def instance_usage(pid: int, groups: list[str]) -> Usage | None:
    """Of the instance and what it started: by its cgroup where it has one, else along the tree of children."""
    if groups:
        usage = _group_usage(groups)
        if usage is not None:
            return usage
    return _tree_usage(pid)


def _number(path: str, key: str = "") -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError:
        return None
    if not key:
        return int(text)
    words = text.split()
    return int(words[words.index(key) + 1]) if key in words else None


def _group_usage(groups: list[str]) -> Usage | None:
    if len(groups) == 1:
        micros, memory = _number(f"{groups[0]}/cpu.stat", "usage_usec"), _number(f"{groups[0]}/memory.stat", "anon")
        return Usage(micros / 1e6, memory) if micros is not None and memory is not None else None
    return None  # v1: cpuacct may be mounted elsewhere, and memory counts the page cache


def tree(pid: int, depth: int = 8) -> list[int]:
    """``pid`` and what it started, as far as the kernel still knows who started whom."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split() if depth else []
    except OSError:
        children = []
    return [pid, *(below for child in children for below in tree(int(child), depth - 1))]


def _tree_usage(pid: int) -> Usage | None:
    seconds, memory = 0.0, 0
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            if each == pid:
                return None
            continue
        seconds += (int(fields[11]) + int(fields[12])) / _TICKS
        memory += int(fields[21]) * _PAGE
    return Usage(seconds, memory)
