"""Who gives way: against brute force over all choices, and what never may be."""

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.placement.model import ComponentDemand, NodeRecord, Request, Resident
from cluster_controller.placement.preempt import Room, Seized, room, seek, squeeze
from tests.placement.test_place import MEBI, cluster


@st.composite
def rooms(draw: st.DrawFn, most: int = 3, classes: int = 3) -> list[Room]:
    made = []
    for index in range(draw(st.integers(1, most))):
        residents = tuple(
            Resident(
                priority=draw(st.integers(0, 3)),
                request=Request(draw(st.integers(0, 4)), draw(st.integers(0, 4))),
                count=draw(st.integers(1, 3)),
                application=f"app-{index}-{number}",
            )
            for number in range(draw(st.integers(0, classes)))
        )
        free = Request(draw(st.integers(-2, 3)), draw(st.integers(0, 3)))
        made.append(Room(uid=f"r{index}", free=free, residents=residents, most=draw(st.integers(1, 4))))
    return made


def loss(taken: Sequence[tuple[Resident, int]]) -> tuple[int, ...]:
    """Replicas that give way, of the highest priority first."""
    return tuple(sum(count for resident, count in taken if resident.priority == level) for level in (3, 2, 1, 0))


def fits(each: Room, request: Request, count: int, taken: Sequence[int]) -> bool:
    freed_cpu = sum(resident.request.cpu_millis * less for resident, less in zip(each.residents, taken, strict=True))
    freed_memory = sum(resident.request.memory_bytes * less for resident, less in zip(each.residents, taken, strict=True))
    cpu = not request.cpu_millis or count * request.cpu_millis <= each.free.cpu_millis + freed_cpu
    return cpu and (not request.memory_bytes or count * request.memory_bytes <= each.free.memory_bytes + freed_memory)


def brute(wanted: int, request: Request, among: Sequence[Room], priority: int) -> tuple[int, tuple[int, ...]]:
    """The most replicas that can have room, and the least loss for them."""
    tables: list[list[tuple[int, ...] | None]] = []
    for each in among:
        ranges = [range(resident.count + 1) if resident.priority < priority else range(1) for resident in each.residents]
        table: list[tuple[int, ...] | None] = [loss(())]
        for count in range(1, min(wanted, each.most) + 1):
            choices = (taken for taken in itertools.product(*ranges) if fits(each, request, count, taken))
            table.append(min((loss(list(zip(each.residents, taken, strict=True))) for taken in choices), default=None))
        tables.append(table)
    best: tuple[int, tuple[int, ...]] = (0, loss(()))
    for counts in itertools.product(*(range(len(table)) for table in tables)):
        parts = [table[count] for table, count in zip(tables, counts, strict=True)]
        if sum(counts) > wanted or any(part is None for part in parts):
            continue
        whole = tuple(sum(level) for level in zip(*(part for part in parts if part is not None), strict=True))
        if sum(counts) > best[0] or (sum(counts) == best[0] and whole < best[1]):
            best = sum(counts), whole
    return best


def judged(found: Sequence[Seized]) -> tuple[int, tuple[int, ...]]:
    taken = [(each.resident, each.count) for seized in found for each in seized.yields]
    return sum(seized.replicas for seized in found), loss(taken)


@given(st.integers(1, 4), st.tuples(st.integers(0, 3), st.integers(0, 3)), rooms(), st.integers(0, 4))
@settings(max_examples=1500, deadline=None)
def test_as_few_as_possible_and_the_lowest_first_as_brute_force_finds(
    wanted: int, asked: tuple[int, int], among: list[Room], priority: int
) -> None:
    request = Request(*asked)
    found = seek(wanted, request, among, priority)
    assert all(each.resident.priority < priority for seized in found for each in seized.yields), "never an equal or a higher one"
    assert all(each.count <= each.resident.count for seized in found for each in seized.yields)
    assert judged(found) == (brute(wanted, request, among, priority) if request else (0, loss(())))


def resident(name: str, priority: int, cpu: int, count: int, **more: object) -> Resident:
    return Resident(priority=priority, request=Request(cpu), count=count, application=name, **more)  # type: ignore[arg-type]


def test_of_equals_the_later_one_gives_way_and_what_is_not_ready_before_what_is() -> None:
    old, new = resident("old", 0, 100, 2, rank=1), resident("new", 0, 100, 2, rank=2)
    whole = Room(uid="r", free=Request(0), residents=(old, new))
    [seized] = seek(1, Request(100), [whole], 1)
    assert [(each.resident.application, each.count) for each in seized.yields] == [("new", 1)]
    sick = resident("old", 0, 100, 1, rank=1, well=False)
    [seized] = seek(1, Request(100), [Room(uid="r", free=Request(0), residents=(old, new, sick))], 1)
    assert [(each.resident.application, each.resident.well) for each in seized.yields] == [("old", False)]


def test_one_large_rather_than_three_small_and_three_lower_rather_than_one_higher() -> None:
    small, large = resident("small", 0, 100, 3), resident("large", 0, 300, 1)
    [seized] = seek(1, Request(300), [Room(uid="r", free=Request(0), residents=(small, large))], 5)
    assert [each.resident.application for each in seized.yields] == ["large"]
    higher = resident("large", 2, 300, 1)
    [seized] = seek(1, Request(300), [Room(uid="r", free=Request(0), residents=(small, higher))], 5)
    assert [(each.resident.application, each.count) for each in seized.yields] == [("small", 3)]


def test_a_spread_with_a_bound_is_kept() -> None:
    cheap = Room(uid="a", free=Request(0), residents=(resident("v", 0, 100, 9),))
    dear = Room(uid="b", free=Request(0), residents=(resident("w", 3, 100, 9),))
    found = seek(4, Request(100), [cheap, dear], 5, lambda now, each: now[each.uid] <= min(now.values()))
    assert {seized.uid: seized.replicas for seized in found} == {"a": 2, "b": 2}
    assert {seized.uid: seized.replicas for seized in seek(4, Request(100), [cheap, dear], 5)} == {"a": 4}


def test_what_no_node_could_ever_hold_takes_nothing_from_anybody() -> None:
    whole = Request(1000, 512 * MEBI)
    there = cluster("a", nodes=(NodeRecord(name="n", architecture="amd64", whole=whole),))
    residents = (resident("v", 0, 1000, 1),)
    assert room(ComponentDemand(name="c", replicas=1, request=Request(2000)), there, residents, Request(), most=1) is None
    assert room(ComponentDemand(name="c", replicas=1, request=Request(900)), there, residents, Request(), most=1) is not None


@given(rooms(most=1, classes=4), st.integers(0, 12))
@settings(max_examples=500, deadline=None)
def test_a_cluster_that_shrank_loses_the_lowest_and_no_more_than_it_must(among: list[Room], over: int) -> None:
    residents = [each for each in among[0].residents if each.request.cpu_millis]
    found = squeeze(Request(over), residents)
    freed = sum(each.count * each.resident.request.cpu_millis for each in found)
    everything = sum(each.count * each.request.cpu_millis for each in residents)
    if over > everything:
        assert sum(each.count for each in found) == sum(each.count for each in residents)
        return
    assert freed >= over
    ranges = [range(each.count + 1) for each in residents]
    choices = [
        taken
        for taken in itertools.product(*ranges)
        if sum(count * each.request.cpu_millis for each, count in zip(residents, taken, strict=True)) >= over
    ]
    least = min(loss(list(zip(residents, taken, strict=True))) for taken in choices)
    assert loss([(each.resident, each.count) for each in found]) == least
