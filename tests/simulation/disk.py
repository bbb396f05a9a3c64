"""A simulated disk below the real store: rows as they were committed, and nothing else, whatever becomes of the process.

`SimDatabase` stands where `store.database.Database` stands. The loop runs `write` when the disk has taken its time, so a crash
before that instant loses the whole batch, one after it keeps the whole batch whether or not its writer was ever told.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from cluster_controller.errors import StoreError, StoreInUse
from cluster_controller.store.database import Batch, Change, DiskLost
from cluster_controller.store.folder import full
from cluster_controller.store.model import Stored
from tests.simulation.life import LIFE, Life, machine

Opening = tuple[str, int]
Watcher = Callable[["Disk", Batch], None]


class Disk:
    """What a data folder's store holds. ``watch`` is told of each batch as it becomes durable."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[int, Change] = {}
        self.facts: dict[str, bytes] = {}
        self.floors: dict[str, int] = {}
        self.openings: list[Opening] = []
        self.user: Life | None = None
        self.watch: Watcher | None = None
        self.lose_next = False  # the next fdatasync fails, after the disk has taken the batch or before
        self.loses_taken = False
        self.crash_in = 0  # writes until the process dies with one: 1 is the next, 0 none
        self.crashes_taken = False  # after it is on the disk, or before
        self.crashed: Callable[[], None] = lambda: None
        self.batches = 0

    def copy(self) -> "Disk":
        """As a backup, or a copied folder."""
        other = Disk(self.name)
        other.rows, other.facts = dict(self.rows), dict(self.facts)
        other.floors, other.openings = dict(self.floors), list(self.openings)
        other.watch = self.watch
        return other

    def rewind(self, backup: "Disk") -> None:
        """Restored from a backup: what was written since is gone."""
        self.rows, self.facts = dict(backup.rows), dict(backup.facts)
        self.floors, self.openings = dict(backup.floors), list(backup.openings)

    def live(self) -> dict[tuple[str, ...], Stored]:
        """The newest state of every object."""
        found: dict[tuple[str, ...], Stored] = {}
        for change in self.rows.values():  # in the order of revisions
            if change.deleted:
                found.pop(change.stored.key, None)
            else:
                found[change.stored.key] = change.stored
        return found

    def take(self, batch: Batch) -> None:
        rows = self.rows
        for event in batch.events:
            stored = event.stored
            if event.kind_of == "delete":
                rows[event.revision] = Change(
                    Stored(stored.key, stored.uid, stored.version, event.revision, stored.hash, b"", stored.delivered,
                           stored.source, stored.start, stored.sequence), True)  # fmt: skip
            else:
                rows[event.revision] = Change(stored, False)
        for name, value in batch.facts.items():
            if value is None:
                self.facts.pop(name, None)
            else:
                self.facts[name] = value
        for stored in batch.delivered:
            if (there := rows.get(stored.revision)) is not None:
                there.stored = stored
        if batch.floor:
            self.floors.update(batch.floors)
            self.floors[""] = batch.floor
            for revision in batch.dead:
                rows.pop(revision, None)
        self.batches += 1


DISKS: dict[Path, Disk] = {}
"""By data folder; filled by the world that is being simulated."""


class SimDatabase:
    """Over the disk of the folder that is opened."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.db"
        self.wal_estimate = 0
        self._disk = DISKS[folder]

    def open(self) -> None:
        user, life = self._disk.user, LIFE.get()
        if user is not None and not user.dead and user is not life:
            raise StoreInUse(f"{self.path.parent} is in use by another process")
        self._disk.user = life

    def changes(self) -> Iterator[Change]:
        for change in self._disk.rows.values():
            yield Change(change.stored, change.deleted)

    def facts(self) -> dict[str, bytes]:
        return dict(self._disk.facts)

    def floors(self) -> dict[str, int]:
        return dict(self._disk.floors)

    def history(self) -> list[Opening]:
        return list(self._disk.openings)

    def set_history(self, dropped: list[Opening], added: Opening) -> None:
        self._refuse()
        self._disk.openings = [each for each in self._disk.openings if each not in dropped] + [added]

    def write(self, batch: Batch) -> None:
        self._refuse()
        disk = self._disk
        if disk.lose_next:
            disk.lose_next = False
            if disk.loses_taken:
                self._take(batch)
            raise DiskLost(f"the disk did not confirm a write to {self.path}")
        if disk.crash_in:
            disk.crash_in -= 1
            if not disk.crash_in:
                if disk.crashes_taken:
                    self._take(batch)
                disk.crashed()
                return
        self._take(batch)

    def _take(self, batch: Batch) -> None:
        self._disk.take(batch)
        if self._disk.watch is not None:
            self._disk.watch(self._disk, batch)

    def checkpoint(self, longest: int) -> None:
        return

    def close(self) -> None:
        if self._disk.user is LIFE.get():
            self._disk.user = None

    def _refuse(self) -> None:
        if machine().full:
            raise full(self.path)


def try_room(path: Path) -> None:
    """Stands where `store.health.try_room` stands."""
    if machine().full:
        raise full(path)


__all__ = ["DISKS", "Disk", "SimDatabase", "StoreError", "try_room"]
