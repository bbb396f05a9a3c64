"""A cluster is given another parent under load: what it runs runs on, and everybody counts it once."""

import json
from collections.abc import Callable
from typing import Any

from cluster_controller.identity import load
from e2e.support import API, APPS, Asker, Site, Tree, model_application, program, publish, talker, until

EVERY_EDGE = {"clusterSelector": {"matchLabels": {"tier": "edge"}}}


def test_a_leaf_moves_between_two_regions_and_nothing_notices(tree: Tree, device: Callable[[str], Asker]) -> None:
    root = tree.root()
    a, b = tree.region("region-a", root), tree.region("region-b", root)
    edge, other = tree.edge("edge-1", a), tree.edge("edge-2", b)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 5)
    publish(root)
    assert root.ask("POST", APPS, model_application(port=8500, **at("edge-1")))[0] == 201
    assert root.ask("POST", APPS, program("divided", placement=EVERY_EDGE, replicas=4, expose={"port": 8600}))[0] == 201
    assert root.ask("POST", APPS, talker("everywhere", strategy="Duplicated"))[0] == 201
    assert a.ask("POST", APPS, talker("of-the-region"))[0] == 201
    assert edge.ask("POST", APPS, talker("its-own"))[0] == 201
    wanted = {"emotion": 1, "divided": 4, "everywhere": 2}
    until("all are ready", lambda: ready(root) == wanted and ready(a) == {"of-the-region": 1} and ready(edge) == {"its-own": 1})
    rows = {row["name"]: row["ready"] for row in root.status("divided")["clusters"]}
    assert rows == {"edge-1": 2, "edge-2": 2}
    ending = instances(edge, "of-the-region")
    stays = set(instances(edge)) - set(ending)
    asker = device(f"http://{edge.environment['BANYAN_SITE_BIND']}:8500/v2/models/emotion/infer")

    plan = json.loads(root.banyan("move", "edge-1", "--parent", "region-b", "--dry-run", "-o", "json").stdout)
    assert plan["from"] == "region-a" and plan["to"] == "region-b" and plan["troubles"] == []
    fates = {one["name"].partition(".")[0]: one["fate"] for one in plan["applications"]}
    assert fates == dict.fromkeys(wanted, "stays") | {"of-the-region": "ends there", "its-own": "goes along"}
    assert root.clusters()["edge-1"]["parent"] == "region-a"
    policy = {"apiVersion": "banyan.dev/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "site"}, "spec": {"parents": ["region-z"]}}
    assert edge.ask("POST", f"{API}/sitepolicies", policy)[0] == 201
    refused = root.banyan("move", "edge-1", "--parent", "region-b", "--yes", check=False)
    assert refused.returncode != 0 and "does not permit region-b" in refused.stderr
    assert edge.ask("DELETE", f"{API}/sitepolicies/site")[0] == 200
    done = root.banyan("move", "edge-1", "--parent", "region-b", "--yes", "-o", "json")
    assert json.loads(done.stdout)["phase"] == "Done"

    until("the root sees it there", lambda: root.clusters()["edge-1"]["path"] == ["region-b", "edge-1"])
    until("region-a has forgotten it", lambda: "edge-1" not in a.clusters())
    until("everything is ready", lambda: ready(root) == wanted and ready(edge) == {"its-own": 1})
    until("what its old region had there has ended", lambda: not instances(edge, "of-the-region"))
    assert root.ask("POST", APPS, talker("after", **at("edge-1")))[0] == 201
    until("what is new arrives by its new parent", lambda: root.status("after").get("ready") == 1)
    report = asker.end()
    assert report["failures"] == 0 and report["requests"] > 0, report
    assert stays <= set(instances(edge))  # nothing that ran there was ever started again
    assert {row["name"]: row["ready"] for row in root.status("divided")["clusters"]} == rows
    assert len(instances(other, "divided")) == 2
    for site in (root, a, b, edge):
        assert "Moved" in {item["reason"] for item in site.get("/api/v1/events")["items"]}, site.name

    edge.kill()
    edge.run()
    until("it comes back to its new parent", lambda: b.clusters()["edge-1"]["phase"] == "Ready" and ready(root) == wanted | {"after": 1})
    assert stays <= set(instances(edge))


def at(edge: str) -> dict[str, Any]:
    return {"clusterSelector": {"matchLabels": {"site": edge}}}


def ready(site: Site) -> dict[str, int]:
    return {item["metadata"]["name"]: item["status"].get("ready", 0) for item in site.get(APPS)["items"]}


def instances(site: Site, application: str = "") -> list[str]:
    """Names of the Pods that run at a site: a new one for each start."""
    pods = site.get("/api/v1/pods")["items"]
    return [
        f"{pod['metadata']['uid']} {status.get('restartCount', 0)}"
        for pod in pods
        for status in pod["status"].get("containerStatuses", [])
        if not application or application in pod["metadata"]["name"]
    ]


def test_a_region_moves_with_all_below_it_while_controllers_die(tree: Tree) -> None:
    """The region that goes, its new parent and the one that decides are killed in the midst; in the end it is under exactly one parent."""
    root = tree.root()
    a, b = tree.region("region-a", root), tree.region("region-b", root)
    inner = tree.region("inner", a)
    edge = tree.edge("edge-1", inner)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 5)
    assert root.ask("POST", APPS, program("divided", placement=EVERY_EDGE, replicas=3, expose={"port": 8600}))[0] == 201
    assert inner.ask("POST", APPS, talker("of-inner"))[0] == 201
    until("all are ready", lambda: ready(root) == {"divided": 3} and ready(inner) == {"of-inner": 1})
    stays = set(instances(edge))

    refusals = {
        ("inner", "edge-1"): "stands below inner",
        ("inner", "region-a"): "is the parent of inner already",
        ("inner", "nobody"): '"nobody" not found',
        ("region-a", "edge-1"): "stands below region-a",
        ("edge-1", "inner"): "is the parent of edge-1 already",
    }
    for (name, parent), reason in refusals.items():
        refused = root.banyan("move", name, "--parent", parent, "--yes", check=False)
        assert refused.returncode != 0 and reason in refused.stderr, (name, parent, refused.stderr)
    leaf = tree.edge("edge-2", b)
    until("the leaf is there", lambda: root.clusters().get("edge-2", {}).get("phase") == "Ready")
    refused = root.banyan("move", "inner", "--parent", "edge-2", "--yes", check=False)
    assert (refused.returncode != 0 and "may not take children" in refused.stderr) or "listens for no children" in refused.stderr

    root.banyan("move", "inner", "--parent", "region-b", "--yes", "--no-wait")
    for site in (inner, root, b):
        site.kill()
    again = [site.run() for site in (b, root, inner)]
    assert len(again) == 3

    def ended() -> str:
        move = json.loads(root.banyan("move", "inner", "--status", "-o", "json").stdout)
        return "" if move["active"] else str(move["phase"])

    phase = until("the move has ended", ended)
    if phase == "Undone":  # it was cut short before the region had gone
        assert "inner" in a.clusters()
        done = root.banyan("move", "inner", "--parent", "region-b", "--yes", "-o", "json")
        assert json.loads(done.stdout)["phase"] == "Done"
    until("it is there with all below it", lambda: root.clusters()["edge-1"]["path"] == ["region-b", "inner", "edge-1"])
    until("its old parent has forgotten both", lambda: not {"inner", "edge-1"} & set(a.clusters()))
    until("everything is ready", lambda: ready(root) == {"divided": 3} and ready(inner) == {"of-inner": 1})
    assert stays <= set(instances(edge))
    assert not instances(leaf, "divided")
    assert root.ask("POST", APPS, talker("after", **at("edge-1")))[0] == 201
    until("what is new arrives", lambda: root.status("after").get("ready") == 1)
    path = [site.clusters()[site.name]["uid"] for site in (root, b, inner, edge)]
    until("the certificates below say the new way", lambda: issuers(edge) == path[:-1])


