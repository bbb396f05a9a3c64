"""Who gives way where something of a higher priority finds no room: as few replicas as possible, the lowest priorities first.

What has an equal or a higher priority never gives way. Of all choices that make room, the one counts that takes the fewest replicas of the
highest priority touched, then the fewest of the next lower one, and so on; at equal priority what is not ready goes before what is, and
what came later before what came earlier. Each choice is a covering problem over few classes of equal replicas, solved by branch and bound
(`STEPS` bounds the search; beyond it the greedy choice, from which nothing can be left out, stands); several rooms are combined exactly by
adding up their tables (min-plus), but for hard spreads, where one replica after the other takes the cheapest place that is allowed. Pure.

Room on a cluster of several nodes is reckoned by whole replicas that fit; whether what gave way leaves it on one node shows afterwards:
then it is tried once more.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from cluster_controller.placement.filters import fit, node_matches
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Request, Resident

STEPS = 4_000
MOST_REPLICAS = 64  # for which room is sought at once
MOST_ROOMS = 64  # that are looked at: those where one replica costs least

Vector = tuple[int, ...]
NOTHING = Request()


class Room(Struct, frozen=True, kw_only=True):
    """A cluster on which ``free`` is left (below zero: more is promised than there is) and who could give way there."""

    uid: str
    free: Request
    residents: tuple[Resident, ...]
    most: int = MOST_REPLICAS  # replicas that may come
    place: str = ""  # of a spread with a bound


class Yield(Struct, frozen=True):
    """``count`` replicas of ``resident`` give way."""

    resident: Resident
    count: int


class Seized(Struct, frozen=True):
    """``replicas`` get room on the cluster ``uid`` when ``yields`` have given way; without any, what gives way already is enough."""

    uid: str
    replicas: int
    yields: tuple[Yield, ...]


def room(component: ComponentDemand, cluster: ClusterRecord, residents: Sequence[Resident], promised: Request, *, most: int) -> Room | None:
    """The room of a cluster for a component; ``promised`` is asked for there already and not in what is free. None: no node is large
    enough, or nobody there could give way."""
    nodes = [node for node in cluster.nodes if node_matches(component, node) and _holds(node.whole, component.request)]
    if not nodes or most <= 0:
        return None
    if len(nodes) == 1 and nodes[0].count == 1:
        node = nodes[0]
        free = Request(node.free_cpu_millis, node.free_memory_bytes, dict(node.free_accelerators))
    else:
        fits = sum(fit(component.request, node) * node.count for node in nodes) if component.request else 0
        free = _times(component.request, fits)
    left = Request(
        free.cpu_millis - promised.cpu_millis,
        free.memory_bytes - promised.memory_bytes,
        {
            name: free.accelerators.get(name, 0) - promised.accelerators.get(name, 0)
            for name in {*free.accelerators, *promised.accelerators}
        },
    )
    return Room(uid=cluster.uid, free=left, residents=tuple(residents), most=min(most, MOST_REPLICAS))


def seek(
    wanted: int,
    request: Request,
    rooms: Sequence[Room],
    priority: int,
    allowed: Callable[[Mapping[str, int], Room], bool] | None = None,
) -> list[Seized]:
    """Room for as many of ``wanted`` replicas as can be had, at the least loss. ``allowed``: whether one more may come to a room, with
    what others get by then."""
    wanted = min(wanted, MOST_REPLICAS)
    if wanted <= 0 or not request:
        return []
    lower = [_lower(each, priority) for each in rooms]
    weights = _Weights([resident for each in lower for resident in each.residents])
    tables = [(each, _table(request, min(wanted, each.most), each, weights)) for each in lower]
    open_ = sorted((item for item in tables if item[1]), key=lambda item: (item[1][0][0], item[0].uid))[:MOST_ROOMS]
    counts = _combined(wanted, open_) if allowed is None else _one_by_one(wanted, open_, allowed)
    return [Seized(each.uid, count, table[count - 1][1]) for (each, table), count in zip(open_, counts, strict=True) if count]


def squeeze(over: Request, residents: Sequence[Resident]) -> list[Yield]:
    """Who goes when ``over`` more is asked for than there is; everybody, when that is not enough."""
    names = sorted(over.accelerators)
    need = tuple(max(0, each) for each in _vector(over, names))
    if not any(need):
        return []
    found = _cover(need, [(_vector(each.request, names), each) for each in residents], _Weights(residents))
    return list(found[1]) if found is not None else [Yield(each, each.count) for each in residents if each.count]


def _lower(each: Room, priority: int) -> Room:
    """The room with those residents only that could give way."""
    lower = tuple(resident for resident in each.residents if resident.priority < priority and resident.count > 0)
    return Room(uid=each.uid, free=each.free, residents=lower, most=each.most, place=each.place)


class _Weights:
    """What one replica of a resident counts: one of a higher level counts for more than all of the lower ones together."""

    def __init__(self, residents: Sequence[Resident]) -> None:
        levels = sorted({_level(each) for each in residents})
        ranks = sorted({each.rank for each in residents}, reverse=True)
        base = 1 + sum(each.count for each in residents)
        self._levels: dict[tuple[int, bool], int] = {level: int(base**index) for index, level in enumerate(levels)}
        self._ranks = {rank: index for index, rank in enumerate(ranks)}
        self._ties = 1 + base * max(1, len(ranks))

    def of(self, resident: Resident) -> int:
        return self._levels[_level(resident)] * self._ties + self._ranks[resident.rank]


def _level(resident: Resident) -> tuple[int, bool]:
    return resident.priority, resident.well


Found = tuple[int, tuple[Yield, ...]]  # what it costs, and who gives way


def _table(request: Request, most: int, each: Room, weights: _Weights) -> list[Found]:
    """For one replica, for two, and so on, as far as there can be room."""
    names = sorted({*request.accelerators, *each.free.accelerators})
    asked, free = _vector(request, names), _vector(each.free, names)
    classes = [(_vector(resident.request, names), resident) for resident in each.residents]
    table: list[Found] = []
    for count in range(1, most + 1):
        # What nothing is asked of may well be short already: that is somebody else's trouble.
        need = tuple(max(0, count * size - left) if size else 0 for size, left in zip(asked, free, strict=True))
        found = _cover(need, classes, weights)
        if found is None:
            break
        table.append(found)
    return table


def _cover(need: Vector, classes: Sequence[tuple[Vector, Resident]], weights: _Weights) -> Found | None:
    """The cheapest choice that frees ``need``; None when all together do not."""
    if not any(need):
        return 0, ()
    useful = [
        (weights.of(resident), size, resident)
        for size, resident in classes
        if any(part and lacks for part, lacks in zip(size, need, strict=True))
    ]
    useful.sort(key=lambda item: -item[0])  # the dearest first: how few of those are enough is found out first
    sums = tuple(0 for _ in need)
    after = [sums]  # what all classes from here on free together
    for _, size, resident in reversed(useful):
        sums = tuple(total + part * resident.count for total, part in zip(sums, size, strict=True))
        after.append(sums)
    after.reverse()
    if any(total < lacks for total, lacks in zip(after[0], need, strict=True)):
        return None
    search = _Search(useful, after)
    search.look(0, need, 0, [])
    return search.best[0], tuple(Yield(useful[index][2], count) for index, count in enumerate(search.best[1]) if count)


class _Search:
    def __init__(self, classes: Sequence[tuple[int, Vector, Resident]], after: Sequence[Vector]) -> None:
        self._classes = classes
        self._after = after
        self._steps = 0
        everybody = [resident.count for _, _, resident in classes]
        self.best = sum(weight * count for (weight, _, _), count in zip(classes, everybody, strict=True)) + 1, everybody

    def look(self, index: int, need: Vector, cost: int, chosen: list[int]) -> None:
        """Fewest of this class first: the first choice that is complete is the greedy one."""
        self._steps += 1
        if cost >= self.best[0]:
            return
        if not any(lacks > 0 for lacks in need):
            self.best = cost, chosen + [0] * (len(self._classes) - len(chosen))
            return
        if index == len(self._classes):
            return
        weight, size, resident = self._classes[index]
        rest = self._after[index + 1]
        # So many at least that those after it can do the rest, and no more than could be of use.
        least = max(-(-(lacks - others) // part) if part else (0 if lacks <= others else resident.count + 1)
                    for lacks, others, part in zip(need, rest, size, strict=True))  # fmt: skip
        useful = max(-(-lacks // part) for lacks, part in zip(need, size, strict=True) if part)
        for count in range(max(0, least), min(resident.count, max(0, useful)) + 1):
            if count > max(0, least) and self._steps >= STEPS:
                return
            left = tuple(lacks - part * count for lacks, part in zip(need, size, strict=True))
            self.look(index + 1, left, cost + weight * count, [*chosen, count])


def _combined(wanted: int, tables: Sequence[tuple[Room, Sequence[Found]]]) -> list[int]:
    """Replicas per room: as many as there can be in all, and of those the cheapest."""
    best: list[tuple[int, tuple[int, ...]] | None] = [(0, ())] + [None] * wanted
    for _, table in tables:
        after: list[tuple[int, tuple[int, ...]] | None] = [None] * (wanted + 1)
        for before, known in enumerate(best):
            if known is None:
                continue
            for count in range(min(len(table), wanted - before) + 1):
                cost = known[0] + (table[count - 1][0] if count else 0)
                found = after[before + count]
                if found is None or cost < found[0]:
                    after[before + count] = cost, (*known[1], count)
        best = after
    return list(next(known[1] for known in reversed(best) if known is not None))


def _one_by_one(
    wanted: int, tables: Sequence[tuple[Room, Sequence[Found]]], allowed: Callable[[Mapping[str, int], Room], bool]
) -> list[int]:  # fmt: skip
    counts = [0] * len(tables)
    for _ in range(wanted):
        now = {each.uid: count for (each, _), count in zip(tables, counts, strict=True)}
        steps = [
            (table[counts[index]][0] - (table[counts[index] - 1][0] if counts[index] else 0), index)
            for index, (each, table) in enumerate(tables)
            if counts[index] < len(table) and allowed(now, each)
        ]
        if not steps:
            break
        counts[min(steps)[1]] += 1
    return counts


def _holds(whole: Request, request: Request) -> bool:
    """Whether an empty node has room for one replica; one that does not say how large it is may have."""
    if not whole:
        return True
    enough = request.cpu_millis <= whole.cpu_millis and request.memory_bytes <= whole.memory_bytes
    return enough and all(count <= whole.accelerators.get(name, 0) for name, count in request.accelerators.items())


def _times(request: Request, count: int) -> Request:
    return Request(
        request.cpu_millis * count, request.memory_bytes * count, {name: each * count for name, each in request.accelerators.items()}
    )


def _vector(request: Request, names: Sequence[str]) -> Vector:
    return (request.cpu_millis, request.memory_bytes, *(request.accelerators.get(name, 0) for name in names))
