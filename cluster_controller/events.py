"""Events (core/v1): what happened to an object, for `kubectl describe` and `kubectl events`, written in the commit that did it.

The same reason and message about the same object is one Event with a count, as in Kubernetes. Bounded: beyond `KEPT` (and the few
that come between two looks) the ones heard of longest ago go, a block at a time.
"""

import hashlib
from collections import Counter
from enum import StrEnum
from typing import Literal

import msgspec

from cluster_controller.documents import decode, encode
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx

KEPT = 1000
BLOCK = 100
NAMESPACE = "default"  # of Events about objects that have none, as in Kubernetes
MESSAGE_LIMIT = 1024


class Reason(StrEnum):
    """What happens to clusters and Applications because something broke, came back, or somebody decided; one word each, for `--reason`."""

    LOST = "LinkLost"
    """Out of reach, with the hop that is broken. What runs there is taken to run on."""
    RETURNED = "Ready"
    """In reach again."""
    ADOPTED = "Adopted"
    """Under another parent for the time being."""
    HOME = "ReturnedHome"
    """Back under its own parent."""
    MOVED = "Moved"
    """A person gave it another parent."""
    REPLACED = "Replaced"
    """Others run what a silent cluster was to run."""
    REPLACEMENT_ENDED = "ReplacementEnded"
    """It is back, and what others ran for it ends."""
    VETOED = "Vetoed"
    """A site does not take what it was given."""
    NOT_IN_BACKUP = "NotInBackup"
    """It came in by its certificate; the backup that this controller was restored from does not know it."""
    DRILL_BEGAN = "DrillBegan"
    DRILL_ENDED = "DrillEnded"
    """With what was kept."""
    ROTATION_BEGAN = "RotationBegan"
    ROTATION_FINISHED = "RotationFinished"


_REASONS = frozenset(reason.value for reason in Reason)
WARNINGS = frozenset({Reason.LOST, Reason.ADOPTED, Reason.REPLACED, Reason.VETOED, Reason.NOT_IN_BACKUP})
dropped: Counter[str] = Counter()  # by namespace, for /metrics
happened: Counter[Reason] = Counter()  # what is of `Reason`, seen by this process; for /metrics


def record(
    tx: Tx,
    *,
    about: kinds.ObjectReference,
    kind: Literal["Normal", "Warning"],
    reason: str,
    message: str,
    component: str,
    timestamp: str,
) -> None:
    """Write or count one Event about an object. ``component`` is the room that saw it, ``timestamp`` the wall clock."""
    message = message[:MESSAGE_LIMIT]
    if reason in _REASONS:  # others are as many as there are shims: they have no series of their own
        happened[Reason(reason)] += 1
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
        kind="Warning" if reason in WARNINGS else "Normal",
        reason=reason.value,
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
