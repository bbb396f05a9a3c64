"""Carry out what `balance` finds: give a share back here, so that placement gives it there, when nothing else is under way.

The way is that of every move: the lower share is acknowledged before another is raised, so what is assigned never exceeds what was
given. For that moment an application has as many replicas fewer as one move takes; none begins while one of them is not ready, while a
version goes out, a cluster is drained, or anybody is out of reach. Kept in memory only: after a restart the time of patience begins anew.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from cluster_controller.events import Reason, record
from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.balance import Move, Rule, Spot, Watch, find, moved, step, unrest
from cluster_controller.placement.filters import matches
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import Demand, Given, Placement
from cluster_controller.resources import kinds
from cluster_controller.rollout.keeping import Target, state_of
from cluster_controller.store import Tx

Everything = Mapping[str, Mapping[str, Given]]  # target → component → what stands
Place = Callable[[Everything], Placement]  # placement's own decision, for what is supposed to stand


class Situation(NamedTuple):
    """What one look looks at. ``seen``: what every target was given, and what it answered."""

    allotment: Allotment
    demand: Demand
    clusters: Fleet
    given: Everything
    seen: Mapping[str, Target]
    place: Place


class Looked(NamedTuple):
    """``given`` as placement shall take it; ``again``: seconds until this must be looked at."""

    given: Everything
    again: float | None = None


class Balancing:
    """``name`` says what people call a target."""

    def __init__(self, uid: str, *, name: Callable[[Tx, str], str], now: Callable[[], float], timestamp: Callable[[], str]) -> None:
        self._uid = uid
        self._name = name
        self._now = now
        self._timestamp = timestamp
        self._watches: dict[str, Watch] = {}
        self.moves = 0  # replicas moved since the start, for /metrics

    def forget(self, application: str) -> None:
        self._watches.pop(application, None)

    def look(self, tx: Tx, situation: Situation) -> Looked:
        """What stands, less what is to move now; an Event when something is."""
        allotment = situation.allotment
        rule = rule_of(allotment.placement)
        if rule is None:
            self.forget(allotment.application.uid)
            return Looked(situation.given)
        watch = self._watches.get(allotment.application.uid, Watch())
        settled = self._settled(tx, situation)
        wanted = self._find(situation, rule) if settled else None
        watch, move, again = step(watch, wanted, settled=settled, rule=rule, now=self._now())
        self._watches[allotment.application.uid] = watch
        if move is not None:
            self._tell(tx, allotment, move)
            self.moves += move.count
            return Looked(_lowered(situation.given, move), again)
        return Looked(_closed(situation.given, watch.moving) if watch.moving is not None else situation.given, again)

    def says(self, tx: Tx, situation: Situation) -> str:
        """What it would do, or does, in one sentence for people; "" when there is nothing to say. Nothing is changed."""
        rule = rule_of(situation.allotment.placement)
        if rule is None:
            return ""
        watch = self._watches.get(situation.allotment.application.uid, Watch())
        if watch.moving is not None:
            return f"{self._said(tx, watch.moving)} on their way"
        if not self._settled(tx, situation):
            return "balance is looked at once nothing else is under way and everything is ready"
        move = self._find(situation, rule)
        if move is None:
            return "in balance, as far as there is room"
        since = self._now() - watch.lost_since if watch.lost_since is not None else 0.0
        return f"out of balance: {self._said(tx, move)} when it has been so for {rule.after:g} s (now {since:.0f} s)"

    def _said(self, tx: Tx, move: Move) -> str:
        return f"{move.count} of {move.component} from {self._name(tx, move.source)} to {self._name(tx, move.target)}"

    def _settled(self, tx: Tx, situation: Situation) -> bool:
        allotment, given = situation.allotment, situation.given
        shares = {component.name: 0 for component in allotment.components}
        for per in given.values():
            for name, item in per.items():
                if not item.reachable or item.ceiling > item.share or item.unplaced:
                    return False
                shares[name] = shares.get(name, 0) + item.share
        well = _ready(situation.seen)
        if any(shares[each.name] != each.replicas or well.get(each.name, 0) < each.replicas for each in allotment.components):
            return False
        if any(taint.key == kinds.DRAIN for cluster in situation.clusters for taint in cluster.taints):
            return False
        state = state_of(tx, allotment.application.uid)
        return allotment.rollout is None or (state is not None and state.phase == "Complete" and not allotment.rollout.paused)

    def _find(self, situation: Situation, rule: Rule) -> Move | None:
        """The first component that is out of balance, and for which placement itself would make it better."""
        now = situation.place(situation.given)
        if any(now.unplaced.values()) or any(now.waiting.values()) or _shares(now) != _standing(situation.given):
            return None
        for component in situation.demand.components:
            spots = _spots(situation, now, component.name)
            move = find(component.name, spots, rule)
            if move is None:
                continue
            then = situation.place(_closed(_lowered(situation.given, move, acknowledged=True), move))
            shares = {target: per.get(component.name, 0) for target, per in then.shares.items()}
            if sum(shares.values()) == component.replicas and unrest(moved(spots, shares)) < unrest(spots):
                return move
        return None

    def _tell(self, tx: Tx, allotment: Allotment, move: Move) -> None:
        application = allotment.application
        name = self._name(tx, move.source)
        record(
            tx,
            about=kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Cluster", name=name, uid=move.source),
            reason=Reason.REBALANCED,
            message=f"{application.namespace}/{application.name}: {self._said(tx, move)}",
            component="placement",
            timestamp=self._timestamp(),
        )


def rule_of(placement: kinds.Placement) -> Rule | None:
    wish = placement.rebalance
    if wish is None or placement.strategy == "Duplicated" or placement.division.by == "LowestCost":
        return None
    return Rule(after=float(wish.after_seconds), pause=float(wish.pause_seconds), most=wish.max_moves, skew=wish.threshold)


def _spots(situation: Situation, now: Placement, component: str) -> list[Spot]:
    """Every target that has, or may have, some of a component."""
    eligible = set(now.eligible.get(component, ()))
    scores = now.scores.get(component, {})
    spots = []
    targets = {cluster.via for cluster in situation.clusters if cluster.uid in eligible} | {
        target for target, per in situation.given.items() if component in per and per[component].share
    }
    for target in sorted(targets):
        share = situation.given.get(target, {}).get(component, Given()).share
        behind = [cluster for cluster in situation.clusters.behind(target) if cluster.uid in eligible and not cluster.cordoned]
        room = {cluster.uid: scores[cluster.uid].room for cluster in behind if cluster.uid in scores}
        holds = [cluster for cluster in behind if room.get(cluster.uid) or cluster.running.get(component)]
        if not holds and behind and share:
            holds = behind[:1]
        dividing = situation.demand.dividing
        if dividing.by == "FreeCapacity":
            weight = share + sum(room.values())
        elif dividing.by == "Weights":
            chosen = [[each.weight for each in dividing.weights if matches(each.selector, cluster.labels)][:1] for cluster in holds]
            weight = sum(parts[0] for parts in chosen if parts)
        else:
            weight = len(holds)
        spots.append(Spot(name=target, share=share, weight=weight, room=sum(room.values())))
    # By weights, what matches none is to have nothing; else one without weight only keeps what it has: it is cordoned, say.
    return [spot for spot in spots if spot.weight > 0 or (situation.demand.dividing.by == "Weights" and spot.share)]


def _lowered(given: Everything, move: Move, *, acknowledged: bool = False) -> Everything:
    """As if the source had been given that much less. What it may still run is what it was given."""
    item = given[move.source][move.component]
    share = item.share - move.count
    lower = msgspec.structs.replace(item, share=share, ceiling=share if acknowledged else item.ceiling, counted=min(item.counted, share))
    return {**given, move.source: {**given[move.source], move.component: msgspec.structs.replace(lower, refused=True)}}


def _closed(given: Everything, move: Move) -> Everything:
    """The source takes nothing back before the move has come to its end."""
    item = given.get(move.source, {}).get(move.component)
    if item is None:
        return given
    return {**given, move.source: {**given[move.source], move.component: msgspec.structs.replace(item, refused=True)}}


def _shares(placement: Placement) -> dict[tuple[str, str], int]:
    return {(target, name): count for target, per in placement.shares.items() for name, count in per.items() if count}


def _standing(given: Everything) -> dict[tuple[str, str], int]:
    return {(target, name): item.share for target, per in given.items() for name, item in per.items() if item.share}


def _ready(seen: Mapping[str, Target]) -> dict[str, int]:
    """Replicas of each component that are ready, by all reports."""
    found: dict[str, int] = {}
    for target in seen.values():
        for part in target.status.components if target.status is not None else ():
            found[part.name] = found.get(part.name, 0) + part.ready
    return found
