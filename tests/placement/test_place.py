"""Filters say why not; the result does not depend on the order of records."""

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement.model import (
    ClusterRecord,
    ComponentDemand,
    Demand,
    Dividing,
    Given,
    NodeRecord,
    Objective,
    Preference,
    Request,
    Requirement,
    Spread,
    Taint,
    Toleration,
    Weight,
)
from cluster_controller.placement.place import place

MEBI = 1024**2


def cluster(name: str, **changes: object) -> ClusterRecord:
    fields: dict[str, object] = {
        "uid": name,
        "name": name,
        "via": name,
        "labels": {"tier": "edge"},
        "nodes": (NodeRecord(name=f"{name}-node", architecture="amd64", free_cpu_millis=1000, free_memory_bytes=512 * MEBI),),
    }
    return ClusterRecord(**(fields | changes))  # type: ignore[arg-type]


def demand(replicas: int = 1, **changes: object) -> Demand:
    component: dict[str, object] = {"name": "serve", "replicas": replicas, "request": Request(cpu_millis=250, memory_bytes=128 * MEBI)}
    whole = {key: changes.pop(key) for key in list(changes) if key in Demand.__struct_fields__}
    return Demand(application="app", components=(ComponentDemand(**(component | changes)),), **whole)  # type: ignore[arg-type]


def reason(placement: object, name: str) -> str:
    return str(next(item.filter for item in placement.refusals if item.cluster == name))  # type: ignore[attr-defined]


def test_every_filter_refuses_with_its_name() -> None:
    small = NodeRecord(name="n", architecture="arm64", free_cpu_millis=100, free_memory_bytes=64 * MEBI)
    clusters = [
        cluster("good"),
        cluster("label", labels={"tier": "cloud"}),
        cluster("taint", taints=(Taint("gpu", "yes"),)),
        cluster("cordon", cordoned=True),
        cluster("cut", reachable=False, broken_hop="root → cut"),
        cluster("bare", runs_applications=False),
        cluster("kinds", component_kinds=("command",)),
        cluster("empty", nodes=()),
        cluster("arm", nodes=(NodeRecord(name="a", architecture="arm64", free_cpu_millis=1000, free_memory_bytes=512 * MEBI),)),
        cluster("full", nodes=(NodeRecord(name="n", architecture="amd64", free_cpu_millis=100, free_memory_bytes=64 * MEBI), small)),
    ]
    wanted = demand(2, selector=(Requirement("tier", "In", ("edge",)),), architectures=("amd64",))
    placed = place(wanted, clusters, {})
    assert placed.shares == {"good": {"serve": 2}}
    expected = {
        "label": "ClusterSelector",
        "taint": "NoScheduleTaint",
        "cordon": "Cordoned",
        "cut": "Unreachable",
        "bare": "NoShim",
        "kinds": "ComponentKind",
        "empty": "NoNode",
        "arm": "Architecture",
        "full": "Capacity",
    }
    assert {item.cluster: item.filter for item in placed.refusals} == expected
    message = next(item.message for item in placed.refusals if item.cluster == "full")
    assert "cpu: asks 250m, free 100m" in message
    assert "memory: asks 128Mi, free 64Mi" in message
    assert "root → cut" in next(item.message for item in placed.refusals if item.cluster == "cut")


def test_a_toleration_opens_a_tainted_cluster() -> None:
    tainted = [cluster("a", taints=(Taint("gpu", "yes"),))]
    assert place(demand(), tainted, {}).unplaced == {"serve": 1}
    assert place(demand(tolerations=(Toleration(key="gpu", operator="Exists"),)), tainted, {}).shares == {"a": {"serve": 1}}
    assert place(demand(tolerations=(Toleration(key="gpu", value="no"),)), tainted, {}).unplaced == {"serve": 1}


def test_named_clusters_and_nodes() -> None:
    both = [cluster("a"), cluster("b")]
    assert place(demand(cluster_names=("b",)), both, {}).shares == {"b": {"serve": 1}}
    assert place(demand(node="a-node"), both, {}).shares == {"a": {"serve": 1}}
    missing = place(demand(node="elsewhere"), both, {})
    assert missing.unplaced == {"serve": 1}
    assert reason(missing, "a") == "NodeName"


