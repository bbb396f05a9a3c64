"""Assignments against brute force, and the promises that hold however bins are drawn."""

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.placement.assign import Assignment, Bin, assign, quotas
from cluster_controller.placement.model import Spread

ZONES = ("x", "y", "z")


def plain(names: str, **fields: object) -> list[Bin]:
    return [Bin(uid=name, name=name, room=9, **fields) for name in names]  # type: ignore[arg-type]


@st.composite
def bins(draw: st.DrawFn, most: int = 6, held: int = 0, spreads: int = 0) -> list[Bin]:
    made = []
    for index in range(draw(st.integers(1, most))):
        rising = sorted(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
        steps = tuple((draw(st.integers(1, 3)), cost) for cost in rising)
        made.append(
            Bin(
                uid=f"b{index}",
                name=f"b{index}",
                room=draw(st.integers(0, sum(count for count, _ in steps))),
                most=draw(st.sampled_from([0, 0, 1, 3])),
                holds=draw(st.integers(0, held)),
                steps=steps,
                weight=draw(st.integers(0, 4)),
                places=tuple(draw(st.sampled_from(ZONES)) for _ in range(spreads)),
            )
        )
    return made


def cost(bin_: Bin, more: int) -> int:
    prices = [price for count, price in bin_.steps for _ in range(count)]
    return sum(prices[:more])


def every(wanted: int, among: Sequence[Bin]) -> Iterator[tuple[int, ...]]:
    """All counts that keep what stands, within bounds."""
    ranges = [range(each.holds, min(each.limit, each.holds + wanted) + 1) for each in among]
    return (counts for counts in itertools.product(*ranges) if sum(counts) <= wanted)


def skew(among: Sequence[Bin], counts: Sequence[int]) -> int:
    places: dict[str, int] = {}
    for each, count in zip(among, counts, strict=True):
        places[each.places[0]] = places.get(each.places[0], 0) + count
    return max(places.values()) - min(places.values())


def judged(wanted: int, among: Sequence[Bin], counts: Sequence[int]) -> tuple[int, int]:
    """How many are missing, then what the others cost."""
    return wanted - sum(counts), sum(cost(each, count - each.holds) for each, count in zip(among, counts, strict=True))


def listed(among: Sequence[Bin], found: Assignment) -> list[int]:
    return [found.counts[each.uid] for each in among]


@given(st.integers(0, 6), bins(held=2))
@settings(max_examples=1500, deadline=None)
def test_the_lowest_cost_is_what_brute_force_finds(wanted: int, among: list[Bin]) -> None:
    wanted += sum(each.holds for each in among)
    found = assign(wanted, among, "LowestCost")
    assert judged(wanted, among, listed(among, found)) == min(judged(wanted, among, counts) for counts in every(wanted, among))
    assert found.missing == wanted - sum(found.counts.values())


@given(st.integers(0, 6), bins(spreads=1), st.integers(1, 3))
@settings(max_examples=1500, deadline=None)
def test_the_lowest_cost_under_a_spread_is_what_brute_force_finds(wanted: int, among: list[Bin], most: int) -> None:
    found = assign(wanted, among, "LowestCost", (Spread("zone", most),))
    allowed = (counts for counts in every(wanted, among) if skew(among, counts) <= most)
    assert judged(wanted, among, listed(among, found)) == min(judged(wanted, among, counts) for counts in allowed)


def within(among: Sequence[Bin], counts: Sequence[int], spreads: Sequence[Spread]) -> bool:
    """Whether every place that got something has at most its skew more than the emptiest."""
    for number, spread in enumerate(spreads):
        places: dict[str, int] = {}
        for each, count in zip(among, counts, strict=True):
            places[each.places[number]] = places.get(each.places[number], 0) + count
        grew = {each.places[number] for each, count in zip(among, counts, strict=True) if count > each.holds}
        if any(places[place] - min(places.values()) > spread.skew for place in grew):
            return False
    return True


@given(
    st.integers(0, 6),
    st.integers(1, 3).flatmap(lambda spreads: st.tuples(bins(held=2, spreads=spreads), st.just(spreads))),
    st.sampled_from(["Even", "Weights", "FreeCapacity", "LowestCost"]),
    st.lists(st.integers(1, 2), min_size=3, max_size=3),
)
@settings(max_examples=1500, deadline=None)
def test_under_hard_spreads_as_many_have_a_place_as_brute_force_finds(
    more: int, drawn: tuple[list[Bin], int], by: str, skews: list[int]
) -> None:
    """What stands is never moved for a spread, so the fewest moves are none: as many as possible are added, at the least cost."""
    among, count = drawn
    spreads = [Spread(f"label-{number}", skews[number]) for number in range(count)]
    wanted = more + sum(each.holds for each in among)
    found = assign(wanted, among, by, spreads)
    counts = listed(among, found)
    assert within(among, counts, spreads)
    assert all(count >= each.holds for each, count in zip(among, counts, strict=True)), "nothing is moved"
    closed = [each.holds if by == "Weights" and not each.weight else 99 for each in among]
    allowed = [
        judged(wanted, among, other)
        for other in every(wanted, among)
        if all(one <= most for one, most in zip(other, closed, strict=True)) and within(among, other, spreads)
    ]
    if by == "LowestCost":
        assert judged(wanted, among, counts) == min(allowed)
    assert found.missing == wanted - sum(counts) == min(allowed)[0]
    if found.missing:
        assert all(each.uid in found.blocked for each, has in zip(among, counts, strict=True) if has < each.holds + each.room)


def test_two_spreads_are_searched_and_too_many_clusters_are_filled_one_by_one() -> None:
    """One more in the place that has least of both closes the others: added one by one, two of three find no place."""
    cross = [
        Bin(uid="a", name="a", room=1, places=("x", "p")),
        Bin(uid="b", name="b", room=1, places=("x", "q")),
        Bin(uid="c", name="c", room=1, places=("y", "p")),
    ]
    spreads = (Spread("zone", 1), Spread("rack", 1))
    assert assign(2, cross, spreads=spreads).counts == {"a": 0, "b": 1, "c": 1}
    many = [Bin(uid=f"{index:03}", name=f"{index:03}", room=9, places=("xyz"[index % 3], "pq"[index % 2])) for index in range(200)]
    found = assign(300, many, "LowestCost", spreads)
    assert found.missing == 0 and within(many, listed(many, found), spreads)


@given(st.integers(0, 12), bins(held=3, spreads=2), st.sampled_from(["Even", "Weights", "FreeCapacity", "LowestCost"]), st.booleans())
@settings(max_examples=800, deadline=None)
def test_only_the_difference_moves_and_bounds_hold(wanted: int, among: list[Bin], by: str, hard: bool) -> None:
    spreads = (Spread("zone", 1, hard), Spread("rack", 2, hard=False))
    found = assign(wanted, among, by, spreads)
    held = sum(each.holds for each in among)
    for each in among:
        count = found.counts[each.uid]
        if wanted >= held:
            assert each.holds <= count <= max(each.holds, each.limit), "what stands stays"
        else:
            assert count <= each.holds
    if wanted < held:
        assert (sum(found.counts.values()), found.missing) == (wanted, 0)
    else:
        assert sum(found.counts.values()) + found.missing == wanted
    before, after = skew(among, [each.holds for each in among]), skew(among, listed(among, found))
    assert not hard or wanted < held or after <= max(before, 1)
    shuffled = assign(wanted, list(reversed(among)), by, spreads)
    assert shuffled.counts == found.counts, "the order of bins does not matter"
    if found.missing and wanted >= held:
        for each in among:
            full = found.counts[each.uid] >= each.holds + each.room
            assert full or each.uid in found.blocked, "what has room and gets none says why"


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=6))
@settings(max_examples=800, deadline=None)
def test_quotas_keep_the_bounds_and_give_all_that_they_allow(total: int, parts: list[tuple[int, int, int]]) -> None:
    weights = [weight for weight, _, _ in parts]
    low = [least for _, least, _ in parts]
    high = [least + more for _, least, more in parts]
    found = quotas(total, weights, low, high)
    assert all(least <= count <= most for least, count, most in zip(low, found, high, strict=True))
    most = sum(top if weight else least for weight, least, top in zip(weights, low, high, strict=True))
    if sum(low) <= total:
        assert sum(found) == min(total, most)


