"""Divide one component's replicas among targets: keep what stands, lower first, raise only what was acknowledged.

The invariant is the allotment (ARCHITECTURE section 6, Shares): over all targets, what may be running never exceeds what
this controller was itself given, so

    sum over targets of max(share, ceiling)  <=  max(allotted, the same sum before)

and a raise on one side waits until the lower share on the other side has been acknowledged. Stable: replicas that run
somewhere allowed stay there; only the difference moves. How many a target shall have in the end is its ``goal`` (`placement.assign`
foresees it cluster by cluster); without one the difference goes to the target with the fewest replicas per eligible cluster, ties by
name, so that the result does not depend on the order of records.

What a target reports as unplaced goes to others that have room. When nobody has, it stays in the share of the one that holds it, as
an offer: that target knows its own cluster best and starts it as soon as it can, even when it is cut off by then.
"""

from collections.abc import Mapping

from msgspec import Struct

from cluster_controller.placement.model import Given


class Target(Struct, frozen=True, kw_only=True):
    """One direct child or the own cluster. ``room``: how many more fit; ``clusters``: how many eligible clusters it has."""

    name: str
    room: int
    clusters: int
    given: Given = Given()
    goal: int | None = None


class Division(Struct, frozen=True):
    shares: dict[str, int]
    waiting: int  # have a place, but only after somebody's lower share is acknowledged
    unplaced: int  # have no place
    offered: int = 0  # of the shares: reported as unplaced, and nobody else has room


def divide(allotted: int, targets: Mapping[str, Target]) -> Division:
    """Shares per target for ``allotted`` replicas."""
    shares = {uid: standing(target.given, target.clusters) for uid, target in targets.items()}
    for uid, target in targets.items():
        if target.goal is not None:
            shares[uid] = min(shares[uid], target.goal)
    _lower(shares, targets, max(0, sum(shares.values()) - allotted))
    missing = allotted - sum(shares.values())
    bound = max(0, allotted - sum(max(shares[uid], target.given.ceiling) for uid, target in targets.items()))
    # A raise below one's own ceiling costs nothing of the bound: that much is already counted as perhaps running.
    raised = _raise(shares, targets, missing, bound)
    offered = _offer(shares, targets, raised.unplaced)
    return Division(shares=shares, waiting=raised.waiting, unplaced=raised.unplaced - offered, offered=offered)


def standing(given: Given, clusters: int) -> int:
    """What stays where it is. A target out of reach keeps its share: dead and cut off look the same from here."""
    if not given.reachable:
        return given.share
    if clusters == 0:
        return 0
    return max(0, given.share - max(given.unplaced, given.yields))


def _lower(shares: dict[str, int], targets: Mapping[str, Target], surplus: int) -> None:
    """Take from the fullest first; from targets out of reach only when nothing else is left."""
    for _ in range(surplus):
        candidates = [uid for uid, share in shares.items() if share > 0]
        if not candidates:
            return
        uid = max(
            candidates, key=lambda uid: (targets[uid].given.reachable, shares[uid] / max(1, targets[uid].clusters), targets[uid].name)
        )
        shares[uid] -= 1


def takes_more(given: Given) -> bool:
    """Not one that is out of reach, nor one that said that it has no place for what it was given."""
    return given.reachable and not given.unplaced and not given.refused and not given.yields


class _Raised(Struct, frozen=True):
    waiting: int
    unplaced: int


def _raise(shares: dict[str, int], targets: Mapping[str, Target], missing: int, bound: int) -> _Raised:
    room = {
        uid: target.room if target.goal is None else target.goal - shares[uid]
        for uid, target in targets.items()
        if target.clusters > 0 and takes_more(target.given)
    }
    room = {uid: left for uid, left in room.items() if left > 0}
    for done in range(missing):
        candidates = [uid for uid, left in room.items() if left > 0]
        if not candidates:
            return _Raised(waiting=0, unplaced=missing - done)
        uid = min(candidates, key=lambda uid: (shares[uid] / targets[uid].clusters, targets[uid].name))
        if shares[uid] + 1 > targets[uid].given.ceiling:
            if bound == 0:
                return _Raised(waiting=missing - done, unplaced=0)
            bound -= 1
        shares[uid] += 1
        room[uid] -= 1
    return _Raised(waiting=0, unplaced=0)


def _offer(shares: dict[str, int], targets: Mapping[str, Target], homeless: int) -> int:
    """Leave with a target what it could not place, for lack of anybody who can; how many that are. Never above its present share."""
    offered = 0
    for uid in sorted(targets, key=lambda uid: targets[uid].name):
        target = targets[uid]
        if target.given.reachable and target.clusters > 0 and target.given.unplaced:
            stays = min(homeless - offered, target.given.share - target.given.yields - shares[uid])
            shares[uid] += max(0, stays)
            offered += max(0, stays)
    return offered