def test_duplicated_gives_every_eligible_cluster_the_count() -> None:
    clusters = [cluster("a"), cluster("b", via="region"), cluster("c", via="region"), cluster("d", labels={})]
    wanted = demand(2, strategy="Duplicated", selector=(Requirement("tier", "Exists"),))
    assert place(wanted, clusters, {}).shares == {"a": {"serve": 2}, "region": {"serve": 2}}


def test_a_command_without_a_socket_runs_once_per_cluster() -> None:
    wanted = demand(3, single=True, kind="command")
    placed = place(wanted, [cluster("a"), cluster("b")], {})
    assert placed.shares == {"a": {"serve": 1}, "b": {"serve": 1}}
    assert placed.unplaced == {"serve": 1}


def test_a_cordoned_cluster_keeps_what_it_has() -> None:
    clusters = [cluster("a", cordoned=True, running={"serve": 1}), cluster("b")]
    placed = place(demand(2), clusters, {"a": {"serve": Given(share=1, ceiling=1)}})
    assert placed.shares == {"a": {"serve": 1}, "b": {"serve": 1}}


def test_what_runs_stays_when_a_link_or_a_node_is_silent_and_goes_when_a_person_says_so() -> None:
    stands = {"a": {"serve": Given(share=1, ceiling=1)}}
    running = {"serve": 1}
    for still in ({"reachable": False}, {"shim_trouble": "expired"}, {"nodes": ()}, {"taints": (Taint("x", "y", "NoSchedule"),)}):
        assert place(demand(), [cluster("a", running=running, **still)], stands).shares == {"a": {"serve": 1}}
    changes: list[dict[str, object]] = [{"taints": (Taint("x", "y", "NoExecute"),)}, {"labels": {}}]
    for change in changes:
        asked = demand(selector=(Requirement("tier", "Exists"),))
        assert place(asked, [cluster("a", running=running, **change)], stands).shares == {}


def test_what_is_given_but_not_yet_reported_is_not_given_twice() -> None:
    placed = place(demand(6), [cluster("a")], {"a": {"serve": Given(share=4, ceiling=4)}})
    assert placed.shares == {"a": {"serve": 4}}  # the node fits four
    assert placed.unplaced == {"serve": 2}


@given(st.permutations(["a", "b", "c", "d", "e"]), st.integers(0, 12))
def test_the_order_of_records_does_not_matter(names: list[str], replicas: int) -> None:
    ordered = place(demand(replicas), [cluster(name) for name in sorted(names)], {})
    shuffled = place(demand(replicas), [cluster(name) for name in names], {})
    assert ordered.shares == shuffled.shares


def test_small_changes_move_little() -> None:
    chooser = random.Random(7)
    clusters = [cluster(f"c{number}") for number in range(8)]
    given_shares: dict[str, dict[str, Given]] = {}
    for _ in range(50):
        replicas = chooser.randint(0, 20)
        before = {uid: per["serve"].share for uid, per in given_shares.items()}
        placed = place(demand(replicas), clusters, given_shares)
        after = {uid: per["serve"] for uid, per in placed.shares.items()}
        moved = sum(abs(after.get(uid, 0) - before.get(uid, 0)) for uid in {*before, *after})
        assert moved == abs(sum(after.values()) - sum(before.values()))
        given_shares = {uid: {"serve": Given(share=share, ceiling=share)} for uid, share in after.items()}
        clusters = [cluster(item.name, running={"serve": after.get(item.uid, 0)}) for item in clusters]


def test_duplicated_gives_every_branch_the_count_per_cluster() -> None:
    clusters = [cluster("a"), cluster("b1", via="b"), cluster("b2", via="b"), cluster("far", labels={})]
    asked = demand(2, strategy="Duplicated", selector=(Requirement("tier", "Exists"),))
    placed = place(asked, clusters, {})
    assert placed.shares == {"a": {"serve": 2}, "b": {"serve": 2}}
    assert (placed.unplaced, placed.eligible) == ({"serve": 0}, {"serve": ("a", "b1", "b2")})


def test_duplicated_with_nobody_to_take_it_is_unplaced_and_zero_is_nothing() -> None:
    asked = demand(2, strategy="Duplicated", selector=(Requirement("tier", "In", ("moon",)),))
    placed = place(asked, [cluster("a")], {})
    assert (placed.shares, placed.unplaced) == ({}, {"serve": 2})
    assert place(demand(0, strategy="Duplicated"), [cluster("a")], {}).unplaced == {"serve": 0}


