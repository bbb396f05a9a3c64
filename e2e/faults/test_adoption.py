"""The same faults with failover as shipped: who loses its parent is carried by another one, and nothing is lost, doubled or killed.

Beside the branch that the other tests know there is a second region, with an edge of its own and a way of its own to the first one: a
controller that dies, and a link that is cut, leave somebody in reach.
"""

import time
from collections.abc import Iterator

import pytest

from e2e.faults.cargo import Cargo
from e2e.faults.exact import Before, Instance, instances, until_exact
from e2e.faults.ground import LOCAL, STEADY, Ground, Machine, grounded, metric, phases
from e2e.support import until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

SHIPPED = {"BANYAN_FAILOVER_ALLOW": "true"}
PATIENT = {"BANYAN_HEARTBEAT_SECONDS": "5"}  # as shipped too, with --long: a link that falls silent is then waited for, for 15 s
REPLACE_SECONDS = 10  # longer than detection and adoption take one after the other
TWINS = "twins"


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    given = SHIPPED | (PATIENT if request.config.getoption("--long") else {})
    with grounded(tmp_path_factory.mktemp("faults"), lambda _: given) as ground:
        other = beside(ground)
        ground.until_ready()
        ground.create(ground.root, TWINS, 6, onUnreachable={"action": "Replace", "afterSeconds": REPLACE_SECONDS})
        ground.until_runs(ground.root, TWINS, 6)
        for site in (ground.region, *ground.edges):
            until(f"{other.name} may carry {site.name}", lambda site=site: other.name in kept(site))  # type: ignore[misc]
        yield ground


def kept(site: Machine) -> str:
    """Who may carry it, as it was told last."""
    return next((line for line in reversed(site.log(1000).splitlines()) if "standing.kept" in line), "")


def beside(ground: Ground) -> Machine:
    """region-b below the root, with edge-3. The first region and its edges reach it by a link that does not lead past the root."""
    root, region = ground.root, ground.region
    other, edge = ground.machine("region-b"), ground.machine("edge-3")
    up = ground.fabric.link(root.space, other.space)
    side = ground.links["side"] = ground.fabric.link(region.space, other.space)
    down = ground.fabric.link(other.space, edge.space)
    other.space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    other.space.default_route(up.upper.address)
    edge.space.default_route(down.upper.address)
    for name in ("edge-1", "edge-2"):  # what they ask is answered the way that it came
        lower = ground.links[name].lower.address
        other.space.run("ip", "route", "replace", f"{lower}/32", "via", side.upper.address)
        root.space.run("ip", "route", "replace", f"{lower}/32", "via", ground.links["region-a"].lower.address)
    advertised = ("--tunnel-listen", "0.0.0.0:10000", "--tunnel-advertise", f"{side.lower.address}:10000,{down.upper.address}:10000")
    other.join(root.token(), *advertised, "--shim", "none")
    other.wait()
    edge.join(other.token(), "--tunnel-listen", "", "--labels", "tier=far")
    edge.wait()
    return other


def carried(ground: Ground, *sites: Machine) -> bool:
    """Does the root see each of them Ready, at another parent than its own?"""
    seen = ground.root.clusters()
    return all(seen[site.name]["phase"] == "Ready" and seen[site.name].get("adoptedBy") for site in sites)


def nobody_is_carried(ground: Ground) -> bool:
    return not any(status.get("adoptedBy") for status in ground.root.clusters().values())


def older(before: Before) -> set[Instance]:
    """What runs of the Application that may be replaced: a stand-in may come and go, and these stay."""
    return {one for one in before.instances if one.application == TWINS}


def running(ground: Ground, name: str) -> int:
    return sum(one.application == name for site in ground.machines for one in instances(site))


def test_a_parent_is_killed_and_what_may_be_replaced_is_not(ground: Ground, before: Before, cargo: Cargo) -> None:
    """Its children are carried and heard: nothing of theirs is replaced, also after the time at which it would be."""
    cargo.send(may_arrive=True)
    ground.region.kill()
    until("its edges are carried", lambda: carried(ground, *ground.edges))
    ground.figures.mark("carried and seen Ready by the root")
    until("the region is missed", lambda: phases(ground.root)["region-a"] == "Unknown")
    ground.change(ground.root, STEADY, replicas=6)
    time.sleep(1.5 * REPLACE_SECONDS)
    assert ground.root.status(TWINS).get("ready") == 6
    assert running(ground, TWINS) == 6, "what runs under a carried edge was doubled"
    assert before.killed() == []
    ground.region.run()
    until("all are home again", lambda: nobody_is_carried(ground) and set(phases(ground.root).values()) == {"Ready"}, 120)
    until_exact(before)
    ground.change(ground.root, STEADY, replicas=4)
    until_exact(before.less(STEADY))


