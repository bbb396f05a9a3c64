"""What runs on the own cluster, as its shim last told: for metrics, for gates of rollouts, for drills. Read only."""

from collections.abc import Iterator, Mapping

from cluster_controller.documents import Documents
from cluster_controller.drill import Struck
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_shim import contract


class Sight:
    def __init__(self, store: Store, documents: Documents, seen: Mapping[str, contract.ObservedWork]) -> None:
        """``seen``: by the application's uid; the reconciler keeps it up to date."""
        self._store = store
        self._documents = documents
        self._seen = seen

    def _work(self, uid: str) -> kinds.WorkSpec | None:
        stored = self._store.get(Key("local", "Work", "", uid))
        return self._documents.read(stored, kinds.Work).spec if stored is not None else None

    def instances(self) -> Iterator[tuple[str, contract.Instance]]:
        """(application's name, instance) of all that runs here, for /metrics."""
        for uid, seen in self._seen.items():
            work = self._work(uid)
            name = work.application.name if work is not None else uid
            for instance in seen.instances:
                yield name, instance

    def running(self) -> Iterator[tuple[str, contract.Instance]]:
        """(application's uid, instance) of all that runs here."""
        for uid, seen in self._seen.items():
            for instance in seen.instances:
                yield uid, instance

    def chosen(self, target: str) -> list[Struck]:
        """The instances of NAMESPACE/APPLICATION[/COMPONENT] that run here."""
        return [
            Struck(instance.id, instance.pid)
            for component, seen in self._named(target)
            for instance in seen.instances
            if component in {"", instance.component}
        ]

    def well(self, target: str) -> bool:
        """Whether as many of it are ready as are wanted here."""
        parts = [part for name, seen in self._named(target) for part in seen.components if name in {"", part.name}]
        return all(part.ready >= part.desired for part in parts)

    def _named(self, target: str) -> Iterator[tuple[str, contract.ObservedWork]]:
        namespace, name, component = [*target.split("/"), ""][:3]
        for uid, seen in self._seen.items():
            work = self._work(uid)
            if work is not None and (work.application.namespace, work.application.name) == (namespace, name):
                yield component, seen

    def accelerators_held(self) -> dict[tuple[str, str], int]:
        """By node and kind, how many the instances hold that run here, for /metrics."""
        held: dict[tuple[str, str], int] = {}
        for uid, seen in self._seen.items():
            work = self._work(uid)
            components = work.components if work is not None else ()
            asked = {each.name: each.resources.accelerators for each in components if each.resources.accelerators}
            for instance in seen.instances if asked else ():
                for kind, count in asked.get(instance.component, {}).items():
                    held[instance.node, kind] = held.get((instance.node, kind), 0) + count
        return held
