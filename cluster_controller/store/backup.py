"""A backup of a running store, encrypted under a passphrase, and the way back.

The state is captured from memory in one step, so it is consistent and no commit waits for it. Inside the sealed file
(`envelope`) are msgpack records: `head` first, then when it was made, files, history, floors, facts and changes, `end` last.
A reader passes over records of a kind that it does not know.

Invariant: `restore` puts nothing in place until all of the backup has been read, verified and written beside it. A restored
store opens under a new history id, so peers can tell what it has forgotten, and holds the fact `RESTORED` from the first moment,
so that whoever opens it knows that it must not believe what it says of open tokens (`cluster_controller.restored`).
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller.durable import sync_folder
from cluster_controller.errors import AlreadyExists, InvalidInput, StoreCorrupt
from cluster_controller.store.database import Batch, Change, Database
from cluster_controller.store.envelope import seal, unseal
from cluster_controller.store.folder import DATABASE, store_error
from cluster_controller.store.history import Opening
from cluster_controller.store.model import Event, Key, Stored, content_hash

PASSPHRASE_LENGTH = 8
FILE_BYTES = 1024 * 1024
FORMAT = 1
PARTIAL = ".restore"
RESTORED = "store/restored"
"""Fact of a store that came from a backup: a `Restored`, as JSON."""
NOT_COPIED = ("store.db", "store.db-wal", "store.lock")


class Capture(Struct, frozen=True):
    """The whole of a store at one revision."""

    revision: int
    changes: list[Change]  # by revision: what lives, what the journal holds, and the states before that
    history: tuple[Opening, ...]
    floor: int
    floors: dict[str, int]
    facts: dict[str, bytes]


class _Row(Struct, frozen=True, array_like=True):
    """A change as it is in the file."""

    deleted: bool
    revision: int
    space: str
    kind: str
    namespace: str
    name: str
    uid: str
    version: int
    document: bytes
    delivered: tuple[str, int] | None
    source: str
    start: int
    sequence: int


class Summary(Struct, frozen=True):
    """What a backup holds."""

    revision: int
    objects: int
    files: tuple[str, ...]  # relative to the data folder
    made: str = ""  # when, by the clock of the machine that made it; for people


class Restored(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which backup a store came from. Times are for people."""

    made: str = ""
    revision: int = 0
    restored: str = ""
    settled: bool = False  # its open tokens were voided
    voided: int = 0


def write_backup(
    capture: Capture, folder: Path, target: Path, passphrase: str, *, include: Sequence[str] = ("identity",), made: str = ""
) -> Summary:
    """Write ``capture`` and the files below ``include`` of the data folder to the new file ``target`` (0600).

    Blocks: run it beside the event loop. Raises InvalidInput, AlreadyExists, and what the disk says as StoreError.
    """
    if len(passphrase) < PASSPHRASE_LENGTH:
        raise InvalidInput(f"a passphrase needs at least {PASSPHRASE_LENGTH} characters: whoever has the file can try as many as they like")
    files = _files(folder, include)
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{target} exists: choose another name, a backup never overwrites") from None
    except OSError as error:
        raise store_error(error, target) from error
    try:
        with os.fdopen(fd, "wb") as file:
            seal(file, _records(capture, folder, files, made), passphrase)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(target.parent)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise store_error(error, target) from error
    return Summary(capture.revision, _live(capture), tuple(files), made)


def restore(source: Path, folder: Path, passphrase: str, now: str = "") -> Summary:
    """Make the data folder from a backup. Blocks; the store must not be open. ``now``: what `Restored` shall say.

    Raises AlreadyExists when something would be overwritten, InvalidInput for a wrong passphrase, StoreCorrupt for a damaged file.
    """
    if (folder / DATABASE).exists():
        raise AlreadyExists(f"{folder / DATABASE} exists: restore into an empty folder, or move the old one away first")
    partial = folder / PARTIAL
    try:
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
        with source.open("rb") as file:
            summary = _unpack(file, partial, passphrase, now)
        _move(partial, folder, summary.files)
    except FileNotFoundError as error:
        raise InvalidInput(f"{error.filename} does not exist") from error
    except OSError as error:
        raise store_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


# --- what is inside


def _records(capture: Capture, folder: Path, files: Sequence[str], made: str) -> Iterator[bytes]:
    encode = msgspec.msgpack.Encoder().encode
    yield encode(("head", FORMAT, capture.revision))
    yield encode(("made", made))
    for name in files:
        yield encode(("file", name, (folder / name).read_bytes()))
    for name, first in capture.history:
        yield encode(("history", name, first))
    yield encode(("floor", "", capture.floor))
    for space, revision in capture.floors.items():
        yield encode(("floor", space, revision))
    for name, value in capture.facts.items():
        yield encode(("fact", name, value))
    for change in capture.changes:
        stored = change.stored
        document = b"" if change.deleted else stored.document
        head = (change.deleted, stored.revision, *stored.key, stored.uid, stored.version, document)
        yield encode(("change", _Row(*head, stored.delivered, stored.source, stored.start, stored.sequence)))
    yield encode(("end", len(capture.changes)))


