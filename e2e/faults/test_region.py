"""A region that is cut off goes on alone: a leaf dies, another one joins, people create and change; and names meet afterwards."""

import time

import pytest

from e2e.faults.cargo import Cargo
from e2e.faults.exact import Before, instances, until_exact
from e2e.faults.ground import LOCAL, STEADY, Ground, Machine, phases
from e2e.support import API, APPS, until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

REPLACE = {"action": "Replace", "afterSeconds": 3}
SAME = "same"


def running(ground: Ground, name: str) -> int:
    return sum(one.application == name for site in ground.machines for one in instances(site))


def test_a_region_is_cut_off_and_lives_on(ground: Ground, before: Before, cargo: Cargo) -> None:
    root, region = ground.root, ground.region
    dead, alive = ground.edges
    ground.create(root, "twins", 4, clusterSelector={"matchLabels": {"tier": "edge"}}, onUnreachable=REPLACE)
    ground.until_runs(root, "twins", 4)
    cargo.send()
    ground.links["region-a"].cut()
    until("the root misses the region", lambda: phases(root)["region-a"] != "Ready")
    # A leaf dies; the region replaces what may be replaced, and keeps what may not.
    dead.power_off()
    died = time.monotonic()
    until("the region has four again", lambda: running(ground, "twins") == 4)
    ground.figures.took(f"replaced ({REPLACE['afterSeconds']} s of patience included)", time.monotonic() - died)
    assert sum(one.application == STEADY for one in instances(alive)) == 2, "Keep was doubled"
    # Another one joins, and is given work from below and from above the cut.
    added = ground.machine("edge-3")
    ground.add(added)
    ground.create(region, "here", 1, clusterName="edge-3")
    ground.until_runs(region, "here", 1)
    # The same name at two origins, and changes of what is one's own on both sides.
    ground.create(root, SAME, 1, clusterName="edge-2")
    ground.create(region, SAME, 2, clusterName="edge-2")
    ground.until_runs(region, SAME, 2)
    ground.change(root, STEADY, replicas=6)
    ground.change(region, LOCAL, replicas=4)
    until("both of its own run", lambda: running(ground, LOCAL) >= 3)
    # Two clusters of one name: the root's other branch takes it in meanwhile.
    elsewhere = ground.machine("elsewhere")
    link = ground.fabric.link(root.space, elsewhere.space)
    elsewhere.space.default_route(link.upper.address)
    elsewhere.join(root.token(), "--tunnel-listen", "", "--name", "edge-3", "--labels", "tier=far")
    elsewhere.wait()
    assert phases(root)["edge-3"] == "Ready"
    # All meet again.
    ground.links["region-a"].mend()
    dead.run()
    before = before.without(dead.name).less("twins")
    until_exact(before)
    assert both(root, region) == (1, 2)
    assert running(ground, SAME) == 3
    named = {name: status["uid"] for name, status in root.clusters().items()}
    assert named["edge-3"] == elsewhere.uid
    assert named["edge-3.region-a"] == added.uid
    conditions = [one["type"] for one in root.clusters()["edge-3.region-a"]["conditions"] if one["status"] == "True"]
    assert "NameConflict" in conditions, conditions
    for site, name in ((root, "twins"), (root, SAME), (region, SAME), (region, "here")):
        ground.delete(site, name)
    until_exact(before.less(SAME, "here"))


def both(root: Machine, region: Machine) -> tuple[int, int]:
    """Ready replicas of the two that bear the same name, each at its origin; the root lists the other one too."""
    listed = {item["metadata"]["name"]: item["status"] for item in root.get(f"{API}/namespaces/default/subtreeapplications")["items"]}
    assert listed[f"{SAME}.region-a"]["ready"] == region.get(f"{APPS}/{SAME}")["status"]["ready"]
    return root.status(SAME)["ready"], region.status(SAME)["ready"]


def test_a_site_joins_while_the_root_is_gone(ground: Ground, before: Before, cargo: Cargo) -> None:
    """Provisional, and complete at once; the root learns of it."""
    cargo.send()
    ground.root.kill()
    newcomer = ground.machine("edge-4")
    ground.add(newcomer)
    ground.create(ground.region, "early", 1, clusterName="edge-4")
    ground.until_runs(ground.region, "early", 1)
    ground.root.run()
    until_exact(before)
    assert phases(ground.root)["edge-4"] == "Ready"
    ground.delete(ground.region, "early")
    until_exact(before.less("early"))
