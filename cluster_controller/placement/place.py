"""Place a demand on the direct children and the own cluster: filter, judge, divide, and keep the reasons.

Pure and recursive: every level runs this same function over the records of its own subtree, with what it was given as the
demand. `explain` shows the refusals that are kept here. Components are decided one after the other, each with the room that those
before it have left; only where the lowest cost is asked for are they weighed against each other (`placement.joint`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from cluster_controller.placement import score
from cluster_controller.placement.assign import Assignment, assign
from cluster_controller.placement.bins import Around, Bins, Branch, promised
from cluster_controller.placement.capacity import Space
from cluster_controller.placement.contend import Contender, Foreseen, Rivals
from cluster_controller.placement.divide import Target, divide
from cluster_controller.placement.filters import DRAINING, capacity_refusal, matches, refuse_itself, refuse_unmeant, unknown_names
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Given, Placement, Refusal, Request, Score
from cluster_controller.placement.weighing import planned, weigh
from cluster_controller.placement.wishes import blocked_refusal, refuse_wishes

Shares = dict[str, dict[str, int]]
# About what is new, or what may pass: what runs there stays, and it takes no more.
STAYS = frozenset(
    {
        "Cordoned",
        "NoScheduleTaint",
        "TaintGrace",
        "Unreachable",
        "HomeAway",
        "ShimLost",
        "NoNode",
        "Affinity",
        "AntiAffinity",
        "Latency",
        "SpreadLabel",
    }
)


class Decision(Struct, frozen=True):
    """Of one component: replicas per target, and how many have none."""

    shares: dict[str, int]
    unplaced: int = 0
    waiting: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # per cluster, as the division foresees it
    added: dict[str, int] = field(default_factory=dict)  # per cluster, beyond what stands there
    raised: dict[str, int] = field(default_factory=dict)  # per target, when nobody foresees in which cluster of it
    blocked: dict[str, str] = field(default_factory=dict)  # clusters with room that a rule of the division keeps closed
    stuck: dict[str, int] = field(default_factory=dict)  # drained clusters with what has no room elsewhere


def place(
    demand: Demand,
    clusters: Sequence[ClusterRecord],
    given: Mapping[str, Mapping[str, Given]],
    pending: Mapping[str, Request] | None = None,
    *,
    reasons: bool = True,
    rivals: Callable[[], Rivals] = Rivals,
) -> Placement:
    """Decide the share of every target; ``given[target][component]`` is what stands today.

    ``rivals`` is what others have on the own cluster; asked only where something finds no place and others may have to give way.

    ``pending[target]`` is what other applications were given there and what is free does not show yet. Without ``reasons`` no refusal
    and no score is put into words: shares and counts are the same, and come sooner.
    """
    fleet = clusters if isinstance(clusters, Fleet) else Fleet(clusters)
    around = Around(labels=fleet.labels, distance=_distance(demand, fleet))
    if not reasons and demand.strategy != "Duplicated":
        enough = _enough(demand, fleet, around, given, pending=pending or {}, rivals=rivals)
        if enough is not None:
            return enough
    shares: Shares = {}
    decisions: dict[str, Decision] = {}
    refusals: list[Refusal] = []
    passed: dict[str, list[ClusterRecord]] = {}
    for component in demand.components:
        among = fleet if reasons else fleet.candidates(demand.selector, demand.cluster_names)
        passed[component.name], refused = _filter(demand, component, fleet, around, given, among=among, reasons=reasons)
        if reasons:
            refusals += refused
            unknown = unknown_names(demand, component, fleet)
            refusals += [unknown] if unknown is not None else []
    space = _space(demand, fleet, passed, given, pending or {})
    scores = {each.name: _scores(demand, each, passed[each.name], space, around) for each in demand.components} if reasons else {}
    bins = Bins(demand, space, around)
    contender = Contender(demand, space, rivals, pending or {})

    def branches(component: ComponentDemand) -> dict[str, Branch]:
        mine = {target: per[component.name] for target, per in given.items() if component.name in per}
        return bins.branches(component, passed[component.name], mine)

    weighed = weigh(demand, branches, space.of, around)
    for component in demand.components:
        among = passed[component.name]
        mine = {target: per[component.name] for target, per in given.items() if component.name in per}
        if demand.strategy == "Duplicated":
            decided = _duplicate(component, among, mine, space, contender)
        else:
            found = branches(component)
            if weighed is not None and component.name in weighed:
                found = planned(found, weighed[component.name])
            decided = _divide(component, among, found, space, contender)
        decisions[component.name] = decided
        if reasons and not decided.unplaced:
            refusals += _full(demand, component, among, decided, space)
        _occupy(component, among, decided, space)
        for target, share in decided.shares.items():
            shares.setdefault(target, {})[component.name] = share
        if reasons and decided.unplaced:  # what is short is what is short after all that was given here
            refusals += _full(demand, component, among, decided, space)
    return Placement(
        shares=shares,
        unplaced={name: decided.unplaced for name, decided in decisions.items()},
        waiting={name: decided.waiting for name, decided in decisions.items()},
        refusals=tuple(refusals),
        eligible={name: tuple(cluster.uid for cluster in among) for name, among in passed.items()},
        plan={name: {uid: count for uid, count in decided.counts.items() if count} for name, decided in decisions.items()},
        scores=scores,
        preempting=tuple(contender.found),
        stuck={name: decided.stuck for name, decided in decisions.items() if decided.stuck},
    )


def _enough(
    demand: Demand,
    fleet: Fleet,
    around: Around,
    given: Mapping[str, Mapping[str, Given]],
    *,
    pending: Mapping[str, Request],
    rivals: Callable[[], Rivals],
) -> Placement | None:
    """The decision where what stands is as much as is wanted, or more; None where it is not.

    What stands stays, and nothing is added: so whoever has nothing decides nothing, and only those who were given something are looked
    at. Most of what a controller settles is like this, for whatever is reported of an application asks whether all is well.
    """
    few = [record for target in sorted(given) for record in fleet.behind(target)]
    meant = [record for record in few if not demand.cluster_names or record.name in demand.cluster_names]
    meant = [record for record in meant if matches(demand.selector, record.labels)]
    passed = {each.name: _filter(demand, each, fleet, around, given, among=meant, reasons=False)[0] for each in demand.components}
    space = _space(demand, fleet, passed, given, {target: pending[target] for target in given if target in pending})
    bins = Bins(demand, space, around)
    contender = Contender(demand, space, rivals, pending)
    decisions: dict[str, Decision] = {}
    for component in demand.components:
        among = passed[component.name]
        mine = {target: per[component.name] for target, per in given.items() if component.name in per}
        found = bins.branches(component, among, mine)
        held = [each for branch in found.values() for each in branch.bins if each.holds]
        if sum(each.holds for each in held) < component.replicas or any(each.leaving for each in held):
            return None
        decisions[component.name] = _divide(component, among, found, space, contender)
    shares: Shares = {}
    for name, decided in decisions.items():
        for target, share in decided.shares.items():
            shares.setdefault(target, {})[name] = share
    return Placement(
        shares=shares,
        unplaced={name: decided.unplaced for name, decided in decisions.items()},
        waiting={name: decided.waiting for name, decided in decisions.items()},
        refusals=(),
        eligible={name: tuple(cluster.uid for cluster in among) for name, among in passed.items()},
        plan={name: {uid: count for uid, count in decided.counts.items() if count} for name, decided in decisions.items()},
    )


def _distance(demand: Demand, fleet: Fleet) -> score.Distance:
    return score.nowhere if demand.objective is None else score.distances(fleet, demand.objective.to, demand.objective.users)


def _filter(
    demand: Demand,
    component: ComponentDemand,
    fleet: Fleet,
    around: Around,
    given: Mapping[str, Mapping[str, Given]],
    *,
    among: Iterable[ClusterRecord],
    reasons: bool,
) -> tuple[list[ClusterRecord], list[Refusal]]:  # fmt: skip
    """Clusters of ``among`` that may hold the component, and why others (or more of it) may not.

    A refusal that is about what is new (a cordon, NoSchedule) or about what may pass (a silent link, a node that is restarting) leaves
    what runs where it runs: such a cluster passes, closed for more.
    """
    passed: list[ClusterRecord] = []
    refused: list[Refusal] = []
    memo = fleet.memo(_question(demand, component))
    for cluster in among:
        known = memo.get(cluster.uid)
        if known is None or known[0] is not cluster:
            known = memo[cluster.uid] = (cluster, refuse_itself(demand, component, cluster))
        refusal = (refuse_unmeant(demand, component, cluster) if reasons else None) or known[1]
        refusal = refusal or refuse_wishes(demand, component, cluster, around)
        if refusal is None:
            passed.append(cluster)
            continue
        assert isinstance(refusal, Refusal)
        if refusal.filter == DRAINING and (cluster.running.get(component.name) or _share(given, cluster.uid, component)):
            passed.append(msgspec.structs.replace(cluster, cordoned=True, leaving=True))
        elif refusal.filter in STAYS and cluster.running.get(component.name):
            passed.append(msgspec.structs.replace(cluster, cordoned=True))
        refused.append(refusal)
    return passed, refused


def _share(given: Mapping[str, Mapping[str, Given]], target: str, component: ComponentDemand) -> int:
    return given[target][component.name].share if component.name in given.get(target, ()) else 0


def _question(demand: Demand, component: ComponentDemand) -> tuple[object, ...]:
    """All that decides, beside the record, what `refuse_itself` answers."""
    where = (component.node, tuple(sorted(component.node_labels.items())), component.architectures)
    return component.name, component.kind, *where, demand.tolerations, demand.strategy


def _space(
    demand: Demand,
    fleet: Fleet,
    passed: Mapping[str, Sequence[ClusterRecord]],
    given: Mapping[str, Mapping[str, Given]],
    pending: Mapping[str, Request],
) -> Space:
    """What is really left: without what others, and this application itself, were promised and are not seen to run yet."""
    space = Space(fleet, pending)
    for component in demand.components:
        among: dict[str, list[ClusterRecord]] = {target: [] for target in given}
        for cluster in passed[component.name] if given else ():
            if cluster.via in among:
                among[cluster.via].append(cluster)
        for target, per in given.items():
            space.occupy(component, among[target], promised(component, among[target], per.get(component.name, Given())))
    return space


def _scores(
    demand: Demand, component: ComponentDemand, among: Sequence[ClusterRecord], space: Space, around: Around
) -> dict[str, Score]:  # fmt: skip
    return {
        cluster.uid: score.score(
            demand,
            component,
            space.now(cluster),
            wish=score.preference(demand, cluster, around.labels),
            millis=around.distance(cluster.uid),
            room=0 if cluster.cordoned else space.room(component, cluster),
        )
        for cluster in among
    }


def _divide(
    component: ComponentDemand, among: Sequence[ClusterRecord], found: Mapping[str, Branch], space: Space, contender: Contender
) -> Decision:
    demand = contender.demand
    bins = [each for branch in found.values() for each in branch.bins]
    foreseen: Assignment = assign(component.replicas, bins, demand.dividing.by, demand.spread)
    added = {each.uid: foreseen.counts[each.uid] - each.holds for each in bins if foreseen.counts[each.uid] > each.holds}
    given = {target: branch.given for target, branch in found.items()}
    seized = contender.seek(component, foreseen.missing, among, given, Foreseen(foreseen.counts, added))
    own = sum(seized.pop(cluster.uid, 0) for cluster in among if cluster.own)  # it waits until they have given way
    ways: dict[str, int] = {}
    for cluster in among if seized else ():
        ways[cluster.via] = ways.get(cluster.via, 0) + seized.get(cluster.uid, 0)
    targets = {
        target: Target(
            name=space.name(target),
            room=branch.room + ways.get(target, 0),
            clusters=max(branch.clusters, 1 if ways.get(target) else 0),
            given=branch.given,
            goal=sum(foreseen.counts[each.uid] for each in branch.bins) + ways.get(target, 0),
        )
        for target, branch in found.items()
    }
    for target in sorted(target for target, count in ways.items() if count and target not in targets):
        targets[target] = Target(name=space.name(target), room=ways[target], clusters=1, goal=ways[target])
    division = divide(component.replicas, targets)
    homeless = division.unplaced + division.offered
    own = min(own, homeless)
    return Decision(
        shares={target: share for target, share in division.shares.items() if share},
        unplaced=homeless - own,
        waiting=division.waiting + own,
        counts={uid: foreseen.counts.get(uid, 0) + seized.get(uid, 0) for uid in {**foreseen.counts, **seized}},
        added=added,
        blocked=foreseen.blocked,
        stuck=foreseen.stuck,
    )


def _occupy(component: ComponentDemand, among: Sequence[ClusterRecord], decided: Decision, space: Space) -> None:
    """What was just decided takes its room, before the next component is."""
    if not component.request:
        return
    for cluster in among if decided.added else ():
        space.occupy(component, [cluster], decided.added.get(cluster.uid, 0))
    for target, more in decided.raised.items():
        space.occupy(component, [cluster for cluster in among if cluster.via == target and not cluster.cordoned], more)


def _duplicate(
    component: ComponentDemand, among: Sequence[ClusterRecord], given: Mapping[str, Given], space: Space, contender: Contender
) -> Decision:
    """Every target with an eligible cluster gets the per-cluster count; one out of reach keeps what it has.

    A branch gets the whole count even where it does not fit: its own controllers know best, start it when they can, and report what
    they could not place. The own cluster gets what fits.
    """
    if component.replicas == 0:
        return Decision(shares={})
    shares: dict[str, int] = {}
    unplaced = waiting = 0
    for cluster in among:
        shares[cluster.via] = component.replicas
    for cluster in among:
        if cluster.own:
            mine = given.get(cluster.uid, Given())
            stands = mine.share - mine.yields
            fits = min(component.replicas, stands + (0 if cluster.cordoned or mine.yields else space.room(component, cluster)))
            shares[cluster.uid] = fits
            added = {cluster.uid: max(0, fits - stands)}
            seized = contender.seek(component, component.replicas - fits, [cluster], given, Foreseen({cluster.uid: fits}, added))
            waiting = seized.get(cluster.uid, 0)
            unplaced = component.replicas - fits - waiting
    for target, stands_there in given.items():
        if not stands_there.reachable and stands_there.share:
            shares.setdefault(target, component.replicas)
    return Decision(
        shares={target: share for target, share in shares.items() if share},
        unplaced=unplaced if shares else component.replicas,
        waiting=waiting,
        raised={target: share - given.get(target, Given()).share for target, share in shares.items()},
    )


def _full(
    demand: Demand, component: ComponentDemand, among: Iterable[ClusterRecord], decided: Decision, space: Space
) -> Iterable[Refusal]:  # fmt: skip
    """What is short, where it matters: nothing more fits, and more is wanted, or nothing runs there."""
    for cluster in among:
        mine = decided.shares.get(cluster.uid, 0) if cluster.via == cluster.uid else 0
        if cluster.uid in decided.blocked:
            yield blocked_refusal(demand, component, cluster, decided.blocked[cluster.uid])
            continue
        if cluster.cordoned or (space.room(component, cluster) and not (component.single and mine)):
            continue
        runs = cluster.running.get(component.name, 0)
        if demand.strategy == "Duplicated":
            wanting = runs < component.replicas and (not cluster.own or bool(decided.unplaced))
        else:
            wanting = bool(decided.unplaced) or not (runs or mine)
        if wanting:
            yield capacity_refusal(component, space.now(cluster))
