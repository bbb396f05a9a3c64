"""Overlays: labels, taints and cordon that ancestors lay over a cluster, on their way down to it.

Each level adds its own to those that came from above and sends all of them on through the child that reports the cluster. Users that are
named for a controller are named for all below it, so that an address has to be written once.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from cluster_controller.documents import Documents, put_changed
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Stored, Tx


class Overlays:
    """``path``: the uids of those above, from the root down to here."""

    def __init__(self, uid: str, name: str, path: Callable[[], Sequence[str]], documents: Documents) -> None:
        self._uid = uid
        self._name = name
        self._above = path
        self._documents = documents
        self._laid: dict[str, set[Key]] = {}  # cluster → what was sent down for it

    def load(self, sent: Iterable[Stored]) -> list[str]:
        """Learn what was sent down; the clusters that it is about."""
        clusters = []
        for stored in sent:
            cluster = self._documents.read(stored, kinds.ClusterOverlay).spec.cluster
            self._laid.setdefault(cluster, set()).add(stored.key)
            clusters.append(cluster)
        return clusters

    def of(self, tx: Tx, uid: str, own: kinds.Cluster | None) -> list[kinds.ClusterOverlaySpec]:
        """This controller's, then those of its ancestors as they were sent down, the nearest first."""
        overlays: list[kinds.ClusterOverlaySpec] = []
        if own is not None and (own.metadata.labels or own.spec.taints or own.spec.unschedulable or own.spec.users):
            overlays.append(
                kinds.ClusterOverlaySpec(
                    cluster=uid,
                    set_by=self._name,
                    set_by_uid=self._uid,
                    labels=own.metadata.labels,
                    taints=own.spec.taints,
                    unschedulable=own.spec.unschedulable,
                    users=own.spec.users,
                )
            )
        sent = [self._documents.read(stored, kinds.ClusterOverlay).spec for stored in tx.list("desired", "ClusterOverlay")]
        distance = {ancestor: hops for hops, ancestor in enumerate(reversed(self._above()))}
        mine = [spec for spec in sent if spec.cluster == uid]
        mine.sort(key=lambda spec: (distance.get(spec.set_by_uid, len(distance)), spec.set_by_uid))
        return overlays + mine

    def inherited(
        self, overlays: Sequence[kinds.ClusterOverlaySpec], uid: str, here: Sequence[kinds.ClusterOverlaySpec]
    ) -> list[kinds.ClusterOverlaySpec]:
        """``overlays`` of a cluster below, with the users that those ``here``, of this controller itself, name."""
        found = {each.set_by_uid: each for each in overlays}
        for one in here:
            if not one.users:
                continue
            there = found.get(one.set_by_uid) or kinds.ClusterOverlaySpec(cluster=uid, set_by=one.set_by, set_by_uid=one.set_by_uid)
            named = {each.name for each in there.users}
            users = [*there.users, *(each for each in one.users if each.name not in named)]
            found[one.set_by_uid] = msgspec.structs.replace(there, users=users[: kinds.MOST_USERS])
        return list(found.values())

    def write(self, tx: Tx, uid: str, via: str, overlays: Sequence[kinds.ClusterOverlaySpec]) -> None:
        """Through the child that reports the cluster, and through no other."""
        space = f"down/{via}"
        wanted = {Key(space, "ClusterOverlay", "", f"{uid}.{overlay.set_by_uid}"): overlay for overlay in overlays}
        for key in self._laid.get(uid, set()) - set(wanted):
            tx.delete(key)
        for key, overlay in wanted.items():
            document = kinds.ClusterOverlay(metadata=kinds.Metadata(name=key.name, uid=key.name), spec=overlay)
            put_changed(tx, key, document, key.name)
        if wanted:
            self._laid[uid] = set(wanted)
        else:
            self._laid.pop(uid, None)

    def remove(self, tx: Tx, uid: str) -> None:
        for key in self._laid.pop(uid, ()):
            tx.delete(key)
