"""Foresee how many replicas of one component each cluster gets: evenly, by weights, by free room, or where they cost least.

Clusters are bins. What a bin holds stays: with more wanted than is held only the difference is placed, with less only the difference is
taken, so that the moves are the fewest that there can be. Bounds per cluster and the spread over labels hold for whatever is added.

Pure, and independent of the order of bins. Every rule is one key by which the next bin is chosen; keys only grow while replicas are added
(and only shrink while they are taken), so a heap whose entries are looked at again when they come up finds the same bin as looking at all.
For `LowestCost` the cost of one more replica in a bin never falls, so taking the cheapest next is optimal (Federgruen and Groenevelt 1986,
greedy allocation over laminar bounds); a spread with a bound is made laminar by fixing what the emptiest place shall have, and all such
values are tried. With several such spreads small cases are searched (`placement.tight`): adding one by one may end before it must.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from cluster_controller.placement.model import Spread
from cluster_controller.placement.tight import Search

MOST_STEPS = 50_000  # placed replicas over all values tried for one spread; beyond, the spread is kept and the cost is a good one


class Bin(Struct, frozen=True, kw_only=True):
    """A cluster as a division sees it."""

    uid: str
    name: str
    target: str = ""  # the direct child, or this controller, through which it is reached
    holds: int = 0  # replicas that stand there
    room: int = 0  # more that fit; 0 where nothing may be added
    reachable: bool = True  # what an unreachable one holds is taken last
    least: int = 0  # that it shall have before others have more
    most: int = 0  # that it shall never exceed; 0: no bound
    weight: int = 1  # with Weights and FreeCapacity
    tier: int = 0  # higher ones are filled first
    present: bool = False  # the model is there: decides between equals
    steps: tuple[tuple[int, int], ...] = ()  # (how many more, what each costs), never cheaper than the step before
    places: tuple[str, ...] = ()  # one per spread
    leaving: bool = False  # what it holds goes as far as others have room for it

    @property
    def limit(self) -> int:
        free = self.holds + self.room
        return free if not self.most else max(self.holds, min(free, self.most))


class Assignment(Struct, frozen=True):
    counts: dict[str, int]  # per bin, by uid; also those that get none
    missing: int = 0  # wanted, and no bin may take them
    blocked: dict[str, str] = {}  # uid of a bin that has room and may not take more → Spread | Weight | PerCluster
    stuck: dict[str, int] = {}  # uid of a bin that is leaving → what has no room elsewhere


def assign(wanted: int, bins: Sequence[Bin], by: str = "Even", spreads: Sequence[Spread] = ()) -> Assignment:
    """``wanted`` replicas among ``bins``; what stands stays as far as ``wanted`` goes."""
    leaving = sorted((each for each in bins if each.leaving and each.holds), key=lambda each: (-each.holds, each.name, each.uid))
    if leaving:
        gone = [msgspec.structs.replace(each, holds=0, room=0, leaving=False) if each.leaving else each for each in bins]
        found = assign(wanted, gone, by, spreads)
        stuck, left = {}, found.missing
        for each in leaving:
            stays = min(left, each.holds)
            left -= stays
            if stays:
                stuck[each.uid] = stays
        return msgspec.structs.replace(found, counts={**found.counts, **stuck}, missing=left, stuck=stuck)
    ordered = sorted(bins, key=lambda each: (each.name, each.uid))
    held = sum(each.holds for each in ordered)
    if wanted < held:
        counts = _Division(ordered, spreads, by, wanted).lower(held - wanted)
        return Assignment(counts={each.uid: count for each, count in zip(ordered, counts, strict=True)})
    division = _Division(ordered, spreads, by, wanted)
    left = _cheapest(division, wanted - held) if by == "LowestCost" else division.add(wanted - held)
    left = _tightly(division, wanted - held, left)
    return Assignment(
        counts={each.uid: count for each, count in zip(ordered, division.counts, strict=True)},
        missing=left,
        blocked=division.blocked() if left else {},
    )


def quotas(total: int, weights: Sequence[int], low: Sequence[int], high: Sequence[int]) -> list[int]:
    """``total`` by ``weights`` within bounds: largest remainder (Hamilton), bounds frozen as in CSS flexible lengths (section 9.7).

    Equal remainders go to the larger weight, then to the earlier place. Less than ``total`` in all where the bounds allow no more.
    """
    result = list(low)
    active = [index for index, weight in enumerate(weights) if weight > 0 and high[index] > low[index]]
    left = total - sum(low[index] for index in set(range(len(low))) - set(active))
    while active and left > 0:
        whole = sum(weights[index] for index in active)
        exact = {index: left * weights[index] for index in active}  # times whole
        under = [index for index in active if exact[index] < low[index] * whole]
        over = [index for index in active if exact[index] > high[index] * whole]
        violation = sum(low[index] * whole - exact[index] for index in under) - sum(exact[index] - high[index] * whole for index in over)
        frozen = under if violation > 0 else over if violation < 0 else under + over
        if not frozen:
            _round(result, left, {index: divmod(exact[index], whole) for index in active}, weights)
            return result
        for index in frozen:
            result[index] = low[index] if index in under else high[index]
            left -= result[index]
        dropped = set(frozen)
        active = [index for index in active if index not in dropped]
    return result


def _round(result: list[int], left: int, parts: dict[int, tuple[int, int]], weights: Sequence[int]) -> None:
    for index, (floor, _) in parts.items():
        result[index] = floor
    spare = left - sum(floor for floor, _ in parts.values())
    for index in sorted(parts, key=lambda index: (-parts[index][1], -weights[index], index))[:spare]:
        result[index] += 1


class _Division:
    """Counts per bin and per place while replicas are added or taken."""

    def __init__(self, bins: Sequence[Bin], spreads: Sequence[Spread], by: str, wanted: int) -> None:
        self.bins = bins
        self.spreads = spreads
        self.counts = [each.holds for each in bins]
        self.places: list[dict[str, int]] = [{} for _ in spreads]
        for number, places in enumerate(self.places):
            for each in bins:
                places[each.places[number]] = places.get(each.places[number], 0) + each.holds
        self._levels = [_levels(places) for places in self.places]
        self.caps: dict[str, int] | None = None  # of the places of the first spread, instead of its skew
        self.by = by
        self._quotas = self._fair(wanted) if by in {"Weights", "FreeCapacity"} else []
        self.parked: dict[int, str] = {}
        self._lowering = wanted < sum(self.counts)

    def copy(self) -> "_Division":
        other = object.__new__(_Division)
        other.bins, other.spreads, other.counts = self.bins, self.spreads, list(self.counts)
        other.places = [dict(places) for places in self.places]
        other._levels = [(dict(levels), least) for levels, least in self._levels]
        other.caps, other.by, other._quotas, other.parked, other._lowering = None, self.by, self._quotas, {}, self._lowering
        return other

    def _fair(self, wanted: int) -> list[int]:
        held = sum(self.counts)
        low = [0 if wanted < held else each.holds for each in self.bins]
        high = [each.holds if wanted < held else each.limit for each in self.bins]
        return quotas(wanted, [each.weight for each in self.bins], low, high)

    def cost(self, index: int) -> int:
        """Of one replica more."""
        more = self.counts[index] - self.bins[index].holds
        for count, cost in self.bins[index].steps:
            if more < count:
                return cost
            more -= count
        return 0

    def _measure(self, index: int) -> tuple[float, ...]:
        count, each = self.counts[index], self.bins[index]
        if self.by == "LowestCost":
            return (each.steps[-1][1] if self._lowering and each.steps else self.cost(index), count)
        if not self._quotas:
            return (count,)
        quota = self._quotas[index]
        if self._lowering:
            return (count - quota, count)
        return (0, count - quota) if count < quota else (1, (count + 1) / max(1, each.weight))

    def _key(self, index: int) -> tuple[object, ...]:
        each = self.bins[index]
        soft = tuple(
            self.places[number][each.places[number]] for number, spread in enumerate(self.spreads) if not spread.hard or self._lowering
        )
        return (self.counts[index] >= each.least, -each.tier, soft, self._measure(index), not each.present, index)

    # --- adding ---

    def add(self, missing: int, among: Sequence[int] | None = None) -> int:
        """Up to ``missing`` more; returns how many found no bin."""
        open_bins = range(len(self.bins)) if among is None else among
        heap = [(self._key(index), index) for index in open_bins if self.open(index)]
        heapq.heapify(heap)
        self.parked = {}
        while missing and heap:
            key, index = heapq.heappop(heap)
            now = self._key(index)
            if now != key:
                heapq.heappush(heap, (now, index))
                continue
            where = self._full_place(index)
            if where:
                self.parked[index] = where
                continue
            rose = self.put(index, 1)
            missing -= 1
            if self.open(index):
                heapq.heappush(heap, (self._key(index), index))
            if rose and self.parked:
                for parked in self.parked:
                    heapq.heappush(heap, (self._key(parked), parked))
                self.parked = {}
        return missing

    def open(self, index: int) -> bool:
        each = self.bins[index]
        return self.counts[index] < each.limit and not (self.by == "Weights" and each.weight <= 0)

    def _full_place(self, index: int) -> str:
        """A place that may have no more now, or ""."""
        for number, spread in enumerate(self.spreads):
            place = self.bins[index].places[number]
            if number == 0 and self.caps is not None:
                if self.places[0][place] >= self.caps[place]:
                    return place
            elif spread.hard and self.places[number][place] + 1 - self._levels[number][1] > spread.skew:
                return place
        return ""

    def put(self, index: int, more: Literal[1, -1]) -> bool:
        """Whether the emptiest place of some spread has more than before."""
        self.counts[index] += more
        rose = False
        for number, places in enumerate(self.places):
            place = self.bins[index].places[number]
            places[place] += more
            levels, least = self._levels[number]
            levels[places[place] - more] -= 1
            levels[places[place]] = levels.get(places[place], 0) + 1
            if places[place] < least:
                least -= 1
            elif not levels[least]:
                least += 1
                rose = True
            self._levels[number] = (levels, least)
        return rose

    def blocked(self) -> dict[str, str]:
        found = {}
        for index, each in enumerate(self.bins):
            if not each.room or self.counts[index] >= each.holds + each.room:
                continue
            if index in self.parked:
                found[each.uid] = "Spread"
            elif each.most and self.counts[index] >= each.most:
                found[each.uid] = "PerCluster"
            elif self.by == "Weights" and each.weight <= 0:
                found[each.uid] = "Weight"
        return found

    # --- taking ---

    def lower(self, surplus: int) -> list[int]:
        """Take what is too much: from bins above their bounds, from the fullest, and last from those out of reach."""
        heap = [(self._take_key(index), index) for index, count in enumerate(self.counts) if count]
        heapq.heapify(heap)
        if surplus >= sum(self.counts):
            return [0] * len(self.counts)
        while surplus:
            key, index = heapq.heappop(heap)
            now = self._take_key(index)
            if now != key:
                heapq.heappush(heap, (now, index))
                continue
            self.put(index, -1)
            surplus -= 1
            if self.counts[index]:
                heapq.heappush(heap, (self._take_key(index), index))
        return self.counts

    def _take_key(self, index: int) -> tuple[object, ...]:
        each = self.bins[index]
        _, tier, places, measure, absent, _ = self._key(index)
        assert isinstance(tier, int)
        assert isinstance(places, tuple)
        assert isinstance(measure, tuple)
        return (
            not each.reachable,
            not (each.most and self.counts[index] > each.most),
            self.counts[index] <= each.least,
            -tier,
            tuple(-count for count in places),
            tuple(-part for part in measure),
            not absent,
            -index,
        )

    # --- cost ---

    def spent(self) -> int:
        return sum(cost for each, count in zip(self.bins, self.counts, strict=True) for cost in _costs(each, count - each.holds))


def _levels(places: Mapping[str, int]) -> tuple[dict[int, int], int]:
    """How many places have how many replicas, and how many the emptiest one has."""
    levels: dict[int, int] = {}
    for count in places.values():
        levels[count] = levels.get(count, 0) + 1
    return levels, min(levels, default=0)


def _costs(each: Bin, more: int) -> list[int]:
    found = []
    for count, cost in each.steps:
        takes = min(more, count)
        found.append(takes * cost)
        more -= takes
    return found


def _cheapest(division: _Division, missing: int) -> int:
    """Fill ``division`` at the lowest cost; returns how many found no bin."""
    hard = [number for number, spread in enumerate(division.spreads) if spread.hard]
    if hard != [0] or len(division.spreads) != 1 or not missing or not division.bins:
        return division.add(missing)
    best: tuple[int, int, int] | None = None
    found = division
    total = sum(division.counts) + missing
    floors = range(min(division.places[0].values()), total // len(division.places[0]) + 1)
    if len(floors) * missing > MOST_STEPS:
        return division.add(missing)
    for floor in floors:
        trial = division.copy()
        left = _with_floor(trial, missing, floor, division.spreads[0].skew)
        if left is None:
            break
        judged = (left, trial.spent(), floor)
        if best is None or judged < best:
            best, found = judged, trial
    if best is None:
        return division.add(missing)
    division.counts, division.places, division._levels, division.parked = found.counts, found.places, found._levels, found.parked
    return best[0]


def _tightly(division: _Division, missing: int, left: int) -> int:
    """Under several hard spreads: as many as there can be, for the least, where that can be searched; returns how many found no bin."""
    hard = [number for number, spread in enumerate(division.spreads) if spread.hard]
    cheapest = division.by == "LowestCost"
    if len(hard) < 2 or not missing or not division.bins or not (left or cheapest):
        return left
    bins = division.bins
    found = Search(
        [each.holds for each in bins],
        [each.holds if division.by == "Weights" and each.weight <= 0 else max(each.holds, each.limit) for each in bins],
        [[each.places[number] for each in bins] for number in hard],
        [division.spreads[number] for number in hard],
        [[_price(each, more, cheapest=cheapest) for more in range(min(missing, each.room))] for each in bins],
    ).run(missing)
    if found is None or (sum(found) == sum(division.counts) and not cheapest):
        return left
    for index, count in enumerate(found):
        for _ in range(abs(count - division.counts[index])):
            division.put(index, 1 if count > division.counts[index] else -1)
    division.parked = {index: "" for index in range(len(found)) if division.open(index)}
    return missing - sum(found) + sum(each.holds for each in bins)


def _price(each: Bin, more: int, *, cheapest: bool) -> tuple[int, ...]:
    """Of one replica beyond ``more`` additional ones: what is short of its least, what is wished, then cost, or evenness."""
    count = each.holds + more
    cost = sum(_costs(each, more + 1)) - sum(_costs(each, more)) if cheapest else 2 * count + 1
    return (-1 if count < each.least else 0, -each.tier, cost)


def _with_floor(trial: _Division, missing: int, floor: int, skew: int) -> int | None:
    """Every place has ``floor`` at least and ``floor + skew`` at most; None when one cannot have that many."""
    short = {place: floor - count for place, count in trial.places[0].items() if count < floor}
    if sum(short.values()) > missing:
        return None
    trial.caps = {place: max(floor + skew, count) for place, count in trial.places[0].items()}
    for place, lacks in short.items():
        among = [index for index, each in enumerate(trial.bins) if each.places[0] == place]
        if trial.add(lacks, among):
            return None
        missing -= lacks
    return trial.add(missing)