def test_a_region_loses_its_way_to_the_root_and_goes_by_its_sibling(ground: Ground, before: Before, cargo: Cargo) -> None:
    """Only the link to its parent is cut: it is carried by region-b, and what is wanted and what is told go through there."""
    root, region = ground.root, ground.region
    cargo.send(may_arrive=True)
    ground.links["region-a"].cut()
    until("the region is carried", lambda: carried(ground, region))
    ground.figures.mark("carried and seen Ready by the root")
    until("its edges are seen", lambda: all(phases(root)[edge.name] == "Ready" for edge in ground.edges))
    ground.create(root, "from-above", 2, clusterSelector={"matchLabels": {"tier": "edge"}})
    ground.create(region, "from-below", 2, clusterSelector={"matchLabels": {"tier": "edge"}})
    ground.until_runs(root, "from-above", 2)
    ground.until_runs(region, "from-below", 2)
    assert root.banyan("--at", "edge-1", "get", "pods").stdout
    ground.links["region-a"].mend()
    until("the region is home again", lambda: nobody_is_carried(ground), 120)
    stay = older(before)
    until_exact(before.less(TWINS))
    assert stay <= {one for site in ground.machines for one in instances(site)}
    for site, name in ((root, "from-above"), (region, "from-below")):
        ground.delete(site, name)
    until_exact(before.less("from-above", "from-below"))


def test_a_parent_that_flaps_is_left_once_and_returned_to_once(ground: Ground, before: Before, cargo: Cargo) -> None:
    """No ping-pong: who has left stays where it is until home has answered for long enough."""
    moves = {edge.name: (metric(edge, "banyan_failovers_total"), metric(edge, "banyan_returns_total")) for edge in ground.edges}
    cargo.send(may_arrive=True)
    ground.region.kill()
    until("its edges are carried", lambda: carried(ground, *ground.edges))
    for _ in range(3):
        ground.region.run()
        time.sleep(3.0)
        ground.region.kill()
        time.sleep(3.0)
    for edge in ground.edges:
        assert metric(edge, "banyan_failovers_total") == moves[edge.name][0] + 1
        assert metric(edge, "banyan_returns_total") == moves[edge.name][1], "it went home to a parent that flaps"
    ground.region.run()
    until("all are home again", lambda: nobody_is_carried(ground) and set(phases(ground.root).values()) == {"Ready"}, 120)
    until_exact(before)
    for edge in ground.edges:
        assert metric(edge, "banyan_failovers_total") == moves[edge.name][0] + 1
        assert metric(edge, "banyan_returns_total") == moves[edge.name][1] + 1


def test_everybody_dies_at_once_and_the_root_comes_last(ground: Ground, before: Before, cargo: Cargo) -> None:
    """With nobody above to vouch for anybody, each stays with its own parent; nobody is carried in a circle."""
    cargo.send(may_arrive=True)
    for site in ground.machines:
        site.kill()
    for site in (*ground.edges, *(site for site in ground.machines if site.name in ("edge-3", "region-b")), ground.region):
        site.run()
    until("the region has its edges", lambda: [phases(ground.region)[edge.name] for edge in ground.edges] == ["Ready"] * 2)
    ground.change(ground.region, LOCAL, replicas=3)
    ground.until_runs(ground.region, LOCAL, 3)
    assert all(metric(site, "banyan_adopted") == 0 for site in ground.machines if site is not ground.root)
    ground.root.run()
    until("all are home", lambda: nobody_is_carried(ground) and set(phases(ground.root).values()) == {"Ready"}, 120)
    stay = older(before)
    until_exact(before.less(TWINS))
    assert stay <= {one for site in ground.machines for one in instances(site)}
    ground.change(ground.region, LOCAL, replicas=2)
    until_exact(before.less(LOCAL))
