"""Tell those above what happened to the Applications that were written here: their Events travel as reports do.

An ancestor keeps them beside its own, about the `SubtreeApplication` under which it lists the Application, so that `kubectl
describe` and `kubectl events` show them there. Events about clusters stay: every ancestor sees those things happen by itself.
Level-triggered like the other rooms. Bounded by `events.KEPT` at each controller: what is dropped there is withdrawn above too.
"""

from collections.abc import Sequence

import msgspec

from cluster_controller import events
from cluster_controller.documents import Documents, encode
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.settling import Settler
from cluster_controller.store import Event, Key, Store, Stored, Tx

KIND = "Event"
LOOK_EVERY = 16  # Events that are new here, between two looks whether there is room


class News:
    """``name``: of this cluster, as those above list its Applications (NAME.ORIGIN). ``tells``: there may be somebody above."""

    heeds = (KIND,)  # kinds of what `changed` is called for

    def __init__(self, store: Store, reporter: Reporter, *, name: str, tells: bool) -> None:
        self._store = store
        self._reporter = reporter
        self._name = name
        self._tells = tells
        self._documents = Documents(store.get)
        self._settler = Settler(store, self.settle)
        self._fresh = 0

    def load(self) -> None:
        for space in self._store.spaces():
            if self._heeds(space):
                for stored in self._store.list(space, KIND):
                    self._mark(stored.key)

    def changed(self, changes: Sequence[Event]) -> None:
        for change in changes:
            key = change.stored.key
            if key.kind == KIND and self._heeds(key.space):
                self._mark(key)

    def _heeds(self, space: str) -> bool:
        return space.startswith(("up/", "stray/")) or (self._tells and space == "own")

    def _mark(self, key: Key) -> None:
        self._settler.mark("\0".join((key.space, key.namespace, key.name)))

    async def run(self) -> None:
        await self._settler.run()

    def settle(self, tx: Tx, marked: str) -> None:
        space, namespace, name = marked.split("\0")
        key = Key(space, KIND, namespace, name)
        if space == "own":
            self._settle_own(tx, key, tx.get(key))
        else:
            self._pass_on(tx, key, tx.get(key))

    def _settle_own(self, tx: Tx, key: Key, stored: Stored | None) -> None:
        about, _, digest = key.name.rpartition(".")
        told = Key("report", KIND, key.namespace, f"{about}.{self._name}.{digest}")
        if stored is None:
            tx.delete(told)
            tx.delete(Key("report", KIND, key.namespace, key.name))  # of one that came from below
            return
        document = self._documents.read(stored, kinds.Event)
        if document.involved_object.kind != "Application":
            return
        upward = msgspec.structs.replace(
            document,
            metadata=msgspec.structs.replace(document.metadata, name=told.name),
            involved_object=msgspec.structs.replace(
                document.involved_object, kind="SubtreeApplication", name=f"{document.involved_object.name}.{self._name}"
            ),
            source=msgspec.structs.replace(document.source, host=self._name),
        )
        self._reporter.put(tx, told, upward, stored.uid)

    def _pass_on(self, tx: Tx, key: Key, stored: Stored | None) -> None:
        here, told = Key("own", KIND, *key[2:]), Key("report", KIND, *key[2:])
        if stored is None and key.space.startswith("stray/"):
            return  # its home has reported the stray: it speaks for these, or room is made for others
        if stored is None:
            tx.delete(here)
            tx.delete(told)
            return
        document = self._documents.read(stored, kinds.Event)
        if tx.get(here) is None:
            self._fresh += 1
            if self._fresh % LOOK_EVERY == 0:
                events.make_room(tx)
        tx.put(here, encode(document), uid=stored.uid)
        if self._tells:
            self._reporter.put(tx, told, document, stored.uid, relayed=stored)
