"""Which clusters can take a component at all, and how many replicas fit, each refusal with its reason.

Pure. The order of the filters is the order in which a person would ask: is it meant, is it allowed, can it be reached,
can it run this kind of thing, does it fit.
"""

from collections.abc import Iterable, Mapping

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
    """True when some toleration covers the taint (Kubernetes: key, operator, value and effect)."""
    for toleration in tolerations:
        if toleration.effect and toleration.effect != taint.effect:
            continue
        if not toleration.key and toleration.operator == "Exists":
            return True
        if toleration.key == taint.key and (toleration.operator == "Exists" or toleration.value == taint.value):
            return True
    return False


def refuse(demand: Demand, component: ComponentDemand, cluster: ClusterRecord) -> Refusal | None:
    """The first reason why ``cluster`` may not hold ``component``, capacity aside; None when it may."""

    def no(name: str, message: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message)

    if not cluster.runs_applications:
        return no("NoShim", "is a controller without a cluster of its own")
    if demand.cluster_names and cluster.name not in demand.cluster_names:
        return no("ClusterName", f"is not one of the named clusters {', '.join(demand.cluster_names)}")
    if not matches(demand.selector, cluster.labels):
        return no("ClusterSelector", f"labels do not match {describe(demand.selector, cluster.labels)}")
    if cluster.cordoned:
        return no("Cordoned", "is cordoned: takes nothing new until uncordoned")
    for taint in cluster.taints:
        if taint.effect != "PreferNoSchedule" and not tolerated(taint, demand.tolerations):
            name = "Taint" if taint.effect == "NoExecute" else "NoScheduleTaint"
            return no(name, f"has the taint {taint.key}={taint.value}:{taint.effect} that the application does not tolerate")
    if component.kind not in cluster.component_kinds:
        return no("ComponentKind", f"cannot run components of kind {component.kind}; it runs {', '.join(cluster.component_kinds)}")
    if not cluster.reachable:
        return no(
            "Unreachable",
            f"is out of reach{f' behind {cluster.broken_hop}' if cluster.broken_hop else ''}: gets nothing new until it is back",
        )
    return _refuse_nodes(component, cluster)


def _refuse_nodes(component: ComponentDemand, cluster: ClusterRecord) -> Refusal | None:
    def no(name: str, message: str) -> Refusal:
        return Refusal(cluster=cluster.uid, component=component.name, filter=name, message=message)

    nodes = [node for node in cluster.nodes if node.ready]
    if not nodes:
        return no("NoNode", "has no ready node")
    if component.node and not any(node.name == component.node for node in nodes):
        return no("NodeName", f"has no ready node named {component.node}")
    if component.node_labels and not any(node_matches(component, node) for node in nodes):
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(component.node_labels.items()))
        return no("NodeSelector", f"has no ready node with the labels {wanted}")
    if component.architectures and not any(node.architecture in component.architectures for node in nodes):
        have = ", ".join(sorted({node.architecture for node in nodes}))
        return no("Architecture", f"has {have}; the component needs {' or '.join(component.architectures)}")
    return None


def node_matches(component: ComponentDemand, node: NodeRecord) -> bool:
    """Whether the component may run on this node at all, room aside."""
    return (
        node.ready
        and (not component.node or node.name == component.node)
        and all(node.labels.get(key) == value for key, value in component.node_labels.items())
        and (not component.architectures or node.architecture in component.architectures)
    )


def room(component: ComponentDemand, cluster: ClusterRecord) -> int:
    """How many *more* replicas of ``component`` fit on the matching nodes of ``cluster``."""
    fitting = 0
    for node in cluster.nodes:
        if node_matches(component, node):
            fitting += node.count * fit(component.request, node)
    if component.single:
        fitting = min(fitting, max(0, 1 - cluster.running.get(component.name, 0)))
    return min(fitting, UNBOUNDED)


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
    """Says what is short where not one more replica fits."""
    nodes = [node for node in cluster.nodes if node_matches(component, node)]
    if component.single and cluster.running.get(component.name, 0) >= 1:
        message = "already runs its one replica: the command does not take a socket, so a site runs it once"
        return Refusal(cluster=cluster.uid, component=component.name, filter="OnePerCluster", message=message)
    parts = []
    request = component.request
    cpu = max((node.free_cpu_millis for node in nodes), default=0)
    memory = max((node.free_memory_bytes for node in nodes), default=0)
    if request.cpu_millis > cpu:
        parts.append(f"cpu: asks {request.cpu_millis}m, free {max(0, cpu)}m")
    if request.memory_bytes > memory:
        parts.append(f"memory: asks {_mebibytes(request.memory_bytes)}, free {_mebibytes(max(0, memory))}")
    for name, count in request.accelerators.items():
        free = max((node.free_accelerators.get(name, 0) for node in nodes), default=0)
        if count > free:
            parts.append(f"{name}: asks {count}, free {free}")
    message = "has no room: " + ("; ".join(parts) if parts else "no single node has all that one replica asks for")
    return Refusal(cluster=cluster.uid, component=component.name, filter="Capacity", message=message)


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:.0f}Mi"


def describe(selector: Iterable[Requirement], labels: Mapping[str, str]) -> str:
    """The requirements that do not hold, with what the cluster has instead."""
    parts = []
    for requirement in selector:
        if _holds(requirement, labels):
            continue
        have = labels.get(requirement.key)
        wanted = {
            "In": f"{requirement.key} in ({', '.join(requirement.values)})",
            "NotIn": f"{requirement.key} not in ({', '.join(requirement.values)})",
            "Exists": f"{requirement.key} exists",
            "DoesNotExist": f"{requirement.key} does not exist",
        }[requirement.operator]
        parts.append(f"{wanted} (has {have})" if have is not None else f"{wanted} (has none)")
    return "; ".join(parts)
