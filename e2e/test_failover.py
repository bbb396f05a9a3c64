"""A parent that is lost, and another one that carries its children: real controllers, real signals, and the way home."""

import re
import signal
from collections.abc import Callable

import pytest

from e2e.support import APPS, Site, Tree, talker, until

QUICK = {"BANYAN_FAILOVER_ALLOW": "true", "BANYAN_HEARTBEAT_SECONDS": "0.5", "BANYAN_FAILOVER_RETURN_SECONDS": "2"}


def planted(tree: Tree, **environment: str) -> tuple[Site, Site, Site, Site]:
    """root, two regions, and edge-1 under region-a, which has been told that region-b may carry it."""
    given = QUICK | environment
    root = tree.root()
    regions = []
    for name in ("region-a", "region-b"):
        site = tree.site(name, **QUICK)
        site.join(root.token(), "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
        regions.append(site.wait())
    edge = tree.edge("edge-1", regions[0], **given)
    until("all are Ready", lambda: {item["phase"] for item in root.clusters().values()} == {"Ready"} and len(root.clusters()) == 4)
    until("region-b may carry edge-1", lambda: "region-b" in edge.log(200) and "standing.kept" in edge.log(200))
    return root, regions[0], regions[1], edge


def reasons(site: Site, about: str) -> set[str]:
    return {item["reason"] for item in site.get("/api/v1/events")["items"] if item["involvedObject"]["name"] == about}


def carried(root: Site, by: str) -> Callable[[], bool]:
    def check() -> bool:
        seen = root.clusters()
        return seen["edge-1"].get("adoptedBy", "") == by and seen["edge-1"]["phase"] == "Ready"

    return check


def drawing(site: Site) -> dict[str, str]:
    """Lines of `banyan tree`, by the cluster that they are about."""
    return {line.lstrip("├└─│ ").split()[0]: line for line in site.banyan("tree").stdout.splitlines() if line.strip()}


def metric(site: Site, name: str) -> float:
    code, text = site.ask("GET", "/metrics")
    assert code == 200
    lines = (text.decode() if isinstance(text, bytes) else str(text)).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def runs(root: Site) -> bool:
    return bool(root.status("talker").get("ready") == 1)


@pytest.mark.exact
@pytest.mark.needs("kubectl")
def test_a_killed_parent_is_replaced_and_returned_to(tree: Tree) -> None:
    root, region, other, edge = planted(tree)
    code, answer = root.ask("POST", APPS, talker(clusterName="edge-1"))
    assert code == 201, answer
    until("it runs", lambda: runs(root))
    pods = {item["metadata"]["name"] for item in edge.get("/api/v1/pods")["items"]}

    region.kill()
    until("edge-1 is carried by region-b, and the root sees it Ready", carried(root, "region-b"))
    until("its home is out of reach", lambda: root.clusters()["region-a"]["phase"] == "Unknown")
    assert "region-b" in root.kubectl("get", "clusters", "-o", "wide")
    drawn = drawing(root)
    assert "adopted by region-b" in drawn["edge-1"] and "heard" in drawn["edge-1"], drawn
    assert re.search(r"○ Unknown +heard .+ broken: root → region-a +silent since 20", drawn["region-a"]), drawn
    assert re.search(r"^edge-1 .* region-b\b", root.banyan("get", "clusters", "-o", "wide").stdout, re.MULTILINE)
    assert {item["metadata"]["name"] for item in other.get("/apis/banyan.dev/v1alpha1/clusters")["items"]} == {"region-b"}
    code, found = root.ask("GET", "/apis/banyan.dev/v1alpha1/clusters/edge-1/banyan/api/v1/pods")
    assert code == 200 and {item["metadata"]["name"] for item in found["items"]} == pods
    assert "edge-1" in root.banyan("--at", "edge-1", "get", "clusters").stdout
    until("what it runs counts at the root", lambda: runs(root))
    assert reasons(root, "edge-1") >= {"Adopted"} and reasons(root, "region-a") >= {"LinkLost"}
    assert metric(edge, "banyan_failovers_total") == 1 and metric(edge, "banyan_adopted") == 1 and metric(other, "banyan_guests") == 1

    region.run()
    until("edge-1 is home again", carried(root, ""))
    until("its home knows", lambda: region.clusters()["edge-1"]["phase"] == "Ready")
    until("the root tells of it", lambda: "ReturnedHome" in reasons(root, "edge-1"))
    until("nobody is drawn as adopted or silent", lambda: not re.search("adopted by|silent since", root.banyan("tree").stdout))
    until("all is as it was", lambda: runs(root) and root.clusters()["region-a"]["phase"] == "Ready")
    until("nobody is carried", lambda: metric(other, "banyan_guests") == 0 and metric(edge, "banyan_adopted") == 0)
    assert {item["metadata"]["name"] for item in edge.get("/api/v1/pods")["items"]} == pods


def test_a_frozen_parent_is_replaced_once_it_counts_as_dead(tree: Tree) -> None:
    root, region, _, _ = planted(tree)
    assert region.process is not None
    region.process.send_signal(signal.SIGSTOP)
    try:
        until("edge-1 is carried by region-b, and the root sees it Ready", carried(root, "region-b"))
    finally:
        region.process.send_signal(signal.SIGCONT)
    until("edge-1 is home again", carried(root, ""))
    until("its home knows", lambda: region.clusters()["edge-1"]["phase"] == "Ready")


def test_with_the_root_dead_everybody_stays_and_goes_on(tree: Tree) -> None:
    """Both regions lose their parent at once; neither may take the other in."""
    root, region, other, edge = planted(tree)
    root.kill()
    for one in (region, other):
        until(f"{one.name} was refused by the other", lambda one=one: "linked to no ancestor" in one.log(200))  # type: ignore[misc]
    code, answer = region.ask("POST", APPS, talker(clusterName="edge-1"))
    assert code == 201, answer
    until("the region goes on", lambda: region.status("talker").get("ready") == 1)
    assert [metric(one, "banyan_failovers_total") for one in (region, other, edge)] == [0, 0, 0]
    assert metric(region, "banyan_guests_refused_total") + metric(other, "banyan_guests_refused_total") > 0
    assert metric(edge, "banyan_guests_refused_total") == 0
    root.run()
    until("all are back", lambda: {item["phase"] for item in root.clusters().values()} == {"Ready"} and len(root.clusters()) == 4)
    assert not any(item.get("adoptedBy") for item in root.clusters().values())


def test_a_site_that_forbids_it_is_carried_by_nobody(tree: Tree) -> None:
    root, region, other, edge = planted(tree, BANYAN_FAILOVER_ALLOW="false")
    region.kill()
    until("edge-1 is out of reach", lambda: root.clusters()["edge-1"]["phase"] == "Unknown")
    until("it has tried its parent again", lambda: edge.log(200).count("parent.unreachable") >= 3)
    assert metric(other, "banyan_guests") == 0 and metric(edge, "banyan_failovers_total") == 0
    region.run()
    until("it is back", carried(root, ""))


def test_with_home_gone_changes_arrive_by_the_ancestor_and_home_takes_over_what_it_finds(tree: Tree) -> None:
    root, region, _, edge = planted(tree)
    for name in ("changes", "stays", "goes"):
        code, answer = root.ask("POST", APPS, talker(name, clusterName="edge-1"))
        assert code == 201, answer
    until("all three run", lambda: all(root.status(name).get("ready") == 1 for name in ("changes", "stays", "goes")))
    before = instances(edge)

    region.kill()
    until("edge-1 is carried by region-b, and the root sees it Ready", carried(root, "region-b"))
    newer = {"spec": {"components": talker("changes")["spec"]["components"]}}
    newer["spec"]["components"][0]["env"] = [{"name": "LEVEL", "value": "newer"}]
    code, answer = root.ask("PATCH", f"{APPS}/changes", newer, "application/merge-patch+json")
    assert code == 200, answer
    code, answer = root.ask("DELETE", f"{APPS}/goes")
    assert code == 200, answer
    until("the deleted one has ended", lambda: instances(edge).keys() == {"changes", "stays"})
    until("the other is of the new version", lambda: instances(edge)["changes"].isdisjoint(before["changes"]) and updated(root))
    assert len(instances(edge)["changes"]) == 1 and instances(edge)["stays"] == before["stays"]
    after = instances(edge)

    region.run()
    until("edge-1 is home again", carried(root, ""))
    until("its home has taken over", lambda: not any(lent(site) for site in (root, edge)))
    until("all is well", lambda: updated(root) and root.status("stays").get("ready") == 1 and root.status("changes")["phase"] == "Running")
    assert instances(edge) == after, "nothing was restarted, nothing came back"
    assert metric(root, "banyan_lent") == 0


def instances(site: Site) -> dict[str, set[str]]:
    """Application → uids of what runs of it."""
    found: dict[str, set[str]] = {}
    for pod in site.get("/api/v1/pods")["items"]:
        found.setdefault(pod["metadata"]["labels"]["banyan.dev/application"], set()).add(pod["metadata"]["uid"])
    return found


def updated(root: Site) -> bool:
    status = root.status("changes")
    return bool(status.get("updated") == 1 and status.get("ready") == 1)


def lent(site: Site) -> float:
    """Objects that an ancestor gave, or this site was given by one, in the place of a home that is away."""
    code, text = site.ask("GET", "/metrics")
    assert code == 200
    lines = (text.decode() if isinstance(text, bytes) else str(text)).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith('banyan_store_objects{space="len'))