def test_duplicated_keeps_what_a_silent_branch_has_and_takes_it_from_a_live_one_that_is_no_longer_meant() -> None:
    stands = {
        "a": {"serve": Given(share=1, ceiling=1, reachable=False)},
        "b": {"serve": Given(share=1, ceiling=1)},
        "c": {"serve": Given(reachable=False)},
    }
    placed = place(demand(2, strategy="Duplicated"), [cluster("d")], stands)
    assert placed.shares == {"a": {"serve": 2}, "d": {"serve": 2}}


def test_full_clusters_are_explained_only_where_they_matter() -> None:
    full = {"nodes": (NodeRecord(name="n", architecture="amd64", free_cpu_millis=0, free_memory_bytes=0),)}
    stands = {"a": {"serve": Given(share=2, ceiling=2)}}
    happy = place(demand(2), [cluster("a", running={"serve": 2}, **full)], stands)
    assert (happy.shares, happy.refusals) == ({"a": {"serve": 2}}, ())
    wanting = place(demand(3), [cluster("a", running={"serve": 2}, **full)], stands)
    assert wanting.unplaced == {"serve": 1} and reason(wanting, "a") == "Capacity"
    beside = place(demand(2), [cluster("a", running={"serve": 2}), cluster("b", **full)], stands)
    assert beside.unplaced == {"serve": 0} and reason(beside, "b") == "Capacity"


def test_components_are_placed_each_by_its_own_rules() -> None:
    both = Demand(
        application="app",
        components=(ComponentDemand(name="serve", replicas=1), ComponentDemand(name="pump", replicas=1, kind="command")),
    )
    placed = place(both, [cluster("a", component_kinds=("model",)), cluster("b", component_kinds=("command",))], {})
    assert placed.shares == {"a": {"serve": 1}, "b": {"pump": 1}}
    assert place(both, [], {}).unplaced == {"serve": 1, "pump": 1}


def test_the_given_of_a_target_without_any_cluster_is_taken_back() -> None:
    placed = place(demand(2), [cluster("a")], {"gone": {"serve": Given(share=2, ceiling=2)}})
    assert "gone" not in placed.shares
    assert placed.waiting == {"serve": 2}  # until it has said so


# --- wishes, spread, division, cost ---


def zoned(**zones: str) -> list[ClusterRecord]:
    return [cluster(name, labels={"tier": "edge", "zone": zone}) for name, zone in zones.items()]


def test_wished_clusters_are_filled_first_and_unwanted_ones_last() -> None:
    wished = Preference(10, (Requirement("tier", "In", ("hub",)),))
    clusters = [
        cluster("a", taints=(Taint("old", "", "PreferNoSchedule"),)),
        cluster("b"),
        cluster("c", labels={"tier": "hub"}),
    ]
    assert place(demand(6, preferences=(wished,)), clusters, {}).shares == {"c": {"serve": 4}, "b": {"serve": 2}}


def test_a_spread_holds_over_zones_and_says_why_replicas_wait() -> None:
    clusters = [*zoned(a="x", b="x", c="y"), cluster("d", labels={"tier": "edge"})]
    placed = place(demand(4, spread=(Spread("zone", 1),)), clusters, {})
    assert placed.plan["serve"] == {"a": 1, "b": 1, "c": 2}
    assert reason(placed, "d") == "SpreadLabel"
    full = msgspec.structs.replace(clusters[2], nodes=())
    alone = place(demand(4, spread=(Spread("zone", 1),)), [clusters[0], clusters[1], full], {})
    assert alone.unplaced == {"serve": 0}, "a zone with no node that could take one is none to wait for"
    small = cluster(
        "c", labels={"tier": "edge", "zone": "y"}, nodes=(NodeRecord(name="n", free_cpu_millis=250, free_memory_bytes=MEBI * 128),)
    )
    waits = place(demand(5, spread=(Spread("zone", 1),)), [clusters[0], clusters[1], small], {})
    assert waits.unplaced == {"serve": 2}
    assert {reason(waits, name) for name in "ab"} == {"Spread"}


