"""Each filter one by one: selectors, taints, nodes, and how many replicas fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement.filters import UNBOUNDED, capacity_refusal, describe, matches, refuse, room, tolerated
from cluster_controller.placement.model import (
    ClusterRecord,
    ComponentDemand,
    Demand,
    NodeRecord,
    Request,
    Requirement,
    Taint,
    Toleration,
)

MEBI = 1024**2
LABELS = {"tier": "edge", "zone": "a"}


@pytest.mark.parametrize(
    ("requirement", "holds"),
    [
        (Requirement("tier", "In", ("edge", "cloud")), True),
        (Requirement("tier", "In", ("cloud",)), False),
        (Requirement("none", "In", ("",)), False),
        (Requirement("tier", "NotIn", ("edge",)), False),
        (Requirement("tier", "NotIn", ("cloud",)), True),
        (Requirement("none", "NotIn", ("edge",)), True),
        (Requirement("tier", "Exists"), True),
        (Requirement("none", "Exists"), False),
        (Requirement("tier", "DoesNotExist"), False),
        (Requirement("none", "DoesNotExist"), True),
    ],
)
def test_a_selector_holds_as_in_kubernetes(requirement: Requirement, holds: bool) -> None:
    assert matches([requirement], LABELS) is holds
    assert bool(describe([requirement], LABELS)) is not holds


def test_every_requirement_must_hold_and_those_that_do_not_are_told() -> None:
    wanted = [
        Requirement("tier", "In", ("edge",)),
        Requirement("zone", "NotIn", ("a",)),
        Requirement("gpu", "Exists"),
        Requirement("tier", "DoesNotExist"),
        Requirement("zone", "In", ("b", "c")),
    ]
    assert not matches(wanted, LABELS)
    assert describe(wanted, LABELS) == (
        "wants zone not in (a), has zone=a; wants a label gpu, has no label gpu; "
        "wants no label tier, has tier=edge; wants zone in (b, c), has zone=a"
    )
    assert matches([], {})


def test_an_operator_that_nobody_knows_is_no_match_by_accident() -> None:
    with pytest.raises(ValueError, match="Near"):
        matches([Requirement("tier", "Near", ("edge",))], LABELS)


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        (Toleration(key="gpu", value="yes"), True),
        (Toleration(key="gpu", value="no"), False),
        (Toleration(key="gpu", operator="Exists"), True),
        (Toleration(key="cpu", operator="Exists"), False),
        (Toleration(operator="Exists"), True),
        (Toleration(key="gpu", value="yes", effect="NoExecute"), False),
        (Toleration(key="gpu", value="yes", effect="NoSchedule"), True),
        (Toleration(), False),
    ],
)
def test_a_toleration_covers_as_in_kubernetes(toleration: Toleration, covers: bool) -> None:
    taint = Taint("gpu", "yes", "NoSchedule")
    assert tolerated(taint, [toleration]) is covers
    assert tolerated(taint, [Toleration(key="other"), toleration]) is covers
    assert not tolerated(taint, [])


def node(name: str = "n", **changes: object) -> NodeRecord:
    fields: dict[str, object] = {"architecture": "amd64", "free_cpu_millis": 1000, "free_memory_bytes": 512 * MEBI}
    return NodeRecord(name=name, **(fields | changes))  # type: ignore[arg-type]


def component(**changes: object) -> ComponentDemand:
    return ComponentDemand(**({"name": "serve", "replicas": 1} | changes))  # type: ignore[arg-type]


def cluster(*nodes: NodeRecord, **changes: object) -> ClusterRecord:
    return ClusterRecord(**({"uid": "u", "name": "c", "via": "u", "nodes": nodes} | changes))  # type: ignore[arg-type]


def why(wanted: ComponentDemand, there: ClusterRecord, **whole: object) -> tuple[str, str]:
    refusal = refuse(Demand(application="app", components=(wanted,), **whole), wanted, there)  # type: ignore[arg-type]
    assert refusal is not None
    assert (refusal.cluster, refusal.component) == ("u", "serve")
    return refusal.filter, refusal.message


def test_refusals_name_what_was_asked_and_what_is_there() -> None:
    there = cluster(node("one", labels={"disk": "ssd"}), node("off", ready=False))
    assert why(component(), there, cluster_names=("x", "y")) == ("ClusterName", "is not meant: placement.clusterNames are x, y")
    assert why(component(node="off"), there) == ("NodeName", "has no ready node named off; ready is one")
    assert why(component(node_labels={"disk": "hdd", "a": "b"}), there) == (
        "NodeSelector",
        "has no ready node with the labels a=b, disk=hdd",
    )
    assert why(component(architectures=("arm64", "riscv64")), there)[1] == "has amd64; placement.architecture is arm64 or riscv64"
    assert why(component(kind="command"), cluster(node(), component_kinds=("model",)))[0] == "ComponentKind"
    assert why(component(), cluster(node(ready=False))) == ("NoNode", "has no ready node (of 1)")
    cut = why(component(), cluster(node(), reachable=False, broken_hop="root → region"))
    assert cut == ("Unreachable", "is out of reach behind root → region: gets nothing new until it is back")
    assert why(component(), cluster(node(), reachable=False))[1] == "is out of reach: gets nothing new until it is back"
    lost = cluster(shim_trouble="the kubeconfig expired")
    assert why(component(kind="container"), lost) == ("ShimLost", "has a cluster that its controller cannot use: the kubeconfig expired")
    assert why(component(), cluster(reachable=False, shim_trouble="whatever it was"))[0] == "Unreachable"
    wanted = component(node="one", node_labels={"disk": "ssd"})
    named = Demand(application="app", components=(wanted,), cluster_names=("c",))
    assert refuse(named, wanted, there) is None


def test_a_taint_that_only_asks_is_no_refusal() -> None:
    wanted = component()
    demand = Demand(application="app", components=(wanted,))
    assert refuse(demand, wanted, cluster(node(), taints=(Taint("a", effect="PreferNoSchedule"),))) is None
    assert why(wanted, cluster(node(), taints=(Taint("a", effect="NoExecute"),)))[0] == "Taint"
    assert why(wanted, cluster(node(), taints=(Taint("a"),)))[0] == "NoScheduleTaint"


requests = st.builds(
    Request,
    cpu_millis=st.integers(0, 400),
    memory_bytes=st.integers(0, 200 * MEBI),
    accelerators=st.dictionaries(st.sampled_from(["gpu", "npu"]), st.integers(0, 3)),
)
nodes = st.builds(
    node,
    st.just("n"),
    count=st.integers(1, 3),
    ready=st.booleans(),
    free_cpu_millis=st.integers(-100, 1000),
    free_memory_bytes=st.integers(-MEBI, 512 * MEBI),
    free_accelerators=st.dictionaries(st.sampled_from(["gpu", "npu"]), st.integers(0, 4)),
)


@given(requests, st.lists(nodes, max_size=4))
def test_what_is_said_to_fit_really_fits_and_not_one_more_does(request: Request, there: list[NodeRecord]) -> None:
    """Packing the replicas node by node, one at a time, is the slow truth."""
    fitting = 0
    for one in there:
        cpu, memory, accelerators = one.free_cpu_millis, one.free_memory_bytes, dict(one.free_accelerators)
        packed = 0
        while one.ready and packed < 5000:
            cpu -= request.cpu_millis
            memory -= request.memory_bytes
            accelerators = {name: accelerators.get(name, 0) - count for name, count in request.accelerators.items()}
            asked = [(request.cpu_millis, cpu), (request.memory_bytes, memory)]
            asked += [(count, accelerators[name]) for name, count in request.accelerators.items()]
            if any(want and left < 0 for want, left in asked):
                break
            packed += 1
        fitting += one.count * packed
    found = room(component(request=request), cluster(*there))
    assert min(found, 5000) == min(fitting, 5000)
    assert found <= UNBOUNDED


@given(requests, st.lists(nodes, min_size=1, max_size=4))
def test_no_room_is_always_explained(request: Request, there: list[NodeRecord]) -> None:
    wanted = component(request=request)
    if room(wanted, cluster(*there)) == 0 and any(one.ready for one in there):
        assert capacity_refusal(wanted, cluster(*there)).message.startswith("has no room: ")


def test_what_is_short_is_told_with_both_figures() -> None:
    wanted = component(request=Request(cpu_millis=2000, memory_bytes=1024 * MEBI, accelerators={"gpu": 1}))
    message = capacity_refusal(wanted, cluster(node(), node(free_cpu_millis=500))).message
    assert message == "has no room: cpu: asks 2000m, free 1000m; memory: asks 1024Mi, free 512Mi; gpu: asks 1, free 0"
    split = cluster(node(free_cpu_millis=100), node(free_memory_bytes=MEBI))
    wanted = component(request=Request(cpu_millis=500, memory_bytes=100 * MEBI))
    assert capacity_refusal(wanted, split).message == "has no room: no single node has all that one replica asks for"


def test_a_command_that_takes_no_socket_runs_once() -> None:
    wanted = component(single=True)
    assert room(wanted, cluster(node())) == 1
    full = cluster(node(), running={"serve": 1})
    assert room(wanted, full) == 0
    assert capacity_refusal(wanted, full).filter == "OnePerCluster"
    assert bool(Request()) is False and bool(Request(accelerators={"gpu": 1})) is True
