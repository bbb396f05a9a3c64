"""The database file: opening, loading, appending. Everything here runs in the store's one thread.

Invariants: `write` returns only after the WAL is on the disk (synchronous=FULL), and either the whole batch is there or
nothing of it. Errors of SQLAlchemy and SQLite are mapped here and nowhere else. The file is locked exclusively, which also
keeps SQLite's shared-memory index out of the folder.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy import event as hooks
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cluster_controller.durable import sync_folder
from cluster_controller.errors import StoreCorrupt, StoreError, StoreReadOnly
from cluster_controller.store import migrations, schema
from cluster_controller.store.folder import DATABASE, FolderLock, full, prepare
from cluster_controller.store.health import try_room
from cluster_controller.store.model import HASH_BYTES, Event, Key, Stored, content_hash
from cluster_controller.store.seal import SEALED_KINDS, Seal

_PRAGMAS = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA wal_autocheckpoint=0",  # `checkpoint` is called when nothing waits, so no commit pays for it
    "PRAGMA cache_size=-512",  # KiB: reads come from memory, not from here
    "PRAGMA temp_store=MEMORY",
    "PRAGMA secure_delete=OFF",  # what must not be found on the disk is sealed
)
_PRIMARY_CODE = 0xFF
_PAGE_BYTES = 4096
_ROW_BYTES = 250
_PAGES_PER_WRITE = 3  # the last leaf of the changes, its parent, the facts


class Batch(Struct):
    """What one transaction writes."""

    events: list[Event] = []
    delivered: list[Stored] = []  # same document and version, newly known deliverer
    facts: dict[str, bytes | None] = {}
    dead: list[int] = []
    floors: dict[str, int] = {}
    floor: int = 0


class Change(Struct):
    """A row as read back, ``stored`` without its document when it is a delete."""

    stored: Stored
    deleted: bool


class Database:
    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE
        self._folder = folder
        self._seal = Seal(folder)
        self._lock: FolderLock | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self.wal_estimate = 0  # bytes written since the last checkpoint, roughly

    def open(self) -> None:
        """Lock the folder, open or create the file, migrate it. On failure nothing stays locked."""
        self._lock = prepare(self._folder)
        try:
            with self._mapped():
                self._connect()
        except StoreError:
            self.close()
            raise

    def _connect(self) -> None:
        new = not self.path.exists()
        engine = self._engine = create_engine(
            f"sqlite+pysqlite:///{self.path}",
            poolclass=NullPool,
            connect_args={"check_same_thread": False, "isolation_level": None, "timeout": 0},
        )
        hooks.listen(engine, "begin", _begin)
        connection = self._connection = engine.connect()
        driver = self._driver()
        for pragma in _PRAGMAS:
            driver.execute(pragma).fetchall()
        if new:
            self.path.chmod(0o600)
        damage = driver.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise self._corrupt(damage)
        with connection.begin():
            migrations.migrate(connection, str(self.path))
        if new:
            sync_folder(self._folder)

    def changes(self) -> Iterator[Change]:
        """Every row by revision; documents opened and checked against their hash."""
        with self._mapped():
            for row in self._driver().execute(schema.SELECT_CHANGES):
                yield self._change(row)

    def facts(self) -> dict[str, bytes]:
        with self._mapped():
            return dict(self._driver().execute(schema.SELECT_FACTS).fetchall())

    def floors(self) -> dict[str, int]:
        """By space; under "" the journal's own."""
        with self._mapped():
            return dict(self._driver().execute(schema.SELECT_FLOORS).fetchall())

    def history(self) -> list[tuple[str, int]]:
        with self._mapped():
            return [(row[0], row[1]) for row in self._driver().execute(schema.SELECT_HISTORY)]

    def set_history(self, dropped: list[tuple[str, int]], added: tuple[str, int]) -> None:
        """Append an opening; forget ``dropped``."""
        with self._transaction() as connection:
            for _, first in dropped:
                connection.exec_driver_sql(schema.DELETE_HISTORY, (first,))
            connection.exec_driver_sql(schema.INSERT_HISTORY, (added[1], added[0]))

    def write(self, batch: Batch) -> None:
        """Durable when it returns; when it raises, nothing of it is there, or (DiskLost) nobody knows."""
        try:
            with self._transaction():
                self._write(batch)
        except DiskLost:
            raise
        except StoreError as error:
            if batch.events and not self._is_before(batch.events[0].revision):
                raise DiskLost(f"{error}; and what is on the disk can no longer be told: start again") from error
            raise
        self.wal_estimate += _pages(batch) * _PAGE_BYTES

    def _write(self, batch: Batch) -> None:
        run = self._opened().exec_driver_sql
        for statement, parameters in schema.in_sizes([self._row(change) for change in batch.events]):
            run(statement, parameters)
        self._write_facts(batch.facts)
        for stored in batch.delivered:
            history, revision = stored.delivered or ("", 0)
            run(schema.SET_DELIVERED, (history, revision, stored.revision))
        if batch.floor:
            run(schema.SET_FLOOR, [("", batch.floor), *batch.floors.items()])
            if batch.dead:
                run(schema.DELETE_CHANGE, [(revision,) for revision in batch.dead])

    def _is_before(self, revision: int) -> bool:
        """After a failed write: is the disk still where it was before ``revision``?"""
        try:
            with self._mapped():
                newest = self._driver().execute(schema.SELECT_NEWEST).fetchone()[0]
        except StoreError:
            return False
        return (newest or 0) < revision

    def _write_facts(self, facts: dict[str, bytes | None]) -> None:
        run = self._opened().exec_driver_sql
        values = [(name, value) for name, value in facts.items() if value is not None]
        gone = [(name,) for name, value in facts.items() if value is None]
        if values:
            run(schema.SET_FACT, values)
        if gone:
            run(schema.DELETE_FACT, gone)

    def checkpoint(self, longest: int) -> None:
        """Move the WAL into the file. It is written over from its start then, and shortened only when longer than ``longest`` bytes."""
        wal = self.path.with_name(self.path.name + "-wal")
        mode = "TRUNCATE" if wal.exists() and wal.stat().st_size > longest else "PASSIVE"
        self.wal_estimate = 0
        with self._mapped():
            self._driver().execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._engine is not None:
            self._engine.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _row(self, event: Event) -> schema.Row:
        stored = event.stored
        key = stored.key
        history, revision = stored.delivered or ("", 0)
        deleted = event.kind_of == "delete"
        document = b"" if deleted else stored.document
        sealed = not deleted and key.kind in SEALED_KINDS
        if sealed:
            document = self._seal.seal(document, _seal_name(key, stored))
        return (
            event.revision, deleted, *key, stored.uid, stored.version, stored.hash, document, sealed,
            history, revision, stored.source, stored.start, stored.sequence,
        )  # fmt: skip

    def _change(self, row: schema.Row) -> Change:
        (revision, deleted, space, kind, namespace, name, uid, version, digest, document, sealed, history, of, source, start, sequence) = (
            row
        )
        key = Key(intern(space), intern(kind), intern(namespace), intern(name))
        delivered = (intern(history), of) if history else None
        stored = Stored(key, uid, version, revision, digest, document, delivered, intern(source), start, sequence)
        if deleted:
            return Change(stored, True)
        if sealed:
            document = self._seal.open(document, _seal_name(key, stored))
            stored = Stored(key, uid, version, revision, digest, document, delivered, source, start, sequence)
        if content_hash(document) != digest:
            raise self._corrupt(f"the document of {kind} {namespace}/{name} at revision {revision} is not the one that was written")
        return Change(stored, False)

    def _opened(self) -> Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is closed")
        return self._connection

    def _driver(self) -> Any:
        """The driver's own connection, for what is no statement of ours: pragmas, and reading back row by row."""
        return self._opened().connection.driver_connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._mapped(), self._opened().begin():
            yield self._opened()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._explain(error.orig) from error
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: BaseException | None) -> StoreError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        primary = code & _PRIMARY_CODE
        if primary == sqlite3.SQLITE_FULL:
            return full(self.path)
        if primary in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
            return StoreReadOnly(f"{self.path} cannot be written ({error}): check its owner, its mode and the mount")
        if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return self._corrupt(str(error))
        if code in {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}:
            return DiskLost(
                f"the disk did not confirm a write to {self.path}: check the disk, then start again; nothing acknowledged is lost"
            )
        if code == sqlite3.SQLITE_IOERR_WRITE:
            return self._refused(error)
        return StoreError(f"{self.path}: {error}")

    def _refused(self, error: BaseException | None) -> StoreError:
        """SQLite knows one reason for which a disk takes no more, and calls a quota or a limit on a file's size an I/O error."""
        try:
            try_room(self.path)
        except StoreError as cause:
            return cause
        return StoreError(f"{self.path}: {error}")

    def _corrupt(self, reason: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self.path} is damaged ({reason}): restore a backup with `banyan restore`, or move the file away to start empty; "
            "a parent sends what it wants run again"
        )


class DiskLost(StoreError):
    """An fdatasync failed: what the kernel holds in memory may no longer be what the disk holds, so nothing is written after it."""


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _pages(batch: Batch) -> int:
    """Pages that a batch writes, roughly."""
    size = sum(len(event.stored.document) + _ROW_BYTES for event in batch.events)
    return _PAGES_PER_WRITE + size // _PAGE_BYTES + len(batch.dead) // 4 + len(batch.delivered)


def _seal_name(key: Key, stored: Stored) -> bytes:
    return "\0".join((*key, stored.uid, str(stored.version), str(stored.revision))).encode()


assert HASH_BYTES == 16  # rows of schema 1 hold hashes of this size
