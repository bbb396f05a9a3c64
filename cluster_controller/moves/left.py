"""Who still lists a cluster that has left it: a parent that was set back, by a backup, to before the move.

The move has ended, so nobody would tell it again. Whoever hears two of its children speak of one cluster, or has a child that another
one speaks of, knows better by what the cluster signed: its attach says where it is now. Reads the store; tells nobody by itself.

Invariant: nobody is named as the old parent while the cluster is only carried by another, is silent, or is on its way.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from cluster_controller.documents import decode
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store
from cluster_controller.tree import records
from cluster_controller.tunnel.messages import AttachRecord

KIND = "ClusterStatus"
OPEN_SECONDS = 120.0  # for which the share of a child that seems to have left is not given to others, at most
PAUSES = (10.0, 600.0)  # seconds for which it must be certain before somebody is told, and told again


class Elsewhere(Struct, frozen=True):
    """``old`` lists it, ``parent`` has it; ``attach``: that of the cluster there."""

    cluster: str
    old: str
    parent: str
    attach: int


class _Doubt(Struct, frozen=True):
    """``since``: on the caller's clock; None while nothing is certain. ``open``: nobody was told yet, and it is not too long ago that it
    was looked at first, at ``born``."""

    since: float | None = None
    open: bool = True
    born: float | None = None
    pause: float = PAUSES[0]


class Doubts:
    """Clusters of which several speak, and since when it is certain that one of them is wrong."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._doubts: dict[str, _Doubt] = {}

    def __bool__(self) -> bool:
        return bool(self._doubts)

    def load(self) -> None:
        """After a start: who was set back may be this very controller."""
        spaces = [space for space in self._store.spaces() if space.startswith("up/")]
        spoken = Counter(stored.key.name for space in spaces for stored in self._store.list(space, KIND))
        self._doubts = {uid: _Doubt() for uid in spoken if self._doubtful(uid, spoken[uid])}

    def changed(self, changes: Sequence[Event]) -> bool:
        """Is there one more? Only a first word about a cluster brings one."""
        more = False
        for event in changes:
            key = event.stored.key
            first = key.kind == KIND and key.space.startswith("up/") and event.previous is None
            if first and key.name not in self._doubts and self._doubtful(key.name, len(_speakers(self._store, key.name))):
                self._doubts[key.name] = _Doubt()
                more = True
        return more

    def own(self) -> list[str]:
        """Children of this controller that seem to have left it: their share is not given to others before it is known what they took
        along. Only until that was asked for, once, and not for long."""
        return [uid for uid, doubt in self._doubts.items() if doubt.open and _listed(self._store, uid)]

    def ripe(self, now: float, judge: Callable[[str], Elsewhere | None]) -> list[Elsewhere]:
        """What has been certain for long enough, by ``judge``; each again ever more seldom, for as long as it is so."""
        result = []
        for uid, doubt in sorted(self._doubts.items()):
            if not self._doubtful(uid, len(_speakers(self._store, uid))):
                del self._doubts[uid]
                continue
            found = judge(uid)
            born = now if doubt.born is None else doubt.born
            certain = now if doubt.since is None else doubt.since
            since = certain if found is not None else None
            fresh = _Doubt(since, doubt.open and now - born < OPEN_SECONDS, born, doubt.pause)
            if found is not None and now - certain >= doubt.pause:
                fresh = _Doubt(now, False, born, min(2 * doubt.pause, PAUSES[1]))
                result.append(found)
            self._doubts[uid] = fresh
        return result

    def _doubtful(self, cluster: str, speakers: int) -> bool:
        """Do several speak of it, or does another child speak of one of this controller's own?"""
        others = speakers - (self._store.get(Key(f"up/{cluster}", KIND, "", cluster)) is not None)
        return speakers > 1 or (others > 0 and _listed(self._store, cluster))


def elsewhere(store: Store, me: str, cluster: str, route: AttachRecord | None, way: str | None) -> Elsewhere | None:
    """None: there is nothing to be told, or not yet. ``route`` is what the cluster signed, ``way`` the child by which it is reached."""
    stored = store.get(Key(f"up/{way}", KIND, "", cluster)) if way is not None else None
    if route is None or stored is None:
        return None
    said = decode(stored.document, kinds.ClusterStatus)
    parent = me if way == cluster else said.spec.parent
    if said.status.adopted_by or said.status.ready == "Unknown" or route.parent_uid != parent:
        return None
    if way != cluster and _listed(store, cluster):
        return Elsewhere(cluster, me, parent, route.attach)
    for space in _speakers(store, cluster):
        if space not in (f"up/{way}", f"up/{cluster}"):
            other = store.get(Key(space, KIND, "", cluster))
            old = decode(other.document, kinds.ClusterStatus).spec.parent if other is not None else ""
            if old not in ("", parent, me):
                return Elsewhere(cluster, old, parent, route.attach)
    return None


def _speakers(store: Store, cluster: str) -> list[str]:
    key = (KIND, "", cluster)
    return [space for space in store.spaces() if space.startswith("up/") and store.get(Key(space, *key)) is not None]


def _listed(store: Store, cluster: str) -> bool:
    record = records.member(store, cluster)
    return record is not None and record.state == "member" and not record.coming
