"""Where a request to an application goes: the nearest instance that is ready and in reach.

Nearest is the own cluster, then the child with the shortest measured round trip; between equals the name decides, so that one
client keeps meeting one instance. A request costs what its own application has, however many others are delivered or reported:
`Whereabouts` remembers who knows what, and follows the journal when it is asked.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from cluster_controller.documents import Documents
from cluster_controller.errors import NotFound, Unreachable
from cluster_controller.resources import kinds
from cluster_controller.store import Expired, Key, Store

Names = tuple[tuple[str, str], ...]


class Target(Struct, frozen=True):
    """A cluster with a ready instance; ``path`` names the hops, this controller first."""

    application: str  # uid
    cluster: str  # uid
    path: tuple[str, ...]
    answers_once_more: bool = False  # only workers of models serve it: they answer whoever still asks on an idle connection


class Whereabouts:
    """Which Work bears a name, and which children report an application. Caught up from the journal, so it never lags behind the store."""

    def __init__(self, store: Store, documents: Documents) -> None:
        self._store = store
        self._documents = documents
        self._revision = -1  # of the store, up to which everything below is known
        self._named: dict[tuple[str, str], set[str]] = {}  # namespace and name, or NAME.ORIGIN → keys of delivered Work
        self._names: dict[str, Names] = {}  # the same the other way
        self._reporters: dict[str, set[str]] = {}  # application uid → children

    def work(self, namespace: str, name: str) -> kinds.Work | None:
        """The delivered Work with that name."""
        self._catch_up()
        for key in sorted(self._named.get((namespace, name), ())):
            stored = self._store.get(Key("desired", "Work", "", key))
            if stored is not None:
                return self._documents.read(stored, kinds.Work)
        return None

    def reporters(self, application: str) -> list[str]:
        """Children with a WorkStatus or SubtreeApplication of it."""
        self._catch_up()
        return sorted(self._reporters.get(application, ()))

    def _catch_up(self) -> None:
        if self._revision == self._store.revision:
            return
        try:
            keys = {event.stored.key for event in self._store.since(self._revision)} if self._revision >= 0 else self._everything()
        except Expired:
            keys = self._everything()
        self._revision = self._store.revision
        for key in keys:
            self._look(key)

    def _everything(self) -> set[Key]:
        self._named.clear()
        self._names.clear()
        self._reporters.clear()
        keys = {stored.key for stored in self._store.list("desired", "Work")}
        for space in self._store.spaces():
            if space.startswith("up/"):
                keys.update(stored.key for kind in ("WorkStatus", "SubtreeApplication") for stored in self._store.list(space, kind))
        return keys

    def _look(self, key: Key) -> None:
        """Remember what is there now under ``key``, whatever was before."""
        if key.space == "desired" and key.kind == "Work":
            self._rename(key)
        elif key.space.startswith("up/") and key.kind in {"WorkStatus", "SubtreeApplication"}:
            child = key.space.removeprefix("up/")
            known = any(self._store.get(key._replace(kind=kind)) for kind in ("WorkStatus", "SubtreeApplication"))
            reporters = self._reporters.setdefault(key.name, set())
            (reporters.add if known else reporters.discard)(child)
            if not reporters:
                del self._reporters[key.name]

    def _rename(self, key: Key) -> None:
        for name in self._names.pop(key.name, ()):
            self._named[name].discard(key.name)
            if not self._named[name]:
                del self._named[name]
        stored = self._store.get(key)
        if stored is None:
            return
        application = self._documents.read(stored, kinds.Work).spec.application
        names = {application.name, f"{application.name}.{application.origin_name}"}
        self._names[key.name] = tuple((application.namespace, name) for name in sorted(names))
        for name in self._names[key.name]:
            self._named.setdefault(name, set()).add(key.name)


class Routes:
    """``distance(child)``: the measured round trip to a direct child in seconds; None when it is out of reach."""

    def __init__(self, store: Store, uid: str, name: str, distance: Callable[[str], float | None]) -> None:
        self._store = store
        self._uid = uid
        self._name = name
        self._distance = distance
        self._documents = Documents(store.get)
        self._whereabouts = Whereabouts(store, self._documents)

    def all(self, namespace: str, name: str) -> Sequence[Target]:
        """Every cluster in reach with a ready instance, nearest first. NotFound for an application that this controller does not know."""
        application, components = self._find(namespace, name)
        once_more = bool(components) and all(component.model is not None for component in components)
        found: list[tuple[float, Target]] = []
        local = self._status("observed", application)
        if local is not None and any(component.ready for component in local.components):
            found.append((-1.0, Target(application, self._uid, (self._name,), once_more)))
        for child, rows in self._below(application):
            distance = self._distance(child)
            if distance is None:
                continue
            for row in rows:
                if row.ready and row.reason != "Unreachable" and row.cluster != self._uid:
                    path = (self._name, self._child_name(child), *row.path)
                    found.append((distance, Target(application, row.cluster, path, once_more)))
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
        return self._find(namespace, name)[0]

    def _find(self, namespace: str, name: str) -> tuple[str, Sequence[kinds.Component]]:
        own = self._store.get(Key("own", "Application", namespace, name))
        if own is not None:
            return own.uid, self._documents.read(own, kinds.Application).spec.components
        work = self._whereabouts.work(namespace, name)
        if work is not None:
            return work.spec.application.uid, work.spec.components
        below = self._store.get(Key("own", "SubtreeApplication", namespace, name))
        if below is not None:
            return below.uid, self._documents.read(below, kinds.SubtreeApplication).spec.components
        raise NotFound(f"no application {namespace}/{name} at {self._name}; those written below are named NAME.ORIGIN")

    def _below(self, application: str) -> list[tuple[str, list[kinds.ClusterRow]]]:
        found = []
        for child in self._whereabouts.reporters(application):
            space = f"up/{child}"
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
