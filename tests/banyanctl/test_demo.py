"""The demo ends what it started and counts what really runs; the whole play is e2e/test_demo.py."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from banyanctl.demo import processes
from banyanctl.demo.sites import Plan, Site
from cluster_controller.errors import Unreachable
from cluster_shim.contract import ShimError
from cluster_shim.process import client

SLEEPS = "import sys, time; print('runs', flush=True); time.sleep(600)"
STARTS_ANOTHER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"


@contextmanager
def running(program: str = SLEEPS, *words: str, cwd: Path | None = None, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-S", "-c", program, *words]
    with subprocess.Popen(argv, cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, process_group=0) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)


def of(folder: Path, instance: str, application: str) -> dict[str, str]:
    """The environment of an instance."""
    home = folder / "process" / "instances" / instance / "work"
    return {"HOME": str(home), "BANYAN_INSTANCE": instance, "BANYAN_APPLICATION": application}


def test_what_runs_is_counted_by_its_processes(tmp_path: Path) -> None:
    edge, other = tmp_path / "edge-1", tmp_path / "edge-10"
    with ExitStack() as stack:
        for instance, application, program in (("a-1", "a", SLEEPS), ("a-2", "a", STARTS_ANOTHER), ("b-1", "b", SLEEPS)):
            stack.enter_context(running(program, **of(edge, instance, application)))
        assert processes.instances(edge) == {"a": 2, "b": 1}
        stack.enter_context(running(**of(other, "a-1", "a")))
        assert processes.instances(edge) == {"a": 2, "b": 1}
        stack.enter_context(running(**of(edge, "a-1", "a")))  # the same instance a second time
        assert processes.instances(edge) == {"a": 3, "b": 1}


def test_all_that_a_site_runs_is_found_and_nothing_of_the_reader(tmp_path: Path) -> None:
    folder = tmp_path / "edge-1"
    work = folder / "process" / "instances" / "a-1" / "work"
    work.mkdir(parents=True)
    with ExitStack() as stack:
        ours = [
            stack.enter_context(running(**of(folder, "a-1", "a"))),  # the command line says nothing of the folder
            stack.enter_context(running(SLEEPS, str(folder))),
            stack.enter_context(running(SLEEPS, f"--data={folder}/x")),
            stack.enter_context(running(cwd=work, HOME="/nowhere")),
        ]
        readers = [
            stack.enter_context(running(BANYAN_DATA=str(folder))),
            stack.enter_context(running(cwd=folder)),
            stack.enter_context(running(SLEEPS, f"{folder}.log")),
        ]
        site = Site(Plan(name="edge-1"), folder, None)
        assert site.everything() == sorted(process.pid for process in ours)
        assert site.kill_everything() == 4
        assert [process.wait(10) for process in ours] == [-9] * 4
        assert [process.poll() for process in readers] == [None] * 3


def test_a_site_that_does_not_end_by_itself_is_killed_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(folder: Path, grace: float) -> bool:
        raise ShimError("the supervisor still has instances after 60 s")

    monkeypatch.setattr(client, "end", hangs)
    folder = tmp_path / "edge-1"
    (folder / "process").mkdir(parents=True)
    with running(**of(folder, "a-1", "a")) as process:
        with pytest.raises(Unreachable, match="what edge-1 ran did not end by itself, and was killed: the supervisor still has instances"):
            asyncio.run(Site(Plan(name="edge-1"), folder, None).stop())
        assert process.wait(10) == -9
