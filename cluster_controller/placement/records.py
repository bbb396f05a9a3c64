"""Translate documents into what placement decides with. Pure.

The documents are those of `resources.kinds`; `placement.model` stays free of them, so that the decision can be tested and
simulated without a single document.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cluster_controller.placement.capacity import add, drain, positive
from cluster_controller.placement.model import (
    ClusterRecord,
    ComponentDemand,
    Demand,
    NodeRecord,
    Request,
    Requirement,
    Taint,
    Toleration,
)
from cluster_controller.resources import kinds, quantity


def demand(application: str, components: Sequence[kinds.Component], placement: kinds.Placement, origin: bool = True) -> Demand:
    """What an Application's spec, or a Work's, asks this level to place."""
    names = tuple(placement.cluster_names) + ((placement.cluster_name,) if placement.cluster_name else ())
    return Demand(
        application=application,
        components=tuple(_component(component, placement) for component in components),
        strategy=placement.strategy,
        selector=requirements(placement.cluster_selector),
        cluster_names=names,
        names_field="placement.clusterName" if placement.cluster_name and not placement.cluster_names else "placement.clusterNames",
        origin=origin,
        tolerations=tuple(
            Toleration(key=item.key, operator=item.operator, value=item.value, effect=item.effect) for item in placement.tolerations
        ),
    )


def _component(component: kinds.Component, placement: kinds.Placement) -> ComponentDemand:
    return ComponentDemand(
        name=component.name,
        replicas=component.replicas,
        kind=component_kind(component),
        request=request(component.resources),
        node=placement.node_name,
        node_labels=placement.node_selector,
        architectures=(placement.architecture,) if placement.architecture else (),
        single=bool(component.command) and not component.takes_socket,
    )


def component_kind(component: kinds.Component) -> str:
    """As clusters say which ones they run; `contract.component_kind` is the same for what the shim is told."""
    if component.model is not None:
        return "model"
    if component.container is not None:
        return "container"
    if component.helm is not None:
        return "helm"
    return "manifests" if component.manifests else "command"


def request(resources: kinds.Resources) -> Request:
    """One replica's request in millicores and bytes."""
    return Request(
        cpu_millis=quantity.millis(resources.cpu) if resources.cpu != "" else 0,
        memory_bytes=quantity.units(resources.memory) if resources.memory != "" else 0,
        accelerators=dict(resources.accelerators),
    )


def requirements(selector: kinds.LabelSelector | None) -> tuple[Requirement, ...]:
    if selector is None:
        return ()
    equal = [Requirement(key=key, operator="In", values=(value,)) for key, value in sorted(selector.match_labels.items())]
    expressions = [Requirement(key=item.key, operator=item.operator, values=tuple(item.values)) for item in selector.match_expressions]
    return tuple(equal + expressions)


def cluster(document: kinds.Cluster, via: str, running: Mapping[str, int]) -> ClusterRecord:
    """The record of one cluster; ``running`` counts this application's replicas there, per component."""
    status = document.status
    facts = status.facts
    return ClusterRecord(
        uid=status.uid,
        name=document.metadata.name,
        via=via,
        labels=status.labels or document.metadata.labels,
        taints=tuple(Taint(key=taint.key, value=taint.value, effect=taint.effect) for taint in status.taints),
        cordoned=status.unschedulable,
        reachable=status.phase == "Ready",
        broken_hop=status.broken_hop,
        runs_applications=bool(facts.shim or facts.shim_trouble),
        shim_trouble=facts.shim_trouble,
        component_kinds=tuple(facts.component_kinds) or ("model", "command"),
        nodes=tuple(record for node_class in facts.node_classes for record in _nodes(node_class)),
        running=dict(running),
    )


def asked(document: kinds.Cluster) -> Request:
    """What Works ask for on a cluster, as it was counted there."""
    requested = document.status.facts.requested
    return Request(requested.cpu_millis, requested.memory_bytes, requested.accelerators)


def own(document: kinds.Cluster, running: Mapping[str, int], given: Request) -> ClusterRecord:
    """The record of the deciding controller's own cluster, with ``given``, what its Works ask for at this moment, taken off.

    What the cluster says of itself was counted a moment ago; two decisions in one commit would both take the same room.
    """
    record = cluster(document, document.status.uid, running)
    if len(record.nodes) == 1 and record.nodes[0].count == 1:
        nodes: Sequence[NodeRecord] = [_free(record.nodes[0], document.status.facts.node_classes[0].allocatable, given)]
    else:
        nodes = drain(record.nodes, positive(add(given, asked(document), -1)))
    return msgspec.structs.replace(record, nodes=tuple(nodes), own=True)


def _free(node: NodeRecord, allocatable: kinds.ResourceSums, asked: Request) -> NodeRecord:
    return msgspec.structs.replace(
        node,
        free_cpu_millis=max(0, allocatable.cpu_millis - asked.cpu_millis),
        free_memory_bytes=max(0, allocatable.memory_bytes - asked.memory_bytes),
        free_accelerators={name: max(0, count - asked.accelerators.get(name, 0)) for name, count in allocatable.accelerators.items()},
    )


def _nodes(node_class: kinds.NodeClass) -> Iterable[NodeRecord]:
    """A class is one record, unless its nodes are few enough to be named: then each named node can be asked for.

    Nodes that are not ready have no room: of an unnamed class only the ready ones count, of a named one they come first.
    """
    names = node_class.names if node_class.count <= len(node_class.names) else [""]
    for index, name in enumerate(names):
        yield NodeRecord(
            name=name,
            count=1 if name else node_class.ready,
            architecture=node_class.architecture,
            labels=node_class.labels,
            ready=index < node_class.ready,
            free_cpu_millis=node_class.free.cpu_millis,
            free_memory_bytes=node_class.free.memory_bytes,
            free_accelerators=node_class.free.accelerators,
        )
