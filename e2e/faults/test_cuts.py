"""Links that are cut, half cut, flap: everybody goes on deciding for what it holds, and they agree when they meet again."""

import functools
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from e2e.faults import exact
from e2e.faults.cargo import MOST, Cargo
from e2e.faults.exact import Before, until_exact
from e2e.faults.ground import LOCAL, STEADY, Ground, Machine, metric, phases
from e2e.support import until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

FLAP_SECONDS = 3.0
GROWTH = 6.0  # MiB of a controller that had never lost a link before


def test_the_check_finds_what_is_lost_doubled_or_killed(ground: Ground) -> None:
    """Nothing below proves anything if this does not hold."""
    until_exact(begun := Before(ground))
    edge = ground.edges[0]
    held = exact.spaces(edge)["desired"]
    assert {name for kind, _, name in held if kind == "Work"}, held
    victim = next(one for one in exact.instances(edge) if one.application == STEADY)
    os.kill(victim.pid, signal.SIGKILL)
    assert any(victim.name in line for line in begun.killed())
    until("it is started again", lambda: any(victim.name in line for line in begun.surplus()))
    until_exact(Before(ground))
    before = exact.inexact(ground)
    assert before == []
    ground.links["edge-1"].cut()
    ground.change(ground.root, STEADY, replicas=5)
    assert exact.inexact(ground)
    ground.change(ground.root, STEADY, replicas=4)  # before it is mended: the edge is never told of five
    ground.links["edge-1"].mend()
    until_exact(Before(ground))


def test_a_link_is_cut_and_both_sides_change_what_is_theirs(ground: Ground, before: Before, cargo: Cargo, long: bool) -> None:
    """With --long for ten minutes."""
    root, region = ground.root, ground.region
    cargo.send()
    cut = time.monotonic()
    ground.links["region-a"].cut()
    until("the root shows all below stale", lambda: set(phases(root).values()) == {"Ready", "Unknown"})
    ground.figures.mark("shown stale by the root")
    ground.create(root, "from-above", 2)
    ground.create(region, "from-below", 2)
    ground.change(region, LOCAL, replicas=3)
    ground.until_runs(region, "from-below", 2)
    ground.until_runs(region, LOCAL, 3)
    if long:
        time.sleep(max(0.0, 600 - (time.monotonic() - cut)))
    ground.links["region-a"].mend()
    until_exact(before)
    assert cargo.ratio <= MOST
    ground.change(region, LOCAL, replicas=2)
    for site, name in ((root, "from-above"), (region, "from-below")):
        ground.delete(site, name)
    until_exact(before.less("from-above", "from-below", LOCAL))


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_link_that_carries_one_way_only(ground: Ground, before: Before, cargo: Cargo, way: str) -> None:
    """Both ends notice, also the one that hears; what was changed meanwhile is there afterwards, once."""
    root, region, link = ground.root, ground.region, ground.links["region-a"]
    cargo.send()
    lost = {site.name: losses(site) for site in (root, region)}
    (link.cut_up if way == "up" else link.cut_down)()
    until("both ends have noticed", lambda: all(losses(site) > lost[site.name] for site in (root, region)))
    ground.figures.mark("noticed by both ends")
    until("nothing stale looks fresh", lambda: phases(root)["edge-1"] == "Unknown")
    ground.create(root, f"above-{way}")
    ground.create(region, f"below-{way}")
    ground.until_runs(region, f"below-{way}", 1)
    link.mend()
    until_exact(before)
    assert cargo.ratio <= MOST
    ground.delete(root, f"above-{way}")
    ground.delete(region, f"below-{way}")
    until_exact(before.less(f"above-{way}", f"below-{way}"))


def losses(site: Machine) -> int:
    """Links that it says it lost."""
    return site.log(100_000).count("link.lost")


def test_links_that_flap(ground: Ground, before: Before, cargo: Cargo, long: bool) -> None:
    """Three seconds without, three seconds with; with --long for ten minutes. Nothing grows: no memory, descriptor or task."""
    links = [ground.links["region-a"], ground.links["edge-1"]]

    def flap() -> None:
        for link in links:
            link.cut()
        time.sleep(FLAP_SECONDS)
        for link in links:
            link.mend()
        time.sleep(FLAP_SECONDS)

    flap()
    until_exact(before)  # what is loaded for the first loss of a link is there from now on
    samples = [resources(ground)]
    cargo.send()
    lost = sum(losses(site) for site in ground.machines)
    for number in range(100 if long else 3):
        name = f"flap-{number % 3}"
        ground.create(ground.root, name)
        flap()
        ground.delete(ground.root, name)
        until("it is gone", functools.partial(gone, ground.root, name))
        if number % 20 == 19:
            samples.append(resources(ground))
    until_exact(before.less("flap-0", "flap-1", "flap-2"))
    assert sum(losses(site) for site in ground.machines) > lost
    ground.figures.note("links lost", str(sum(losses(site) for site in ground.machines) - lost))
    samples.append(resources(ground))
    first, last = samples[0], samples[-1]
    for site in ground.machines:
        print(f"\n{site.name}: {'; '.join(str(sample[site.name]) for sample in samples)}")
        ground.figures.note(site.name, f"{first[site.name]} → {last[site.name]}")
        was, now = first[site.name], last[site.name]
        assert now.descriptors <= was.descriptors + 2, f"descriptors of {site.name}: {was} before, {now} after"
        assert now.threads <= was.threads + 1, f"threads of {site.name}: {was} before, {now} after"
        assert now.tasks <= was.tasks + 2, f"tasks of {site.name}: {was} before, {now} after"
        assert now.memory - now.journal < was.memory - was.journal + GROWTH, f"memory of {site.name}: {was} before, {now} after"


def gone(site: Machine, name: str) -> bool:
    return name not in site.names()


class Resources(NamedTuple):
    descriptors: int
    threads: int
    tasks: int
    memory: float  # MiB, proportional set size
    journal: float  # MiB of it that keep changes: grows to its bound

    def __str__(self) -> str:
        counts = f"{self.descriptors} descriptors, {self.threads} threads, {self.tasks} tasks"
        return f"{counts}, {self.memory:.1f} MiB ({self.journal:.1f} of journal)"


def resources(ground: Ground) -> dict[str, Resources]:
    return {site.name: _resources(site) for site in ground.machines}


def _resources(site: Machine) -> Resources:
    assert site.process is not None
    folder = Path(f"/proc/{site.process.pid}")
    descriptors, threads = (len(list((folder / kind).iterdir())) for kind in ("fd", "task"))
    tasks, journal = round(metric(site, "banyan_tasks")), metric(site, "banyan_store_journal_bytes")
    return Resources(descriptors, threads, tasks, site.pss() / (1 << 20), journal / (1 << 20))
