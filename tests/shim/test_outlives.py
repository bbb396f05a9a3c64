"""The workload outlives its manager: controllers and supervisors are killed and replaced while a device asks all the time."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from cluster_shim.contract import Desired, Observed, ObservedWork, Probe, Work
from cluster_shim.process import client
from cluster_shim.process.shim import ProcessShim
from cluster_shim.process.supervisor import crash
from tests.shim.harness import PATIENCE, Asker, Driver, ask, cluster, free_port, server, work

REPOSITORY = Path(__file__).parents[2]


def processes_below(folder: Path) -> dict[int, str]:
    """Every process that was started for an instance of this folder, by its environment: pid → instance."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "environ").read_bytes().split(b"\0")
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if not zombie and any(word.startswith(b"HOME=" + str(folder).encode()) for word in words):
            name = next((word for word in words if word.startswith(b"BANYAN_INSTANCE=")), b"")
            found[int(entry.name)] = name.partition(b"=")[2].decode()
    return found


def supervisor_pid(driver: Driver) -> int:
    hello = driver.shim._supervisor.hello  # type: ignore[attr-defined]
    return int(hello.pid)


async def until_replaced(driver: Driver, old: int) -> None:
    async with asyncio.timeout(PATIENCE):
        supervisor = driver.shim._supervisor  # type: ignore[attr-defined]
        while not (supervisor.connected.is_set() and supervisor.hello.pid != old):
            await asyncio.sleep(0.02)


def test_a_killed_supervisor_disturbs_nobody_and_its_successor_adopts(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port, replicas=2)))
            before = await driver.until_ready(count=2)
            async with Asker(port) as asker:
                for _ in range(3):
                    old = supervisor_pid(driver)
                    os.kill(old, signal.SIGKILL)
                    await until_replaced(driver, old)
                after = await driver.until_ready(count=2)
            assert asker.failures == []
            assert [i.pid for i in after.instances] == [i.pid for i in before.instances]
            assert all(i.restarts == 0 for i in after.instances)
            # The successor holds the very same socket: with every instance gone a client only waits.
            for instance in after.instances:
                os.kill(instance.pid, signal.SIGKILL)
            assert (await ask(port))[0] == 200

    asyncio.run(scenario())


