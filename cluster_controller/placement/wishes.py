"""What an application demands of the places where it runs, beyond what it may do there: neighbours, distance, places to be spread over.

Pure. As in Kubernetes these are asked when something is placed; what runs already stays when they cease to hold.
"""

from cluster_controller.placement.bins import Around, weight_of
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Neighbour, Objective, Refusal
from cluster_controller.placement.score import near


def refuse_wishes(demand: Demand, component: ComponentDemand, cluster: ClusterRecord, around: Around) -> Refusal | None:
    """The first demand that ``cluster`` does not meet; None when it meets all."""

    def no(name: str, message: str, remedy: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message, remedy=remedy)

    for each in demand.neighbours:
        if each.weight == 0 and near(each.where, each.topology, cluster, around.labels) == each.apart:
            return no(*_neighbour(each, cluster))
    for spread in demand.spread:
        if spread.hard and spread.topology and spread.topology not in cluster.labels:
            message = f"has no label {spread.topology}, over which placement.spread spreads"
            return no("SpreadLabel", message, f"kubectl label cluster {cluster.name} {spread.topology}=VALUE")
    if demand.objective is not None and demand.objective.within_millis:
        return _distance(demand.objective, component, cluster, around)
    return None


def _neighbour(each: Neighbour, cluster: ClusterRecord) -> tuple[str, str, str]:
    """The filter, a sentence and a remedy."""
    place = f"{each.topology}={cluster.labels.get(each.topology, '')}" if each.topology else "there"
    if each.theirs:
        return "AntiAffinity", f"has application {each.name} {place}, which stays apart from this one", f"move one, or change {each.name}"
    if each.apart:
        return "AntiAffinity", f"has application {each.name} {place}, and the two stay apart", "move one, or change placement.antiAffinity"
    if not each.where:
        return "Affinity", f"is not where application {each.name} runs: it runs nowhere yet", f"deploy {each.name} first"
    return "Affinity", f"does not have application {each.name} {place}", f"place {each.name} there too, or change placement.affinity"


def _distance(objective: Objective, component: ComponentDemand, cluster: ClusterRecord, around: Around) -> Refusal | None:
    millis = around.distance(cluster.uid)
    if millis is not None and millis <= objective.within_millis:
        return None
    names = ", ".join((*objective.to, *(f"users {name}" for name in objective.users)))
    unmeasured = [name for name in objective.users if name not in cluster.user_millis]
    measure = f"name {unmeasured[0]} with an address in spec.users of cluster {cluster.name}" if unmeasured else ""
    found = "was not measured yet" if millis is None else f"is {millis:.0f} ms"
    return Refusal(
        cluster=cluster.uid,
        component=component.name,
        filter="Latency",
        message=f"is too far: the way to {names} {found}, at most {objective.within_millis} ms is allowed",
        remedy=measure
        or ("wait until its link was measured" if millis is None else "raise placement.latency.maxMillis, or add a nearer cluster"),
    )


def blocked_refusal(demand: Demand, component: ComponentDemand, cluster: ClusterRecord, why: str) -> Refusal:
    """Why a cluster with room takes no more, by a rule of the division."""

    def no(message: str, remedy: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=why, message=message, remedy=remedy)

    if why == "PerCluster":
        most = demand.dividing.most
        return no(f"has {most}, the most that one cluster may have", "raise placement.division.max, or add a cluster")
    if why == "Weight":
        zero = weight_of(demand.dividing.weights, cluster) == 0
        return no("has no weight: no entry of placement.division.weights matches it" if zero else "has its part", "give it a weight")
    spread = next(each for each in demand.spread if each.hard)
    word = spread.topology or "cluster"
    message = f"has room, and one more there would exceed maxSkew {spread.skew} over {word}: another {word} has too few and no room"
    return no(message, f"make room in the {word} that has fewest, raise maxSkew, or let whenUnsatisfiable be ScheduleAnyway")