def issuers(site: Site) -> list[str]:
    """uids of the controllers by which a cluster's certificate was issued, from the root down."""
    return list(load(site.folder / "identity").path[:-1])


def test_a_leaf_moves_up_to_the_root_and_down_again(tree: Tree) -> None:
    """The common ancestor is the new parent, then the old one."""
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    assert root.ask("POST", APPS, program("divided", placement=EVERY_EDGE, replicas=2, expose={"port": 8600}))[0] == 201
    assert root.ask("POST", APPS, talker("everywhere", strategy="Duplicated"))[0] == 201
    until("all are ready", lambda: ready(root) == {"divided": 2, "everywhere": 1})
    stays = set(instances(edge))
    for parent, path in (("root", ["edge-1"]), ("region-a", ["region-a", "edge-1"])):
        done = root.banyan("move", "edge-1", "--parent", parent, "--yes", "-o", "json")
        assert json.loads(done.stdout)["phase"] == "Done"
        until(f"it is below {parent}", lambda path=path: root.clusters()["edge-1"]["path"] == path)  # type: ignore[misc]
        until("all are ready", lambda: ready(root) == {"divided": 2, "everywhere": 1})
        assert set(instances(edge)) == stays
    assert root.clusters()["edge-1"]["phase"] == "Ready" and "edge-1" in region.clusters()