def _files(folder: Path, include: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in include:
        path = folder / name
        paths = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [str(item.relative_to(folder)) for item in paths if item.is_file() and item.name not in NOT_COPIED]
    for name in found:
        if (folder / name).stat().st_size > FILE_BYTES:
            raise InvalidInput(f"{folder / name} is larger than {FILE_BYTES} bytes: a backup holds settings and identities, not data")
    return found


def _live(capture: Capture) -> int:
    live: dict[Key, bool] = {}
    for change in capture.changes:
        live[change.stored.key] = not change.deleted
    return sum(live.values())


def _unpack(file: BufferedReader, partial: Path, passphrase: str, now: str) -> Summary:
    """Write what the backup holds into ``partial``."""
    writer = _Writer(partial, now)
    decode = msgspec.msgpack.Decoder(list[Any]).decode
    try:
        for record in unseal(file, passphrase):
            writer.take(decode(record))
        return writer.finish()
    except (ValueError, TypeError) as error:  # msgspec's errors among them
        raise StoreCorrupt(f"the backup does not hold what a program writes ({error}): use another one") from error
    finally:
        writer.close()


class _Writer:
    """Turns records into a store and files."""

    BATCH = 500

    def __init__(self, folder: Path, now: str) -> None:
        self._folder = folder
        self._now = now
        self._made = ""
        self._database: Database | None = None
        self._batch = Batch()
        self._before: dict[Key, Stored] = {}
        self._files: list[str] = []
        self._changes = self._revision = 0
        self._ended = False

    def take(self, record: list[Any]) -> None:
        kind, *fields = record
        if kind == "head":
            self._head(*fields)
        elif kind == "made":
            self._made = str(fields[0])
        elif kind == "file":
            self._file(*fields)
        elif kind == "history":
            self._store().set_history([], (str(fields[0]), int(fields[1])))
        elif kind == "floor":
            self._floor(*fields)
        elif kind == "fact":
            self._batch.facts[fields[0]] = fields[1]
        elif kind == "change":
            self._change(*fields)
        elif kind == "end":
            self._ended = fields[0] == self._changes

    def finish(self) -> Summary:
        if not self._ended:
            raise StoreCorrupt("the backup is not complete: use another one")
        restored = Restored(made=self._made, revision=self._revision, restored=self._now)
        self._batch.facts[RESTORED] = msgspec.json.encode(restored)
        self._flush()
        return Summary(self._revision, len(self._before), tuple(self._files), self._made)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _head(self, version: int, revision: int) -> None:
        if version > FORMAT:
            raise InvalidInput(
                f"the backup was written by a newer program (format {version}, this one reads up to {FORMAT}): use the newer one"
            )
        self._revision = revision

    def _file(self, name: str, content: bytes) -> None:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or pure.name in NOT_COPIED:
            raise StoreCorrupt(f"the backup holds a file named {name!r}, which is no file of a data folder")
        path = self._folder / pure
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._files.append(str(pure))

    def _floor(self, space: str, revision: int) -> None:
        if space:
            self._batch.floors[space] = revision
        else:
            self._batch.floor = revision

    def _change(self, fields: Any) -> None:
        row = msgspec.convert(fields, _Row)
        key = Key(row.space, row.kind, row.namespace, row.name)
        before = self._before.pop(key, None)
        document = before.document if row.deleted and before is not None else row.document
        stored = Stored(
            key,
            row.uid,
            row.version,
            row.revision,
            content_hash(document),
            document,
            row.delivered,
            row.source,
            row.start,
            row.sequence,
        )
        if not row.deleted:
            self._before[key] = stored
        self._batch.events.append(Event(row.revision, "delete" if row.deleted else "put", stored, before))
        self._changes += 1
        if len(self._batch.events) >= self.BATCH:
            self._flush()

    def _flush(self) -> None:
        self._store().write(self._batch)
        self._batch = Batch()

    def _store(self) -> Database:
        if self._database is None:
            self._database = Database(self._folder)
            self._database.open()
        return self._database


def _move(partial: Path, folder: Path, files: Sequence[str]) -> None:
    """Into place, the database last: with it the folder becomes a store."""
    made = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file() and path.name not in NOT_COPIED]
    taken = [name for name in made if (folder / name).exists()]
    if taken:
        raise AlreadyExists(f"{folder / taken[0]} exists: restore into an empty folder, or move the old one away first")
    for name in (*made, DATABASE):
        (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (partial / name).rename(folder / name)
        sync_folder((folder / name).parent)
