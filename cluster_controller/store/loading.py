"""From the rows on the disk to the state in memory, at opening.

Runs in the store's thread. Rows above the floor become the journal again; of the others only the newest of each key lives.
"""

from msgspec import Struct

from cluster_controller.errors import StoreCorrupt, StoreError
from cluster_controller.store.database import Database
from cluster_controller.store.history import opened
from cluster_controller.store.journal import Journal, Trimmed
from cluster_controller.store.mirror import Mirror
from cluster_controller.store.model import Event, Limits, Stored, at_revision


class Loaded(Struct):
    mirror: Mirror
    journal: Journal
    facts: dict[str, bytes]
    history: tuple[tuple[str, int], ...]
    revision: int
    trimmed: Trimmed


def load(database: Database, limits: Limits, opening: str) -> Loaded:
    """Open the database and read all of it; ``opening`` is the id of this opening. On failure the folder is given back."""
    database.open()
    try:
        return _read(database, limits, opening)
    except StoreError:
        database.close()
        raise


def _read(database: Database, limits: Limits, opening: str) -> Loaded:
    floors = database.floors()
    floor = floors.pop("", 0)
    revision = floor
    mirror = Mirror()
    journal = Journal(limits, floor, floors)
    for change in database.changes():
        stored = change.stored
        previous = mirror.get(stored.key)
        revision = max(revision, stored.revision)
        if stored.revision > floor:
            journal.append(_event(stored, change.deleted, previous))
        elif not change.deleted:
            journal.remember(stored)
        if not change.deleted:
            mirror.put(stored)
        elif previous is not None:
            mirror.remove(stored.key)
    openings, dropped = opened(database.history(), opening, revision, limits.history_entries)
    database.set_history(dropped, openings[-1])
    return Loaded(mirror, journal, database.facts(), tuple(openings), revision, journal.trim())


def _event(stored: Stored, deleted: bool, previous: Stored | None) -> Event:
    if not deleted:
        return Event(stored.revision, "put", stored, previous)
    if previous is None:
        raise StoreCorrupt(
            f"the journal deletes {stored.key.kind} {stored.key.name} at revision {stored.revision} but holds no such object"
        )
    return Event(stored.revision, "delete", at_revision(previous, stored.revision), previous)
