"""A store without a disk, from the store's own pure parts: commits are synchronous, a copy of it is a backup."""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

from cluster_controller.store import Event, Expired, Key, Limits, Stored, Tx
from cluster_controller.store.history import opened
from cluster_controller.store.journal import Journal
from cluster_controller.store.mirror import Mirror
from cluster_controller.store.tx import Head

T = TypeVar("T")


class MemoryStore:
    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.mirror = Mirror()
        self.journal = Journal(self.limits)
        self.facts: dict[str, bytes] = {}
        self.openings: list[tuple[str, int]] = []
        self.revision = 0
        self.events: list[Event] = []  # every change ever, for the tests; a store keeps only its journal
        self._opened = 0
        self.open()

    @property
    def history(self) -> tuple[tuple[str, int], ...]:
        return tuple(self.openings)

    def open(self) -> None:
        self._opened += 1
        self.openings, _ = opened(self.openings, f"{self.name}{self._opened}", self.revision, self.limits.history_entries)

    def backup(self) -> "MemoryStore":
        return copy.deepcopy(self)

    def restore(self, backup: "MemoryStore") -> None:
        """Become what the backup was, in a new opening."""
        lives = self._opened
        self.__dict__ = copy.deepcopy(backup).__dict__
        self._opened = lives
        self.open()

    def commit(self, work: Callable[[Tx], T]) -> T:
        tx = Tx(Head(self.mirror, self.facts, self.revision), self.limits)
        result = work(tx)
        tx.seal()
        for key, (stored,) in tx.slots().items():
            if stored is not None:
                self.mirror.put(stored)
            elif self.mirror.get(key) is not None:
                self.mirror.remove(key)
        for name, (value,) in tx.facts.items():
            if value is None:
                self.facts.pop(name, None)
            else:
                self.facts[name] = value
        for event in tx.events:
            self.journal.append(event)
            self.events.append(event)
        self.journal.trim()
        self.revision = tx.revision
        return result

    def get(self, key: Key) -> Stored | None:
        return self.mirror.get(key)

    def fact(self, name: str) -> bytes | None:
        return self.facts.get(name)

    def scan(self, space: str) -> Iterator[Stored]:
        return self.mirror.scan(space)

    def size(self, space: str) -> int:
        return self.mirror.size(space)

    def floor(self, space: str | None = None) -> int:
        return self.journal.floor_of(space)

    def last(self, space: str) -> int:
        return self.journal.last(space)

    def since(self, revision: int, space: str | None = None) -> list[Event]:
        if revision > self.revision:
            raise Expired(f"revision {revision} is not of this store")
        return self.journal.since(revision, space)
