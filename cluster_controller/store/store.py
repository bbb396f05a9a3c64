"""The store: everything a controller must not forget, readable without waiting, written before it is acknowledged.

Reads come from memory and show what is committed. `commit` runs its function at once, on the event loop, against the newest
pending state, and hands only rows to the one thread that speaks to the database; while that thread waits for the disk, the
next commits gather, and share the next fdatasync (group commit).

Invariants
- A commit that returned is on the disk. Nothing is shown to readers, watchers or peers before that.
- Revisions are given in the order in which commits become durable, without gaps.
- When a write fails, every commit that was built on it fails with it, and the state is that of the last durable commit. The
  store goes on when the disk does (StoreFull heals by itself), except after a failed fdatasync, when nobody can know what the
  disk holds: then everything is refused until the store is opened again.
"""

import asyncio
import secrets
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from msgspec import Struct

from cluster_controller.errors import Exhausted, StoreError
from cluster_controller.store.backup import Capture, Summary, write_backup
from cluster_controller.store.database import Batch, Change, Database, DiskLost
from cluster_controller.store.health import Health, Trouble
from cluster_controller.store.journal import Trimmed
from cluster_controller.store.loading import Loaded, load
from cluster_controller.store.model import Event, Expired, Key, Limits, Stored
from cluster_controller.store.tx import FactSlot, Head, Slot, Tx

log = structlog.get_logger()
T = TypeVar("T")
Names = list[str]
Events = list[Event]
Page = tuple[list[Stored], int]
Subscriber = Callable[[Sequence[Event]], None]
WAL_SLACK = 4  # how much larger than wanted the WAL may grow while commits never pause
DEAD_ROWS = 256  # rows out of the journal are deleted from the disk this many at a time, with a commit that happens anyway


class Waiting(Struct, eq=False):
    """One commit on its way to the disk."""

    done: "asyncio.Future[None]"
    events: list[Event]
    delivered: list[Stored]
    slots: dict[Key, Slot]
    facts: dict[str, FactSlot]
    bytes: int


