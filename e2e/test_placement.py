"""Where an application runs, tried from the root on a real tree: selectors, taints, cordon, capacity, and moves between live leaves."""

import json
import socket
import sys
import threading
import time
import urllib.request
from functools import partial
from typing import Any

import pytest

from e2e.support import APPS, SITE_PROGRAM, Site, Tree, program, until
from e2e.test_workloads import BOTH, change, create, pods

pytestmark = pytest.mark.needs("kubectl")


def where(root: Site, name: str) -> dict[str, int]:
    """Ready replicas by cluster."""
    return {row["name"]: row.get("ready", 0) for row in root.status(name).get("clusters", [])}


def why_unplaced(root: Site, name: str) -> str:
    status = root.status(name)
    assert status.get("unplaced"), status
    return str(status["components"][0]["message"])


def overlay(root: Site, cluster: str, **patch: Any) -> None:
    root.kubectl("patch", "cluster", cluster, "--type=merge", "-p", json.dumps(patch))


def test_a_cordoned_cluster_takes_nothing_new_and_keeps_what_it_has(grove: Tree) -> None:
    root = grove.sites["root"]
    before = create(root, program("before", placement={"clusterName": "edge-1"}))
    overlay(root, "edge-1", spec={"unschedulable": True})
    assert "Cordoned" in root.kubectl("get", "cluster", "edge-1")
    after = create(root, program("after", replicas=2, placement=BOTH), ready=2)
    assert where(root, after) == {"edge-2": 2}
    assert "cordoned" in root.banyan("explain", after).stdout
    assert root.status(before)["ready"] == 1
    named = create(root, program("named", placement={"clusterName": "edge-1"}), ready=0)
    until("it is said", lambda: "cordoned" in why_unplaced(root, named))
    overlay(root, "edge-1", spec={"unschedulable": False})
    until("it goes on", lambda: root.status(named).get("ready") == 1)


def test_a_drained_cluster_hands_over_what_it_runs_one_by_one(grove: Tree) -> None:
    root = grove.sites["root"]
    name = create(root, program("moving", replicas=2, placement=BOTH), ready=2)
    assert "edge-1 is drained" in root.banyan("cluster", "drain", "edge-1").stdout
    until("the other one has all of it", lambda: root.status(name).get("ready") == 2 and where(root, name) == {"edge-2": 2})
    assert "banyan.dev/drain" in root.banyan("explain", name).stdout
    assert "edge-1 uncordoned" in root.banyan("cluster", "uncordon", "edge-1").stdout
    until("it takes something again", lambda: not root.clusters()["edge-1"].get("unschedulable"))
    back = create(root, program("back", placement={"clusterName": "edge-1"}))
    assert where(root, back) == {"edge-1": 1}


def test_a_drain_with_no_room_elsewhere_keeps_what_runs_says_so_and_goes_when_it_is_forced(grove: Tree) -> None:
    root = grove.sites["root"]
    name = create(root, program("nailed", placement={"clusterName": "edge-1"}))
    done = root.banyan("cluster", "drain", "edge-1", "--timeout", "6", check=False)
    assert done.returncode == 5, done.stdout + done.stderr
    assert f"cannot drain: no room for 1 replica of default/{name} elsewhere" in done.stderr
    assert (root.status(name).get("ready"), where(root, name)) == (1, {"edge-1": 1})
    assert "edge-1 is drained" in root.banyan("cluster", "drain", "edge-1", "--force").stdout
    until("it has no place", lambda: root.status(name).get("unplaced") == 1)
    root.banyan("cluster", "uncordon", "edge-1")
    until("it is back", lambda: where(root, name) == {"edge-1": 1})


