"""Components that compete for nodes: against brute force where that is possible, against an exact solver where it is not."""

import itertools
import random
from collections.abc import Sequence

import highspy
import pytest

from cluster_controller.placement.joint import Item, Slot, solve
from cluster_controller.placement.model import Request

SMALL = 1200  # cases of at most 6 clusters and 6 replicas


def small(chooser: random.Random) -> tuple[list[Item], list[Slot]]:
    clusters = chooser.randint(1, 6)
    slots = [Slot(f"c{index}", Request(chooser.randint(0, 6), chooser.randint(0, 6))) for index in range(clusters)]
    items = []
    replicas = chooser.randint(1, 6)
    while replicas:
        wanted = chooser.randint(1, replicas)
        replicas -= wanted
        costs = tuple(chooser.choice([None, *range(9)]) for _ in slots)
        limits = {slot.cluster: chooser.choice([1, 6, 6]) for slot in slots}
        request = Request(chooser.randint(0, 3), chooser.randint(0, 3), {"gpu": 0})
        items.append(Item(f"i{len(items)}", wanted, request, costs, limits))
    return items, slots


def judged(items: Sequence[Item], slots: Sequence[Slot], counts: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """(missing, cost) of counts per item and slot; None when it is not allowed."""
    for item, row in zip(items, counts, strict=True):
        for cost, slot, count in zip(item.costs, slots, row, strict=True):
            if count and (cost is None or count > item.limits[slot.cluster]):
                return None
    for index, slot in enumerate(slots):
        if sum(row[index] * item.request.cpu_millis for item, row in zip(items, counts, strict=True)) > slot.free.cpu_millis:
            return None
        if sum(row[index] * item.request.memory_bytes for item, row in zip(items, counts, strict=True)) > slot.free.memory_bytes:
            return None
    missing = sum(item.wanted - sum(row) for item, row in zip(items, counts, strict=True))
    return missing, sum(
        (cost or 0) * count for item, row in zip(items, counts, strict=True) for cost, count in zip(item.costs, row, strict=True)
    )


def brute(items: Sequence[Item], slots: Sequence[Slot]) -> tuple[int, int]:
    """The least of all assignments, one item after the other; what cannot be is cut off as soon as it is seen."""
    best = (10**9, 10**9)

    def rows(item: Item) -> list[tuple[int, ...]]:
        ranges = [range(item.wanted + 1) if cost is not None else range(1) for cost in item.costs]
        return [row for row in itertools.product(*ranges) if sum(row) <= item.wanted]

    def search(index: int, chosen: list[tuple[int, ...]]) -> None:
        nonlocal best
        padded = [*chosen, *([(0,) * len(slots)] * (len(items) - index))]
        found = judged(items, slots, padded)
        if found is None:
            return
        if index == len(items):
            best = min(best, found)
            return
        for row in rows(items[index]):
            search(index + 1, [*chosen, row])

    search(0, [])
    return best


def of(items: Sequence[Item], slots: Sequence[Slot]) -> tuple[int, int]:
    found = solve(items, slots)
    counts = [[found[item.name].get(slot.cluster, 0) for slot in slots] for item in items]
    result = judged(items, slots, counts)
    assert result is not None, "an assignment that is not allowed"
    return result


@pytest.mark.parametrize("batch", range(4))
def test_small_cases_are_what_brute_force_finds(batch: int) -> None:
    chooser = random.Random(batch)
    for case in range(SMALL // 4):
        items, slots = small(chooser)
        assert of(items, slots) == brute(items, slots), f"batch {batch}, case {case}"


def large(seed: int) -> tuple[list[Item], list[Slot]]:
    """50 clusters, 20 components with 200 replicas in all, nodes that are nearly filled by them."""
    chooser = random.Random(seed)
    slots = [Slot(f"c{index}", Request(chooser.choice([2000, 4000, 8000]), chooser.choice([4000, 8000, 16000]))) for index in range(50)]
    prices = [chooser.randint(20, 400) for _ in slots]
    places = [(chooser.random(), chooser.random()) for _ in slots]
    items = []
    for index in range(20):
        request = Request(chooser.randint(200, 1600), chooser.randint(300, 3000))
        home = (chooser.random(), chooser.random())
        costs = tuple(
            round(price * request.cpu_millis / 1000 + 300 * ((home[0] - x) ** 2 + (home[1] - y) ** 2) ** 0.5)
            for price, (x, y) in zip(prices, places, strict=True)
        )
        items.append(Item(f"i{index}", 10, request, costs, {slot.cluster: 10 for slot in slots}))
    return items, slots


def exact(items: Sequence[Item], slots: Sequence[Slot]) -> tuple[int, float]:
    """HiGHS: a bound that no assignment beats. (missing, cost)"""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 0.01)
    solver.setOptionValue("threads", 1)
    penalty = 10**6
    counts = [[solver.addIntegral(0, item.wanted) for _ in slots] for item in items]
    missing = [solver.addIntegral(0, item.wanted) for item in items]
    for item, row, lost in zip(items, counts, missing, strict=True):
        solver.addConstr(sum(row) + lost == item.wanted)
    for index, slot in enumerate(slots):
        solver.addConstr(sum(item.request.cpu_millis * row[index] for item, row in zip(items, counts, strict=True)) <= slot.free.cpu_millis)
        solver.addConstr(
            sum(item.request.memory_bytes * row[index] for item, row in zip(items, counts, strict=True)) <= slot.free.memory_bytes
        )
    cost = sum(price * count for item, row in zip(items, counts, strict=True) for price, count in zip(item.costs, row, strict=True))
    solver.minimize(cost + penalty * sum(missing))
    lost = round(sum(solver.val(each) for each in missing))
    bound = solver.getInfo().mip_dual_bound
    return lost, bound - penalty * lost


@pytest.mark.parametrize("seed", range(2))
def test_fifty_clusters_and_two_hundred_replicas_cost_at_most_a_twentieth_more_than_the_exact_solver(seed: int) -> None:
    items, slots = large(seed)
    missing, cost = of(items, slots)
    best_missing, best = exact(items, slots)
    assert missing == best_missing
    assert cost <= 1.05 * best, f"{100 * (cost / best - 1):.2f} % above"