class Store:
    """Made by `Store.open`. All methods are for the event loop's thread."""

    def __init__(self, database: Database, thread: ThreadPoolExecutor, loaded: Loaded, limits: Limits) -> None:
        self._database = database
        self._thread = thread
        self._limits = limits
        self._mirror = loaded.mirror
        self._journal = loaded.journal
        self._facts = loaded.facts
        self._head = Head(loaded.mirror, loaded.facts, loaded.revision)
        self._subscribers: dict[str | None, list[tuple[Subscriber, frozenset[str]]]] = {}
        self._queue: list[Waiting] = []
        self._writing: list[Waiting] = []
        self._rows = 0  # pending, and their bytes
        self._bytes = 0
        self._flushing = False
        self._trimmed = loaded.trimmed  # forgotten in memory, still on the disk
        self._broken: StoreError | None = None
        self.lost: Callable[[StoreError], None] = lambda error: None  # told once: nothing is taken any more until the store is opened again
        self._health = Health(database.path, thread)
        self._idle = asyncio.Event()
        self._idle.set()
        self.history = loaded.history  # openings: (id, first revision), oldest first
        self.revision = loaded.revision  # of the newest change on the disk

    @classmethod
    async def open(cls, path: Path, limits: Limits | None = None) -> "Store":
        """Open or create the store in the data folder ``path`` (the files `store.db*` and `store.lock` in it).

        Raises StoreInUse (names the pid), StoreCorrupt, StoreFull, StoreReadOnly, StoreTooNew; each leaves the folder as it was.
        """
        limits = limits or Limits()
        thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        loop = asyncio.get_running_loop()
        database = Database(path)
        try:
            loaded = await loop.run_in_executor(thread, load, database, limits, secrets.token_hex(8))
        except StoreError:
            thread.shutdown(wait=False)
            raise
        return cls(database, thread, loaded, limits)

    # --- reading: committed state, from memory

    def get(self, key: Key) -> Stored | None:
        return self._mirror.get(key)

    def list(self, space: str, kind: str, namespace: str | None = None) -> list[Stored]:
        """Sorted by namespace, then name."""
        return self._mirror.list(space, kind, namespace)

    def find(self, space: str, kind: str, uid: str) -> Stored | None:
        return self._mirror.find(space, kind, uid)

    def fact(self, name: str) -> bytes | None:
        return self._facts.get(name)

    def spaces(self) -> Names:
        return self._mirror.spaces()

    def kinds(self, space: str) -> Names:
        return self._mirror.kinds(space)

    def scan(self, space: str) -> Iterator[Stored]:
        """Every object of a space, unsorted. To be used up before the next await."""
        return self._mirror.scan(space)

    def size(self, space: str) -> int:
        """Objects in a space."""
        return self._mirror.size(space)

    def list_at(
        self, space: str, kind: str, revision: int, namespace: str | None = None, *, after: tuple[str, str] | None = None, limit: int = 0
    ) -> Page:
        """A page of the list as it was at ``revision``: objects after (namespace, name), and how many follow the page.

        ``limit`` 0 is no limit. Raises `Expired` when ``revision`` is past the journal.
        """
        if revision > self.revision:
            raise Expired(
                f"revision {revision} is from another history of this store, which is at {self.revision}: list again from the beginning"
            )
        then = self._journal.undo(space, kind, revision)
        group = self._mirror.group(space, kind)
        keys = group.namespace_keys(space, kind, namespace) if group is not None else []
        if then:
            added = (key for key in then if namespace is None or key.namespace == namespace)
            keys = sorted({*keys, *added} - {key for key, stored in then.items() if stored is None})
        first = bisect_right(keys, Key(space, kind, *after)) if after is not None else 0
        return _page(keys, first, limit, lambda key: then.get(key) or self._mirror.get(key))

    def since(self, revision: int, space: str | None = None) -> Events:
        """Events after ``revision``, oldest first, of one space or of all. Raises `Expired` (410) when it is past the journal."""
        if revision > self.revision:
            raise Expired(f"revision {revision} is from another history of this store, which is at {self.revision}: list again")
        return self._journal.since(revision, space)

    def floor(self, space: str | None = None) -> int:
        """`since` answers from this revision on."""
        return self._journal.floor_of(space)

    def last(self, space: str) -> int:
        """The revision of the newest change of a space; 0 when it never changed."""
        return self._journal.last(space)

    @property
    def journal_bytes(self) -> int:
        """What the journal keeps for watchers and peers, bounded by `Limits.journal_bytes`."""
        return self._journal.bytes

    def capture(self) -> Capture:
        """All of the committed state, by reference, for a backup: what lives, the journal, and the states before its entries."""
        changes = {stored.revision: Change(stored, False) for space in self.spaces() for stored in self.scan(space)}
        for event in self._journal.since(self._journal.floor):
            if event.previous is not None:
                changes[event.previous.revision] = Change(event.previous, False)
            changes[event.revision] = Change(event.stored, event.kind_of == "delete")
        ordered = [changes[revision] for revision in sorted(changes)]
        return Capture(self.revision, ordered, self.history, self._journal.floor, self._journal.floors(), dict(self._facts))

    @property
    def folder(self) -> Path:
        """The data folder that this store lives in."""
        return self._database.path.parent

    async def backup(self, target: Path, passphrase: str, include: Sequence[str] = ("identity",), made: str = "") -> Summary:
        """Write an encrypted backup of what is committed now, and of the files below ``include``, to ``target``.

        Commits go on meanwhile. Raises InvalidInput, AlreadyExists, StoreError.
        """
        return await asyncio.to_thread(write_backup, self.capture(), self.folder, target, passphrase, include=include, made=made)

    @property
    def trouble(self) -> Trouble | None:
        """Why commits fail, and since when; None while they do not. It goes by itself once the disk takes writes again."""
        return self._health.trouble

    # --- writing

    async def commit(self, work: Callable[[Tx], T]) -> T:
        """Run ``work`` now, return its result once all it changed is on the disk.

        What ``work`` raises is raised here and nothing changes. Raises StoreError (a subclass says which) when the disk refuses,
        Exhausted when too much waits for the disk.
        """
        self._admit()
        head = self._head
        tx = Tx(head, self._limits)
        try:
            result = work(tx)
        finally:
            tx.seal()
        waiting = Waiting(asyncio.get_running_loop().create_future(), tx.events, tx.delivered, tx.slots(), tx.facts, tx.bytes)
        if not waiting.slots and not waiting.facts:
            if not self._flushing:
                return result  # nothing changed, and all that was seen is on the disk
        else:
            head.revision = tx.revision
            head.pending.update(waiting.slots)
            head.pending_facts.update(waiting.facts)
            self._rows += len(waiting.events)
            self._bytes += waiting.bytes
        self._queue.append(waiting)
        if not self._flushing:
            self._flushing = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._flush)
        await waiting.done
        return result

    def subscribe(self, callback: Subscriber, space: str | None = None, *, kinds: Collection[str] = ()) -> Callable[[], None]:
        """Call ``callback`` with the events of each group of commits, of one space or of all; it must not block or write at once.

        ``kinds``: it is called for events of these alone, and sees no others; of any kind when there are none. Returns a function that
        ends it.
        """
        callbacks = self._subscribers.setdefault(space, [])
        entry = (callback, frozenset(kinds))
        callbacks.append(entry)

        def end() -> None:
            if entry in callbacks:
                callbacks.remove(entry)
            if not callbacks and self._subscribers.get(space) is callbacks:
                del self._subscribers[space]

        return end

    async def close(self) -> None:
        """Wait for what is being written, then give the folder back."""
        self._broken = self._broken or StoreError(f"{self._database.path} is closed")
        self._health.close()
        await self._idle.wait()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()

    # --- group commit

    def _admit(self) -> None:
        if self._broken is not None:
            raise type(self._broken)(str(self._broken))
        if self._rows >= self._limits.pending_rows or self._bytes >= self._limits.pending_bytes:
            raise Exhausted(f"{self._rows} changes ({self._bytes} bytes) already wait for the disk: try again in a second", retry_after=1.0)

    def _flush(self) -> None:
        group, self._queue = self._queue, []
        self._writing = group
        batch = Batch()
        for waiting in group:
            batch.events += waiting.events
            batch.delivered += waiting.delivered
            for name, (value,) in waiting.facts.items():
                batch.facts[name] = value
        if _rows(batch) and len(self._trimmed.dead) >= DEAD_ROWS:
            batch.dead, batch.floors, batch.floor = self._trimmed.dead, self._trimmed.floors, self._trimmed.floor
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        writing.add_done_callback(lambda done: self._written(done, group, batch))

    def _write(self, batch: Batch) -> None:
        """In the thread."""
        database = self._database
        if _rows(batch):
            database.write(batch)

    def _written(self, done: "asyncio.Future[None]", group: Sequence[Waiting], batch: Batch) -> None:
        error = done.exception()
        if error is not None:
            self._failed(error, group)
            return
        if batch.floor:
            self._trimmed = Trimmed()
        if _rows(batch):
            self._health.wrote()
        self._apply(group, batch)
        self._notify(batch.events)
        for waiting in group:
            if not waiting.done.done():  # cancelled: written all the same
                waiting.done.set_result(None)
        self._next()

    def _apply(self, group: Sequence[Waiting], batch: Batch) -> None:
        head = self._head
        for waiting in group:
            for key, slot in waiting.slots.items():
                self._show(key, slot[0])
                if head.pending.get(key) is slot:
                    del head.pending[key]
            for name, fact in waiting.facts.items():
                if fact[0] is None:
                    self._facts.pop(name, None)
                else:
                    self._facts[name] = fact[0]
                if head.pending_facts.get(name) is fact:
                    del head.pending_facts[name]
            self._rows -= len(waiting.events)
            self._bytes -= waiting.bytes
        for event in batch.events:
            self._journal.append(event)
        if batch.events:
            self.revision = batch.events[-1].revision
            self._trimmed.add(self._journal.trim())

    def _show(self, key: Key, stored: Stored | None) -> None:
        if stored is not None:
            self._mirror.put(stored)
        elif self._mirror.get(key) is not None:  # made and deleted in one commit: never shown
            self._mirror.remove(key)

    def _notify(self, events: Sequence[Event]) -> None:
        """Each subscriber in a call of its own, so that one that fails takes nothing from the others."""
        if not events or not self._subscribers:
            return
        self._tell(self._subscribers.get(None, ()), events)
        spaces: dict[str, list[Event]] = {}
        for event in events:
            if event.stored.key.space in self._subscribers:
                spaces.setdefault(event.stored.key.space, []).append(event)
        for space, own in spaces.items():
            self._tell(self._subscribers[space], own)

    def _tell(self, subscribers: Sequence[tuple[Subscriber, frozenset[str]]], events: Sequence[Event]) -> None:
        """Most changes concern few: whom none of ``events`` concerns is not woken."""
        call = asyncio.get_running_loop().call_soon
        happened = {event.stored.key.kind for event in events}
        for callback, kinds in subscribers:
            if not kinds or kinds >= happened:
                call(callback, events)
            elif not kinds.isdisjoint(happened):
                call(callback, [event for event in events if event.stored.key.kind in kinds])

    def _next(self) -> None:
        longest = self._limits.wal_bytes * WAL_SLACK
        if self._database.wal_estimate >= (longest if self._queue else self._limits.wal_bytes):
            checkpoint = asyncio.get_running_loop().run_in_executor(self._thread, self._database.checkpoint, longest)
            checkpoint.add_done_callback(self._checkpointed)
        elif self._queue:
            self._flush()
        else:
            self._flushing = False
            self._idle.set()

    def _checkpointed(self, done: "asyncio.Future[None]") -> None:
        error = done.exception()
        if error is not None:  # everything is still in the WAL, and the next one tries again
            log.warning("store.checkpoint_failed", path=str(self._database.path), error=str(error))
        if isinstance(error, DiskLost):  # unless the disk lied: only the WAL, read at the next opening, is known to be whole
            self._break(error)
        self._next()

    def _break(self, error: StoreError) -> None:
        """What is on the disk can no longer be told: nothing is taken until the store is opened again."""
        if self._broken is None:
            self._broken = error
            self._health.lost(error)
            self.lost(error)

    def _failed(self, error: BaseException, group: Sequence[Waiting]) -> None:
        """All that is pending was built on what failed: it fails too."""
        reason = error if isinstance(error, StoreError) else StoreError(f"{self._database.path}: {error!r}")
        log.error("store.write_failed", path=str(self._database.path), error=str(reason), commits=len(group) + len(self._queue))
        queue, self._queue = self._queue, []
        self._head.drop_pending(self.revision)
        self._rows = self._bytes = 0
        for waiting in (*group, *queue):
            if not waiting.done.done():
                waiting.done.set_exception(type(reason)(str(reason)))
        if isinstance(reason, DiskLost):
            self._break(reason)
        else:
            self._health.failed(reason)
        self._next()


def _rows(batch: Batch) -> bool:
    return bool(batch.events or batch.facts or batch.delivered)


def _page(keys: Sequence[Key], first: int, limit: int, get: Callable[[Key], Stored | None]) -> Page:
    end = min(len(keys), first + limit) if limit else len(keys)
    found = [stored for key in keys[first:end] if (stored := get(key)) is not None]
    return found, len(keys) - end