def test_a_taint_keeps_out_what_does_not_tolerate_it(grove: Tree) -> None:
    root = grove.sites["root"]
    overlay(root, "edge-2", spec={"taints": [{"key": "gpu", "value": "only", "effect": "NoSchedule"}]})
    kept_out = create(root, program("kept-out", placement={"clusterName": "edge-2"}), ready=0)
    until("it is said", lambda: "taint gpu=only:NoSchedule" in why_unplaced(root, kept_out))
    tolerating = {"clusterName": "edge-2", "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    create(root, program("tolerates", placement=tolerating))
    overlay(root, "edge-2", spec={"taints": []})
    until("it goes on", lambda: root.status(kept_out).get("ready") == 1)


def test_labels_of_clusters_move_an_application(grove: Tree) -> None:
    root = grove.sites["root"]
    name = create(root, program("follows", placement={"clusterSelector": {"matchLabels": {"zone": "here"}}}), ready=0)
    until("it is said", lambda: "wants zone=here, has no label zone" in why_unplaced(root, name))
    root.kubectl("label", "cluster", "edge-1", "zone=here")
    until("it runs on edge-1", lambda: where(root, name) == {"edge-1": 1})
    root.kubectl("label", "cluster", "edge-1", "zone-")
    root.kubectl("label", "cluster", "edge-2", "zone=here")
    until("it has moved", lambda: where(root, name) == {"edge-2": 1})
    until("and is gone from edge-1", lambda: pods(grove.sites["edge-1"], name) == [])


def test_a_named_node_and_duplicates(grove: Tree) -> None:
    root = grove.sites["root"]
    node = grove.sites["edge-1"].get("/api/v1/nodes")["items"][0]["metadata"]["name"]
    create(root, program("there", placement={"nodeName": node}))
    nowhere = create(root, program("nowhere", placement={"nodeName": "no-such-node"}), ready=0)
    until("it is said", lambda: "edge-1 has no ready node named no-such-node" in why_unplaced(root, nowhere))
    assert "name a node that exists" in root.banyan("explain", nowhere).stdout
    twice = create(root, program("twice", placement=BOTH | {"strategy": "Duplicated"}), ready=2)
    assert where(root, twice) == {"edge-1": 1, "edge-2": 1}


def test_what_finds_no_room_says_so_and_goes_on_when_there_is_some(grove: Tree) -> None:
    root = grove.sites["root"]
    large = create(root, program("large", replicas=3, resources={"cpu": "800m"}, placement=BOTH), ready=0)
    until("two have room", lambda: root.status(large).get("ready") == 2)
    assert "edge-1 has no room: cpu: asks 800m, free 200m" in why_unplaced(root, large)
    assert root.status(large)["unplaced"] == 1
    other = create(root, program("other", resources={"cpu": "900m"}, placement=BOTH), ready=0)
    until("it waits", lambda: "has no room" in why_unplaced(root, other))
    root.kubectl("scale", "app", large, "--replicas=1")
    until("it goes on", lambda: root.status(other).get("ready") == 1)
    change(root, other, resources={"cpu": "100"})
    until("asked for too much, it is said", lambda: "asks 100000m" in root.banyan("explain", other).stdout)


def test_what_has_a_lower_priority_gives_way_and_comes_back(grove: Tree) -> None:
    root = grove.sites["root"]
    low = create(root, program("low", replicas=3, resources={"cpu": "300m"}), ready=3)
    urgent = program("urgent", resources={"cpu": "300m"})
    urgent["spec"]["priority"] = 100
    high = create(root, urgent)
    until("one of three gave way", lambda: (root.status(low).get("ready"), root.status(low).get("unplaced")) == (2, 1))
    assert f"preempted by {high} (priority 100) on edge-1" in why_unplaced(root, low)
    assert f"{high} (priority 100)" in root.kubectl("get", "events", "--field-selector", "reason=Preempted")
    root.kubectl("delete", "app", high)
    until("it is back", lambda: root.status(low).get("ready") == 3)


@pytest.mark.exact
def test_components_and_applications_share_a_node_and_never_overbook_it(grove: Tree) -> None:
    """Two components of 60 % each of the only node, and two applications of 60 % each: one of them waits, and it is said why."""
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    document = program("pair", resources={"cpu": "600m"})
    document["spec"]["components"].append(document["spec"]["components"][0] | {"name": "second"})
    create(root, document)
    assert root.status("pair")["unplaced"] == 1
    explained = root.banyan("explain", "pair").stdout
    assert "second: 1 wanted, 1 that no cluster takes" in explained
    assert "has no room: cpu: asks 600m, free 400m" in explained
    assert "lower resources.cpu to 400m" in explained
    root.kubectl("delete", "app", "pair")
    both = [program(name, resources={"cpu": "600m"}) for name in ("one", "two")]
    for document in both:
        create(root, document, ready=0)
    until("one runs, one waits", lambda: sorted(root.status(name).get("unplaced", 0) for name in ("one", "two")) == [0, 1])
    until("one is ready", lambda: sum(root.status(name).get("ready", 0) for name in ("one", "two")) == 1)
    assert len(edge.get("/api/v1/pods")["items"]) == 1
    twice = create(root, program("twice", replicas=3, takesSocket=False, placement=BOTH | {"strategy": "Duplicated"}), ready=2)
    assert root.status(twice)["unplaced"] == 4  # of each site's three only one can be
    assert "does not take a socket" in root.status(twice)["components"][0]["message"]


FAILS_THERE = f"""
import os, runpy, sys
if "/edge-2/" in os.environ["HOME"]:
    sys.exit("no such camera")
runpy.run_path({str(SITE_PROGRAM)!r}, run_name="__main__")
"""


def test_of_three_clusters_one_fails_and_the_others_run(tree: Tree) -> None:
    """What it runs fails, and then the whole site: each cluster is judged by itself, and told with its reason."""
    root = tree.root()
    edges = {name: tree.edge(name, root) for name in ("edge-1", "edge-2", "edge-3")}
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
    everywhere: dict[str, Any] = {"clusterSelector": {"matchLabels": {"tier": "edge"}}, "strategy": "Duplicated"}
    command = [sys.executable, "-c", FAILS_THERE]
    create(root, program("picky", placement=everywhere, command=command, expose={"port": 18320}), ready=0)
    until("two are ready", lambda: root.status("picky").get("ready") == 2)
    until("the third is told with its reason", lambda: "no such camera" in root.banyan("status", "picky").stdout)
    edges["edge-2"].destroy()
    until("the root knows", lambda: root.clusters()["edge-2"]["phase"] == "Unknown")
    create(root, program("later", placement=everywhere, expose={"port": 18321}), ready=2)
    for name in ("edge-1", "edge-3"):
        for port in (18320, 18321):
            with urllib.request.urlopen(f"http://{edges[name].environment['BANYAN_SITE_BIND']}:{port}/", timeout=10) as answer:
                assert answer.status == 200
        assert len(edges[name].get("/api/v1/pods")["items"]) == 2
    edges["edge-2"].run()
    until("the third runs what it can", lambda: [root.status(name).get("ready") for name in ("picky", "later")] == [2, 3])


@pytest.mark.exact
def test_a_move_between_live_leaves_never_doubles(grove: Tree) -> None:
    """Lower, acknowledge, raise: all the time there are at most as many instances as were asked for."""
    root = grove.sites["root"]
    name = create(root, program("moves", replicas=4, placement=BOTH), ready=4)
    seen: list[int] = []
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            seen.append(sum(len(pods(grove.sites[edge], name)) for edge in ("edge-1", "edge-2")))
            time.sleep(0.02)

    watcher = threading.Thread(target=count)
    watcher.start()
    try:
        overlay(root, "edge-1", metadata={"labels": {"zone": "here"}})
        for wanted, zone in (({"edge-1": 4}, "edge-1"), ({"edge-2": 4}, "edge-2")):
            other = "edge-2" if zone == "edge-1" else "edge-1"
            overlay(root, zone, metadata={"labels": {"zone": "here"}})
            overlay(root, other, metadata={"labels": {"zone": None}})
            select(root, name, {"clusterSelector": {"matchLabels": {"zone": "here"}}})
            until(f"all are on {zone}", partial(runs_as, root, name, wanted))
    finally:
        done.set()
        watcher.join()
    assert max(seen) <= 4, seen


def runs_as(root: Site, name: str, wanted: dict[str, int]) -> bool:
    return where(root, name) == wanted


def select(root: Site, name: str, placement: dict[str, Any]) -> None:
    def tried() -> bool:
        document = root.get(f"{APPS}/{name}")
        document["spec"]["placement"] = placement
        return root.ask("PUT", f"{APPS}/{name}", document)[0] == 200

    until("it is placed anew", tried)


def test_what_serves_users_runs_near_them(grove: Tree) -> None:
    """Both leaves measure the way to an address that is named once, at the root; how far the crew is, is known."""
    root = grove.sites["root"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        overlay(root, "root", spec={"users": [{"name": "hall", "address": f"127.0.0.1:{server.getsockname()[1]}"}]})
        overlay(root, "edge-1", spec={"users": [{"name": "crew", "millis": 600}]})
        overlay(root, "edge-2", spec={"users": [{"name": "crew", "millis": 40}]})

        def told() -> bool:
            facts = [root.clusters()[edge]["facts"].get("userRttMillis", {}) for edge in ("edge-1", "edge-2")]
            return all(each.keys() == {"hall", "crew"} for each in facts)

        until("both leaves have told how far the users are", told)
    near = {"latency": {"users": ["hall", "crew"], "maxMillis": 300}}
    name = create(root, program("near", replicas=2, placement=BOTH | near), ready=2)
    assert where(root, name) == {"edge-2": 2}
    assert "the way to users hall, users crew is 600 ms, at most 300 ms is allowed" in root.banyan("explain", name).stdout
