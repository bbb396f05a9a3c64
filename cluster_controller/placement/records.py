"""Translate documents into what placement decides with. Pure.

The documents are those of `resources.kinds`; `placement.model` stays free of them, so that the decision can be tested and
simulated without a single document.
"""

from collections.abc import Iterable, Mapping, Sequence

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


def demand(application: str, components: Sequence[kinds.Component], placement: kinds.Placement) -> Demand:
    """What an Application's spec, or a Work's, asks this level to place."""
    names = tuple(placement.cluster_names) + ((placement.cluster_name,) if placement.cluster_name else ())
    return Demand(
        application=application,
        components=tuple(_component(component, placement) for component in components),
        strategy=placement.strategy,
        selector=requirements(placement.cluster_selector),
        cluster_names=names,
        tolerations=tuple(
            Toleration(key=item.key, operator=item.operator, value=item.value, effect=item.effect) for item in placement.tolerations
        ),
    )


def _component(component: kinds.Component, placement: kinds.Placement) -> ComponentDemand:
    return ComponentDemand(
        name=component.name,
        replicas=component.replicas,
        kind="model" if component.model is not None else "command",
        request=request(component.resources),
        node=placement.node_name,
        node_labels=placement.node_selector,
        architectures=(placement.architecture,) if placement.architecture else (),
        single=component.model is None and not component.takes_socket,
    )


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
        runs_applications=bool(facts.shim),
        component_kinds=tuple(facts.component_kinds) or ("model", "command"),
        nodes=tuple(record for node_class in facts.node_classes for record in _nodes(node_class)),
        running=dict(running),
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