@given(st.integers(0, 100), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_quotas_without_bounds_are_the_largest_remainder(total: int, weights: list[int]) -> None:
    found = quotas(total, weights, [0] * len(weights), [total] * len(weights))
    exact = [total * weight / sum(weights) for weight in weights]
    assert sum(found) == total
    assert all(abs(count - quota) < 1 for count, quota in zip(found, exact, strict=True))
    remainders = [(quota - int(quota), count > int(quota)) for count, quota in zip(found, exact, strict=True)]
    given_up = [part for part, more in remainders if more and part]
    kept_back = [part for part, more in remainders if not more]
    assert not given_up or not kept_back or min(given_up) >= max(kept_back) - 1e-9


def test_weights_divide_by_largest_remainder_and_no_weight_gets_none() -> None:
    among = [Bin(uid=name, name=name, room=99, weight=weight) for name, weight in (("a", 5), ("b", 3), ("c", 2), ("d", 0))]
    assert assign(11, among, "Weights").counts == {"a": 6, "b": 3, "c": 2, "d": 0}
    short = [Bin(uid=name, name=name, room=1, weight=weight) for name, weight in (("a", 1), ("b", 0))]
    assert assign(3, short, "Weights").blocked == {"b": "Weight"}
    assert assign(3, short, "Weights").missing == 2


def test_free_capacity_divides_by_what_fits() -> None:
    among = [Bin(uid="a", name="a", room=30, weight=30), Bin(uid="b", name="b", room=10, weight=10)]
    assert assign(8, among, "FreeCapacity").counts == {"a": 6, "b": 2}


def test_a_fuller_place_waits_until_the_emptiest_has_more() -> None:
    among = [
        Bin(uid="a", name="a", room=9, places=("x",), steps=((9, 1),)),
        Bin(uid="b", name="b", room=9, places=("x",), steps=((9, 1),)),
        Bin(uid="c", name="c", room=2, places=("y",), steps=((9, 7),)),
    ]
    found = assign(7, among, "LowestCost", (Spread("zone", 1),))
    assert (found.counts["a"] + found.counts["b"], found.counts["c"], found.missing) == (3, 2, 2)
    assert found.blocked == {"a": "Spread", "b": "Spread"}
    assert assign(7, among, "LowestCost", (Spread("zone", 1, hard=False),)).missing == 0


def test_so_many_that_not_every_floor_can_be_tried_are_still_spread() -> None:
    among = [Bin(uid=name, name=name, room=5000, places=(name,), steps=((5000, index),)) for index, name in enumerate("ab")]
    assert assign(1001, among, "LowestCost", (Spread("", 1),)).counts == {"a": 501, "b": 500}


def test_least_comes_first_and_most_is_never_exceeded() -> None:
    dear = Bin(uid="b", name="b", room=9, least=2, most=3, steps=((9, 5),))
    cheap = Bin(uid="a", name="a", room=9, least=1, most=3, steps=((9, 1),))
    assert assign(4, [dear, cheap], "LowestCost").counts == {"a": 2, "b": 2}
    full = assign(9, [dear, cheap])
    assert (full.counts, full.missing, full.blocked) == ({"a": 3, "b": 3}, 3, {"a": "PerCluster", "b": "PerCluster"})


def test_higher_tiers_are_filled_first_and_the_model_decides_between_equals() -> None:
    wished = Bin(uid="z", name="z", room=2, tier=5)
    there = Bin(uid="m", name="m", room=9, present=True)
    assert assign(4, [*plain("ab"), wished, there]).counts == {"z": 2, "m": 1, "a": 1, "b": 0}


def test_what_is_taken_comes_from_the_fullest_and_last_from_who_is_out_of_reach() -> None:
    silent = Bin(uid="s", name="s", holds=5, reachable=False)
    among = [Bin(uid="a", name="a", holds=3), Bin(uid="b", name="b", holds=1), silent]
    assert assign(7, among).counts == {"a": 1, "b": 1, "s": 5}
    assert assign(4, among).counts == {"a": 0, "b": 0, "s": 4}
    assert assign(0, among).counts == {"a": 0, "b": 0, "s": 0}
    spread = [Bin(uid=name, name=name, holds=2, places=(zone,)) for name, zone in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert assign(4, spread, spreads=(Spread("zone", 1),)).counts == {"a": 1, "b": 1, "c": 2}