def test_weights_divide_a_branch_as_they_divide_clusters() -> None:
    clusters = [cluster("a", labels={"size": "l"}), cluster("b", via="region", labels={"size": "s"}), cluster("c", via="region")]
    weights = (Weight(2, (Requirement("size", "In", ("l",)),)), Weight(1, (Requirement("size", "In", ("s",)),)))
    placed = place(demand(3, dividing=Dividing(by="Weights", weights=weights)), clusters, {})
    assert placed.shares == {"a": {"serve": 2}, "region": {"serve": 1}}
    more = place(demand(20, dividing=Dividing(by="Weights", weights=weights)), clusters, {})
    assert (reason(more, "c"), more.unplaced["serve"]) == ("Weight", 12)


def test_the_cheapest_node_that_is_near_enough_is_chosen() -> None:
    def priced(name: str, price: int, rtt: float | None) -> ClusterRecord:
        node = NodeRecord(free_cpu_millis=1000, free_memory_bytes=512 * MEBI, whole=Request(1000, 512 * MEBI), hourly_micros=price)
        return cluster(name, nodes=(node,), parent="root", rtt_millis=rtt)

    clusters = [cluster("root", runs_applications=False), priced("a", 40_000, 1.0), priced("b", 8_000, 2.0), priced("c", 4_000, 90.0)]
    clusters.append(priced("d", 0, None))
    cheap = Dividing(by="LowestCost")
    near = Objective(cost=1, latency=1, to=("root",), within_millis=50)
    placed = place(demand(5, dividing=cheap, objective=near), clusters, {})
    assert placed.plan["serve"] == {"b": 4, "a": 1}
    assert {reason(placed, "c"), reason(placed, "d")} == {"Latency"}
    assert placed.scores["serve"]["b"].cost == 2000 + 2000
    anywhere = place(demand(1, dividing=cheap, objective=Objective(cost=0, latency=1, to=("root",))), clusters, {})
    assert anywhere.plan["serve"] == {"a": 1}


def test_components_that_compete_are_weighed_against_each_other() -> None:
    """The first alone would take the cheap node, of which the second gains more."""
    node = NodeRecord(free_cpu_millis=1000, free_memory_bytes=1, whole=Request(1000, 1), hourly_micros=100)
    dear = msgspec.structs.replace(node, hourly_micros=200)
    clusters = [cluster("a", nodes=(node,)), cluster("b", nodes=(dear,))]
    components = (
        ComponentDemand(name="small", replicas=1, request=Request(cpu_millis=100)),
        ComponentDemand(name="large", replicas=1, request=Request(cpu_millis=1000)),
    )
    wanted = Demand(application="app", components=components, dividing=Dividing(by="LowestCost"))
    assert place(wanted, clusters, {}).plan == {"small": {"b": 1}, "large": {"a": 1}}
    kept = msgspec.structs.replace(wanted, dividing=Dividing(by="LowestCost", least=1))
    assert place(kept, clusters, {}).plan == {"small": {"a": 1}, "large": {"b": 1}}, "one after the other"


def test_without_reasons_the_decision_is_the_same() -> None:
    chooser = random.Random(3)
    for _ in range(100):
        clusters = [
            cluster(f"c{number}", labels={"tier": chooser.choice("ab"), "zone": chooser.choice("xyz")}, cordoned=chooser.random() < 0.1)
            for number in range(8)
        ]
        wanted = demand(
            chooser.randint(0, 12),
            selector=(Requirement("tier", chooser.choice(["In", "NotIn"]), ("a",)),),
            cluster_names=tuple(f"c{number}" for number in range(6)) if chooser.random() < 0.5 else (),
            spread=(Spread("zone", 2),) if chooser.random() < 0.5 else (),
        )
        full, quick = place(wanted, clusters, {}), place(wanted, clusters, {}, reasons=False)
        assert (full.shares, full.unplaced, full.plan) == (quick.shares, quick.unplaced, quick.plan)


def test_a_replica_that_is_larger_than_what_any_node_has_left_is_not_assigned() -> None:
    halves = tuple(NodeRecord(name=name, architecture="amd64", free_cpu_millis=300, free_memory_bytes=512 * MEBI) for name in ("n1", "n2"))
    wanted = demand(1, request=Request(cpu_millis=400))
    assert place(wanted, [cluster("a", nodes=halves)], {}).unplaced == {"serve": 1}
    assert place(demand(3, request=Request(cpu_millis=300)), [cluster("a", nodes=halves)], {}).shares == {"a": {"serve": 2}}
