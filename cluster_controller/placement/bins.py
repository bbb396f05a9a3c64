"""What an assignment starts from: every cluster that passed the filters, with what stands there, what fits, and how it is judged.

A controller knows what each of its targets was given, and of a branch only what its reports show of the clusters in it. What was
given and is not seen is assumed where the division would have put it. Pure.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.placement import score
from cluster_controller.placement.assign import Bin, assign
from cluster_controller.placement.capacity import Space
from cluster_controller.placement.divide import standing, takes_more
from cluster_controller.placement.filters import UNBOUNDED, matches
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Given, Spread, Weight

NOTHING = Given()


class Around(Struct, frozen=True):
    """What a decision knows beside the cluster that it looks at."""

    labels: Mapping[str, Mapping[str, str]]  # uid → labels, of all clusters
    distance: score.Distance = score.nowhere


class Branch(Struct, frozen=True):
    """One target of a component: its bins, and what `divide` asks of it."""

    given: Given
    bins: tuple[Bin, ...]
    clusters: int  # that hold or can take something
    room: int


def promised(component: ComponentDemand, among: Sequence[ClusterRecord], stands: Given) -> int:
    """Given but not yet reported as running: it will take room that is still reported as free."""
    seen = sum(cluster.running.get(component.name, 0) for cluster in among)
    return max(0, stands.share - stands.unplaced - max(seen, stands.counted))


class Bins:
    """Makes the bins of one decision."""

    def __init__(self, demand: Demand, space: Space, around: Around) -> None:
        self._demand = demand
        self._space = space
        self._around = around

    def branches(self, component: ComponentDemand, among: Sequence[ClusterRecord], given: Mapping[str, Given]) -> dict[str, Branch]:
        """Per target that has a cluster that passed, or that was given something."""
        by_target: dict[str, list[ClusterRecord]] = {}
        for cluster in among:
            by_target.setdefault(cluster.via, []).append(cluster)
        found = {}
        for target in sorted({*by_target, *given}):
            stands, behind = given.get(target, NOTHING), by_target.get(target, [])
            if stands is NOTHING and len(behind) == 1 and not behind[0].running:
                branch = self._fresh(component, behind[0])
                if branch is not None:
                    found[target] = branch
            else:
                found[target] = self._branch(component, target, behind, stands)
        return found

    def _fresh(self, component: ComponentDemand, cluster: ClusterRecord) -> Branch | None:
        """Of a single cluster that has nothing yet, as most are; None when it has no room, and nobody is compared with it."""
        room = 0 if cluster.cordoned else self._space.room(component, cluster)
        if not room and not self._demand.spread:
            return None
        bare = Bin(uid=cluster.uid, name=cluster.name, target=cluster.via, room=room)
        return Branch(given=NOTHING, bins=(self._bin(component, cluster, bare, NOTHING),), clusters=1 if room else 0, room=room)

    def _branch(self, component: ComponentDemand, target: str, among: Sequence[ClusterRecord], stands: Given) -> Branch:
        rooms = [0 if cluster.cordoned else self._space.room(component, cluster) for cluster in among]
        # Only a cluster that can hold something counts; one that is full would draw replicas it cannot take.
        clusters = sum(1 for cluster, fits in zip(among, rooms, strict=True) if fits or cluster.running.get(component.name))
        if among and promised(component, among, stands):
            clusters = max(clusters, 1)
        stays = standing(stands, clusters)
        if not among:
            return Branch(given=stands, bins=self._unknown(target, stays), clusters=clusters, room=0)
        takes = takes_more(stands) and clusters > 0
        holds = _holds(component, among, stays, self._demand.spread)
        if component.single:
            rooms = [min(fits, max(0, 1 - held)) for fits, held in zip(rooms, holds, strict=True)]
        bins = tuple(
            self._bin(
                component, cluster, Bin(uid=cluster.uid, name=cluster.name, target=target, holds=held, room=fits if takes else 0), stands
            )
            for cluster, held, fits in zip(among, holds, rooms, strict=True)
        )
        return Branch(given=stands, bins=bins, clusters=clusters, room=max(0, sum(rooms)))

    def _unknown(self, target: str, stays: int) -> tuple[Bin, ...]:
        """What stands behind a target of which no cluster passed: it is out of reach."""
        if not stays:
            return ()
        places = tuple("" for _ in self._demand.spread)
        return (Bin(uid=target, name=self._space.name(target), target=target, holds=stays, reachable=False, places=places),)

    def _bin(self, component: ComponentDemand, cluster: ClusterRecord, bare: Bin, stands: Given) -> Bin:
        demand, dividing = self._demand, self._demand.dividing
        matters = bool(bare.room or bare.holds)
        steps: tuple[tuple[int, int], ...] = ()
        if matters and dividing.by == "LowestCost":
            steps = score.steps(demand, component, self._space.now(cluster), self._around.distance(cluster.uid))
        return msgspec.structs.replace(
            bare,
            reachable=stands.reachable,
            least=dividing.least,
            most=dividing.most,
            weight=_weight(demand, cluster, bare.holds + bare.room),
            tier=score.preference(demand, cluster, self._around.labels) if matters else 0,
            present=bool(component.model) and component.model in cluster.models,
            steps=steps,
            places=tuple(place_of(each, cluster) for each in demand.spread),
            leaving=cluster.leaving and stands.reachable,
        )


def place_of(spread: Spread, cluster: ClusterRecord) -> str:
    return cluster.labels.get(spread.topology, "") if spread.topology else cluster.uid


def _weight(demand: Demand, cluster: ClusterRecord, capacity: int) -> int:
    dividing = demand.dividing
    if dividing.by == "FreeCapacity":
        return capacity
    if dividing.by != "Weights":
        return 1
    return weight_of(dividing.weights, cluster)


def weight_of(weights: Sequence[Weight], cluster: ClusterRecord) -> int:
    """Of the first whose selector matches; 0 where none does."""
    return next((each.weight for each in weights if matches(each.selector, cluster.labels)), 0)


def _holds(component: ComponentDemand, among: Sequence[ClusterRecord], stays: int, spread: Sequence[Spread]) -> list[int]:
    """How what stays lies among the clusters of one branch: as it was reported, the rest assumed where there is least."""
    if len(among) == 1:
        return [stays]
    seen = [cluster.running.get(component.name, 0) for cluster in among]
    if sum(seen) == stays:
        return seen
    bins = [
        Bin(
            uid=cluster.uid,
            name=cluster.name,
            holds=runs,
            room=0 if cluster.cordoned else max(0, 1 - runs) if component.single else UNBOUNDED,
            places=tuple(place_of(each, cluster) for each in spread),
        )
        for cluster, runs in zip(among, seen, strict=True)
    ]
    assumed = assign(stays, bins, spreads=[Spread(each.topology, each.skew, hard=False) for each in spread])
    counts = [assumed.counts[cluster.uid] for cluster in among]
    counts[0] += assumed.missing
    return counts
