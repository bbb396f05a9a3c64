"""The clusters of this controller's subtree as placement decides with them: records, and through whom each is reached.

Read once and kept until a Cluster changes; one decision about one application then costs only what that application runs where.
"""

from collections.abc import Mapping, Sequence

import msgspec

from cluster_controller.documents import Documents
from cluster_controller.placement import records
from cluster_controller.placement.capacity import Capacity, Ledger, add, positive
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import Request
from cluster_controller.resources import kinds
from cluster_controller.resources.overriding import Place
from cluster_controller.store import Tx

Running = Mapping[str, Mapping[str, int]]  # cluster → component → replicas


class Subtree:
    """``ledger`` counts what this controller gave; of its own cluster that is exact, of others reports say it."""

    def __init__(self, uid: str, documents: Documents, ledger: Ledger) -> None:
        self._uid = uid
        self._documents = documents
        self._ledger = ledger
        self._clusters: list[tuple[kinds.Cluster, str]] | None = None
        self.names: dict[str, str] = {}  # of the clusters, by uid
        self.ways: dict[str, str] = {}  # and through whom they are reached
        self._pending: dict[str, Request] = {}  # what `pending` answered, but for targets of which something has changed
        self._stale: set[str] = set()  # those whose clusters say that something else is asked for there
        self._asked: dict[str, Request] = {}  # per target, what its clusters say that is asked for there
        self._parents: set[str] = set()  # who has others below it
        self._parent_of: dict[str, str] = {}
        self._places: dict[str, int] = {}  # where each stands in the list
        self._own: kinds.Cluster | None = None
        self._branches = False  # whether somebody holds back, or drains, a whole branch
        self._around: dict[str, list[Place]] = {}  # what `places` answered
        self._fleet = Fleet(())  # their records, without what any application runs there

    def forget(self) -> None:
        """A Cluster has changed: look again."""
        self._clusters = None
        self._around.clear()

    def changed(self, before: kinds.Cluster | None, after: kinds.Cluster | None) -> bool:
        """One Cluster has changed. True: it stands where it stood, and the others are as they were."""
        at = self._places.get(after.status.uid) if after is not None else None
        above = after is not None and after.status.uid in self._parents
        branches = self._branches or (after is not None and above and _for_branch(after))  # what others below it are, depends on it
        if branches or self._clusters is None or before is None or after is None or at is None or _place(before) != _place(after):
            self.forget()
            if before is None or after is None or _place(before) != _place(after):
                return False
            return not above or _for_others(before) == _for_others(after)
        via = self._clusters[at][1]
        self._clusters[at] = (after, via)
        self._around.pop(via, None)
        self._fleet.update(records.cluster(after, via, {}))
        if after.status.uid == self._uid:
            self._own = after
        if records.asked(before) != records.asked(after):
            self._asked[via] = add(add(self._asked[via], records.asked(before), -1), records.asked(after))
            self._stale.add(via)
        return True

    def known(self, tx: Tx) -> list[tuple[kinds.Cluster, str]]:
        """Every cluster of the subtree with the uid of the direct child (or self) through which it is reached."""
        if self._clusters is None:
            documents = [self._documents.read(stored, kinds.Cluster) for stored in tx.list("own", "Cluster")]
            self._parents = {document.status.parent_uid for document in documents}
            self._branches = any(_for_branch(document) for document in documents if document.status.uid in self._parents)
            documents = strictest(documents) if self._branches else documents
            parents = self._parent_of = {document.status.uid: document.status.parent_uid for document in documents}
            ways = ((document, _via(document.status.uid, parents, self._uid)) for document in documents)
            self._clusters = [(document, via) for document, via in ways if via]
            self._places = {document.status.uid: at for at, (document, _) in enumerate(self._clusters)}
            self.names = {document.status.uid: document.metadata.name for document, _ in self._clusters}
            self.ways = {document.status.uid: via for document, via in self._clusters}
            self._fleet = Fleet(records.cluster(document, via, {}) for document, via in self._clusters)
            self._own = next((document for document, _ in self._clusters if document.status.uid == self._uid), None)
            self._asked = {}
            for document, via in self._clusters:
                self._asked[via] = add(self._asked.get(via, Request()), records.asked(document))
            self._pending.clear()
            self._stale.update(self._asked)
        return self._clusters

    def asked(self, tx: Tx) -> Mapping[str, Request]:
        """Per target, what its clusters say that is asked for there."""
        self.known(tx)
        return self._asked

    def pending(self, tx: Tx) -> Mapping[str, Request]:
        """Per target below, what it was given by this controller and what no cluster there has counted as asked for yet."""
        self.known(tx)
        stale = (self._stale | self._ledger.changed) & self._asked.keys()
        for target in stale:
            left = positive(add(self._ledger.total(target), self._asked[target], -1))
            if left and target != self._uid:
                self._pending[target] = left
            else:
                self._pending.pop(target, None)
        self._stale.clear()
        self._ledger.changed.clear()
        return self._pending

    def records(self, tx: Tx, running: Running) -> Fleet:
        """Of every cluster, with what one application runs there."""
        self.known(tx)
        changed = {}
        for uid, runs in running.items():
            base = self._fleet.get(uid)
            if base is not None and runs:
                changed[uid] = msgspec.structs.replace(base, running=dict(runs))
        if self._own is not None:
            changed[self._uid] = records.own(self._own, running.get(self._uid, {}), self._ledger.total(self._uid))
        return self._fleet.view(changed)

    def capacity(self) -> Capacity | None:
        """Of the own cluster; None while it is not known, or its controller cannot use it."""
        facts = self._own.status.facts if self._own is not None else None
        if facts is None or not facts.node_classes or facts.shim_trouble:
            return None
        whole = ready = Request()
        for each in facts.node_classes:
            one = Request(each.allocatable.cpu_millis, each.allocatable.memory_bytes, dict(each.allocatable.accelerators))
            whole, ready = add(whole, one, each.count), add(ready, one, each.ready)
        return Capacity(whole, ready)

    def labels(self, tx: Tx, target: str) -> tuple[Mapping[str, str], ...]:
        """Of a target, and of every cluster that is reached through it."""
        return tuple(document.status.labels for document, via in self.known(tx) if via == target)

    def places(self, tx: Tx, target: str) -> list[Place]:
        """A target, and every cluster that is reached through it, as overrides are chosen for them."""
        known = self.known(tx)
        places = self._around.get(target)
        if places is None:
            places = self._around[target] = [_as_place(document) for document, via in known if via == target]
        return places

    def uids(self, tx: Tx) -> dict[str, str]:
        """Of every cluster, by the name that it has here."""
        self.known(tx)
        return {name: uid for uid, name in self.names.items()}

    def way(self, tx: Tx, uid: str) -> str:
        """Through whom a cluster is reached; "" when nobody knows."""
        self.known(tx)
        return self.ways.get(uid, "")

    def above(self, tx: Tx, uid: str) -> frozenset[str]:
        """Those above a cluster, as far as they are known here."""
        self.known(tx)
        found: list[str] = []
        while (uid := self._parent_of.get(uid, "")) and uid not in found:
            found.append(uid)
        return frozenset(found)

    def name(self, tx: Tx, target: str) -> str:
        self.known(tx)
        return self.names.get(target, target)


