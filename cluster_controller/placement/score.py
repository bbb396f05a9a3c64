"""Judge a cluster for one component: what it costs there, how far it is from whom it serves, what is wished, what is there already.

Pure. Costs are of one replica for an hour, in millionths of the currency in which the prices are written. A replica costs its dominant
share of a node (the largest of its shares of cpu, memory and accelerators: what it takes from others) times the price of the node, and
the same of the cluster. A component that says nothing of what it needs is taken for a small one, as Kubernetes' scheduler does.

Distances are round-trip times along the links of the tree, which is the way that traffic between its clusters takes; each link is
measured by its own ends. How far users are, each cluster measures itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from cluster_controller.placement.filters import fit, matches, node_matches, tolerated
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, NodeRecord, Objective, Request, Score

SMALL = Request(cpu_millis=100, memory_bytes=200 * 1024**2)  # what a replica is taken to need where it does not say
PREFER_NO_SCHEDULE = 1  # what an untolerated taint of that effect weighs
UNKNOWN_MILLIS = 10_000.0  # of a link that was never measured: farther than any that was

Distance = Callable[[str], float | None]  # uid of a cluster → milliseconds; None: some link on the way is not measured


def dominant(request: Request, whole: Request) -> float:
    """The largest share of ``whole`` that ``request`` takes, 0 to 1; of what ``whole`` has nothing of, all."""
    shares = [_share(request.cpu_millis, whole.cpu_millis), _share(request.memory_bytes, whole.memory_bytes)]
    shares += [_share(count, whole.accelerators.get(name, 0)) for name, count in request.accelerators.items()]
    return min(1.0, max(shares))


def _share(asked: int, whole: int) -> float:
    return 0.0 if not asked else asked / whole if whole else 1.0


def node_cost(component: ComponentDemand, node: NodeRecord) -> int:
    """An hour of one replica on such a node, in millionths."""
    return round(node.hourly_micros * dominant(component.request or SMALL, node.whole)) if node.hourly_micros else 0


def cluster_cost(component: ComponentDemand, cluster: ClusterRecord) -> int:
    """What one replica takes of an hour of the cluster as a whole, in millionths."""
    if not cluster.hourly_micros:
        return 0
    whole = Request(
        cpu_millis=sum(node.whole.cpu_millis * node.count for node in cluster.nodes),
        memory_bytes=sum(node.whole.memory_bytes * node.count for node in cluster.nodes),
        accelerators=_sum(cluster.nodes),
    )
    return round(cluster.hourly_micros * dominant(component.request or SMALL, whole))


def _sum(nodes: Iterable[NodeRecord]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for node in nodes:
        for name, count in node.whole.accelerators.items():
            sums[name] = sums.get(name, 0) + count * node.count
    return sums


def steps(demand: Demand, component: ComponentDemand, cluster: ClusterRecord, millis: float | None) -> tuple[tuple[int, int], ...]:
    """How many more replicas fit at which cost of the objective, the cheapest nodes first."""
    objective = demand.objective or Objective()
    base = cluster_cost(component, cluster)
    found = [
        (node.count * fit(component.request, node), cost(objective, base + node_cost(component, node), millis))
        for node in cluster.nodes
        if node_matches(component, node)
    ]
    return tuple(sorted(((count, each) for count, each in found if count), key=lambda step: step[1]))


def cost(objective: Objective, hourly_micros: int, millis: float | None) -> int:
    """In thousandths of the objective's unit, so that sums are exact."""
    money = objective.cost * hourly_micros
    return (
        money + round(1000 * objective.latency * (UNKNOWN_MILLIS if millis is None else millis))
        if objective.to or objective.users
        else money
    )


def preference(demand: Demand, cluster: ClusterRecord, labels: Mapping[str, Mapping[str, str]]) -> int:
    """Weights of what is wished and holds, minus those of what should be elsewhere."""
    if not (demand.preferences or demand.neighbours or cluster.taints):
        return 0
    weight = sum(each.weight for each in demand.preferences if matches(each.selector, cluster.labels))
    for each in demand.neighbours:
        if each.weight and near(each.where, each.topology, cluster, labels):
            weight += -each.weight if each.apart else each.weight
    unwanted = sum(1 for taint in cluster.taints if taint.effect == "PreferNoSchedule" and not tolerated(taint, demand.tolerations))
    return weight - PREFER_NO_SCHEDULE * unwanted


def near(where: Iterable[str], topology: str, cluster: ClusterRecord, labels: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether ``cluster`` is in the same place as one of ``where``; without the label it is in no place at all."""
    if not topology:
        return cluster.uid in where
    place = cluster.labels.get(topology)
    return place is not None and any(labels.get(uid, {}).get(topology) == place for uid in where)


def nowhere(uid: str) -> float | None:
    """The distance where nobody is named."""
    return None


def distances(clusters: Sequence[ClusterRecord], names: Sequence[str], users: Sequence[str] = ()) -> Distance:
    """How far each cluster is from the farthest of ``names``, along the links of the tree, and of ``users``, as it says itself.

    A name that is not below this controller is reached through it: the way from here on is the same for all, and not counted. From
    users that a cluster has not measured it is as far as along a link that nobody has.
    """
    known = {cluster.uid: cluster for cluster in clusters}
    named = {cluster.name: cluster.uid for cluster in clusters}
    ways = [_way_up(named[name], known) if name in named else None for name in names]

    def distance(uid: str) -> float | None:
        farthest = 0.0
        for way in ways:
            apart = _apart(uid, way, known)
            if apart is None:
                return None
            farthest = max(farthest, apart)
        for name in users:
            apart = known[uid].user_millis.get(name) if uid in known else None
            if apart is None:
                return None
            farthest = max(farthest, apart)
        return farthest

    return distance if names or users else nowhere


def _way_up(uid: str, known: Mapping[str, ClusterRecord]) -> dict[str, float | None]:
    """Every cluster from ``uid`` to the top, with how far it is; None from where a link was not measured."""
    way: dict[str, float | None] = {uid: 0.0}
    far: float | None = 0.0
    while (cluster := known.get(uid)) is not None and cluster.parent and cluster.parent not in way and cluster.parent in known:
        far = far + cluster.rtt_millis if far is not None and cluster.rtt_millis is not None else None
        uid = cluster.parent
        way[uid] = far
    return way


def _apart(uid: str, way: Mapping[str, float | None] | None, known: Mapping[str, ClusterRecord]) -> float | None:
    up = _way_up(uid, known)
    if way is None:
        return list(up.values())[-1]
    for step, far in up.items():
        if step in way:
            there = way[step]
            return far + there if far is not None and there is not None else None
    return None


def score(
    demand: Demand, component: ComponentDemand, cluster: ClusterRecord, *, wish: int, millis: float | None, room: int
) -> Score:  # fmt: skip
    """For people: every part of the judgement; the first replica's cost."""
    objective = demand.objective or Objective()
    nodes = [node_cost(component, node) for node in cluster.nodes if node_matches(component, node) and fit(component.request, node)]
    hourly = cluster_cost(component, cluster) + min(nodes, default=0)
    return Score(
        preference=wish,
        hourly_micros=hourly,
        latency_millis=millis,
        present=bool(component.model) and component.model in cluster.models,
        cost=cost(objective, hourly, millis),
        room=room,
    )
