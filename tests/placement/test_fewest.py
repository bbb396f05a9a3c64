"""Small changes move no more replicas than they must, counted against all divisions that there could be instead."""

import itertools
from collections.abc import Mapping, Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.placement.model import ClusterRecord, Dividing, Given, NodeRecord, Requirement, Taint, Weight
from cluster_controller.placement.place import place
from tests.placement.test_place import MEBI, cluster, demand

SELECTOR = (Requirement("tier", "In", ("edge",)),)
EACH = 250  # millicores of one replica
WAYS = ("Even", "Weights", "FreeCapacity", "LowestCost", "Duplicated")


def made(name: str, fits: int, price: int) -> ClusterRecord:
    node = NodeRecord(
        name=f"{name}-node", architecture="amd64", free_cpu_millis=EACH * fits, free_memory_bytes=8192 * MEBI, hourly_micros=price
    )
    return cluster(name, nodes=(node,))


def running(clusters: Sequence[ClusterRecord], shares: Mapping[str, int]) -> list[ClusterRecord]:
    """As they report it later: what runs takes its room."""
    found = []
    for each in clusters:
        count = shares.get(each.uid, 0)
        node = msgspec.structs.replace(each.nodes[0], free_cpu_millis=each.nodes[0].free_cpu_millis - EACH * count)
        found.append(msgspec.structs.replace(each, nodes=(node,), running={"serve": count} if count else {}))
    return found


def fewest(before: Mapping[str, int], limits: Mapping[str, int], wanted: int) -> int:
    """Of all divisions that place as many as possible, the one that takes least from where it is."""
    names = sorted({*before, *limits})
    best = (wanted + 1, 0)
    for counts in itertools.product(*(range(min(wanted, limits.get(name, 0)) + 1) for name in names)):
        if sum(counts) <= wanted:
            moved = sum(max(0, before.get(name, 0) - count) for name, count in zip(names, counts, strict=True))
            best = min(best, (wanted - sum(counts), moved))
    return best[1]


@given(
    st.sampled_from(WAYS),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from(["leaves", "joins", "label", "taint", "cordon", "price", "fewer", "more"]),
    st.integers(0, 3),
)
@settings(max_examples=1200, deadline=None)
def test_a_small_change_moves_no_more_than_it_must(way: str, sizes: list[tuple[int, int]], wanted: int, change: str, at: int) -> None:
    clusters = [made(f"c{index}", fits, price) for index, (fits, price) in enumerate(sizes)]
    at %= len(clusters)
    weights = (Weight(2, (Requirement("heavy", "Exists"),)), Weight(1))
    dividing = Dividing(by="Even" if way == "Duplicated" else way, weights=weights if way == "Weights" else ())
    strategy = "Duplicated" if way == "Duplicated" else "Divided"

    def ask(replicas: int, among: Sequence[ClusterRecord], stands: Mapping[str, int]) -> dict[str, int]:
        held = {uid: {"serve": Given(share=count, ceiling=count, counted=count)} for uid, count in stands.items() if count}
        placed = place(demand(replicas, strategy=strategy, selector=SELECTOR, dividing=dividing), among, held)
        # What waits until others have acknowledged lower shares is given in the next round.
        return {uid: per.get("serve", 0) for uid, per in placed.shares.items() if per.get("serve", 0)}

    before = ask(wanted, clusters, {})
    assert ask(wanted, running(clusters, before), before) == before, "nothing has changed"
    changed, replicas = list(clusters), wanted
    match change:
        case "leaves":
            del changed[at]
        case "joins":
            changed.append(made("new", 4, 1))
        case "label":
            changed[at] = msgspec.structs.replace(changed[at], labels={"tier": "other"})
        case "taint":
            changed[at] = msgspec.structs.replace(changed[at], taints=(Taint("maintenance", "", "NoExecute"),))
        case "cordon":
            changed[at] = msgspec.structs.replace(changed[at], cordoned=True)
        case "price":
            node = msgspec.structs.replace(changed[at].nodes[0], hourly_micros=0)
            changed[at] = msgspec.structs.replace(changed[at], nodes=(node,))
        case "fewer":
            replicas = max(0, wanted - 1)
        case "more":
            replicas = wanted + 1
    known = {each.uid for each in changed}
    stands = {uid: count for uid, count in before.items() if uid in known}
    lost = sum(before.values()) - sum(stands.values())  # with the cluster that left
    after = ask(replicas, running(changed, stands), stands)
    moved = lost + sum(max(0, count - after.get(uid, 0)) for uid, count in stands.items())
    closed = {each.uid for each in changed if each.labels["tier"] != "edge" or each.taints}
    if strategy == "Duplicated":
        must = lost + sum(max(0, count - (0 if uid in closed else replicas)) for uid, count in stands.items())
        assert moved == must
        return
    limits = {
        each.uid: 0 if each.uid in closed else before.get(each.uid, 0) if each.cordoned else each.nodes[0].free_cpu_millis // EACH
        for each in changed
    }
    assert moved == lost + fewest(stands, limits, replicas)
