"""SitePolicy with real processes: what a site refuses is said at the origin, and only the site itself changes its mind."""

import re
from typing import Any

from cluster_controller.resources.registry import LABEL_APPLICATION
from e2e.faults.ground import metric
from e2e.support import API, APPS, Site, Tree, program, until

BOTH = {"clusterNames": ["edge-1", "edge-2"]}
POLICIES = f"{API}/sitepolicies"
MERGE = "application/merge-patch+json"


def decide(site: Site, **spec: Any) -> None:
    site.ask("DELETE", f"{POLICIES}/site")
    document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "site"}, "spec": spec}
    code, answer = site.ask("POST", POLICIES, document)
    assert code == 201, answer


def create(root: Site, name: str, **placement: Any) -> None:
    component = {"replicas": 2}
    code, answer = root.ask("POST", APPS, program(name, placement=placement, **component))
    assert code == 201, answer


def counts(root: Site, name: str) -> tuple[int, int]:
    status = root.status(name)
    return status.get("ready", 0), status.get("unplaced", 0)


def where(root: Site, name: str) -> dict[str, int]:
    return {row["name"]: row.get("ready", 0) for row in root.status(name).get("clusters", []) if row.get("ready")}


def test_a_site_refuses_and_caps_what_comes_from_above(grove: Tree) -> None:
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    try:
        decide(edge, veto=[{"names": ["guest-*"], "reason": "no guests this week"}], caps={"replicas": 1})
        through = f"{API}/clusters/edge-1/banyan{POLICIES}/site"
        code, answer = root.ask("PATCH", through, {"spec": {"veto": []}}, kind=MERGE)
        assert (code, "written at edge-1 alone" in str(answer)) == (403, True), answer
        create(root, "guest-a", **BOTH)
        until("the other site has both", lambda: where(root, "guest-a") == {"edge-2": 2})
        create(root, "guest-b", clusterName="edge-1")
        until("the site's words are told at the origin", lambda: "no guests this week" in str(root.status("guest-b").get("conditions")))
        assert counts(root, "guest-b") == (0, 2)
        assert "no guests this week" in root.banyan("explain", "guest-b").stdout
        assert "no guests this week" in str(edge.get("/api/v1/events")["items"])
        code, text = edge.ask("GET", "/metrics")
        told = re.search(rb'^banyan_happened_total{reason="Refused"} (.+)$', text, re.MULTILINE)
        assert told is not None and float(told[1]) > 0, (code, text)
        until("it counts what it refuses", lambda: metric(edge, "banyan_refused_replicas") >= 2)
        create(root, "capped", clusterName="edge-1")
        until("one fits below the cap", lambda: counts(root, "capped") == (1, 1))
        assert "caps what comes from above at 1 replica" in str(root.status("capped")["conditions"])
    finally:
        edge.ask("DELETE", f"{POLICIES}/site")
    until("nothing counts as refused", lambda: metric(edge, "banyan_refused_replicas") == 0)
    until("without the policy all of it runs", lambda: [counts(root, name) for name in ("guest-b", "capped")] == [(2, 0), (2, 0)])


def test_a_site_that_is_cut_off_changes_its_mind_and_runs_its_own(tree: Tree) -> None:
    """With no parent in reach its owner vetoes, caps and deploys; what was decided holds afterwards, and is said at the origin."""
    root = tree.root()
    edge = tree.edge("edge-1", root)
    until("it is Ready", lambda: root.clusters().get("edge-1", {}).get("phase") == "Ready")
    for name in ("guest", "other"):
        create(root, name, clusterName="edge-1")
    until("both run", lambda: [counts(root, name) for name in ("guest", "other")] == [(2, 0), (2, 0)])

    def instances(name: str) -> set[str]:
        pods = (pod["metadata"] for pod in edge.get("/api/v1/pods")["items"])
        return {pod["uid"] for pod in pods if pod["labels"][LABEL_APPLICATION] == name}

    before = instances("other")
    root.kill()
    decide(edge, veto=[{"names": ["guest"], "reason": "closed for repairs"}])
    code, answer = edge.ask("POST", APPS, program("own", replicas=1))
    assert code == 201, answer
    until("what is refused has stopped, and its own runs", lambda: (len(instances("guest")), len(instances("own"))) == (0, 1))
    code, answer = edge.ask("PATCH", f"{POLICIES}/site", {"spec": {"caps": {"replicas": 1}}}, kind=MERGE)
    assert code == 200, answer
    until("the cap holds", lambda: len(instances("other")) == 1)
    root.run()
    until("the site's words are told at the origin", lambda: "closed for repairs" in str(root.status("guest").get("conditions")))
    until("both are counted", lambda: (counts(root, "guest"), counts(root, "other")) == ((0, 2), (1, 1)))
    assert len(instances("own")) == 1
    assert len(before) == 2 and instances("other") < before, "the one that stays was never stopped"
    edge.ask("DELETE", f"{POLICIES}/site")
    until("without the policy all of it runs", lambda: [counts(root, name) for name in ("guest", "other")] == [(2, 0), (2, 0)])
