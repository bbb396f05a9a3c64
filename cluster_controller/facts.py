"""What a cluster says of itself: nodes by class with what is free on them, sums, versions. Computed from committed state.

Free is allocatable minus what Works ask for here, not what is measured: a request is a promise, a measurement is a moment.
"""

from collections.abc import Mapping, Sequence

from cluster_controller.documents import Documents
from cluster_controller.placement.records import request
from cluster_controller.reconcile.observe import node_classes
from cluster_controller.resources import kinds
from cluster_controller.store import Store
from cluster_controller.sync.conflicts import undecided
from cluster_shim.contract import Description, Node


def cluster_facts(
    store: Store,
    documents: Documents,
    *,
    nodes: Sequence[Node],
    description: Description | None,
    version: str,
    labels: Mapping[str, str],
    can_parent: bool,
) -> kinds.ClusterFacts:
    requested = requested_here(store, documents)
    # A Work names its node or means any; on a cluster of one node both are that node.
    by_node = {node.name: requested for node in nodes[:1]}
    return kinds.ClusterFacts(
        version=version,
        shim=description.kind if description is not None else "",
        component_kinds=list(description.component_kinds) if description is not None else [],
        labels=dict(labels),
        can_parent=can_parent,
        nodes=len(nodes),
        nodes_ready=sum(1 for node in nodes if node.ready),
        node_classes=node_classes(nodes, by_node),
        capacity=kinds.ResourceSums(
            cpu_millis=sum(node.cpu_millis for node in nodes), memory_bytes=sum(node.memory_bytes for node in nodes)
        ),
        allocatable=kinds.ResourceSums(
            cpu_millis=sum(node.allocatable_cpu_millis for node in nodes),
            memory_bytes=sum(node.allocatable_memory_bytes for node in nodes),
        ),
        requested=requested,
        architectures=sorted({node.architecture for node in nodes}),
        applications=len(store.list("local", "Work")),
        instances=len(store.list("observed", "Pod")),
        conflicts=len(undecided(store, "desired")),
    )


def requested_here(store: Store, documents: Documents) -> kinds.ResourceSums:
    """Sum over all Works of the own cluster."""
    cpu = memory = 0
    accelerators: dict[str, int] = {}
    for stored in store.list("local", "Work"):
        for component in documents.read(stored, kinds.Work).spec.components:
            asked = request(component.resources)
            cpu += asked.cpu_millis * component.replicas
            memory += asked.memory_bytes * component.replicas
            for name, count in asked.accelerators.items():
                accelerators[name] = accelerators.get(name, 0) + count * component.replicas
    return kinds.ResourceSums(cpu_millis=cpu, memory_bytes=memory, accelerators=accelerators)
