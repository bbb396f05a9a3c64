"""Free room that is used up while a decision is taken, so that nothing is promised twice.

Three things take room that no report shows yet: what other applications were given a moment ago, what this application was given
and has not been seen to run, and the components of this application that were placed before the next one. All three are taken off
the nodes here, before it is asked how much more fits. Pure.

Of the own cluster the room is exact: it is what its Works leave of it, in the same transaction. Of clusters below it is an estimate
(their own placement decides, and reports what it could not place).
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.placement.filters import fit, fitting, node_matches
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, NodeRecord, Placement, Request


class Space:
    """The clusters of one decision with what is left on their nodes. ``pending`` is taken off a target when it is first looked at."""

    def __init__(self, clusters: Iterable[ClusterRecord], pending: Mapping[str, Request] | None = None) -> None:
        self._fleet = clusters if isinstance(clusters, Fleet) else Fleet(clusters)
        self._left: dict[str, tuple[NodeRecord, ...]] = {}  # of clusters from which something was taken
        self._pending = {target: asked for target, asked in (pending or {}).items() if asked}
        self._rooms: dict[str, dict[str, tuple[object, object]]] = {}  # component → answers, while the decision lasts

    def of(self, uid: str) -> ClusterRecord | None:
        """The record with what is free on its nodes now."""
        cluster = self._fleet.get(uid)
        return self.now(cluster) if cluster is not None else None

    def behind(self, target: str) -> Sequence[ClusterRecord]:
        """The clusters that are reached through a target."""
        return self._fleet.behind(target)

    def name(self, uid: str) -> str:
        cluster = self._fleet.get(uid)
        return cluster.name if cluster is not None else uid

    def now(self, cluster: ClusterRecord) -> ClusterRecord:
        """The same record with what is free on its nodes now."""
        nodes = self._nodes(cluster)
        return cluster if nodes is cluster.nodes else msgspec.structs.replace(cluster, nodes=nodes)

    def _nodes(self, cluster: ClusterRecord) -> tuple[NodeRecord, ...]:
        if cluster.via in self._pending:
            self._drain_target(cluster.via, self._pending.pop(cluster.via))
        return self._left.get(cluster.uid, cluster.nodes)

    def _drain_target(self, target: str, asked: Request) -> None:
        behind = self._fleet.behind(target)
        about = (asked, tuple(record.nodes for record in behind))
        memo = self._fleet.memo("drained")
        before = memo.get(target)
        if before is not None and _same(before[0], about):
            self._left.update(before[1])  # type: ignore[call-overload]
            return
        self.drain(behind, asked)
        memo[target] = (about, {record.uid: self._left[record.uid] for record in behind})

    def room(self, component: ComponentDemand, cluster: ClusterRecord) -> int:
        nodes = self._nodes(cluster)
        memo = self._rooms.get(component.name)
        if memo is None:
            memo = self._rooms[component.name] = self._fleet.memo(_fit_question(component))
        found = memo.get(cluster.uid)
        if found is None or found[0] is not nodes:
            found = memo[cluster.uid] = (nodes, fitting(component, nodes))
        fits = found[1]
        assert isinstance(fits, int)
        return min(fits, max(0, 1 - cluster.running.get(component.name, 0))) if component.single else fits

    def occupy(self, component: ComponentDemand, clusters: Sequence[ClusterRecord], replicas: int) -> None:
        """``replicas`` more of ``component`` will run somewhere on ``clusters``: where most of them fit, first."""
        if not component.request or replicas <= 0:
            return
        order = clusters if len(clusters) == 1 else sorted(clusters, key=lambda cluster: (-self.room(component, cluster), cluster.name))
        for cluster in order:
            if replicas <= 0:
                return
            record = self.now(cluster)
            takes = min(replicas, self.room(component, record))
            self._left[cluster.uid] = occupied(record.nodes, component, takes)
            replicas -= takes

    def drain(self, clusters: Sequence[ClusterRecord], asked: Request) -> None:
        """``asked`` in all will be taken from ``clusters``, nobody knows from which of their nodes: from each in proportion."""
        records = [self.now(cluster) for cluster in clusters]
        drained = iter(drain([node for record in records for node in record.nodes], asked))
        for record in records:
            self._left[record.uid] = tuple(next(drained) for _ in record.nodes)


def _same(before: object, now: tuple[Request, tuple[tuple[NodeRecord, ...], ...]]) -> bool:
    """Whether it is about the very same objects."""
    assert isinstance(before, tuple)
    return before[0] is now[0] and len(before[1]) == len(now[1]) and all(one is other for one, other in zip(before[1], now[1], strict=True))


def _fit_question(component: ComponentDemand) -> tuple[object, ...]:
    """All that decides how many replicas fit on given nodes."""
    request = component.request
    return (
        request.cpu_millis,
        request.memory_bytes,
        tuple(sorted(request.accelerators.items())),
        component.node,
        tuple(sorted(component.node_labels.items())),
        component.architectures,
    )


def occupied(nodes: Sequence[NodeRecord], component: ComponentDemand, replicas: int) -> tuple[NodeRecord, ...]:
    """What is left of ``nodes`` when ``replicas`` of ``component`` were put on them, the emptiest first."""
    fits = [fit(component.request, node) if node_matches(component, node) else 0 for node in nodes]
    left = {index: [node] for index, node in enumerate(nodes)}
    for index in sorted(left, key=lambda index: -fits[index]):
        each, node = fits[index], nodes[index]
        takes = min(replicas, each * node.count)
        if takes <= 0:
            continue
        replicas -= takes
        full, rest = divmod(takes, each)
        parts = [(full, each), (1 if rest else 0, rest), (node.count - full - (1 if rest else 0), 0)]
        left[index] = [_less(node, component.request, held, count) for count, held in parts if count]
    return tuple(node for index in sorted(left) for node in left[index])


def _less(node: NodeRecord, request: Request, replicas: int, count: int) -> NodeRecord:
    return msgspec.structs.replace(
        node,
        count=count,
        free_cpu_millis=node.free_cpu_millis - request.cpu_millis * replicas,
        free_memory_bytes=node.free_memory_bytes - request.memory_bytes * replicas,
        free_accelerators={
            name: free - request.accelerators.get(name, 0) * replicas for name, free in node.free_accelerators.items()
        },
    )  # fmt: skip


def drain(nodes: Sequence[NodeRecord], asked: Request) -> list[NodeRecord]:
    """``nodes`` with ``asked`` taken off in proportion to what is free; rounded so that never too much is left."""
    ready = [node for node in nodes if node.ready]
    cpu = sum(max(0, node.free_cpu_millis) * node.count for node in ready)
    memory = sum(max(0, node.free_memory_bytes) * node.count for node in ready)
    pieces = {name: sum(max(0, node.free_accelerators.get(name, 0)) * node.count for node in ready) for name in asked.accelerators}
    return [
        msgspec.structs.replace(
            node,
            free_cpu_millis=_left(node.free_cpu_millis, cpu, asked.cpu_millis),
            free_memory_bytes=_left(node.free_memory_bytes, memory, asked.memory_bytes),
            free_accelerators={
                name: _left(free, pieces.get(name, 0), asked.accelerators.get(name, 0)) for name, free in node.free_accelerators.items()
            },
        )
        for node in nodes
    ]  # fmt: skip


def _left(free: int, total: int, asked: int) -> int:
    if asked <= 0 or free <= 0:
        return free
    return max(0, free - -(-asked * free // total)) if asked < total else 0


NOTHING = Request()


class Capacity(Struct, frozen=True):
    """What applications may use of a cluster: of all its nodes, and of those that are ready."""

    whole: Request
    ready: Request


class Ledger:
    """What was given to each target, all applications together: one sum per target.

    Kept up by settling one application at a time; a decision about one application reads sums, however many others there are.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Mapping[str, Request]] = {}  # application → target → what it asks for there
        self._sums: dict[str, Request] = {}
        self._reserved: dict[str, Mapping[str, Request]] = {}  # application → target → what it waits to be given there
        self.changed: set[str] = set()  # targets whose sum is another since somebody took them out of here

    def book(self, application: str, parts: Mapping[str, Request]) -> None:
        """All that ``application`` was given, per target; what was booked for it before is forgotten."""
        before = self._parts.pop(application, {})
        parts = {target: asked for target, asked in parts.items() if asked}
        if parts:
            self._parts[application] = parts
        if before == parts:
            return
        for target in {*before, *parts}:
            self.changed.add(target)
            whole = add(add(self._sums.pop(target, Request()), before.get(target, Request()), -1), parts.get(target, Request()))
            if whole:
                self._sums[target] = whole

    def reserve(self, application: str, parts: Mapping[str, Request]) -> bool:
        """What it will be given as soon as others have acknowledged lower shares; whether it was more before. Without this, two that move
        would both count on the same room."""
        before = self._reserved.pop(application, {})
        parts = {target: asked for target, asked in parts.items() if asked}
        if parts:
            self._reserved[application] = parts
        return any(target not in parts or positive(add(asked, parts[target], -1)) for target, asked in before.items())

    def reserved(self, application: str) -> dict[str, Request]:
        """Per target, what others will be given."""
        found: dict[str, Request] = {}
        for other, parts in self._reserved.items():
            for target, asked in parts.items() if other != application else ():
                found[target] = add(found.get(target, NOTHING), asked)
        return found

    def clear(self) -> None:
        self._parts.clear()
        self.changed.update(self._sums)
        self._sums.clear()
        self._reserved.clear()

    def total(self, target: str) -> Request:
        return self._sums.get(target, NOTHING)


