"""Where a request to an application goes: the nearest instance that is ready and in reach.

Nearest is the own cluster, then the child with the shortest measured round trip; between equals the name decides, so that one
client keeps meeting one instance.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from cluster_controller.documents import Documents
from cluster_controller.errors import NotFound, Unreachable
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store


class Target(Struct, frozen=True):
    """A cluster with a ready instance; ``path`` names the hops, this controller first."""

    application: str  # uid
    cluster: str  # uid
    path: tuple[str, ...]


class Routes:
    """``distance(child)``: the measured round trip to a direct child in seconds; None when it is out of reach."""

    def __init__(self, store: Store, uid: str, name: str, distance: Callable[[str], float | None]) -> None:
        self._store = store
        self._uid = uid
        self._name = name
        self._distance = distance
        self._documents = Documents()

    def all(self, namespace: str, name: str) -> Sequence[Target]:
        """Every cluster in reach with a ready instance, nearest first. NotFound for an application that this controller does not know."""
        application = self.find(namespace, name)
        found: list[tuple[float, Target]] = []
        local = self._status("observed", application)
        if local is not None and any(component.ready for component in local.components):
            found.append((-1.0, Target(application, self._uid, (self._name,))))
        for child, rows in self._below(application):
            distance = self._distance(child)
            if distance is None:
                continue
            for row in rows:
                if row.ready and row.reason != "Unreachable" and row.cluster != self._uid:
                    path = (self._name, self._child_name(child), *row.path)
                    found.append((distance, Target(application, row.cluster, path)))
        found.sort(key=lambda item: (item[0], len(item[1].path), item[1].path))
        return [target for _, target in found]

    def nearest(self, namespace: str, name: str) -> Target:
        """Unreachable when nothing ready is in reach, with what stands in the way."""
        targets = self.all(namespace, name)
        if targets:
            return targets[0]
        application = self.find(namespace, name)
        rows = [row for _, rows in self._below(application) for row in rows]
        waiting = ", ".join(f"{'/'.join(row.path) or row.name}: {row.message or row.reason or 'not ready'}" for row in rows[:5])
        hint = waiting or "it runs nowhere yet"
        raise Unreachable(f"no instance of {namespace}/{name} is ready and in reach ({hint}); see `banyan explain application/{name}`")

    def find(self, namespace: str, name: str) -> str:
        """The uid: an Application written here, one from above that runs here, or NAME.ORIGIN of one written below."""
        own = self._store.get(Key("own", "Application", namespace, name))
        if own is not None:
            return own.uid
        for stored in self._store.list("desired", "Work"):
            application = self._documents.read(stored, kinds.Work).spec.application
            if application.namespace == namespace and name in {application.name, f"{application.name}.{application.origin_name}"}:
                return application.uid
        below = self._store.get(Key("own", "SubtreeApplication", namespace, name))
        if below is not None:
            return below.uid
        raise NotFound(f"no application {namespace}/{name} at {self._name}; those written below are named NAME.ORIGIN")

    def _below(self, application: str) -> list[tuple[str, list[kinds.ClusterRow]]]:
        found = []
        for space in self._store.spaces():
            child = space.removeprefix("up/")
            if child == space:
                continue
            status = self._status(space, application)
            if status is not None:
                found.append((child, status.clusters))
                continue
            written = self._store.get(Key(space, "SubtreeApplication", "", application))
            if written is not None:
                document = self._documents.read(written, kinds.SubtreeApplication)
                found.append((child, document.status.clusters))
        return found

    def _child_name(self, child: str) -> str:
        stored = self._store.find("own", "Cluster", child)
        return stored.key.name if stored is not None else child

    def _status(self, space: str, application: str) -> kinds.WorkStatusStatus | None:
        stored = self._store.get(Key(space, "WorkStatus", "", application))
        return self._documents.read(stored, kinds.WorkStatus).status if stored is not None else None
