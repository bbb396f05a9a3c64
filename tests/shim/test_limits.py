"""A machine's accelerators, and the processor time that an instance may take, held by the kernel where it can."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster_shim.process import facts
from cluster_shim.process.supervisor import limits
from cluster_shim.process.supervisor.limits import CgroupLimits


def test_what_is_no_device_is_no_accelerator(tmp_path: Path) -> None:
    (tmp_path / "nvidia-caps").mkdir()
    (tmp_path / "nvidia0").write_bytes(b"")
    assert facts.accelerators(tmp_path) == {}


@pytest.mark.needs("root")
def test_accelerators_are_counted_by_their_device_nodes(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").write_bytes(b"")  # no device: does not count
    for name in ("nvidia1", "nvidia2", "nvidiactl", "apex_0", "hailo0"):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert facts.accelerators(tmp_path) == {"nvidia.com/gpu": 2, "google.com/coral": 1, "hailo.ai/npu": 1}


@pytest.mark.parametrize(("millis", "micros"), [(1000, 100_000), (250, 25_000), (1, 1_000), (3500, 350_000)])
def test_a_quota_is_that_part_of_each_period(millis: int, micros: int) -> None:
    assert limits.quota(millis) == micros


def test_where_no_control_group_may_be_written_it_says_so() -> None:
    """The shim's description has the word: memory is held by rlimits then, and processor time by nothing."""
    ways = limits.detect("test", root="/proc/self")
    assert (ways.mode, ways.folders("")) == ("rlimit", [])


@pytest.mark.needs("cgroups")
def test_an_instance_gets_no_more_processor_time_than_it_asked_for() -> None:
    """A tenth of a core, spent by a program that would take a whole one: at most a fifth is seen, however busy the machine."""
    ways = limits.detect(f"test-{os.getpid()}")
    assert isinstance(ways, CgroupLimits)
    burning = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        ways.attach("burner", burning.pid, 100, 0)
        before, began = spent(burning.pid), time.monotonic()
        time.sleep(1.5)
        share = (spent(burning.pid) - before) / (time.monotonic() - began)
        assert share < 0.2
    finally:
        burning.kill()
        burning.wait()
        ways.remove("burner")
        ways.sweep(set())
        for folder in ways.folders(""):
            Path(folder).rmdir()


def spent(pid: int) -> float:
    """Seconds on a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
