"""Tell a home parent, once it can be told, that a cluster which it does not hear lives: its words reach somebody above it.

A controller writes an object of kind Stray for each descendant that it hears by way of an adopter, into what it sends down the way to
that cluster's home, and takes it away again when it does not; each on the way passes it on. So a home that comes back, or was only cut off,
knows before it has heard its child itself that nothing of the child's share has to be replaced. Level-triggered like the other rooms.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from msgspec import Struct

from cluster_controller.documents import Documents, put_changed
from cluster_controller.resources import kinds
from cluster_controller.settling import Settler
from cluster_controller.store import Event, Key, Store, Tx

KIND = "Stray"
MOST_HOPS = 16


class Named(Struct, frozen=True):
    name: str


class Stray(Struct, frozen=True, kw_only=True):
    """``name``: uid of the cluster."""

    metadata: Named
    kind: str = KIND


class Astray:
    """``heard``: uids of the strays whose words come to this controller now."""

    heeds = (KIND, "Cluster")  # kinds of what `changed` is called for

    def __init__(self, store: Store, *, uid: str, heard: Callable[[], Collection[str]]) -> None:
        self._store = store
        self._uid = uid
        self._heard = heard
        self._documents = Documents(store.get)
        self._told: dict[str, set[str]] = {}  # cluster → direct children that were told of it
        self._settler = Settler(store, self.settle)

    def load(self) -> None:
        for space in self._store.spaces():
            if space.startswith("down/"):
                for stored in self._store.list(space, KIND):
                    self._told.setdefault(stored.key.name, set()).add(space.removeprefix("down/"))
        self._settler.mark_all({*self._told, *(stored.key.name for stored in self._store.list("desired", KIND))})

    def changed(self, events: Sequence[Event]) -> None:
        """Called after each commit; only marks."""
        for event in events:
            key = event.stored.key
            if key.kind == KIND and key.space == "desired":
                self._settler.mark(key.name)
            elif key.kind == "Cluster" and key.space == "own" and event.stored.uid in self._told:
                self._settler.mark(event.stored.uid)  # perhaps it stands elsewhere now

    def link_changed(self, uid: str) -> None:
        """Somebody is heard, or is not any more."""
        if uid in self._told or uid in self._heard():
            self._settler.mark(uid)

    async def run(self) -> None:
        await self._settler.run()

    def settle(self, tx: Tx, uid: str) -> None:
        known = uid in self._heard() or tx.get(Key("desired", KIND, "", uid)) is not None
        way = self._way(uid) if known else ""
        for child in sorted(self._told.pop(uid, set()) - {way}):
            tx.delete(Key(f"down/{child}", KIND, "", uid))
        if way and way != uid:
            put_changed(tx, Key(f"down/{way}", KIND, "", uid), Stray(metadata=Named(uid)), uid)
            self._told[uid] = {way}

    def _way(self, uid: str) -> str:
        """The direct child below which a cluster stands, or itself; "" when nobody knows."""
        for one in self._upwards(uid):
            stored = self._store.find("own", "Cluster", one)
            if stored is not None and self._documents.read(stored, kinds.Cluster).status.parent_uid == self._uid:
                return one
        return ""

    def _upwards(self, uid: str) -> Iterator[str]:
        for _ in range(MOST_HOPS):
            yield uid
            stored = self._store.find("own", "Cluster", uid)
            if stored is None:
                return
            uid = self._documents.read(stored, kinds.Cluster).status.parent_uid
