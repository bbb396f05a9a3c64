"""What is heard from below a silent child by way of adopters: clusters of its share that go on, and say so (`tree.away`).

They count: their replicas are ready, their rows are fresh, and `onUnreachable: Replace` leaves that part of the silent child's share
alone. Nothing is sent to them: they run on what their home gave them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from cluster_controller.documents import Documents
from cluster_controller.placement.aggregate import Stray, carried
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Tx


def space_of(uid: str) -> str:
    """Where the words of a stray are kept; as in `tree.away`."""
    return f"stray/{uid}"


class Carried:
    """``live``: uids of the strays that are heard now."""

    def __init__(self, store: Store, documents: Documents, live: Callable[[], Collection[str]]) -> None:
        self._store = store
        self._documents = documents
        self._live = live

    def below(self, tx: Tx, way: str, application: str) -> Sequence[Stray]:
        """What the strays whose place is below ``way``, a direct child by name, say of an application."""
        found = []
        for uid in sorted(self._live()):
            stored = tx.get(Key(space_of(uid), "WorkStatus", "", application))
            cluster = self._store.find("own", "Cluster", uid) if stored is not None else None
            if stored is None or cluster is None:
                continue
            path = self._documents.read(cluster, kinds.Cluster).status.path
            if path[:1] == [way]:
                found.append(Stray(path=tuple(path), status=self._documents.read(stored, kinds.WorkStatus).status))
        return found

    def ready(self, tx: Tx, way: str, application: str, components: Sequence[str]) -> Mapping[str, int]:
        """Replicas that are ready there, by component."""
        strays = self.below(tx, way, application)
        return {name: sum(item.ready for item in carried(name, strays)) for name in components} if strays else {}

    def applications(self, uid: str) -> list[str]:
        """Of which a stray says something."""
        return [stored.key.name for stored in self._store.list(space_of(uid), "WorkStatus")]
