"""Which blobs are never dropped for want of room: those of published models, and of the versions that run here, no others.

A version that nothing here runs any more gives its room back: an edge that was brought from version 1 to 20 has room for the 21st.
The one before the running one is kept as long as what runs has room without it: going back to it moves no byte.
Kept by one owner per Model and per Work, so that a change costs what it touches and not what is there.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from cluster_controller import delivered
from cluster_controller.documents import Documents
from cluster_controller.errors import InvalidInput
from cluster_controller.reconcile import resolve
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store


def referenced(store: Store, spec: kinds.WorkSpec) -> resolve.Found:
    """The documents that a Work refers to: delivered ones by uid, own ones where people wrote them."""
    found: dict[tuple[str, str], bytes] = {}
    for link in spec.references:
        stored = delivered.reference(store, link.kind, link.uid) or store.find("own", link.kind, link.uid)
        if stored is not None:
            found[link.kind, link.name] = stored.document
    return found


class Blobs(Protocol):
    """What is told."""

    def hold(self, owner: str, digests: Iterable[str]) -> None: ...

    def keep(self, owner: str, digests: Iterable[str]) -> None: ...


class Holds:
    heeds = ("Work", "Model")  # kinds of what `changed` is called for

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._documents = Documents(store.get)
        self._running: dict[str, frozenset[str]] = {}
        self._before: dict[str, frozenset[str]] = {}  # what ran before that, since this start

    def load(self) -> None:
        for stored in self._store.list("own", "Model"):
            self._model(stored.uid)
        for stored in self._store.list("local", "Work"):
            self._work(stored.key.name)

    def changed(self, events: Sequence[Event]) -> None:
        """Called after each commit."""
        for event in events:
            key = event.stored.key
            if key.space == "local" and key.kind == "Work":
                self._work(key.name)
            elif key.kind == "Model" and (key.space in {"own", "desired"} or delivered.is_lent(key.space)):
                if key.space == "own":
                    self._model(event.stored.uid)
                for name in self._users(event.stored.uid):
                    self._work(name)

    def _model(self, uid: str) -> None:
        stored = self._store.find("own", "Model", uid)
        versions = self._documents.read(stored, kinds.Model).spec.versions if stored is not None else []
        self._blobs.hold(f"model/{uid}", [file.sha256 for version in versions for file in version.files])

    def _users(self, uid: str) -> list[str]:
        works = self._store.list("local", "Work")
        return [
            work.key.name
            for work in works
            if any(link.kind == "Model" and link.uid == uid for link in self._documents.read(work, kinds.Work).spec.references)
        ]

    def _work(self, name: str) -> None:
        stored = self._store.get(Key("local", "Work", "", name))
        spec = self._documents.read(stored, kinds.Work).spec if stored is not None else None
        running, listed = self._digests(spec) if spec is not None else (frozenset[str](), frozenset[str]())
        owner = f"work/{name}"
        self._blobs.hold(owner, running)
        if spec is None:
            self._running.pop(name, None)
            self._before.pop(name, None)
            self._blobs.keep(owner, ())
            return
        past = self._running.get(name, frozenset()) - running
        if past:
            self._before[name] = past
        self._running[name] = running
        self._blobs.keep(owner, self._before.get(name, listed))

    def _digests(self, spec: kinds.WorkSpec) -> tuple[frozenset[str], frozenset[str]]:
        """Of the versions that run, and of those that their Models list before them."""
        found = referenced(self._store, spec)
        running: set[str] = set()
        listed: set[str] = set()
        for component in spec.components:
            try:
                need = resolve.model_need(component, found)
                before = resolve.model_before(component, found)
            except InvalidInput:
                continue  # it is not here yet; the Model's arrival asks again
            if need is not None:
                running.update(file.sha256 for file in need.files)
                listed.update(file.sha256 for file in before)
        return frozenset(running), frozenset(listed)
