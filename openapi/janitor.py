"""Lets go of what waits for others to go: namespaces that have become empty, owners whose dependents are gone.

Finalizers of those others are taken away by controllers, whenever they are done, so this listens to the store and looks again
after each deletion. Level-triggered: it looks once at the start too, so nothing waits for an event that came while nobody ran.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from cluster_controller.resources.registry import REGISTRY
from cluster_controller.store import Event, Key, Store, Stored, Tx
from cluster_controller.tasks import Tasks
from openapi.writes import CONTENT, FOREGROUND, dependents_of, is_empty

SPACE = "own"
_MARKS = (CONTENT.encode(), FOREGROUND.encode())


class Janitor:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks = Tasks("api")
        self._wanted = asyncio.Event()
        self._waiting: set[Key] = set()
        for resource in REGISTRY.values():
            if resource.space == SPACE:
                self._note(store.list(SPACE, resource.kind))
        self._unsubscribe = store.subscribe(self._changed, SPACE)
        self._tasks.keep("janitor", self._run)

    async def close(self) -> None:
        self._unsubscribe()
        await self._tasks.close()

    def _note(self, found: Iterable[Stored]) -> None:
        for stored in found:
            if any(mark in stored.document for mark in _MARKS):
                self._waiting.add(stored.key)
                self._wanted.set()

    def _changed(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind_of == "delete":
                self._waiting.discard(event.stored.key)
                if self._waiting:
                    self._wanted.set()
            else:
                self._note((event.stored,))

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            for key in sorted(self._waiting):
                await self._store.commit(partial(release, key=key))


def release(tx: Tx, key: Key) -> None:
    """Take away the finalizers that hold nothing any more; the object goes when none is left."""
    stored = tx.get(key)
    if stored is None:
        return
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    metadata = document["metadata"]
    before = list(metadata.get("finalizers") or ())
    after = [
        each
        for each in before
        if not (each == CONTENT and is_empty(tx, key.name)) and not (each == FOREGROUND and not dependents_of(tx, stored.uid))
    ]
    if after == before or not metadata.get("deletionTimestamp"):
        return
    if after:
        metadata["finalizers"] = after
        tx.put(key, msgspec.json.encode(document), uid=stored.uid)
    else:
        tx.delete(key)
