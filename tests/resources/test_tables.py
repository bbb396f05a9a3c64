"""Every stored object has a row, whoever wrote it and whatever it lacks; ages read as Kubernetes writes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.resources.registry import REGISTRY
from cluster_controller.resources.tables import Context, Heard, age, short_duration, table_of

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
CONTEXT = Context(NOW, lambda uid: Heard(12.0, broken_hop="a → b") if uid == "u" else None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (600, "10m"), (10_799, "179m"), (10_800, "3h"), (12_000, "3h20m"),
     (8 * 3600 + 60, "8h"), (2 * 86_400, "2d"), (2 * 86_400 + 3 * 3600, "2d3h"), (30 * 86_400, "30d"), (800 * 86_400, "2y")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


def test_ages() -> None:
    assert age((NOW - timedelta(seconds=30)).isoformat(), NOW) == "30s"
    assert age("2026-11-21T11:59:00", NOW) == "60s"
    assert age("2026-11-21T11:59:00Z", NOW) == "60s"
    assert age(None, NOW) == age("", NOW) == age(3, NOW) == "<unknown>"
    assert age("yesterday", NOW) == "<invalid>"


def cells(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    table = table_of(kind)
    return dict(zip((column.name for column in table.columns), table.cells(document, CONTEXT), strict=True))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=15,
)
_PARTS = [
    "metadata", "spec", "status", "components", "clusters", "conditions", "facts", "labels", "containerStatuses", "versions", "files",
    "grants", "state", "waiting", "type", "phase", "replicas", "name", "expires", "involvedObject", "creationTimestamp", "data", "model",
    "nodeInfo",
]  # fmt: skip
_DOCUMENT = st.dictionaries(
    st.sampled_from(_PARTS),
    st.recursive(
        _JSON, lambda inner: st.dictionaries(st.sampled_from(_PARTS), inner, max_size=5) | st.lists(inner, max_size=2), max_leaves=20
    ),
    max_size=6,
)


@given(st.sampled_from([*REGISTRY, "SomethingNew"]), _DOCUMENT)
def test_any_document_has_a_row(kind: str, document: dict[str, Any]) -> None:
    assert len(cells(kind, document)) == len(table_of(kind).columns)


def test_an_application() -> None:
    document = {
        "metadata": {"name": "emotion", "creationTimestamp": "2026-11-21T11:00:00Z"},
        "spec": {"components": [{"name": "a", "model": {"name": "m", "version": "2"}, "replicas": 3}, {"name": "b"}]},
        "status": {"ready": 2, "updated": 1, "unplaced": 1, "phase": "Degraded", "clusterCount": 4,
                   "components": [{"name": "a", "reason": "Capacity"}],
                   "clusters": [{"name": f"edge-{number}"} for number in range(4)]},
    }  # fmt: skip
    found = cells("Application", document)
    assert (found["Ready"], found["Unplaced"], found["Status"], found["Clusters"], found["Age"]) == ("2/4", 1, "Degraded", 4, "60m")
    assert (found["Models"], found["Where"], found["Reason"]) == ("m:2", "edge-0,edge-1,edge-2,+1", "Capacity")
    document["metadata"]["deletionTimestamp"] = "2026-11-21T11:30:00Z"
    assert cells("Application", document)["Status"] == "Withdrawing"
    document["metadata"]["finalizers"] = ["banyan.dev/withdraw"]
    assert cells("Application", document)["Status"] == "Withdrawing"
    document["metadata"]["finalizers"].append("example.com/drain")
    assert cells("Application", document)["Status"] == "Degraded,DeletionWaits"


def test_what_is_out_of_reach_shows_the_broken_hop_and_its_age() -> None:
    heard = {"u1": Heard(40.0, broken_hop="root → region-a"), "u2": Heard(300.0, at_least=True, broken_hop="root → region-b")}
    context = Context(datetime(2026, 11, 21, 12, tzinfo=UTC), heard.get)
    rows = [{"cluster": "u1", "reason": "Unreachable"}, {"cluster": "u3", "reason": "Unreachable"}, {"cluster": "u2"}]
    document = {"metadata": {"name": "a"}, "status": {"phase": "Degraded", "clusters": rows}}
    for kind in ("Application", "SubtreeApplication"):
        table = table_of(kind)
        status = dict(zip((column.name for column in table.columns), table.cells(document, context), strict=True))["Status"]
        assert status == "Degraded (root → region-a silent 40s)"
    rows[2]["reason"] = "Unreachable"
    assert "Degraded (root → region-b silent ≥5m)" in table_of("Application").cells(document, context)


def test_a_cluster() -> None:
    facts = {"nodes": 2, "nodesReady": 1}
    status = {"uid": "u", "parent": "root", "phase": "Ready", "labels": {"tier": "edge"}, "facts": facts}
    found = cells("Cluster", {"metadata": {"name": "edge-1"}, "spec": {"unschedulable": True}, "status": status})
    assert (found["Status"], found["Heard"], found["Broken"], found["Nodes"], found["Labels"]) == (
        "Ready,Cordoned",
        "12s",
        "a → b",
        "1/2",
        "tier=edge",
    )
    silent = cells("Cluster", {"metadata": {"name": "e"}, "status": {"brokenHop": "root → e"}})
    assert (silent["Status"], silent["Heard"], silent["Broken"]) == ("Unknown", "", "root → e")


def test_tokens_and_users_say_until_when() -> None:
    token = cells("JoinToken", {"metadata": {"name": "t"}, "spec": {"parent": "p"}, "status": {"expires": "2026-11-21T13:00:00Z"}})
    assert (token["Status"], token["Expires"]) == ("Open", "in 60m")
    user = cells(
        "User",
        {"metadata": {"name": "u"}, "spec": {"grants": [{"role": "view"}], "revoked": True}, "status": {"expires": "2026-11-21T11:00:00Z"}},
    )
    assert (user["Grants"], user["Status"], user["Expires"]) == ("view@*", "Revoked", "60m ago")
    assert cells("User", {"status": {"expires": "soon"}})["Expires"] == "<invalid>"


def test_pods_and_nodes() -> None:
    waiting = {"ready": False, "restartCount": 3, "state": {"waiting": {"reason": "BackOff"}}}
    pod = cells(
        "Pod", {"metadata": {"name": "p"}, "spec": {"containers": [{}]}, "status": {"phase": "Pending", "containerStatuses": [waiting]}}
    )
    assert (pod["Ready"], pod["Status"], pod["Restarts"]) == ("0/1", "BackOff", 3)
    node = cells("Node", {"spec": {"unschedulable": True}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    assert node["Status"] == "NotReady,SchedulingDisabled"


def test_a_model_says_how_much_of_it_is_here() -> None:
    versions = [{"name": "1", "files": [{"size": 2048}]}, {"name": "2", "files": [{"size": 10}]}]
    found = cells("Model", {"spec": {"versions": versions}, "status": {"versions": [{"name": "1", "present": True}]}})
    assert (found["Versions"], found["Present"], found["Size"]) == ("1,2", "1/2", "2.0KiB")