def strictest(documents: Sequence[kinds.Cluster]) -> list[kinds.Cluster]:
    """The same clusters, with what those above each hold for the whole branch: a cordon, and a drain. Other taints are a cluster's own.

    Pure. Whoever cannot be followed up to the deciding controller has what those on the known part of the way hold.
    """
    by_uid = {document.status.uid: document for document in documents}
    return [_under(document, by_uid) for document in documents]


def _under(document: kinds.Cluster, by_uid: Mapping[str, kinds.Cluster]) -> kinds.Cluster:
    status = document.status
    taints = list(status.taints)
    cordoned, parent = status.unschedulable, status.parent_uid
    for _ in by_uid:
        above = by_uid.get(parent)
        if above is None:
            break
        cordoned |= above.status.unschedulable
        taints += [taint for taint in _drains(above) if taint not in taints]
        parent = above.status.parent_uid
    if (cordoned, taints) == (status.unschedulable, status.taints):
        return document
    return msgspec.structs.replace(document, status=msgspec.structs.replace(status, unschedulable=cordoned, taints=taints))


def _as_place(document: kinds.Cluster) -> Place:
    status = document.status
    facts = status.facts
    return Place(
        uid=status.uid,
        name=document.metadata.name,
        labels=status.labels or document.metadata.labels,
        aware=kinds.OVERRIDES in facts.understands,
        runs=bool(facts.shim or facts.shim_trouble),
    )


def _for_others(cluster: kinds.Cluster) -> tuple[object, ...]:
    """What others below it may take depends on."""
    return cluster.status.unschedulable, _drains(cluster)


def _for_branch(document: kinds.Cluster) -> bool:
    return document.status.unschedulable or bool(_drains(document))


def _drains(document: kinds.Cluster) -> list[kinds.Taint]:
    return [taint for taint in document.status.taints if taint.key == kinds.DRAIN]


def _place(cluster: kinds.Cluster) -> tuple[str, str, str]:
    """What makes it this cluster, here."""
    return cluster.status.uid, cluster.status.parent_uid, cluster.metadata.name


def _via(uid: str, parents: Mapping[str, str], me: str) -> str:
    """Walk up until the parent is this controller; "" when the chain does not lead here (a cycle, an orphan)."""
    if uid == me:
        return me
    for _ in range(len(parents)):
        parent = parents.get(uid, "")
        if parent == me:
            return uid
        if not parent:
            return ""
        uid = parent
    return ""


def placing_facts(cluster: kinds.Cluster) -> tuple[object, ...]:
    """What decides where things may go, but for how much is free at the moment."""
    status = cluster.status
    classes = [
        (item.architecture, item.count, item.ready, item.allocatable, tuple(sorted(item.labels.items())), tuple(item.names))
        for item in status.facts.node_classes
    ]
    return (
        status.phase,
        status.parent_uid,
        status.labels,
        status.taints,
        status.unschedulable,
        status.facts.shim,
        status.facts.understands,
        status.facts.component_kinds,
        status.facts.shim_trouble,
        status.facts.models,
        classes,
        cluster.metadata.name,
    )


def distances(cluster: kinds.Cluster) -> tuple[object, ...]:
    """What is measured anew all the time, and only counts for what is placed by latency."""
    return cluster.status.facts.parent_rtt_millis, cluster.status.facts.user_rtt_millis
