"""Translate documents into what placement decides with. Pure.

The documents are those of `resources.kinds`; `placement.model` stays free of them, so that the decision can be tested and
simulated without a single document.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from cluster_controller.errors import InvalidInput
from cluster_controller.placement.capacity import add, drain, positive
from cluster_controller.placement.model import (
    ClusterRecord,
    ComponentDemand,
    Demand,
    Dividing,
    NodeRecord,
    Objective,
    Preference,
    Request,
    Requirement,
    Resident,
    Spread,
    Taint,
    Toleration,
    Weight,
)
from cluster_controller.resources import kinds, quantity

EMPTY: Mapping[str, str] = MappingProxyType({})


def demand(
    application: str,
    components: Sequence[kinds.Component],
    placement: kinds.Placement,
    origin: bool = True,
    models: Mapping[str, str] = EMPTY,
) -> Demand:
    """What an Application's spec, or a Work's, asks this level to place; ``models`` has the digest per component that serves one."""
    names = tuple(placement.cluster_names) + ((placement.cluster_name,) if placement.cluster_name else ())
    return Demand(
        application=application,
        components=tuple(_component(component, placement, models.get(component.name, "")) for component in components),
        strategy=placement.strategy,
        selector=requirements(placement.cluster_selector),
        cluster_names=names,
        names_field="placement.clusterName" if placement.cluster_name and not placement.cluster_names else "placement.clusterNames",
        origin=origin,
        tolerations=tuple(
            Toleration(key=item.key, operator=item.operator, value=item.value, effect=item.effect, seconds=item.toleration_seconds)
            for item in placement.tolerations
        ),
        preferences=tuple(Preference(item.weight, requirements(item.selector)) for item in placement.affinity.clusters),
        spread=tuple(Spread(item.topology_key, item.max_skew, item.when_unsatisfiable == "DoNotSchedule") for item in placement.spread),
        dividing=dividing(placement.division),
        objective=objective(placement),
    )


def _component(component: kinds.Component, placement: kinds.Placement, model: str) -> ComponentDemand:
    return ComponentDemand(
        name=component.name,
        replicas=component.replicas,
        kind=component_kind(component),
        request=request(component.resources),
        node=placement.node_name,
        node_labels=placement.node_selector,
        architectures=(placement.architecture,) if placement.architecture else (),
        single=bool(component.command) and not component.takes_socket,
        model=model,
    )


def dividing(division: kinds.Division) -> Dividing:
    weights = tuple(Weight(each.weight, requirements(each.selector)) for each in division.weights)
    return Dividing(by=division.by, weights=weights, least=division.min, most=division.max)


def objective(placement: kinds.Placement) -> Objective | None:
    """None where neither cost nor distance decides anything."""
    latency = placement.latency
    if placement.division.by != "LowestCost" and latency is None:
        return None
    return Objective(
        cost=placement.cost.weight if placement.cost is not None else 1,
        latency=latency.weight if latency is not None else 0,
        to=tuple(latency.to) if latency is not None else (),
        users=tuple(latency.users) if latency is not None else (),
        within_millis=latency.max_millis if latency is not None else 0,
    )


def model_digest(version: kinds.ModelVersion) -> str:
    """The same wherever a version has the same files under the same names."""
    files = sorted((file.path, file.sha256) for file in version.files)
    return hashlib.sha256(msgspec.json.encode(files)).hexdigest()


def hourly_micros(labels: Mapping[str, str]) -> int:
    """What an hour costs by the label that says so, in millionths. What cannot be read is no price: labels of nodes are anybody's."""
    try:
        return quantity.micros(labels.get(kinds.HOURLY_COST, "0"))
    except InvalidInput:
        return 0


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
        parent=status.parent_uid,
        rtt_millis=facts.parent_rtt_millis,
        user_millis=facts.user_rtt_millis,
        hourly_micros=hourly_micros(status.labels or document.metadata.labels),
        models=frozenset(model.digest for model in facts.models if model.digest),
        residents=tuple(
            Resident(
                priority=each.priority,
                request=Request(each.each.cpu_millis, each.each.memory_bytes, dict(each.each.accelerators)),
                count=each.count,
            )
            for each in facts.replicas
        ),
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
            whole=Request(
                node_class.allocatable.cpu_millis, node_class.allocatable.memory_bytes, dict(node_class.allocatable.accelerators)
            ),
            hourly_micros=hourly_micros(node_class.labels),
        )
