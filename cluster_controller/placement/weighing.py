"""When components of one application compete for the same nodes at the lowest cost, and what they are then given. Pure.

Only what is new is weighed, and only where nothing but cost and room decides: wishes, a minimum per cluster and hard spreads are kept
by dividing one component after the other.
"""

from collections.abc import Callable, Mapping

import msgspec

from cluster_controller.placement import score
from cluster_controller.placement.bins import Around, Branch
from cluster_controller.placement.filters import node_matches
from cluster_controller.placement.joint import Item, Slot, solve
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, NodeRecord, Objective, Request

Branches = Mapping[str, Branch]
MOST_SLOTS = 5_000  # nodes; beyond, one component after the other is divided


def weigh(
    demand: Demand, branches: Callable[[ComponentDemand], Branches], now: Callable[[str], ClusterRecord | None], around: Around
) -> Mapping[str, Mapping[str, int]] | None:  # fmt: skip
    """Per component, how many more on each cluster; None where components are divided one by one."""
    alone = len(demand.components) < 2 or demand.strategy == "Duplicated" or demand.dividing.by != "LowestCost"
    if alone or demand.dividing.least or any(each.hard for each in demand.spread):
        return None
    found = {component.name: branches(component) for component in demand.components if component.request}
    bins = {name: [each for branch in of.values() for each in branch.bins] for name, of in found.items()}
    missing = {
        component.name: component.replicas - sum(each.holds for each in bins[component.name])
        for component in demand.components
        if component.name in bins
    }
    wanting = [component for component in demand.components if missing.get(component.name, 0) > 0]
    if len(wanting) < 2 or len({each.tier for of in bins.values() for each in of if each.room}) > 1:
        return None
    total = sum(missing[component.name] for component in wanting)
    clusters = [now(uid) for uid in sorted({each.uid for component in wanting for each in bins[component.name] if each.room})]
    nodes = [
        (cluster, node) for cluster in clusters if cluster is not None for node in cluster.nodes for _ in range(min(node.count, total))
    ]
    if len(nodes) > MOST_SLOTS:
        return None
    objective = demand.objective or Objective()
    items = []
    for component in wanting:
        limits = {each.uid: each.limit - each.holds for each in bins[component.name] if each.room}
        prices = {
            cluster.uid: (score.cluster_cost(component, cluster), around.distance(cluster.uid))
            for cluster in clusters
            if cluster is not None
        }
        costs = tuple(
            score.cost(objective, prices[cluster.uid][0] + score.node_cost(component, node), prices[cluster.uid][1])
            if cluster.uid in limits and node_matches(component, node)
            else None
            for cluster, node in nodes
        )
        items.append(Item(component.name, missing[component.name], component.request, costs, limits))
    return solve(items, [Slot(cluster.uid, _free(node)) for cluster, node in nodes])


def _free(node: NodeRecord) -> Request:
    return Request(node.free_cpu_millis, node.free_memory_bytes, node.free_accelerators)


def planned(found: Branches, more: Mapping[str, int]) -> dict[str, Branch]:
    """The branches with exactly that room."""
    return {
        target: msgspec.structs.replace(
            branch, bins=tuple(msgspec.structs.replace(each, room=more.get(each.uid, 0)) for each in branch.bins)
        )
        for target, branch in found.items()
    }
