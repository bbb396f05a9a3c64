"""Hold instances to the cpu and memory that they asked for, with whatever this machine lets us use.

Three ways, tried in this order and named in the shim's description:

- ``cgroup-v2``: a group of our own below the one we run in, when that one is delegated to us (systemd's ``Delegate=``).
- ``cgroup-v1``: groups in the memory and cpu hierarchies.
- ``rlimit``: no group can be made. A controller that measures more than what was asked for has the instance ended, so a slow leak
  goes as far as one measurement (15 s) lets it. The kernel stops a runaway, also without a controller, at twice the memory asked
  for plus 256 MiB of writable private memory (stacks and allocator arenas count there, so a tighter bound would kill healthy
  programs). Cpu is not limited.
"""

from __future__ import annotations

import os
import resource

CPU_PERIOD_MICROS = 100_000
_MIN_QUOTA_MICROS = 1_000  # the kernel refuses less
_ROOT = "/sys/fs/cgroup"


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(4096)
    except OSError:
        return ""


def over_memory(asked: int) -> str:
    return f"it used more than the {asked} bytes of memory that it asked for"


def quota(cpu_millis: int) -> int:
    return max(cpu_millis * CPU_PERIOD_MICROS // 1000, _MIN_QUOTA_MICROS)


class Limits:
    """The rlimit way, and the base of the others."""

    mode = "rlimit"

    def attach(self, name: str, pid: int, cpu_millis: int, memory_bytes: int) -> None:
        """Before the instance's program runs: nothing that it starts escapes."""

    def in_child(self, memory_bytes: int) -> None:
        """Runs in the child, between fork and exec."""
        if memory_bytes:
            bound = memory_bytes * 2 + (256 << 20)
            resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))

    def pids(self, name: str) -> list[int]:
        return []

    def oom_kills(self, name: str) -> int:
        return 0

    def remove(self, name: str) -> None:
        pass

    def folders(self, name: str) -> list[str]:
        """Where usage can be read."""
        return []


class CgroupLimits(Limits):
    def __init__(self, *parents: str) -> None:
        self._parents = parents

    def folders(self, name: str) -> list[str]:
        return [os.path.join(parent, name) for parent in self._parents]

    def in_child(self, memory_bytes: int) -> None:
        pass

    def attach(self, name: str, pid: int, cpu_millis: int, memory_bytes: int) -> None:
        for folder in self.folders(name):
            os.makedirs(folder, exist_ok=True)
        self._limit(name, cpu_millis, memory_bytes)
        for folder in self.folders(name):
            _write(os.path.join(folder, "cgroup.procs"), str(pid))

    def _limit(self, name: str, cpu_millis: int, memory_bytes: int) -> None:
        raise NotImplementedError

    def pids(self, name: str) -> list[int]:
        return [int(line) for line in _read(os.path.join(self.folders(name)[0], "cgroup.procs")).split()]

    def remove(self, name: str) -> None:
        for folder in self.folders(name):
            try:
                os.rmdir(folder)
            except OSError:
                continue  # still busy or never made; swept at the next start

    def sweep(self, keep: set[str]) -> None:
        for parent in self._parents:
            for name in os.listdir(parent):
                if name not in keep and os.path.isdir(os.path.join(parent, name)):
                    self.remove(name)


class CgroupV1(CgroupLimits):
    mode = "cgroup-v1"

    def _limit(self, name: str, cpu_millis: int, memory_bytes: int) -> None:
        memory, cpu = self.folders(name)
        _write(os.path.join(memory, "memory.limit_in_bytes"), str(memory_bytes or -1))
        _write(os.path.join(cpu, "cpu.cfs_period_us"), str(CPU_PERIOD_MICROS))
        _write(os.path.join(cpu, "cpu.cfs_quota_us"), str(quota(cpu_millis) if cpu_millis else -1))

    def oom_kills(self, name: str) -> int:
        words = _read(os.path.join(self.folders(name)[0], "memory.oom_control")).split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


class CgroupV2(CgroupLimits):
    mode = "cgroup-v2"

    def _limit(self, name: str, cpu_millis: int, memory_bytes: int) -> None:
        (folder,) = self.folders(name)
        _write(os.path.join(folder, "memory.max"), str(memory_bytes or "max"))
        _write(os.path.join(folder, "cpu.max"), f"{quota(cpu_millis) if cpu_millis else 'max'} {CPU_PERIOD_MICROS}")

    def oom_kills(self, name: str) -> int:
        words = _read(os.path.join(self.folders(name)[0], "memory.events")).split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def detect(tag: str, root: str = _ROOT, own: str = "/proc/self/cgroup") -> Limits:
    """The best way that works here. ``tag`` names our group, unique per data folder."""
    paths: dict[str, str] = {}
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    for attempt in (_version_2, _version_1):
        try:
            found = attempt(f"banyan-{tag}", root, paths)
        except OSError:
            found = None  # not ours to write: a container without delegation, an ordinary user
        if found is not None:
            return found
    return Limits()


def _version_1(name: str, root: str, paths: dict[str, str]) -> Limits | None:
    if "memory" not in paths or "cpu" not in paths:
        return None
    parents = [_group_v1(os.path.join(root, controller), paths[controller], name) for controller in ("memory", "cpu")]
    return CgroupV1(*parents)


def _group_v1(mount: str, path: str, name: str) -> str:
    # A supervisor that was started from within a group of ours would nest deeper at each life.
    outer = path.split("/banyan-", 1)[0].strip("/")
    folder = os.path.join(mount, outer, name)
    os.makedirs(folder, exist_ok=True)
    return folder


def _version_2(name: str, root: str, paths: dict[str, str]) -> Limits | None:
    if not os.path.exists(os.path.join(root, "cgroup.controllers")) or "" not in paths:
        return None
    own = os.path.join(root, paths[""].strip("/"))
    if os.path.basename(own) == "banyan-manager":
        own = os.path.dirname(own)
    if not _delegated(own):
        return None
    manager, group = os.path.join(own, "banyan-manager"), os.path.join(own, name)
    os.makedirs(manager, exist_ok=True)
    # No group may have both processes and limited children, so whoever shares ours moves into a leaf beside the instances.
    for pid in _read(os.path.join(own, "cgroup.procs")).split():
        _write(os.path.join(manager, "cgroup.procs"), pid)
    _write(os.path.join(own, "cgroup.subtree_control"), "+cpu +memory")
    os.makedirs(group, exist_ok=True)
    _write(os.path.join(group, "cgroup.subtree_control"), "+cpu +memory")
    return CgroupV2(group)


def _delegated(folder: str) -> bool:
    for attribute in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(folder, attribute) == b"1":
                return True
        except OSError:
            continue
    return False