def test_a_swap_goes_on_over_the_death_of_the_supervisor(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            await driver.until_ready()
            async with Asker(port) as asker:
                driver.want(work(server(version="v2", port=port, env={"SLOW_START": "0.5"}), version=2))
                await driver.until(lambda works: len(works["uid-1"].instances) == 2)
                os.kill(supervisor_pid(driver), signal.SIGKILL)
                await driver.until_ready(revision="v2")
            assert asker.failures == []
            assert set(processes_below(tmp_path).values()) == {i.id for i in driver.works["uid-1"].instances}

    asyncio.run(scenario())


def test_an_upgraded_supervisor_is_the_same_process_with_the_same_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            before = await driver.until_ready()
            supervisor = supervisor_pid(driver)
            async with Asker(port) as asker:
                await shim.close()
                monkeypatch.setattr(client, "program_version", lambda: "another")
                async with SecondController(tmp_path) as (other, view):
                    view.want(work(server(port=port)))
                    after = await view.until_ready()
                    assert other._supervisor._asked_to_upgrade
                    assert supervisor_pid(view) == supervisor
                    # Still a child: its exit code is known, and it comes back.
                    with pytest.raises((OSError, EOFError)):
                        await ask(port, "/exit")
                    await view.until(lambda works: works["uid-1"].instances[0].restarts == 1)
                    assert "exited with code 7" in view.works["uid-1"].instances[0].message
                    await view.until_ready()
            assert asker.failures == [] or len(asker.failures) == 1  # at most the one in flight when it was told to exit
            assert after.instances[0].pid == before.instances[0].pid

    asyncio.run(scenario())


@pytest.mark.parametrize("point", ["upgrade.written", "upgrade.exec"])
def test_a_supervisor_that_dies_while_it_upgrades_disturbs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    async def scenario() -> None:
        port = free_port()
        monkeypatch.setenv("BANYAN_CRASH_AT", point)
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            before = await driver.until_ready()
            old = supervisor_pid(driver)
            monkeypatch.delenv("BANYAN_CRASH_AT")
            async with Asker(port) as asker:
                await shim.close()
                monkeypatch.setattr(client, "program_version", lambda: "another")
                async with SecondController(tmp_path) as (_, view):
                    view.want(work(server(port=port)))
                    after = await view.until_ready()
                    assert supervisor_pid(view) != old
            assert asker.failures == []
            assert after.instances[0].pid == before.instances[0].pid

    asyncio.run(scenario())


class SecondController:
    """A second controller on the same folder, that leaves everything running."""

    def __init__(self, folder: Path) -> None:
        self.shim = ProcessShim(folder / "process", node_name="node-1")
        self.driver = Driver(self.shim)

    async def __aenter__(self) -> tuple[ProcessShim, Driver]:
        await self.driver.__aenter__()
        return self.shim, self.driver

    async def __aexit__(self, *_: object) -> None:
        await self.driver.__aexit__()
        await self.shim.close()


class Controller:
    """A controller in a process of its own."""

    def __init__(self, folder: Path, *works: Work) -> None:
        self._folder = folder
        self._file = folder / "desired.json"
        self.want(*works)

    def want(self, *works: Work) -> None:
        self._file.write_bytes(msgspec.json.encode(Desired(works=works, full=True)))

    @contextmanager
    def running(self) -> Iterator["Controller"]:
        command = [sys.executable, str(REPOSITORY / "tests/shim/controller.py"), str(self._folder / "process"), str(self._file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY) as self.process:
            try:
                yield self
            finally:
                self.process.kill()

    async def until_ready(self, revision: str) -> ObservedWork:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.to_thread(self._until_ready, revision)

    def _until_ready(self, revision: str) -> ObservedWork:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            mark, _, document = line.partition(b" ")
            for seen in msgspec.json.decode(document, type=Observed).works if mark == b"OBSERVED" else ():
                if len(seen.instances) == 1 and seen.instances[0].revision == revision and seen.instances[0].ready:
                    return seen
        raise AssertionError("the controller ended")


def test_a_controller_killed_at_any_moment_disturbs_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        controller = Controller(tmp_path, work(server(port=port)))
        try:
            with controller.running():
                first = await controller.until_ready("v1")
            async with Asker(port) as asker:
                for delay in (0.15, 0.3, 0.45, 0.6):  # dies while starting, connecting, or done
                    with controller.running():
                        await asyncio.sleep(delay)
                with controller.running():
                    again = await controller.until_ready("v1")
                controller.want(work(server(version="v2", port=port, env={"SLOW_START": "0.3"}), version=2))
                for delay in (0.5, 0.7, 0.9):  # dies in the middle of a swap
                    with controller.running():
                        await asyncio.sleep(delay)
                with controller.running():
                    last = await controller.until_ready("v2")
            assert asker.failures == []
            assert (again.instances[0].pid, again.instances[0].restarts) == (first.instances[0].pid, 0)
            assert set(processes_below(tmp_path).values()) == {last.instances[0].id}
        finally:
            await asyncio.to_thread(client.end, tmp_path / "process", 1.0)
        assert processes_below(tmp_path) == {}

    asyncio.run(scenario())


POINTS = [(name, 1) for name in crash.POINTS if not name.startswith("upgrade.")]
POINTS += [("start.intended", 2), ("start.forked", 2), ("start.recorded", 2), ("stop.intended", 2), ("port.bound", 2)]
ALWAYS = Probe(command=("true",), period_seconds=0.2, timeout_seconds=5.0)


@pytest.mark.parametrize(("point", "passing"), POINTS)
def test_a_supervisor_that_dies_at_any_step_starts_nothing_twice_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, passing: int
) -> None:
    async def scenario() -> None:
        port = free_port()
        monkeypatch.setenv("BANYAN_CRASH_AT", f"{point}:{passing}")
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            await shim.describe()  # a supervisor with the fault is running
            monkeypatch.delenv("BANYAN_CRASH_AT")
            old = supervisor_pid(driver)
            driver.want(work(server(port=port), server("second", readiness=ALWAYS)))
            await driver.until_ready(count=2)
            driver.want(work(server(version="v2", port=port), version=2))
            seen = await driver.until_ready(revision="v2", count=1)
            assert set(processes_below(tmp_path).values()) == {seen.instances[0].id}
            assert (await ask(port))[1].startswith("v2")
            other = free_port()
            driver.want(work(server(version="v3", port=other), version=3))
            seen = await driver.until_ready(revision="v3", count=1)
            assert len(processes_below(tmp_path)) == 1
            assert (await ask(other))[1].startswith("v3")
            driver.want()
            await driver.until(lambda works: not works)
            assert processes_below(tmp_path) == {}
            await until_replaced(driver, old)  # else the point was never passed

    asyncio.run(scenario())
