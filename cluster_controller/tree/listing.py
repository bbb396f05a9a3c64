"""What membership writes into Cluster objects: that a member exists, and what was decided about it.

The census keeps the rest of a Cluster (facts, readiness, merged labels) and leaves the phases Pending, Held and Revoked to whoever
decided them. Only named fields of ``status`` are changed here, so neither writer undoes the other's.
"""

from typing import Any

import msgspec

from cluster_controller.documents import decode
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx
from cluster_controller.tree import records
from cluster_controller.tree.admission import Member
from cluster_controller.tree.known import Known

DECIDED = frozenset({"Pending", "Held", "Revoked"})


def key_of(tx: Tx, uid: str) -> Key | None:
    """Where the Cluster of ``uid`` stands; its object name may be an alias."""
    return next((stored.key for stored in tx.list(records.OWN, "Cluster") if stored.uid == uid), None)


def show(tx: Tx, member: Member, parent: tuple[str, str], phase: str, replaced: Member | None = None) -> None:
    """Write the member's Cluster when there is none, and the decided ``phase``; "Ready" only ends a decided one.

    ``parent`` is uid and name of this controller. A replaced member's labels, taints and cordon pass to its successor: they
    were set for the place, not for the machine.
    """
    key = key_of(tx, member.uid)
    if key is not None:
        _set_phase(tx, key, phase)
        return
    document: dict[str, Any] = {"spec": {}, "metadata": {}}
    before = tx.get(Key(records.OWN, "Cluster", "", replaced.name)) if replaced else None
    if before is not None and replaced is not None and before.uid == replaced.uid:
        document = msgspec.json.decode(before.document)
        tx.delete(before.key)
    fresh = kinds.Cluster(
        metadata=kinds.Metadata(name=member.name, uid=member.uid, creation_timestamp=member.joined, generation=1),
        status=kinds.ClusterState(
            uid=member.uid,
            parent=parent[1],
            parent_uid=parent[0],
            path=[member.name],
            phase=phase if phase in DECIDED else "Unknown",
            facts=kinds.ClusterFacts(labels=member.labels, can_parent=member.may_have_children),
            labels=member.labels,
            address=member.address,
            joined=member.joined,
        ),
    )
    built: dict[str, Any] = msgspec.to_builtins(fresh)
    built["spec"] = document.get("spec", {})
    for field in ("labels", "annotations"):
        if document.get("metadata", {}).get(field):
            built["metadata"][field] = document["metadata"][field]
    tx.put(Key(records.OWN, "Cluster", "", member.name), msgspec.json.encode(built), uid=member.uid)


def _set_phase(tx: Tx, key: Key, phase: str) -> None:
    stored = tx.get(key)
    if stored is None:
        return
    present = decode(stored.document, kinds.Cluster).status.phase
    if phase in DECIDED and present != phase:
        records.set_status(tx, key, phase=phase)
    elif phase not in DECIDED and present in DECIDED:
        records.set_status(tx, key, phase="Unknown")  # the census says Ready once it is


def forget(tx: Tx, member: Member) -> None:
    """Take a member that is gone out of sight: its Cluster, what it was to hold, and what it reported."""
    key = key_of(tx, member.uid)
    if key is not None:
        tx.delete(key)
    forget_share(tx, member)


def forget_share(tx: Tx, member: Member) -> None:
    """Only what it was to hold as a child, and what it reported as one."""
    for space in (f"down/{member.uid}", f"up/{member.uid}"):
        for stored in tx.scan(space):
            tx.delete(stored.key)


def alias(name: str, known: Known, before: kinds.ClusterState, now: str) -> list[kinds.Condition]:
    """Shown where a cluster could not be listed under its own name."""
    if name == known.name:
        return []
    since = next((item.last_transition_time for item in before.conditions if item.type == "NameConflict"), now)
    message = f"another cluster of this subtree is named {known.name}; here this one is listed as {name}"
    return [kinds.Condition(type="NameConflict", status="True", reason="NameTaken", message=message, last_transition_time=since)]
