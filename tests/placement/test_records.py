"""Documents become what placement decides with, and nothing is lost or invented on the way."""

from typing import Any

import pytest

from cluster_controller.errors import InvalidInput
from cluster_controller.placement import records
from cluster_controller.placement.filters import room
from cluster_controller.placement.model import ComponentDemand, NodeRecord, Request, Requirement, Taint, Toleration
from cluster_controller.resources import kinds


def test_an_application_becomes_a_demand() -> None:
    components = [
        kinds.Component(
            name="serve",
            model=kinds.ModelReference(name="emotion"),
            replicas=3,
            resources=kinds.Resources(cpu="250m", memory="128Mi", accelerators={"nvidia.com/gpu": 1}),
            takes_socket=False,
        ),
        kinds.Component(name="pump", command=["run"], takes_socket=False, resources=kinds.Resources(cpu=0.5, memory=1000)),
        kinds.Component(name="bare", command=["run"]),
    ]
    placement = kinds.Placement(
        cluster_selector=kinds.LabelSelector(
            match_labels={"tier": "edge", "a": "b"},
            match_expressions=[kinds.LabelSelectorRequirement(key="zone", operator="NotIn", values=["x"])],
        ),
        cluster_name="edge-9",
        cluster_names=["edge-1"],
        node_name="box",
        node_selector={"disk": "ssd"},
        architecture="arm64",
        strategy="Duplicated",
        tolerations=[kinds.Toleration(key="gpu", operator="Exists", effect="NoSchedule")],
    )
    demand = records.demand("uid", components, placement)
    assert (demand.application, demand.strategy, demand.cluster_names) == ("uid", "Duplicated", ("edge-1", "edge-9"))
    assert demand.selector == (Requirement("a", "In", ("b",)), Requirement("tier", "In", ("edge",)), Requirement("zone", "NotIn", ("x",)))
    assert demand.tolerations == (Toleration(key="gpu", operator="Exists", effect="NoSchedule"),)
    serve, pump, bare = demand.components
    assert (serve.kind, serve.replicas, serve.single, serve.node, serve.architectures) == ("model", 3, False, "box", ("arm64",))
    assert serve.request == Request(250, 128 * 1024**2, {"nvidia.com/gpu": 1})
    assert (pump.kind, pump.single, pump.request) == ("command", True, Request(500, 1000))
    assert (bare.single, bool(bare.request), bare.node_labels) == (False, False, {"disk": "ssd"})


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": kinds.ModelReference(name="m")}, "model"),
        ({"command": ["run"]}, "command"),
        ({"container": kinds.ContainerImage(image="web")}, "container"),
        ({"manifests": [{"kind": "Pod"}]}, "manifests"),
        ({"helm": kinds.Chart(chart=kinds.ModelReference(name="m"))}, "helm"),
    ],
)
def test_a_component_goes_only_where_its_kind_runs(fields: dict[str, Any], kind: str) -> None:
    """What takes no socket is one per site only where instances share a site's port."""
    component = kinds.Component(name="c", takes_socket=False, **fields)
    made = records.demand("uid", [component], kinds.Placement()).components[0]
    assert (made.kind, made.single) == (kind, kind == "command")


def test_nothing_asked_is_no_restriction_and_nonsense_is_refused() -> None:
    demand = records.demand("uid", [kinds.Component(name="a", command=["x"])], kinds.Placement())
    assert (demand.selector, demand.cluster_names, demand.components[0].architectures) == ((), (), ())
    with pytest.raises(InvalidInput, match="quantity"):
        records.request(kinds.Resources(cpu="much"))


def node_class(**changes: object) -> kinds.NodeClass:
    free = kinds.ResourceSums(cpu_millis=1000, memory_bytes=1 << 30, accelerators={"gpu": 2})
    return kinds.NodeClass(**({"architecture": "amd64", "count": 1, "ready": 1, "free": free} | changes))  # type: ignore[arg-type]


def document(*classes: kinds.NodeClass, **status: object) -> kinds.Cluster:
    facts = kinds.ClusterFacts(shim="process", node_classes=list(classes))
    state = kinds.ClusterState(**({"uid": "u", "phase": "Ready", "facts": facts} | status))  # type: ignore[arg-type]
    return kinds.Cluster(metadata=kinds.Metadata(name="edge-1", labels={"own": "yes"}), status=state)


