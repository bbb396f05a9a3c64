"""What is heard from below a silent child by way of adopters: clusters of its share that go on, and say so (`tree.away`).

They count: their replicas are ready, their rows are fresh, and `onUnreachable: Replace` leaves that part of the silent child's share
alone. So it does where somebody above says that it hears the child itself (`tree.astray`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from cluster_controller.documents import Documents
from cluster_controller.placement.aggregate import Stray, carried
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Tx

STRAY = "Stray"  # from above, by uid: a cluster below here that is heard there by way of an adopter
MANY = 1_000_000  # more than any share


def space_of(uid: str) -> str:
    """Where the words of a stray are kept; as in `tree.away`."""
    return f"stray/{uid}"


class Carried:
    """``live``: uids of the strays that are heard now."""

    def __init__(self, store: Store, documents: Documents, live: Callable[[], Collection[str]]) -> None:
        self._store = store
        self._documents = documents
        self._live = live
        self._came: dict[str, int] = {}  # direct child → revision at which it was in reach last

    def below(self, tx: Tx, way: str, application: str) -> Sequence[Stray]:
        """What the strays whose place is below ``way``, a direct child by name, say of an application."""
        found = []
        for uid in sorted(self._live()):
            stored = tx.get(Key(space_of(uid), "WorkStatus", "", application))
            cluster = tx.find("own", "Cluster", uid) if stored is not None else None
            if stored is None or cluster is None:
                continue
            path = self._documents.read(cluster, kinds.Cluster).status.path
            if path[:1] == [way]:
                found.append(Stray(path=tuple(path), status=self._documents.read(stored, kinds.WorkStatus).status))
        return found

    def came(self, child: str) -> None:
        """A direct child is in reach: what was said of it before is of no more use."""
        self._came[child] = self._store.revision

    def living(self, tx: Tx, target: str, components: Sequence[str], strays: Sequence[Stray], held: Mapping[str, int]) -> Mapping[str, int]:
        """Replicas at or below a direct child that need no replacement, by component: those of ``strays``, who are heard, as far as they
        are ready or ``held`` by them directly; all, when somebody above hears the child."""
        told = tx.get(Key("desired", STRAY, "", target))
        if told is not None and told.revision > self._came.get(target, 0):
            return dict.fromkeys(components, MANY)
        return {name: max(sum(item.ready for item in carried(name, strays)), held.get(name, 0)) for name in components}

    def applications(self, uid: str) -> list[str]:
        """Of which a stray says something."""
        return [stored.key.name for stored in self._store.list(space_of(uid), "WorkStatus")]
