"""Events (core/v1): what happened to an object, for `kubectl describe` and `kubectl events`, written in the commit that did it.

The same reason and message about the same object is one Event with a count, as in Kubernetes. Bounded: beyond `KEPT` (and the few
that come between two looks) the ones heard of longest ago go, a block at a time.
"""

import hashlib
from collections import Counter
from typing import Literal

import msgspec

from cluster_controller.documents import decode, encode
from cluster_controller.resources import kinds
from cluster_controller.resources.reasons import OTHER, WARNINGS, Reason
from cluster_controller.store import Key, Tx

KEPT = 1000
BLOCK = 100
NAMESPACE = "default"  # of Events about objects that have none, as in Kubernetes
MESSAGE_LIMIT = 1024


_REASONS = frozenset(reason.value for reason in Reason)
dropped: Counter[str] = Counter()  # by namespace, for /metrics
happened: Counter[str] = Counter()  # by reason, or `OTHER`, since this process began; for /metrics


def record(
    tx: Tx,
    *,
    about: kinds.ObjectReference,
    reason: Reason,
    message: str,
    component: str,
    timestamp: str,
) -> None:
    """Write or count one Event about an object. ``component`` is the room that saw it, ``timestamp`` the wall clock."""
    kind: Literal["Normal", "Warning"] = "Warning" if reason in WARNINGS else "Normal"
    record_status(tx, about=about, kind=kind, reason=reason.value, message=message, component=component, timestamp=timestamp)


def record_status(
    tx: Tx,
    *,
    about: kinds.ObjectReference,
    kind: Literal["Normal", "Warning"],
    reason: str,
    message: str,
    component: str,
    timestamp: str,
) -> None:
    """The same with the word of a status, which may be one that somebody below has said, a shim perhaps."""
    message = message[:MESSAGE_LIMIT]
    happened[reason if reason in _REASONS else OTHER] += 1  # others are as many as there are shims: no series of their own
    digest = hashlib.sha256(f"{about.uid}\0{reason}\0{message}\0{kind}".encode()).hexdigest()[:16]
    key = Key("own", "Event", about.namespace or NAMESPACE, f"{about.name}.{digest}")
    stored = tx.get(key)
    if stored is not None:
        before = decode(stored.document, kinds.Event)
        tx.put(key, encode(msgspec.structs.replace(before, count=before.count + 1, last_timestamp=timestamp)), uid=stored.uid)
        return
    if digest[0] == "0":  # one new Event in sixteen looks whether there is room: counting is dearer than writing
        make_room(tx)
    event = kinds.Event(
        metadata=kinds.Metadata(name=key.name, namespace=key.namespace, uid=f"event-{digest}", creation_timestamp=timestamp),
        involved_object=about,
        reason=reason,
        message=message,
        source=kinds.EventSource(component=component),
        reporting_component=component,
        first_timestamp=timestamp,
        last_timestamp=timestamp,
        count=1,
        type=kind,
    )
    tx.put(key, encode(event), uid=event.metadata.uid)


def cluster(tx: Tx, name: str, uid: str, reason: Reason, message: str, *, component: str, timestamp: str) -> None:
    """One Event about a cluster, in the commit that makes it so."""
    record(
        tx,
        about=kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Cluster", name=name, uid=uid),
        reason=reason,
        message=message,
        component=component,
        timestamp=timestamp,
    )


def make_room(tx: Tx) -> None:
    """Drop a block of those heard of longest ago, and count them, once there are too many."""
    there = tx.list("own", "Event")
    if len(there) < KEPT:
        return
    there.sort(key=lambda stored: stored.revision)  # in the order in which they were heard of last; reading a thousand takes long
    for stored in there[:BLOCK]:
        tx.delete(stored.key)
        dropped[stored.key.namespace] += 1


__all__ = ["KEPT", "OTHER", "Reason", "cluster", "dropped", "happened", "make_room", "record", "record_status"]
