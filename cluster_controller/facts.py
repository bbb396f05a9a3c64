"""What a cluster says of itself: nodes by class with what is free on them, sums, versions. Computed from committed state.

Free is allocatable minus what Works ask for here, not what is measured: a request is a promise, a measurement is a moment.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from cluster_controller.documents import Documents, decode
from cluster_controller.placement.model import EMPTY_MILLIS, Request
from cluster_controller.placement.records import model_digest, request
from cluster_controller.reconcile.observe import charge, node_classes
from cluster_controller.resources import kinds
from cluster_controller.resources.registry import LABEL_APPLICATION_UID, LABEL_COMPONENT
from cluster_controller.store import Key, Store
from cluster_controller.sync.conflicts import undecided
from cluster_shim.contract import Description, Node

MAX_MODELS = 50
MAX_REPLICA_CLASSES = 20  # of the lowest priorities: those that could give way
MAX_TROUBLE = 1000  # characters of why a shim is lost: every controller above keeps them


Replicas = tuple[tuple[int, Request, int, str], ...]  # priority, what one asks for, how many, of which component


class Requested:
    """What all Works of the own cluster ask for. Each Work's part is added up once for as long as the Work stays what it is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._documents = Documents(store.get)
        self._parts: dict[Key, tuple[bytes, Request, Replicas]] = {}

    def replicas(self) -> list[kinds.ReplicaClass]:
        """What `sums` added up last, by priority and size: the lowest first, the largest number of them first."""
        found: dict[tuple[object, ...], kinds.ReplicaClass] = {}
        for _, _, replicas in self._parts.values():
            for priority, asked, count, _ in replicas:
                key = (priority, asked.cpu_millis, asked.memory_bytes, *sorted(asked.accelerators.items()))
                before = found.get(key)
                if before is None:
                    each = kinds.ResourceSums(
                        cpu_millis=asked.cpu_millis, memory_bytes=asked.memory_bytes, accelerators=dict(asked.accelerators)
                    )
                    before = kinds.ReplicaClass(priority=priority, each=each)
                found[key] = msgspec.structs.replace(before, count=before.count + count)
        classes = sorted(found.values(), key=lambda each: (each.priority, -each.count, each.each.cpu_millis, each.each.memory_bytes))
        return classes[:MAX_REPLICA_CLASSES]

    def parts(self) -> Iterable[tuple[kinds.ResourceSums, int, Mapping[str, int]]]:
        """Of what `sums` added up last, per component: what one asks for, how many there are, and on which nodes they are seen."""
        where: dict[tuple[str, str], dict[str, int]] = {}
        for stored in self._store.list("observed", "Pod"):
            pod = self._documents.read(stored, kinds.Pod)
            whose = (pod.metadata.labels.get(LABEL_APPLICATION_UID, ""), pod.metadata.labels.get(LABEL_COMPONENT, ""))
            on = where.setdefault(whose, {})
            on[pod.spec.node_name] = on.get(pod.spec.node_name, 0) + 1
        for key, (_, _, replicas) in self._parts.items():
            for _, asked, count, component in replicas:
                each = kinds.ResourceSums(
                    cpu_millis=asked.cpu_millis, memory_bytes=asked.memory_bytes, accelerators=dict(asked.accelerators)
                )
                yield each, count, where.get((key.name, component), {})

    def sums(self) -> kinds.ResourceSums:
        cpu = memory = 0
        accelerators: dict[str, int] = {}
        parts: dict[Key, tuple[bytes, Request, Replicas]] = {}
        for stored in self._store.scan("local"):
            if stored.key.kind != "Work":
                continue
            part = self._parts.get(stored.key)
            if part is None or part[0] is not stored.document:
                spec = decode(stored.document, kinds.Work).spec
                part = (stored.document, _asked(spec.components), _replicas(spec))
            parts[stored.key] = part
            cpu += part[1].cpu_millis
            memory += part[1].memory_bytes
            for name, count in part[1].accelerators.items():
                accelerators[name] = accelerators.get(name, 0) + count
        self._parts = parts
        return kinds.ResourceSums(cpu_millis=cpu, memory_bytes=memory, accelerators=accelerators)


