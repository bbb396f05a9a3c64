"""Place a demand on the direct children and the own cluster: filter, divide, and keep the reasons.

Pure and recursive: every level runs this same function over the records of its own subtree, with what it was given as the
demand. `explain` shows the refusals that are kept here.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cluster_controller.placement.divide import Target, divide
from cluster_controller.placement.filters import capacity_refusal, refuse, room
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Given, Placement, Refusal

Shares = dict[str, dict[str, int]]
STAYS = frozenset({"Cordoned", "NoScheduleTaint", "Unreachable", "NoNode"})


def place(demand: Demand, clusters: Sequence[ClusterRecord], given: Mapping[str, Mapping[str, Given]]) -> Placement:
    """Decide the share of every target; ``given[target][component]`` is what stands today."""
    names = {cluster.uid: cluster.name for cluster in clusters}
    shares: Shares = {}
    unplaced: dict[str, int] = {}
    waiting: dict[str, int] = {}
    refusals: list[Refusal] = []
    eligible: dict[str, tuple[str, ...]] = {}
    for component in demand.components:
        passed, refused = _filter(demand, component, clusters)
        refusals += refused
        eligible[component.name] = tuple(cluster.uid for cluster in passed)
        mine = {target: per.get(component.name, Given()) for target, per in given.items()}
        if demand.strategy == "Duplicated":
            decided = _duplicate(component, passed, mine)
            unplaced[component.name] = 0 if decided or not component.replicas else component.replicas
        else:
            targets = _targets(component, passed, mine, names)
            division = divide(component.replicas, targets)
            decided = {target: share for target, share in division.shares.items() if share}
            unplaced[component.name] = division.unplaced
            waiting[component.name] = division.waiting
            refusals += [
                capacity_refusal(component, cluster)
                for cluster in passed
                if not cluster.cordoned
                and room(component, cluster) == 0
                and (division.unplaced or not cluster.running.get(component.name))
                and not (cluster.via == cluster.uid and decided.get(cluster.uid) and not division.unplaced)
            ]
        for target, share in decided.items():
            shares.setdefault(target, {})[component.name] = share
    return Placement(shares=shares, unplaced=unplaced, waiting=waiting, refusals=tuple(refusals), eligible=eligible)


def _filter(demand: Demand, component: ComponentDemand, clusters: Iterable[ClusterRecord]) -> tuple[list[ClusterRecord], list[Refusal]]:
    """Clusters that may hold the component, and why others (or more of it) may not.

    A refusal that is about what is new (a cordon, NoSchedule) or about what may pass (a silent link, a node that is restarting) leaves
    what runs where it runs: such a cluster passes, closed for more.
    """
    passed: list[ClusterRecord] = []
    refused: list[Refusal] = []
    for cluster in clusters:
        refusal = refuse(demand, component, cluster)
        if refusal is None:
            passed.append(cluster)
            continue
        if refusal.filter in STAYS and cluster.running.get(component.name):
            passed.append(msgspec.structs.replace(cluster, cordoned=True))
        refused.append(refusal)
    return passed, refused


def _targets(
    component: ComponentDemand, passed: Sequence[ClusterRecord], given: Mapping[str, Given], names: Mapping[str, str]
) -> dict[str, Target]:
    rooms: dict[str, int] = {}
    counts: dict[str, int] = {}
    running: dict[str, int] = {}
    for cluster in passed:
        fits = 0 if cluster.cordoned else room(component, cluster)
        holds = cluster.running.get(component.name, 0)
        rooms[cluster.via] = rooms.get(cluster.via, 0) + fits
        # Only a cluster that can hold something counts for evenness; one that is full would draw replicas it cannot take.
        counts[cluster.via] = counts.get(cluster.via, 0) + (1 if fits or holds else 0)
        running[cluster.via] = running.get(cluster.via, 0) + holds
    targets = {}
    for target in sorted(set(rooms) | set(given)):
        stands = given.get(target, Given())
        clusters = counts.get(target, 0)
        # Given but not yet reported as running: it will take room that is still reported as free.
        promised = max(0, stands.share - stands.unplaced - running.get(target, 0))
        if promised and target in rooms:
            clusters = max(clusters, 1)
        fits = max(0, rooms.get(target, 0) - promised)
        targets[target] = Target(name=names.get(target, target), room=fits, clusters=clusters, given=stands)
    return targets


def _duplicate(component: ComponentDemand, passed: Sequence[ClusterRecord], given: Mapping[str, Given]) -> dict[str, int]:
    """Every target with an eligible cluster gets the per-cluster count; one out of reach keeps what it has."""
    if component.replicas == 0:
        return {}
    decided = {cluster.via: component.replicas for cluster in passed}
    for target, stands in given.items():
        if not stands.reachable and stands.share:
            decided.setdefault(target, component.replicas)
    return decided
