"""What is placed near users is as cheap, and as near, as brute force over all divisions finds."""

import itertools
import random

import pytest

from cluster_controller.placement import score
from cluster_controller.placement.model import ClusterRecord, Demand, Dividing, NodeRecord, Objective, Placement, Request
from cluster_controller.placement.place import place
from tests.placement.test_place import MEBI, cluster, demand

CASES = 1200  # of at most 6 clusters and 6 replicas
NAMES = ("hall", "dock")
CHEAP = Dividing(by="LowestCost")


def small(chooser: random.Random) -> tuple[Demand, list[ClusterRecord]]:
    clusters = []
    for index in range(chooser.randint(1, 6)):
        fits = chooser.randint(0, 4)
        node = NodeRecord(
            free_cpu_millis=250 * fits,
            free_memory_bytes=8192 * MEBI,
            whole=Request(1000, 8192 * MEBI),
            hourly_micros=1000 * chooser.randint(0, 90),
        )
        told = {name: float(chooser.choice([1, 5, 20, 80])) for name in NAMES if chooser.random() < 0.8}
        way = chooser.choice([None, 1.0, 30.0])
        clusters.append(cluster(f"c{index}", nodes=(node,), user_millis=told, parent="root", rtt_millis=way))
    clusters.append(cluster("root", runs_applications=False))
    objective = Objective(
        cost=chooser.randint(0, 2),
        latency=chooser.randint(0, 3),
        to=chooser.choice([(), (), ("root",)]),
        users=chooser.choice([("hall",), NAMES]),
        within_millis=chooser.choice([0, 0, 25]),
    )
    return demand(chooser.randint(1, 6), dividing=CHEAP, objective=objective), clusters


def price(wanted: Demand, each: ClusterRecord) -> int | None:
    """Of one replica there; None where it may not be."""
    objective = wanted.objective
    assert objective is not None
    ways = [each.user_millis.get(name) for name in objective.users] + [each.rtt_millis for _ in objective.to]
    far = None if None in ways else max(way for way in ways if way is not None)
    if not each.runs_applications or (objective.within_millis and (far is None or far > objective.within_millis)):
        return None
    millis = score.UNKNOWN_MILLIS if far is None else far
    return objective.cost * round(each.nodes[0].hourly_micros / 4) + round(1000 * objective.latency * millis)


def brute(wanted: Demand, clusters: list[ClusterRecord]) -> tuple[int, int]:
    """(missing, cost) of the best of all divisions."""
    prices = [price(wanted, each) for each in clusters]
    replicas = wanted.components[0].replicas
    rooms = [0 if cost is None else each.nodes[0].free_cpu_millis // 250 for cost, each in zip(prices, clusters, strict=True)]
    best = (replicas, 0)
    for counts in itertools.product(*(range(min(room, replicas) + 1) for room in rooms)):
        if sum(counts) <= replicas:
            cost = sum(count * (each or 0) for count, each in zip(counts, prices, strict=True))
            best = min(best, (replicas - sum(counts), cost))
    return best


def judged(wanted: Demand, clusters: list[ClusterRecord], placed: Placement) -> tuple[int, int]:
    prices = {each.uid: price(wanted, each) for each in clusters}
    cost = 0
    for uid, count in placed.plan["serve"].items():
        each = prices[uid]
        assert each is not None, f"{uid} does not qualify"
        cost += count * each
    return placed.unplaced["serve"], cost


@pytest.mark.parametrize("batch", range(4))
def test_small_cases_are_what_brute_force_finds(batch: int) -> None:
    chooser = random.Random(batch)
    for case in range(CASES // 4):
        wanted, clusters = small(chooser)
        assert judged(wanted, clusters, place(wanted, clusters, {})) == brute(wanted, clusters), f"batch {batch}, case {case}"


def test_who_is_too_far_from_users_or_has_not_measured_them_is_told_what_to_do() -> None:
    clusters = [cluster("near", user_millis={"hall": 4.0}), cluster("far", user_millis={"hall": 90.0}), cluster("blind")]
    placed = place(demand(9, objective=Objective(users=("hall",), within_millis=20)), clusters, {})
    said = {item.cluster: item for item in placed.refusals if item.filter == "Latency"}
    assert "the way to users hall is 90 ms, at most 20 ms is allowed" in said["far"].message
    assert "raise placement.latency.maxMillis" in said["far"].remedy
    assert "was not measured yet" in said["blind"].message
    assert said["blind"].remedy == "name hall with an address in spec.users of cluster blind"
    assert placed.plan["serve"] == {"near": 4}
    assert placed.scores["serve"]["near"].latency_millis == 4.0
