"""Which clusters can take a component at all, and how many replicas fit, each refusal with its reason.

Pure. The order of the filters is the order in which a person would ask: is it meant, is it allowed, can it be reached,
can it run this kind of thing, does it fit.
"""

from collections.abc import Iterable, Mapping, Sequence

from cluster_controller.placement.model import (
    ClusterRecord,
    ComponentDemand,
    Demand,
    NodeRecord,
    Refusal,
    Request,
    Requirement,
    Taint,
    Toleration,
)

UNBOUNDED = 1_000_000
DRAIN = "banyan.dev/drain"  # key of the taint of a cluster that is being drained
FORCED = "force"  # and its value when what has no room elsewhere goes too
DRAINING = "Draining"
NAMED = 10  # clusters or nodes that one sentence lists
NOTHING = frozenset({"0", "0m", "0Mi"})


def matches(requirements: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    """Kubernetes label selector semantics: all requirements hold; NotIn also holds where the key is absent."""
    return all(_holds(requirement, labels) for requirement in requirements)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise ValueError(f"unknown selector operator {requirement.operator!r}")


def tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    """True when some toleration covers the taint for good (Kubernetes: key, operator, value and effect)."""
    for toleration in tolerations:
        if toleration.effect and toleration.effect != taint.effect:
            continue
        if taint.effect == "NoExecute" and toleration.seconds is not None:
            continue
        if not toleration.key and toleration.operator == "Exists":
            return True
        if toleration.key == taint.key and (toleration.operator == "Exists" or toleration.value == taint.value):
            return True
    return False


def grace(taint: Taint, tolerations: Iterable[Toleration]) -> float:
    """For how many seconds more a NoExecute taint is tolerated; the longest of all that cover it counts, and 0 when none does."""
    covering = (
        each.seconds
        for each in tolerations
        if each.seconds is not None and tolerated(taint, (Toleration(each.key, each.operator, each.value, each.effect),))
    )
    return max(0.0, max(covering, default=0) - taint.age)


def refuse(demand: Demand, component: ComponentDemand, cluster: ClusterRecord) -> Refusal | None:
    """The first reason why ``cluster`` may not hold ``component``, capacity aside; None when it may."""
    return refuse_unmeant(demand, component, cluster) or refuse_itself(demand, component, cluster)


def refuse_unmeant(demand: Demand, component: ComponentDemand, cluster: ClusterRecord) -> Refusal | None:
    """Why the application does not mean this cluster; None when it does."""

    def no(name: str, message: str, remedy: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message, remedy=remedy)

    name = cluster.name
    if not cluster.runs_applications:
        return _no_shim(component, cluster)
    if demand.cluster_names and name not in demand.cluster_names:
        return _not_named(demand, component, cluster)
    if not matches(demand.selector, cluster.labels):
        labels = " ".join(f"{item.key}={item.values[0]}" for item in _unmet(demand.selector, cluster.labels) if item.operator == "In")
        change = "change placement.clusterSelector"
        return no(
            "ClusterSelector",
            f"does not match placement.clusterSelector: {describe(demand.selector, cluster.labels)}",
            f"kubectl label cluster {name} {labels} --overwrite, or {change}" if labels else f"change the labels of {name}, or {change}",
        )
    return None


def refuse_itself(demand: Demand, component: ComponentDemand, cluster: ClusterRecord) -> Refusal | None:
    """Why the cluster as it is takes no such component. Of ``demand`` only tolerations and strategy are looked at: many ask the same."""

    def no(name: str, message: str, remedy: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message, remedy=remedy)

    name = cluster.name
    if not cluster.runs_applications:
        return _no_shim(component, cluster)
    away = _tainted(demand, component, cluster, "NoExecute")  # before a cordon: it takes away what runs, too
    if away is not None:
        return away
    if cluster.cordoned:
        return no("Cordoned", "is cordoned: takes nothing new until uncordoned", f"set spec.unschedulable of cluster {name} to false")
    kept_out = _tainted(demand, component, cluster, "NoSchedule")
    if kept_out is not None:
        return kept_out
    if cluster.shim_trouble and cluster.reachable:  # before its kinds and nodes: a shim that never answered has told of none
        return no(
            "ShimLost",
            f"has a cluster that its controller cannot use: {cluster.shim_trouble}",
            f"mend that at {name}; what runs there goes on",
        )
    if component.kind not in cluster.component_kinds:
        return no(
            "ComponentKind",
            f"cannot run components of kind {component.kind}; it runs {', '.join(cluster.component_kinds)}",
            f"choose clusters that run components of kind {component.kind}",
        )
    if cluster.carried:
        return no(
            "HomeAway",
            f"is heard by way of an adopter, and only its home can give it more, behind {cluster.broken_hop}: what runs there goes on",
            f"mend the link {cluster.broken_hop}, or give it another parent: banyan move {name} --parent NAME",
        )
    if not cluster.reachable:
        behind = f" behind {cluster.broken_hop}" if cluster.broken_hop else ""
        return no(
            "Unreachable",
            f"is out of reach{behind}: gets nothing new until it is back",
            f"mend the link {cluster.broken_hop}; what runs there goes on" if behind else f"look at {name}; what runs there goes on",
        )
    return _refuse_nodes(component, cluster)


def _tainted(demand: Demand, component: ComponentDemand, cluster: ClusterRecord, effect: str) -> Refusal | None:
    """The first taint of this effect that the application does not tolerate, or only for a while."""
    lacking = [taint for taint in cluster.taints if taint.effect == effect and not tolerated(taint, demand.tolerations)]
    if not lacking:
        return None
    if demand.strategy != "Duplicated" and all(taint.key == DRAIN and taint.value != FORCED for taint in lacking):
        return Refusal(
            cluster=cluster.uid,
            component=component.name,
            filter=DRAINING,
            message=f"is being drained (taint {DRAIN}): nothing new, and what runs goes where there is room",
            remedy=f"make room elsewhere; banyan cluster uncordon {cluster.name} takes it back",
        )
    taint = min(lacking, key=lambda taint: grace(taint, demand.tolerations))
    if grace(taint, demand.tolerations) > 0:
        return Refusal(
            cluster=cluster.uid,
            component=component.name,
            filter="TaintGrace",
            message=f"has the taint {taint.key}={taint.value}:NoExecute, tolerated for a while only: nothing new, and what runs goes then",
            remedy=f"remove the taint from cluster {cluster.name}, or tolerate it without tolerationSeconds",
        )
    return Refusal(
        cluster=cluster.uid,
        component=component.name,
        filter="Taint" if effect == "NoExecute" else "NoScheduleTaint",
        message=f"has the taint {taint.key}={taint.value}:{taint.effect} that the application does not tolerate",
        remedy=f"add a toleration for {taint.key} to placement.tolerations, or remove the taint from cluster {cluster.name}",
    )


def _no_shim(component: ComponentDemand, cluster: ClusterRecord) -> Refusal:
    message, remedy = "is a controller without a cluster of its own", f"place on its members, or start {cluster.name} with a shim"
    return Refusal(cluster=cluster.uid, component=component.name, filter="NoShim", message=message, remedy=remedy)


def _not_named(demand: Demand, component: ComponentDemand, cluster: ClusterRecord) -> Refusal:
    one = demand.names_field == "placement.clusterName"
    wanted = f"{demand.names_field} {'is' if one else 'are'} {', '.join(demand.cluster_names)}"
    remedy = f"set {demand.names_field} to {cluster.name}" if one else f"add {cluster.name} to {demand.names_field}"
    return Refusal(cluster=cluster.uid, component=component.name, filter="ClusterName", message=f"is not meant: {wanted}", remedy=remedy)


def unknown_names(demand: Demand, component: ComponentDemand, clusters: Iterable[ClusterRecord]) -> Refusal | None:
    """Clusters that are named and that nobody here knows. Further down other names than one's own are no mistake."""
    known = sorted(cluster.name for cluster in clusters if cluster.runs_applications)
    strange = [name for name in demand.cluster_names if name not in known]
    if not strange or not demand.origin:
        return None
    message = f"{demand.names_field} names {', '.join(strange)}, and this tree has no cluster of that name that runs applications"
    shown = ", ".join(known[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
    remedy = f"correct the name, or join the cluster; there {'is' if len(known) == 1 else 'are'} {shown or 'none yet'}"
    return Refusal(cluster="", component=component.name, filter="UnknownCluster", message=message, remedy=remedy)


def _refuse_nodes(component: ComponentDemand, cluster: ClusterRecord) -> Refusal | None:
    def no(name: str, message: str, remedy: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message, remedy=remedy)

    look = f"banyan --at {cluster.name} get nodes"
    nodes = [node for node in cluster.nodes if node.ready]
    if not nodes:
        return no("NoNode", f"has no ready node (of {sum(node.count for node in cluster.nodes)})", f"see what is wrong: {look}")
    if component.node and not any(node.name == component.node for node in nodes):
        named = [node.name for node in nodes if node.name]
        have = f"; ready {'is' if len(named) == 1 else 'are'} {', '.join(named[:NAMED])}" if named else ""
        return no("NodeName", f"has no ready node named {component.node}{have}", f"name a node that exists in placement.nodeName: {look}")
    if component.node_labels and not any(_node_labels_match(component, node) for node in nodes):
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(component.node_labels.items()))
        remedy = f"label a node of {cluster.name}, or change placement.nodeSelector; see {look} --show-labels"
        return no("NodeSelector", f"has no ready node with the labels {wanted}", remedy)
    if component.architectures and not any(node.architecture in component.architectures for node in nodes):
        have = ", ".join(sorted({node.architecture for node in nodes}))
        remedy = f"set placement.architecture to {have} if it runs there too, or add such a node to {cluster.name}"
        return no("Architecture", f"has {have}; placement.architecture is {' or '.join(component.architectures)}", remedy)
    if not any(node_matches(component, node) for node in nodes):
        message = "has no single ready node that meets placement.nodeName, nodeSelector and architecture together"
        return no("NodeSelector", message, f"ask for less of them; see {look} --show-labels")
    return None


def node_refusal(component: ComponentDemand, node: NodeRecord) -> tuple[str, str]:
    """The first filter that keeps the component off this node, and what goes on from the node's name; ("", "") when none does."""
    if not node.ready:
        return "NotReady", "is not ready"
    if component.node and node.name != component.node:
        return "NodeName", f"is not {component.node}"
    if not _node_labels_match(component, node):
        lacking = ", ".join(f"{key}={value}" for key, value in sorted(component.node_labels.items()) if node.labels.get(key) != value)
        return "NodeSelector", f"has no label {lacking}"
    if component.architectures and node.architecture not in component.architectures:
        return "Architecture", f"is {node.architecture}; asked is {' or '.join(component.architectures)}"
    if not fit(component.request, node):
        short = "; ".join(f"{name}: asks {asks}, free {free}" for name, asks, free in _short(component.request, [node]))
        return "Capacity", f"has no room: {short}"
    return "", ""


def _node_labels_match(component: ComponentDemand, node: NodeRecord) -> bool:
    return not component.node_labels or all(node.labels.get(key) == value for key, value in component.node_labels.items())


def node_matches(component: ComponentDemand, node: NodeRecord) -> bool:
    """Whether the component may run on this node at all, room aside."""
    return (
        node.ready
        and (not component.node or node.name == component.node)
        and _node_labels_match(component, node)
        and (not component.architectures or node.architecture in component.architectures)
    )


def room(component: ComponentDemand, cluster: ClusterRecord) -> int:
    """How many *more* replicas of ``component`` fit on the matching nodes of ``cluster``."""
    fits = fitting(component, cluster.nodes)
    return min(fits, max(0, 1 - cluster.running.get(component.name, 0))) if component.single else fits


def fitting(component: ComponentDemand, nodes: Iterable[NodeRecord]) -> int:
    """How many replicas fit on those of ``nodes`` on which it may run."""
    return min(UNBOUNDED, sum(node.count * fit(component.request, node) for node in nodes if node_matches(component, node)))


def fit(request: Request, node: NodeRecord) -> int:
    """How many replicas fit on one such node; UNBOUNDED when they ask for nothing."""
    fits = UNBOUNDED
    if request.cpu_millis:
        fits = min(fits, max(0, node.free_cpu_millis) // request.cpu_millis)
    if request.memory_bytes:
        fits = min(fits, max(0, node.free_memory_bytes) // request.memory_bytes)
    for name, count in request.accelerators.items():
        if count:
            fits = min(fits, max(0, node.free_accelerators.get(name, 0)) // count)
    return fits


def capacity_refusal(component: ComponentDemand, cluster: ClusterRecord) -> Refusal:
    """Says what is short where not one more replica fits, of how much there is, and what would help."""

    def no(name: str, message: str, remedy: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message, remedy=remedy)

    nodes = [node for node in cluster.nodes if node_matches(component, node)]
    if component.single and any(fit(component.request, node) for node in nodes):
        message = "has its one replica: the command does not take a socket, so a site runs it once"
        return no("OnePerCluster", message, "let the command take its socket (LISTEN_FDS, takesSocket: true), or ask for fewer replicas")
    short = _short(component.request, nodes)
    if not short:
        message = "has no room: no single node has all that one replica asks for"
        return no("Capacity", message, f"ask for less in resources, free something on {cluster.name}, or add a larger node")
    message = "has no room: " + "; ".join(f"{name}: asks {asks}, free {free}" for name, asks, free in short)
    lower = " and ".join(f"{name} to {free}" for name, _, free in short if free not in NOTHING)
    ask = f"lower resources.{lower}, free something on {cluster.name}" if lower else f"free something on {cluster.name}"
    return no("Capacity", message, f"{ask}, or add a node")


def _short(request: Request, nodes: Sequence[NodeRecord]) -> list[tuple[str, str, str]]:
    """Resource, what is asked, and what is free on the node that has most of it."""
    short: list[tuple[str, str, str]] = []
    cpu = max(0, max((node.free_cpu_millis for node in nodes), default=0))
    memory = max(0, max((node.free_memory_bytes for node in nodes), default=0))
    if request.cpu_millis > cpu:
        short.append(("cpu", f"{request.cpu_millis}m", f"{cpu}m"))
    if request.memory_bytes > memory:
        short.append(("memory", _mebibytes(request.memory_bytes), _mebibytes(memory)))
    for name, count in request.accelerators.items():
        free = max(0, max((node.free_accelerators.get(name, 0) for node in nodes), default=0))
        if count > free:
            short.append((name, str(count), str(free)))
    return short


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:.0f}Mi"


def _unmet(selector: Iterable[Requirement], labels: Mapping[str, str]) -> list[Requirement]:
    return [requirement for requirement in selector if not _holds(requirement, labels)]


def describe(selector: Iterable[Requirement], labels: Mapping[str, str]) -> str:
    """The requirements that do not hold, with what the cluster has instead."""
    parts = []
    for requirement in _unmet(selector, labels):
        key, values = requirement.key, ", ".join(requirement.values)
        wanted = {
            "In": f"{key}={values}" if len(requirement.values) == 1 else f"{key} in ({values})",
            "NotIn": f"{key} not in ({values})",
            "Exists": f"a label {key}",
            "DoesNotExist": f"no label {key}",
        }[requirement.operator]
        have = f"has {key}={labels[key]}" if key in labels else f"has no label {key}"
        parts.append(f"wants {wanted}, {have}")
    return "; ".join(parts)