def test_a_cluster_becomes_a_record() -> None:
    taint = kinds.Taint(key="a", value="b", effect="NoExecute")
    record = records.cluster(
        document(node_class(names=["box"], labels={"disk": "ssd"}), labels={"tier": "edge"}, taints=[taint], unschedulable=True),
        "via",
        {"serve": 2},
    )
    assert (record.uid, record.name, record.via, record.labels, record.cordoned) == ("u", "edge-1", "via", {"tier": "edge"}, True)
    assert (record.taints, record.running, record.reachable) == ((Taint("a", "b", "NoExecute"),), {"serve": 2}, True)
    assert record.component_kinds == ("model", "command")
    (node,) = record.nodes
    assert (node.name, node.count, node.free_cpu_millis, node.free_accelerators, node.ready) == ("box", 1, 1000, {"gpu": 2}, True)


def test_a_cluster_whose_shim_never_answered_is_no_controller_without_one() -> None:
    silent = records.cluster(document(facts=kinds.ClusterFacts(shim_trouble="the kubeconfig expired")), "u", {})
    assert (silent.runs_applications, silent.shim_trouble) == (True, "the kubeconfig expired")
    assert not records.cluster(document(facts=kinds.ClusterFacts()), "u", {}).runs_applications


@pytest.mark.parametrize("phase", ["Unknown", "Pending", "Held", "Revoked", "NotReady", ""])
def test_only_ready_is_in_reach(phase: str) -> None:
    record = records.cluster(document(phase=phase, broken_hop="root → edge-1"), "u", {})
    assert (record.reachable, record.broken_hop, record.labels) == (False, "root → edge-1", {"own": "yes"})


def test_a_node_that_is_not_ready_offers_no_room() -> None:
    wanted = ComponentDemand(name="serve", replicas=9, request=Request(cpu_millis=500))
    named = records.cluster(document(node_class(count=3, ready=1, names=["up", "down-1", "down-2"])), "u", {})
    assert [(node.name, node.ready) for node in named.nodes] == [("up", True), ("down-1", False), ("down-2", False)]
    assert room(wanted, named) == 2
    unnamed = records.cluster(document(node_class(count=30, ready=10, names=[f"n{number}" for number in range(20)])), "u", {})
    assert [(node.name, node.count) for node in unnamed.nodes] == [("", 10)]
    assert room(wanted, unnamed) == 20
    assert room(wanted, records.cluster(document(node_class(count=30, ready=0)), "u", {})) == 0


def test_the_own_cluster_has_what_its_works_leave_at_this_moment() -> None:
    """However old its last word about itself is; several nodes lose what was given since, in proportion."""
    allocatable = kinds.ResourceSums(cpu_millis=1000, memory_bytes=100, accelerators={"gpu": 2})
    nothing = kinds.ResourceSums(accelerators={"gpu": 0})
    one = kinds.NodeClass(architecture="amd64", count=1, ready=1, names=["n"], allocatable=allocatable, free=nothing)
    given = Request(cpu_millis=700, memory_bytes=200, accelerators={"gpu": 1})

    def own(*classes: kinds.NodeClass) -> list[NodeRecord]:
        facts = kinds.ClusterFacts(shim="process", node_classes=list(classes), requested=kinds.ResourceSums(cpu_millis=100))
        document = kinds.Cluster(metadata=kinds.Metadata(name="c"), status=kinds.ClusterState(uid="u", phase="Ready", facts=facts))
        record = records.own(document, {"serve": 1}, given)
        assert (record.own, record.via, record.running) == (True, "u", {"serve": 1})
        return list(record.nodes)

    (node,) = own(one)
    assert (node.free_cpu_millis, node.free_memory_bytes, node.free_accelerators) == (300, 0, {"gpu": 1})
    several = kinds.NodeClass(architecture="amd64", count=2, ready=2, names=["a", "b"], allocatable=allocatable, free=allocatable)
    left = own(several)
    assert sum(node.free_cpu_millis for node in left) == 2000 - 600, "100 of the 700 were taken off already"
    assert sum(node.free_memory_bytes for node in left) == 0
