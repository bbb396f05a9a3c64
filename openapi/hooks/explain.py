"""Put placement's decision into words: per cluster, what it was given, or what refused it, by how much, and what would help.

A share is given to a direct child and divided on below it. So a cluster further down has a sentence of its own: where the share of its
branch went, or why that branch could not place it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cluster_controller.errors import NotFound
from cluster_controller.placement import records
from cluster_controller.placement.deciding import AS_IT_IS, Explained, Supposed
from cluster_controller.placement.filters import UNBOUNDED, fit, node_refusal
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Given, NodeRecord, Preempting, Refusal
from cluster_controller.resources import kinds
from cluster_controller.resources.tables import short_duration
from cluster_controller.store import Tx

NODES = 10  # of each cluster
LISTED = 10  # clusters in one sentence
UNREMARKABLE = frozenset({"", "Starting", "Progressing", "Unplaced", "OneReplicaPerSite"})  # no fault, or said elsewhere


class Heard(Protocol):
    """How long ago a cluster was heard of."""

    @property
    def seconds(self) -> float: ...
    @property
    def at_least(self) -> bool: ...


Explain = Callable[[Tx, str, Supposed], Explained | None]
HeardOf = Callable[[str], Heard | None]


def explanation(tx: Tx, explain: Explain, heard: HeardOf, uid: str, supposed: Supposed = AS_IT_IS) -> Mapping[str, Any]:
    found = explain(tx, uid, supposed)
    if found is None:
        raise NotFound(f"nothing is placed for application {uid}")
    application = found.allotment.application
    refusals: dict[tuple[str, str], Refusal] = {}
    for item in found.placement.refusals:
        refusals.setdefault((item.cluster, item.component), item)
    demands = records.demand(uid, found.allotment.components, found.allotment.placement).components
    return {
        "kind": "Explanation",
        "apiVersion": "banyan.dev/v1alpha1",
        "application": {"name": application.name, "namespace": application.namespace, "uid": uid},
        "strategy": found.allotment.placement.strategy,
        "decision": {
            "time": found.time,
            "generation": application.generation,
            "clusters": len(found.clusters),
            "reachable": sum(1 for cluster in found.clusters if cluster.reachable),
            "division": found.allotment.placement.division.by if found.allotment.placement.strategy == "Divided" else "",
            "supposed": supposed is not AS_IT_IS,
            "balance": found.balance,
        },
        "missing": found.allotment.missing,
        "components": [
            {
                "name": component.name,
                "replicas": component.replicas,
                "unplaced": found.placement.unplaced.get(component.name, 0),
                "waiting": found.placement.waiting.get(component.name, 0),
                "priority": found.allotment.priority,
                "moves": _moves(found, component.name),
                "preempting": [
                    {
                        "cluster": each.cluster,
                        "replicas": each.replicas,
                        "yields": [
                            {
                                "application": resident.name,
                                "component": resident.component,
                                "priority": resident.priority,
                                "replicas": count,
                            }
                            for resident, count in each.yields
                        ],
                    }
                    for each in found.placement.preempting
                    if each.component == component.name
                ],
                "notes": _notes(found, component),
            }
            for component in found.allotment.components
        ],
        "clusters": [
            {
                "cluster": cluster.name,
                "uid": cluster.uid,
                "overrides": list(found.overrides.get(cluster.uid, ())),
                "components": [
                    _entry(found, cluster, each.name, refusals.get((cluster.uid, each.name)), heard) | _judged(found, cluster, each)
                    for each in demands
                ],
            }
            for cluster in sorted(found.clusters, key=lambda cluster: cluster.name)
        ],
    }


def _judged(found: Explained, cluster: ClusterRecord, component: ComponentDemand) -> dict[str, Any]:
    """How many the division foresees there, how the cluster was judged, and of each node the first filter that refused."""
    if not cluster.runs_applications:
        return {}
    entry: dict[str, Any] = {"planned": found.placement.plan.get(component.name, {}).get(cluster.uid, 0)}
    score = found.placement.scores.get(component.name, {}).get(cluster.uid)
    if score is not None:
        entry["score"] = {
            "room": score.room if score.room < UNBOUNDED else None,
            "preference": score.preference,
            "modelPresent": score.present,
            "hourlyCost": score.hourly_micros / 1_000_000,
            "latencyMillis": score.latency_millis,
            "cost": score.cost / 1000,
        }
    return entry | {"nodes": [_node(component, node) for node in cluster.nodes[:NODES]]}


def _node(component: ComponentDemand, node: NodeRecord) -> dict[str, Any]:
    name, message = node_refusal(component, node)
    entry: dict[str, Any] = {"node": node.name or f"{node.count} of a kind ({node.architecture})"}
    return entry | ({"filter": name, "reason": message} if name else {"room": min(fit(component.request, node), UNBOUNDED) * node.count})


def _moves(found: Explained, component: str) -> int:
    """Replicas that this decision takes from the direct child, or own cluster, that has them."""
    return sum(
        max(0, per.get(component, Given()).share - found.placement.shares.get(target, {}).get(component, 0))
        for target, per in found.given.items()
    )


def _notes(found: Explained, component: kinds.Component) -> list[str]:
    """What concerns the component as a whole, not one cluster."""
    notes = []
    if component.command and not component.takes_socket:
        notes.append("takes no socket: one replica per site, and an upgrade stops it before it starts the new one")
    if found.allotment.held_by:
        notes.append(f"deletion waits for {', '.join(found.allotment.held_by)}; until then it runs on")
    names = {cluster.uid: cluster.name for cluster in found.clusters}
    notes += [
        f"{each.replicas} get room on {names.get(each.cluster, each.cluster)} when others give way: {_yielding(found, each)}"
        for each in found.placement.preempting
        if each.component == component.name
    ]
    notes += [
        f"{item.message}: {item.remedy}" for item in found.placement.refusals if not item.cluster and item.component == component.name
    ]
    return notes + sorted(
        f"not well where it runs: {answer.reason}: {answer.message}"
        for (_, name), answer in found.answers.items()
        if name == component.name and answer.reason not in UNREMARKABLE and not answer.unplaced
    )


def _yielding(found: Explained, each: Preempting) -> str:
    """Who gives way; of a cluster below, whoever runs there and is known here to have so low a priority."""
    words = []
    for resident, count in each.yields:
        known = [resident.name] if resident.name else list(found.lower.get((each.cluster, resident.priority), ()))
        whose = f" of {_list(known)}" if known else ""
        words.append(f"{count}{whose} (priority {resident.priority})")
    return ", ".join(words) or "what gives way already"


def _entry(found: Explained, cluster: ClusterRecord, component: str, refusal: Refusal | None, heard: HeardOf) -> dict[str, Any]:
    runs = cluster.running.get(component, 0)
    entry: dict[str, Any] = {"component": component, "replicas": runs}
    given = found.given.get(cluster.via, {}).get(component, Given())
    if refusal is not None and refusal.filter == "NoShim" and given.share and cluster.via == cluster.uid:
        return entry | {"reason": _branch(found, cluster.via, component)}
    if refusal is not None:
        reason = refusal.message + (_last_heard(heard, cluster.uid) if refusal.filter == "Unreachable" else "")
        if runs and refusal.filter == "Unreachable":
            gone = found.replaced.get(cluster.via, {}).get(component, 0)
            reason += f"; it had {runs} then and " + ("others hold its share until it is back" if gone else "keeps them")
        stuck = found.placement.stuck.get(component, {}).get(cluster.uid, 0)
        if stuck:
            reason += (
                f"; cannot drain: no room for {stuck} replica{'s' if stuck > 1 else ''} of {found.allotment.application.name} elsewhere"
            )
        return entry | {"filter": refusal.filter, "reason": reason, "remedy": refusal.remedy}
    if runs:
        return entry
    waits = found.waits.get(cluster.via, {}).get(component)
    if waits and refusal is None:
        return entry | {"reason": f"would take it; {waits}"}
    share = found.placement.shares.get(cluster.via, {}).get(component, 0)
    if share and cluster.via == cluster.uid:
        return _direct(found, entry, cluster, component, share)
    if share:
        return entry | {"reason": f"has room; {_branch(found, cluster.via, component)}"}
    if found.placement.waiting.get(component):
        return entry | {"reason": f"would take it; waits until {_giving_back(found, component)} has acknowledged a lower share"}
    return entry | {"reason": "would take it; enough runs elsewhere"}


def _direct(found: Explained, entry: dict[str, Any], cluster: ClusterRecord, component: str, share: int) -> dict[str, Any]:
    """A cluster that was given a share itself and is not seen to run it."""
    answer = found.answers.get((cluster.uid, component))
    if answer is not None and answer.unplaced:
        return entry | {"reason": f"was given {share} and could not place {answer.unplaced} of them: {answer.message}"}
    if answer is not None and answer.reason:
        return entry | {"replicas": share, "reason": f"was given {share}: {answer.message or answer.reason}"}
    return entry | {"replicas": share, "reason": "given, not yet reported as running"}


def _branch(found: Explained, target: str, component: str) -> str:
    """What became of the share of a direct child that divides it on."""
    name = next((cluster.name for cluster in found.clusters if cluster.uid == target), target)
    share = found.placement.shares.get(target, {}).get(component, 0)
    holders = [
        f"{cluster.name} ({cluster.running[component]})"
        for cluster in sorted(found.clusters, key=lambda cluster: cluster.name)
        if cluster.via == target and cluster.running.get(component)
    ]
    words = [f"{name} was given {share}"]
    if holders:
        words.append(f"and put them on {_list(holders)}")
    answer = found.answers.get((target, component))
    if answer is None:
        words.append("and has not answered that yet")
    elif answer.unplaced:
        words.append(f"and could not place {answer.unplaced}: {answer.message}")
    return " ".join(words)


def _giving_back(found: Explained, component: str) -> str:
    """Who holds, or may still run, more than it shall."""
    names = [
        cluster.name
        for cluster in found.clusters
        if cluster.uid in found.given
        and found.given[cluster.uid].get(component, Given()).ceiling > found.placement.shares.get(cluster.uid, {}).get(component, 0)
    ]
    return _list(sorted(names)) or "another cluster"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _last_heard(heard: HeardOf, uid: str) -> str:
    """The age, computed now (ARCHITECTURE law 5)."""
    known = heard(uid)
    if known is None:
        return ""
    return f"; last heard {'at least ' if known.at_least else ''}{short_duration(known.seconds)} ago"