def awaited(placement: Placement, components: Iterable[ComponentDemand], ways: Mapping[str, str]) -> dict[str, Request]:
    """Per target, what a decision foresees there beyond the share: it waits until others have acknowledged lower ones."""
    found: dict[str, Request] = {}
    for component in components:
        if not placement.waiting.get(component.name):
            continue
        foreseen: dict[str, int] = {}
        for uid, count in placement.plan.get(component.name, {}).items():
            way = ways.get(uid, uid)
            foreseen[way] = foreseen.get(way, 0) + count
        for target, count in foreseen.items():
            more = count - placement.shares.get(target, {}).get(component.name, 0)
            if more > 0:
                found[target] = add(found.get(target, NOTHING), component.request, more)
    return found


def add(one: Request, other: Request, times: int = 1) -> Request:
    """``one`` plus ``times`` the other; accelerators of which nothing is left are not listed."""
    names = {*one.accelerators, *other.accelerators}
    sums = {name: one.accelerators.get(name, 0) + times * other.accelerators.get(name, 0) for name in names}
    return Request(
        cpu_millis=one.cpu_millis + times * other.cpu_millis,
        memory_bytes=one.memory_bytes + times * other.memory_bytes,
        accelerators={name: count for name, count in sorted(sums.items()) if count},
    )


def positive(request: Request) -> Request:
    """Nothing below zero: what others use beyond what was given here does not make room."""
    return Request(
        cpu_millis=max(0, request.cpu_millis),
        memory_bytes=max(0, request.memory_bytes),
        accelerators={name: count for name, count in request.accelerators.items() if count > 0},
    )
