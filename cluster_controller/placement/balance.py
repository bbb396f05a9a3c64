"""Whether what stands is out of balance, and which few replicas would mend it. Pure.

Placement leaves what runs where it runs; so after a cluster has joined, or is back, the others go on carrying more than their part. With
``placement.rebalance`` a controller moves a few at a time, among its direct children and its own cluster; each of these does the same
below it.

A target's load is its replicas by its weight (how many clusters it has to put them on, its parts, or its room). A move goes from the
highest load to the lowest that has room, and only as far as the one that gives does not end below the one that takes. So the sum over
all targets of replicas² / weight falls with every move: there is no way back and forth, and it ends.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct


class Rule(Struct, frozen=True, kw_only=True):
    """``after``: seconds for which balance has been lost; ``pause``: between two moves; ``most`` replicas in one move; fewer than ``skew``
    that could be moved are no loss of balance."""

    after: float
    pause: float
    most: int
    skew: int


class Spot(Struct, frozen=True, kw_only=True):
    """A target of one component: what it was given, and its weight in the whole."""

    name: str
    share: int
    weight: int
    room: int = 0


class Move(Struct, frozen=True, kw_only=True):
    component: str
    source: str
    target: str
    count: int


class Watch(Struct, frozen=True, kw_only=True):
    """What is remembered of one application: since when it is out of balance, the move under way, and when the last one ended."""

    lost_since: float | None = None
    moving: Move | None = None
    moving_since: float = 0.0
    ended: float | None = None


PATIENCE = 300.0  # seconds in which a move must have come to its end; then placement goes on as if there had been none


def excess(source: Spot, target: Spot) -> int:
    """How many can go from one to the other before the one that takes would carry more."""
    if source.weight <= 0:
        return source.share
    if target.weight <= 0:
        return 0
    return max(0, (source.share * target.weight - target.share * source.weight) // (source.weight + target.weight))


def find(component: str, spots: Sequence[Spot], rule: Rule) -> Move | None:
    """The move that mends most; None when balance is kept, as far as it can be."""
    if not any(spot.weight > 0 and spot.room > 0 for spot in spots):
        return None
    source = max(spots, key=lambda spot: (_load(spot), spot.name))
    open_to = [spot for spot in spots if spot.weight > 0 and spot.room > 0 and spot.name != source.name]
    target = min(open_to, key=lambda spot: (_load(spot), spot.name), default=None)
    if target is None or not source.share:
        return None
    count = excess(source, target)
    if count < max(1, rule.skew):
        return None
    return Move(component=component, source=source.name, target=target.name, count=min(count, rule.most, target.room))


def unrest(spots: Sequence[Spot]) -> float:
    """What every move lowers."""
    return sum(spot.share * spot.share / spot.weight if spot.weight > 0 else spot.share * 1e6 for spot in spots)


def moved(spots: Sequence[Spot], shares: Mapping[str, int]) -> list[Spot]:
    """The same targets with these shares."""
    return [Spot(name=spot.name, share=shares.get(spot.name, 0), weight=spot.weight, room=spot.room) for spot in spots]


def _load(spot: Spot) -> float:
    return spot.share / spot.weight if spot.weight > 0 else float(spot.share and 1_000_000)


def step(watch: Watch, wanted: Move | None, *, settled: bool, rule: Rule, now: float) -> tuple[Watch, Move | None, float | None]:
    """(what to remember, a move to begin now, seconds until this must be looked at again).

    ``wanted`` is what `find` says at this moment; ``settled``: nothing else is under way, and everything that is wanted is ready.
    """
    if watch.moving is not None:
        left = PATIENCE - (now - watch.moving_since)
        if not settled and left > 0:
            return watch, None, left
        watch = Watch(ended=now)
    if wanted is None or not settled:
        return Watch(ended=watch.ended), None, None
    since = now if watch.lost_since is None else watch.lost_since
    watch = Watch(lost_since=since, ended=watch.ended)
    # Once it has begun to mend, the next move waits for the pause alone.
    due = since + rule.after if watch.ended is None else min(since + rule.after, max(since, watch.ended + rule.pause))
    if now < due:
        return watch, None, due - now
    return Watch(moving=wanted, moving_since=now), wanted, PATIENCE