def _replicas(spec: kinds.WorkSpec) -> Replicas:
    asked = ((spec.priority, request(component.resources), component.replicas, component.name) for component in spec.components)
    return tuple(one for one in asked if one[1] and one[2])


def _asked(components: Sequence[kinds.Component]) -> Request:
    """All replicas of all components of one Work together."""
    cpu = memory = 0
    accelerators: dict[str, int] = {}
    for component in components:
        asked = request(component.resources)
        cpu += asked.cpu_millis * component.replicas
        memory += asked.memory_bytes * component.replicas
        for name, count in asked.accelerators.items():
            accelerators[name] = accelerators.get(name, 0) + count * component.replicas
    return Request(cpu_millis=cpu, memory_bytes=memory, accelerators=accelerators)


class Present:
    """Which versions of the Models known here have all their files here: those that cost no transfer."""

    def __init__(self, store: Store, missing: Callable[[Iterable[str]], Sequence[str]]) -> None:
        self._store = store
        self._missing = missing
        self._documents = Documents(store.get)

    def models(self) -> list[kinds.ModelPresence]:
        """At most `MAX_MODELS`, by name and version: every controller above keeps them."""
        found: set[tuple[str, str, str]] = set()
        for stored in (*self._store.list("own", "Model"), *self._store.list("desired", "Model")):
            model = self._documents.read(stored, kinds.Model)
            for version in model.spec.versions:
                if version.files and not self._missing(file.sha256 for file in version.files):
                    found.add((model.metadata.name, version.name, model_digest(version)))
        listed = sorted(found)[:MAX_MODELS]
        return [kinds.ModelPresence(name=name, version=version, digest=digest) for name, version, digest in listed]


def cluster_facts(
    store: Store,
    requested_by: Requested,
    *,
    nodes: Sequence[Node],
    description: Description | None,
    version: str,
    authority: str = "",
    labels: Mapping[str, str],
    can_parent: bool,
    shim_trouble: str = "",
    models: Sequence[kinds.ModelPresence] = (),
    parent_rtt_millis: float | None = None,
    user_rtt_millis: Mapping[str, float] = EMPTY_MILLIS,
) -> kinds.ClusterFacts:
    requested = requested_by.sums()
    by_node = {node.name: requested for node in nodes} if len(nodes) <= 1 else charge(nodes, requested_by.parts())
    return kinds.ClusterFacts(
        version=version,
        understands=[kinds.OVERRIDES, kinds.MOVES],
        authority=authority,
        shim=description.kind if description is not None else "",
        component_kinds=list(description.component_kinds) if description is not None else [],
        shim_trouble=shim_trouble[:MAX_TROUBLE],
        labels=dict(labels),
        can_parent=can_parent,
        nodes=len(nodes),
        nodes_ready=sum(1 for node in nodes if node.ready),
        node_classes=node_classes(nodes, by_node),
        capacity=kinds.ResourceSums(
            cpu_millis=sum(node.cpu_millis for node in nodes),
            memory_bytes=sum(node.memory_bytes for node in nodes),
            accelerators=_accelerators(nodes),
        ),
        allocatable=kinds.ResourceSums(
            cpu_millis=sum(node.allocatable_cpu_millis for node in nodes),
            memory_bytes=sum(node.allocatable_memory_bytes for node in nodes),
            accelerators=_accelerators(nodes),
        ),
        requested=requested,
        replicas=requested_by.replicas(),
        architectures=sorted({node.architecture for node in nodes}),
        models=list(models),
        parent_rtt_millis=parent_rtt_millis,
        user_rtt_millis=dict(user_rtt_millis),
        applications=store.size("local"),
        instances=len(store.list("observed", "Pod")),
        conflicts=len(undecided(store, "desired")),
    )


def _accelerators(nodes: Sequence[Node]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        for name, count in node.accelerators.items():
            counts[name] = counts.get(name, 0) + count
    return counts
