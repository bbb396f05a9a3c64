"""The clusters of this controller's subtree as placement decides with them: records, and through whom each is reached.

Read once and kept until a Cluster changes; one decision about one application then costs only what that application runs where.
"""

from collections.abc import Mapping

import msgspec

from cluster_controller.documents import Documents
from cluster_controller.placement import records
from cluster_controller.placement.capacity import Ledger, add
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import Request
from cluster_controller.resources import kinds
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
        self._asked: dict[str, Request] = {}  # per target, what its clusters say that is asked for there
        self._own: kinds.Cluster | None = None
        self._fleet = Fleet(())  # their records, without what any application runs there

    def forget(self) -> None:
        """A Cluster has changed: look again."""
        self._clusters = None

    def known(self, tx: Tx) -> list[tuple[kinds.Cluster, str]]:
        """Every cluster of the subtree with the uid of the direct child (or self) through which it is reached."""
        if self._clusters is None:
            documents = [self._documents.read(stored, kinds.Cluster) for stored in tx.list("own", "Cluster")]
            parents = {document.status.uid: document.status.parent_uid for document in documents}
            ways = ((document, _via(document.status.uid, parents, self._uid)) for document in documents)
            self._clusters = [(document, via) for document, via in ways if via]
            self.names = {document.status.uid: document.metadata.name for document, _ in self._clusters}
            self.ways = {document.status.uid: via for document, via in self._clusters}
            self._fleet = Fleet(records.cluster(document, via, {}) for document, via in self._clusters)
            self._own = next((document for document, _ in self._clusters if document.status.uid == self._uid), None)
            self._asked = {}
            for document, via in self._clusters:
                self._asked[via] = add(self._asked.get(via, Request()), records.asked(document))
        return self._clusters

    def asked(self, tx: Tx) -> Mapping[str, Request]:
        """Per target, what its clusters say that is asked for there."""
        self.known(tx)
        return self._asked

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

    def labels(self, tx: Tx, target: str) -> tuple[Mapping[str, str], ...]:
        """Of a target, and of every cluster that is reached through it."""
        return tuple(document.status.labels for document, via in self.known(tx) if via == target)

    def name(self, tx: Tx, target: str) -> str:
        self.known(tx)
        return self.names.get(target, target)


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
        status.facts.component_kinds,
        status.facts.shim_trouble,
        status.facts.models,
        status.facts.parent_rtt_millis,
        classes,
        cluster.metadata.name,
    )
