"""Who dies or freezes is missed, and nothing that runs is: controllers, supervisors, a shim in a process of its own."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banyanctl.demo import processes
from e2e.faults.cargo import Cargo
from e2e.faults.exact import Before, instances, until_exact
from e2e.faults.ground import LOCAL, STEADY, Ground, Machine, events, phases
from e2e.support import until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

SEED = 11


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """As a machine that hangs: connections stay open, and nobody is behind them."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pid_of(site: Machine) -> int:
    assert site.process is not None
    return site.process.pid


@pytest.mark.parametrize("who", ["root", "region-a", "edge-1"])
def test_a_controller_is_killed_and_started_at_once(ground: Ground, before: Before, cargo: Cargo, who: str) -> None:
    site = next(one for one in ground.machines if one.name == who)
    cargo.send()
    begun = time.time()
    site.kill()
    site.run()
    until_exact(before)
    served = events(site, "controller.started", begun)[0]
    for peer in ground.machines:
        if peer.parent_uid == site.uid or peer is site:
            linked = [at for at in events(peer, "link.up", begun) if at > begun]
            if linked:
                ground.figures.took(f"{peer.name} linked after {who} was there again", linked[-1] - served)


def test_a_parent_is_killed_and_comes_back_late(ground: Ground, before: Before, cargo: Cargo) -> None:
    """What is wanted changes above and below meanwhile."""
    cargo.send()
    ground.region.kill()
    until("the root misses it", lambda: phases(ground.root)["region-a"] != "Ready")
    ground.figures.mark("missed by the root")
    ground.change(ground.root, STEADY, replicas=6)
    ground.region.run()
    until_exact(before)
    ground.change(ground.root, STEADY, replicas=4)
    until_exact(before.less(STEADY))


def test_a_parent_freezes(ground: Ground, before: Before, cargo: Cargo) -> None:
    """Half open: its connections stand until somebody's patience ends. What it had not done it does afterwards, once."""
    cargo.send()
    with frozen(pid_of(ground.region)):
        until("the root misses it", lambda: phases(ground.root)["region-a"] != "Ready")
        ground.figures.mark("missed by the root")
        until("its edges miss it", lambda: all(site.log(10_000).count("link.lost") for site in ground.edges))
        ground.change(ground.root, STEADY, replicas=6)
    until_exact(before)
    ground.change(ground.root, STEADY, replicas=4)
    until_exact(before.less(STEADY))


def test_the_root_freezes_for_a_moment_shorter_than_anybodys_patience(ground: Ground, before: Before, cargo: Cargo) -> None:
    cargo.send()
    with frozen(pid_of(ground.root)):
        time.sleep(1.0)
        ground.change(ground.region, LOCAL, replicas=3)
    until_exact(before)
    ground.change(ground.region, LOCAL, replicas=2)
    until_exact(before.less(LOCAL))


def test_all_controllers_die_at_once_and_start_in_any_order(ground: Ground, before: Before, cargo: Cargo, long: bool) -> None:
    """What runs does not notice; the root comes last, and before it the branch is complete."""
    cargo.send()
    order = [ground.region, *ground.edges]
    for turn in range(6 if long else 1):
        for site in ground.machines:
            os.kill(pid_of(site), signal.SIGKILL)
        for site in ground.machines:
            assert site.process is not None
            site.process.wait()
        random.Random(SEED + turn).shuffle(order)
        for site in order:
            site.run()
        started = time.monotonic()
        until("the region has its edges", lambda: [phases(ground.region)[edge.name] for edge in ground.edges] == ["Ready"] * 2)
        ground.figures.took("the region has its edges after the last was started", time.monotonic() - started)
        ground.change(ground.region, LOCAL, replicas=3)
        ground.until_runs(ground.region, LOCAL, 3)
        ground.root.run()
        until_exact(before)
        ground.change(ground.region, LOCAL, replicas=2)
        until_exact(before.less(LOCAL))


def supervisor(site: Machine) -> int:
    """Its pid. LookupError when there is none, or not one alone."""
    (pid,) = (
        process.pid
        for process in processes.below(site.folder)
        if not process.instance and b"/supervisor" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    )
    return pid


def test_a_supervisor_is_killed(ground: Ground, before: Before, cargo: Cargo) -> None:
    """A new one adopts what runs."""
    edge = ground.edges[0]
    cargo.send()
    was = supervisor(edge)
    os.kill(was, signal.SIGKILL)
    ground.change(ground.root, STEADY, replicas=6)
    until_exact(before)
    assert supervisor(edge) != was
    ground.change(ground.root, STEADY, replicas=4)
    until_exact(before.less(STEADY))


def test_a_supervisor_hangs(ground: Ground, before: Before, cargo: Cargo) -> None:
    """The other cluster goes on; what it was told meanwhile it does afterwards, once."""
    edge, other = ground.edges
    cargo.send()
    with frozen(supervisor(edge)):
        ground.create(ground.root, "meanwhile", 1, clusterName=other.name)
        ground.until_runs(ground.root, "meanwhile", 1)
        ground.change(ground.root, STEADY, replicas=6)
        time.sleep(2.0)
        assert len([one for one in instances(edge) if one.application == STEADY]) == 2
    until_exact(before)
    ground.change(ground.root, STEADY, replicas=4)
    ground.delete(ground.root, "meanwhile")
    until_exact(before.less(STEADY, "meanwhile"))
