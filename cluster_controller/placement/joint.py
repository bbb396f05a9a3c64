"""Weigh components that compete for the same nodes against each other, where the lowest cost is asked for.

One after the other, the first component would take the cheap node that the second needs more. Here replicas of all of them are assigned
to nodes at once: first that as many as possible have a place, then that all together cost least. That is the generalised assignment
problem, which is NP-hard; so small ones are solved exactly by branch and bound (`EXACT_STEPS` bounds the search), large ones by a greedy
choice by regret (Martello and Toth 1990, chapter 7), improved by moving, exchanging and pushing on single replicas until nothing helps
or `SEARCH_STEPS` are taken. Steps are counted, not timed: the same question has the same answer everywhere. Pure.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from cluster_controller.placement.model import Request

EXACT_STEPS = 60_000
SEARCH_STEPS = 400_000
MOST_IDLE = 400
PRICE_ROUNDS = 40
PRICE_STEP = 4.0
RUINED_SLOTS = 6
SPARE_SLOTS = 50  # beside as many as there are replicas: the dearest nodes are not looked at
EXACT_REPLICAS = 12  # more are not tried exactly

Vector = tuple[int, ...]


class Slot(Struct, frozen=True):
    """A node of a cluster."""

    cluster: str
    free: Request


class Item(Struct, frozen=True):
    """A component with what it still wants: ``costs[slot]`` of one replica there, None where it may not run."""

    name: str
    wanted: int
    request: Request
    costs: tuple[int | None, ...]
    limits: Mapping[str, int]  # cluster → how many more it may have there


def solve(items: Sequence[Item], slots: Sequence[Slot]) -> dict[str, dict[str, int]]:
    """Per item, how many more on each cluster."""
    state = _State(items, slots)
    best = state.snapshot()
    for order in (_by_prices, _by_regret, _by_size, _by_wish):
        state.clear()
        order(state)
        _improve(state)
        best = min(best, state.snapshot(), key=lambda found: found[0])
    if sum(item.wanted for item in items) <= EXACT_REPLICAS:
        best = _exact(state, best)
    else:
        state.restore(best)
        _shake(state, random.Random(len(slots)))
        best = state.snapshot()
    counts = best[1]
    return {
        item.name: _sums((state.clusters[slot], count) for slot, count in enumerate(counts[index]) if count)
        for index, item in enumerate(items)
    }


def _sums(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for cluster, count in parts:
        sums[cluster] = sums.get(cluster, 0) + count
    return sums


Found = tuple[int, tuple[tuple[int, ...], ...]]


class _State:
    """Counts per item and slot, what is left of each slot, and the cost of it all. A replica without a place costs ``penalty``."""

    def __init__(self, items: Sequence[Item], slots: Sequence[Slot]) -> None:
        names = sorted({name for item in items for name in item.request.accelerators})
        kept = _kept(items, slots)
        self.clusters = [slots[index].cluster for index in kept]
        self.free = [list(_vector(slots[index].free, names)) for index in kept]
        self.sizes = [_vector(item.request, names) for item in items]
        self.wanted = [item.wanted for item in items]
        self.costs = [[item.costs[index] for index in kept] for item in items]
        self.order = [sorted((cost, slot) for slot, cost in enumerate(costs) if cost is not None) for costs in self.costs]
        self.left = [dict(item.limits) for item in items]  # per item and cluster
        self.counts = [[0] * len(kept) for _ in items]
        self.placed = [0] * len(items)
        self.spent = 0
        dearest = max((order[-1][0] for order in self.order if order), default=0)
        self.penalty = 1 + dearest * max(1, sum(self.wanted))
        self.steps = 0

    def snapshot(self) -> Found:
        missing = sum(self.wanted) - sum(self.placed)
        return self.spent + missing * self.penalty, tuple(tuple(counts) for counts in self.counts)

    def clear(self) -> None:
        for item, counts in enumerate(self.counts):
            for slot, count in enumerate(counts):
                for _ in range(count):
                    self.take(item, slot)

    def restore(self, found: Found) -> None:
        for item, counts in enumerate(self.counts):
            for slot, count in enumerate(found[1][item]):
                if counts[slot] != count:
                    self._move(item, slot, count - counts[slot])

    def fits(self, item: int, slot: int) -> bool:
        return self.left[item].get(self.clusters[slot], 0) > 0 and all(
            size <= free for size, free in zip(self.sizes[item], self.free[slot], strict=True)
        )

    def put(self, item: int, slot: int) -> None:
        self._move(item, slot, 1)

    def take(self, item: int, slot: int) -> None:
        self._move(item, slot, -1)

    def _move(self, item: int, slot: int, more: int) -> None:
        free = self.free[slot]
        for index, size in enumerate(self.sizes[item]):
            free[index] -= more * size
        self.counts[item][slot] += more
        self.placed[item] += more
        self.left[item][self.clusters[slot]] -= more
        self.spent += more * (self.costs[item][slot] or 0)

    def cheapest(self, item: int, below: int | None = None) -> tuple[int, int] | None:
        """(cost, slot) of the cheapest slot with room, if it is cheaper than ``below``."""
        for cost, slot in self.order[item]:
            self.steps += 1
            if below is not None and cost >= below:
                return None
            if self.fits(item, slot):
                return cost, slot
        return None

    def missing(self, item: int) -> int:
        return self.wanted[item] - self.placed[item]


def _kept(items: Sequence[Item], slots: Sequence[Slot]) -> list[int]:
    """Slots that may matter: for each item its cheapest ones."""
    enough = sum(item.wanted for item in items) + SPARE_SLOTS
    if len(slots) <= enough:
        return list(range(len(slots)))
    kept: set[int] = set()
    for item in items:
        order = sorted((cost, index) for index, cost in enumerate(item.costs) if cost is not None)
        kept.update(index for _, index in order[:enough])
    return sorted(kept)


def _vector(request: Request, names: Sequence[str]) -> Vector:
    return (request.cpu_millis, request.memory_bytes, *(request.accelerators.get(name, 0) for name in names))


# --- first choices ---


def _by_regret(state: _State) -> None:
    """Always the item that would lose most if it did not get its best slot now."""
    open_items = {item for item in range(len(state.wanted)) if state.missing(item)}
    choices: dict[int, tuple[int, int]] = {}
    while open_items:
        best: tuple[int, int] | None = None
        for item in sorted(open_items):
            if item not in choices or not state.fits(item, choices[item][1]):
                found = _regret(state, item)
                if found is None:
                    open_items.discard(item)
                    continue
                choices[item] = found
            if best is None or choices[item][0] > best[0]:
                best = (choices[item][0], item)
        if best is None:
            return
        item = best[1]
        state.put(item, choices[item][1])
        choices.pop(item)
        if not state.missing(item):
            open_items.discard(item)


def _regret(state: _State, item: int) -> tuple[int, int] | None:
    first: tuple[int, int] | None = None
    for cost, slot in state.order[item]:
        state.steps += 1
        if state.fits(item, slot):
            if first is not None:
                return cost - first[0], first[1]
            first = (cost, slot)
    return (state.penalty, first[1]) if first is not None else None


def _by_size(state: _State) -> None:
    whole = [max(1, sum(column)) for column in zip(*state.free, strict=True)] if state.free else []
    size = [sum(part / total for part, total in zip(sizes, whole, strict=False)) for sizes in state.sizes]
    _in_turn(state, sorted(range(len(size)), key=lambda item: (-size[item], item)))


def _by_wish(state: _State) -> None:
    _in_turn(state, range(len(state.wanted)))


def _in_turn(state: _State, order: Sequence[int]) -> None:
    for item in order:
        while state.missing(item) and (found := state.cheapest(item)) is not None:
            state.put(item, found[1])


def _by_prices(state: _State) -> None:
    """By regret, with the room of each slot at a price that keeps it from being asked for twice (Lagrangian, by subgradients)."""
    if not state.free:
        return
    prices = [[0.0] * len(free) for free in state.free]
    scale = max((order[len(order) // 2][0] for order in state.order if order), default=0)
    plain = state.order
    for number in range(PRICE_ROUNDS):
        state.order = [_priced(state, item, plain[item], prices) for item in range(len(plain))]
        used = [[0] * len(free) for free in state.free]
        for item, sizes in enumerate(state.sizes):
            _ask(state, item, sizes, used)
        step = scale * PRICE_STEP / (1 + number)
        for slot, free in enumerate(state.free):
            for index, room in enumerate(free):
                over = (used[slot][index] - room) / max(1, room)
                prices[slot][index] = max(0.0, prices[slot][index] + step * over)
    state.order = [_priced(state, item, plain[item], prices) for item in range(len(plain))]
    _by_regret(state)
    state.order = plain


def _priced(state: _State, item: int, plain: Sequence[tuple[int, int]], prices: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    found = []
    for _, slot in plain:
        cost = state.costs[item][slot] or 0
        shares = zip(state.sizes[item], prices[slot], state.free[slot], strict=True)
        found.append((cost + round(sum(size * price / max(1, room) for size, price, room in shares)), slot))
    return sorted(found)


def _ask(state: _State, item: int, sizes: Vector, used: list[list[int]]) -> None:
    """What the item would take if it alone paid these prices."""
    wanted = state.wanted[item]
    for _, slot in state.order[item]:
        fits = min((room // size for size, room in zip(sizes, state.free[slot], strict=True) if size), default=wanted)
        takes = min(wanted, fits, state.left[item].get(state.clusters[slot], 0))
        for index, size in enumerate(sizes):
            used[slot][index] += takes * size
        wanted -= takes
        if not wanted:
            return


# --- improving ---


def _improve(state: _State) -> None:
    """Until a round changes nothing: place what is missing, move to cheaper slots, push others on, exchange."""
    state.steps = 0
    while state.steps < SEARCH_STEPS:
        before = state.snapshot()[0]
        _place_missing(state)
        _each(state, _shift)
        _each(state, _push)
        _exchange(state)
        if state.snapshot()[0] >= before:
            return


def _place_missing(state: _State) -> None:
    for item in range(len(state.wanted)):
        while state.missing(item):
            found = state.cheapest(item)
            if found is not None:
                state.put(item, found[1])
            elif not _make_room(state, item):
                break


def _make_room(state: _State, item: int) -> bool:
    """Put ``item`` where one other replica can be pushed on."""
    return any(_push_to(state, item, slot, state.penalty - cost) for cost, slot in list(state.order[item]))


def _each(state: _State, better: Callable[[_State, int, int], bool]) -> None:
    for item, counts in enumerate(state.counts):
        for slot in range(len(counts)):
            while counts[slot] and state.steps < SEARCH_STEPS and better(state, item, slot):
                pass


def _shift(state: _State, item: int, slot: int) -> bool:
    cost = state.costs[item][slot] or 0
    state.take(item, slot)
    found = state.cheapest(item, below=cost)
    state.put(item, slot if found is None else found[1])
    return found is not None


def _push(state: _State, item: int, slot: int) -> bool:
    """Move to a cheaper slot from which one other replica goes elsewhere, when both together gain."""
    cost = state.costs[item][slot] or 0
    state.take(item, slot)
    for there, target in state.order[item]:
        if there >= cost:
            break
        if target != slot and _push_to(state, item, target, cost - there):
            return True
    state.put(item, slot)
    return False


def _push_to(state: _State, item: int, slot: int, gain: int) -> bool:
    for other, counts in enumerate(state.counts):
        if not counts[slot] or other == item:
            continue
        cost = state.costs[other][slot] or 0
        state.take(other, slot)
        if state.fits(item, slot):
            state.put(item, slot)
            found = state.cheapest(other, below=cost + gain)
            if found is not None:
                state.put(other, found[1])
                return True
            state.take(item, slot)
        state.put(other, slot)
        state.steps += 1
    return False


def _exchange(state: _State) -> None:
    held = [(item, slot) for item, counts in enumerate(state.counts) for slot, count in enumerate(counts) if count]
    for index, (item, slot) in enumerate(held):
        for other, there in held[index + 1 :]:
            state.steps += 1
            if state.steps >= SEARCH_STEPS:
                return
            if item != other and slot != there and state.counts[item][slot] and state.counts[other][there]:
                _swap(state, (item, slot), (other, there))


def _swap(state: _State, one: tuple[int, int], two: tuple[int, int]) -> None:
    (item, slot), (other, there) = one, two
    after = (state.costs[item][there], state.costs[other][slot])
    if after[0] is None or after[1] is None:
        return
    if after[0] + after[1] >= (state.costs[item][slot] or 0) + (state.costs[other][there] or 0):
        return
    state.take(item, slot)
    state.take(other, there)
    if state.fits(item, there):
        state.put(item, there)
        if state.fits(other, slot):
            state.put(other, slot)
            return
        state.take(item, there)
    state.put(item, slot)
    state.put(other, there)


def _shake(state: _State, chooser: random.Random) -> None:
    """Large neighbourhood search (Shaw 1998): empty a few slots, fill anew, keep what is not worse; until steps are used up."""
    state.steps = 0
    best = state.snapshot()
    idle = 0
    while state.steps < SEARCH_STEPS and idle < MOST_IDLE:
        used = [slot for slot in range(len(state.clusters)) if any(counts[slot] for counts in state.counts)]
        if len(used) < 2:
            return
        for slot in chooser.sample(used, min(len(used), chooser.randint(2, RUINED_SLOTS))):
            for item, counts in enumerate(state.counts):
                while counts[slot]:
                    state.take(item, slot)
        (_by_regret if chooser.random() < 0.7 else _by_size)(state)
        found = state.snapshot()
        idle = 0 if found[0] < best[0] else idle + 1
        if found[0] <= best[0]:
            best = found
        else:
            state.restore(best)
    _improve(state)


# --- exactly ---


def _exact(state: _State, best: Found) -> Found:
    """Branch and bound over single replicas; equal ones go to slots in one order only. ``best`` stays when the steps run out."""
    state.clear()
    state.steps = 0
    order = sorted(range(len(state.wanted)), key=lambda item: (-sum(state.sizes[item]), item))
    replicas = [item for item in order for _ in range(state.wanted[item])]
    cheapest = [state.order[item][0][0] if state.order[item] else state.penalty for item in replicas]
    ahead = [sum(cheapest[index:]) for index in range(len(replicas) + 1)]

    def search(index: int, first: int, missing: int) -> None:
        nonlocal best
        state.steps += 1
        if state.steps > EXACT_STEPS or state.spent + missing * state.penalty + ahead[index] >= best[0]:
            return
        if index == len(replicas):
            best = state.snapshot()
            return
        item = replicas[index]
        following = index + 1 < len(replicas) and replicas[index + 1] == item
        for position in range(first, len(state.order[item])):
            slot = state.order[item][position][1]
            if state.fits(item, slot):
                state.put(item, slot)
                search(index + 1, position if following else 0, missing)
                state.take(item, slot)
        # Without a place: then those equal to it have none either.
        rest = index + 1
        while rest < len(replicas) and replicas[rest] == item:
            rest += 1
        search(rest, 0, missing + rest - index)

    search(0, 0, 0)
    return best
