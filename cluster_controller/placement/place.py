"""Place a demand on the direct children and the own cluster: filter, divide, and keep the reasons.

Pure and recursive: every level runs this same function over the records of its own subtree, with what it was given as the
demand. `explain` shows the refusals that are kept here. Components are decided one after the other, each with the room that those
before it have left.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.placement.capacity import Space
from cluster_controller.placement.divide import Target, divide
from cluster_controller.placement.filters import capacity_refusal, refuse, unknown_names
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Given, Placement, Refusal, Request

Shares = dict[str, dict[str, int]]
STAYS = frozenset({"Cordoned", "NoScheduleTaint", "Unreachable", "ShimLost", "NoNode"})


class Decision(Struct, frozen=True):
    """Of one component: replicas per target, and how many have none."""

    shares: dict[str, int]
    unplaced: int = 0
    waiting: int = 0


def place(
    demand: Demand,
    clusters: Sequence[ClusterRecord],
    given: Mapping[str, Mapping[str, Given]],
    pending: Mapping[str, Request] | None = None,
) -> Placement:
    """Decide the share of every target; ``given[target][component]`` is what stands today.

    ``pending[target]`` is what other applications were given there and what is free does not show yet.
    """
    shares: Shares = {}
    decisions: dict[str, Decision] = {}
    refusals: list[Refusal] = []
    passed: dict[str, list[ClusterRecord]] = {}
    for component in demand.components:
        passed[component.name], refused = _filter(demand, component, clusters)
        refusals += refused
        unknown = unknown_names(demand, component, clusters)
        refusals += [unknown] if unknown is not None else []
    space = _space(demand, clusters, passed, given, pending or {})
    for component in demand.components:
        among = passed[component.name]
        mine = {target: per.get(component.name, Given()) for target, per in given.items()}
        decide = _duplicate if demand.strategy == "Duplicated" else _divide
        decided = decisions[component.name] = decide(component, among, mine, space)
        if not decided.unplaced:
            refusals += _full(demand, component, among, decided, space)
        for target, share in decided.shares.items():
            shares.setdefault(target, {})[component.name] = share
            more = share - mine.get(target, Given()).share
            space.occupy(component, [cluster for cluster in among if cluster.via == target and not cluster.cordoned], more)
        if decided.unplaced:  # what is short is what is short after all that was given here
            refusals += _full(demand, component, among, decided, space)
    return Placement(
        shares=shares,
        unplaced={name: decided.unplaced for name, decided in decisions.items()},
        waiting={name: decided.waiting for name, decided in decisions.items() if demand.strategy != "Duplicated"},
        refusals=tuple(refusals),
        eligible={name: tuple(cluster.uid for cluster in among) for name, among in passed.items()},
    )


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


def _space(
    demand: Demand,
    clusters: Sequence[ClusterRecord],
    passed: Mapping[str, Sequence[ClusterRecord]],
    given: Mapping[str, Mapping[str, Given]],
    pending: Mapping[str, Request],
) -> Space:
    """What is really left: without what others, and this application itself, were promised and are not seen to run yet."""
    space = Space(clusters)
    for target, asked in pending.items():
        if asked:
            space.drain([cluster for cluster in clusters if cluster.via == target], asked)
    for component in demand.components:
        for target, per in given.items():
            among = [cluster for cluster in passed[component.name] if cluster.via == target]
            space.occupy(component, among, _promised(component, among, per.get(component.name, Given())))
    return space


def _promised(component: ComponentDemand, among: Iterable[ClusterRecord], stands: Given) -> int:
    """Given but not yet reported as running: it will take room that is still reported as free."""
    seen = sum(cluster.running.get(component.name, 0) for cluster in among)
    return max(0, stands.share - stands.unplaced - max(seen, stands.counted))


def _divide(component: ComponentDemand, among: Sequence[ClusterRecord], given: Mapping[str, Given], space: Space) -> Decision:
    division = divide(component.replicas, _targets(component, among, given, space))
    shares = {target: share for target, share in division.shares.items() if share}
    return Decision(shares=shares, unplaced=division.unplaced + division.offered, waiting=division.waiting)


def _targets(
    component: ComponentDemand, among: Sequence[ClusterRecord], given: Mapping[str, Given], space: Space
) -> dict[str, Target]:  # fmt: skip
    branches: dict[str, list[ClusterRecord]] = {}
    for cluster in among:
        branches.setdefault(cluster.via, []).append(cluster)
    targets = {}
    for target in sorted({*branches, *given}):
        branch = branches.get(target, [])
        rooms = [0 if cluster.cordoned else space.room(component, cluster) for cluster in branch]
        # Only a cluster that can hold something counts for evenness; one that is full would draw replicas it cannot take.
        clusters = sum(1 for cluster, fits in zip(branch, rooms, strict=True) if fits or cluster.running.get(component.name))
        stands = given.get(target, Given())
        promised = _promised(component, branch, stands)
        if promised and branch:
            clusters = max(clusters, 1)
        fits = sum(rooms) - (promised if component.single else 0)
        targets[target] = Target(name=space.name(target), room=max(0, fits), clusters=clusters, given=stands)
    return targets


def _duplicate(component: ComponentDemand, among: Sequence[ClusterRecord], given: Mapping[str, Given], space: Space) -> Decision:
    """Every target with an eligible cluster gets the per-cluster count; one out of reach keeps what it has.

    A branch gets the whole count even where it does not fit: its own controllers know best, start it when they can, and report what
    they could not place. The own cluster gets what fits.
    """
    if component.replicas == 0:
        return Decision(shares={})
    shares: dict[str, int] = {}
    unplaced = 0
    for cluster in among:
        shares[cluster.via] = component.replicas
    for cluster in among:
        if cluster.own:
            stands = given.get(cluster.uid, Given()).share
            fits = min(component.replicas, stands + (0 if cluster.cordoned else space.room(component, cluster)))
            shares[cluster.uid] = fits
            unplaced = component.replicas - fits
    for target, stands_there in given.items():
        if not stands_there.reachable and stands_there.share:
            shares.setdefault(target, component.replicas)
    return Decision(
        shares={target: share for target, share in shares.items() if share}, unplaced=unplaced if shares else component.replicas
    )


def _full(
    demand: Demand, component: ComponentDemand, among: Iterable[ClusterRecord], decided: Decision, space: Space
) -> Iterable[Refusal]:  # fmt: skip
    """What is short, where it matters: nothing more fits, and more is wanted, or nothing runs there."""
    for cluster in among:
        mine = decided.shares.get(cluster.uid, 0) if cluster.via == cluster.uid else 0
        if cluster.cordoned or (space.room(component, cluster) and not (component.single and mine)):
            continue
        runs = cluster.running.get(component.name, 0)
        if demand.strategy == "Duplicated":
            wanting = runs < component.replicas and (not cluster.own or bool(decided.unplaced))
        else:
            wanting = bool(decided.unplaced) or not (runs or mine)
        if wanting:
            yield capacity_refusal(component, space.now(cluster))
