"""The receiving end: applies what arrives to its replica of the space, and acknowledges it once that is committed.

Pure. `apply` runs inside `Store.commit`; the answers it returns may be sent only when that commit has returned. A target lives
for one session; after a failed commit it is thrown away, and a new one goes on from the cursor in the store.

Invariants: the cursor is written in the commit that holds everything up to it; a batch that does not follow on the cursor is
not applied but asked for again; nothing is removed but by `rules`.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from cluster_controller.errors import Exhausted
from cluster_controller.store.model import Event, Key, Stored
from cluster_controller.store.tx import Tx
from cluster_controller.sync import conflicts, rules
from cluster_controller.sync.conflicts import Mark, mark_key
from cluster_controller.sync.digest import Digest, Held, bucket_of, in_mask
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.messages import (
    NOTHING,
    Ack,
    Batch,
    Begin,
    Check,
    Chunk,
    Differ,
    Item,
    Pair,
    Resume,
    Snapshot,
    ToReceiver,
    ToSender,
)
from cluster_controller.sync.rules import Verdict


class TargetView(Protocol):
    """What is read of the receiving store."""

    def fact(self, name: str) -> bytes | None: ...
    def scan(self, space: str) -> Iterator[Stored]: ...
    def size(self, space: str) -> int: ...
    def since(self, revision: int, space: str | None = None) -> list[Event]: ...
    def floor(self, space: str | None = None) -> int: ...


def cursor_fact(space: str) -> str:
    return f"sync/{space}/cursor"


class Target:
    """Receives into ``space``, for the life of one session.

    ``follow``: believe the sender across histories (reports), instead of marking conflicts (desired state).
    """

    def __init__(self, space: str, view: TargetView, *, follow: bool, limits: SyncLimits, zstd: bool = False, epoch: int = 0) -> None:
        self.space = space
        self.applied = 0  # puts and deletes
        self.stale = 0
        self.conflicts = 0
        self.forgotten: Pair | None = None  # the cursor, where the sender has never been: it was set back to before that, or is another one
        self.refused = 0  # larger than an object may be; the rest goes on without it
        self._view = view
        self._follow = follow
        self._limits = limits
        self._zstd = zstd
        self._epoch = epoch
        self._begin: Begin | None = None
        self._spans: dict[str, tuple[int, int]] = {}  # of the sender's history, as far as is known in this epoch
        self._gone: dict[tuple[Key, str], Pair] | None = None  # what was deleted here, as of the epoch; read when first needed
        self._in_step = False  # the cursor is of the sender's history, so changes can follow it
        self._snapshot: Snapshot | None = None  # whose chunks are awaited
        self._announced = 0  # the newest snapshot's id in this epoch
        self._chunks = 0  # of it that have come
        self._seen: set[Key] = set()
        self.cursor = _decode(view.fact(cursor_fact(space)))

    def resume(self) -> Resume:
        """Ask for everything after the cursor, in a new epoch."""
        self._reset()
        return self._resume()

    @property
    def in_step(self) -> bool:
        """The replica is exactly what the sender held at the cursor: its history is the sender's, and no snapshot is half here."""
        return self._in_step and self._snapshot is None

    def expects(self, chunk: Chunk) -> bool:
        """Has its snapshot been announced? Chunks on a stream of their own may overtake the announcement."""
        return chunk.epoch != self._epoch or chunk.snapshot <= self._announced

    def apply(self, tx: Tx, messages: Sequence[ToReceiver]) -> "list[Outcome]":
        """Apply messages in order. What it returns is for `answers`, once the commit has returned."""
        outcomes: list[Outcome] = []
        before = self.cursor
        for message in messages:
            if message.epoch == self._epoch:
                outcome = self._receive(tx, message)
                if outcome is not None:
                    outcomes.append(outcome)
        if self.cursor != before:
            tx.set_fact(cursor_fact(self.space), _encode(self.cursor))
        return outcomes

    def answers(self, outcomes: "Sequence[Outcome]") -> list[ToSender]:
        """What to send now that all that led to ``outcomes`` is committed."""
        found: list[ToSender] = []
        for outcome in outcomes:
            match outcome:
                case Again():
                    if outcome.epoch == self._epoch:
                        found.append(self._resume())
                case Check():
                    found.extend(self._compare(outcome))
                case Ack():
                    found.append(outcome)
        return found

    def _resume(self) -> Resume:
        held = list(self._view.scan(self.space))
        delivered = (stored.delivered for stored in held if stored.delivered is not None)
        histories = {history: None for history, _ in (*delivered, *self._deleted().values())}
        sender = self.space.partition("/")[2]
        start = max((stored.start for stored in held if sender and stored.source == sender), default=0)
        return Resume(self._epoch, self.cursor, tuple(histories), self._zstd, start)

    def _reset(self) -> None:
        self._epoch += 1
        self._begin = None
        self._in_step = False
        self._snapshot = None
        self._announced = 0

    def _again(self) -> "Again":
        self._reset()
        return Again(self._epoch)

    def _receive(self, tx: Tx, message: ToReceiver) -> "Outcome | None":
        match message:
            case Begin():
                self._start_epoch(message)
            case Batch():
                return self._batch(tx, message)
            case Snapshot():
                return self._start(message)
            case Chunk():
                return self._chunk(tx, message)
            case Check():
                return message if self._in_step and message.revision == self.cursor[1] else None
        return None

    def _start_epoch(self, begin: Begin) -> None:
        if self._begin is not None:
            return  # a repetition
        self._begin = begin
        self._in_step = begin.known
        self.forgotten = self.cursor if self.cursor[0] and not begin.known and not self._follow else None
        self._spans = dict(begin.spans)
        self._gone = None

    def _batch(self, tx: Tx, batch: Batch) -> "Outcome":
        if not self.in_step or batch.after > self.cursor[1]:
            return self._again()
        if batch.through[1] > self.cursor[1]:
            for item in batch.items:
                if item.delivered[1] > self.cursor[1]:
                    self._item(tx, item)
            self.cursor = batch.through
        return Ack(self._epoch, self.cursor[1])

    def _start(self, snapshot: Snapshot) -> "Outcome | None":
        if self._begin is None or (snapshot.buckets and not self._in_step):
            return self._again()
        if snapshot.id <= self._announced:
            return None  # a repetition
        self._snapshot = snapshot
        self._announced = snapshot.id
        self._chunks = 0
        self._seen = set()
        return None

    def _chunk(self, tx: Tx, chunk: Chunk) -> "Outcome | None":
        snapshot = self._snapshot
        if snapshot is None or snapshot.id != chunk.snapshot or chunk.index < self._chunks:
            return None  # of one that is complete, or a repetition
        if chunk.index > self._chunks:
            return self._again()
        self._chunks += 1
        for item in chunk.items:
            self._item(tx, item)
            self._seen.add(self._key(item))
        if not chunk.last:
            return None
        self._sweep(tx, snapshot)
        self._snapshot = None
        self._in_step = True
        self.cursor = snapshot.cursor
        return Ack(self._epoch, self.cursor[1], snapshot.id)

    # --- one object

    def _item(self, tx: Tx, item: Item) -> None:
        self._learn(item.delivered)
        key = self._key(item)
        held = tx.get(key)
        mark = conflicts.read(tx.get(mark_key(key)))
        if item.deleted:
            self._delete(tx, key, held, mark, item)
        elif mark is not None and mark.decision == "field" and mark.theirs is not None and mark.theirs.is_item(item):
            self.stale += 1  # what a person has turned down
        elif mark is not None and mark.decision == "field":
            tx.delete(mark_key(key))
            self._write(tx, key, item)
        elif held is None and self._was_deleted(key, item):
            self._hold(tx, key, held, item)
        elif len(item.document) > self._limits.document_bytes:
            self.refused += 1
        elif held is None and self._view.size(self.space) >= self._limits.objects:
            raise Exhausted(
                f"{self.space} holds {self._limits.objects} objects and takes no more: the sender has too many", retry_after=60.0
            )
        else:
            self._put(tx, key, held, mark, item)

    def _put(self, tx: Tx, key: Key, held: Stored | None, mark: Mark | None, item: Item) -> None:
        verdict = rules.on_put(held, item, self._contains, follow=self._follow)
        if verdict is Verdict.CONFLICT or (held is None and mark is not None):
            self._hold(tx, key, held, item)
            return
        if verdict is Verdict.STALE:
            self.stale += 1
            return
        if mark is not None:
            tx.delete(mark_key(key))
        if verdict is Verdict.APPLY or (held is not None and (held.delivered is None or not self._contains(held.delivered))):
            self._write(tx, key, item)

    def _write(self, tx: Tx, key: Key, item: Item) -> None:
        self.applied += 1
        tx.put(
            key,
            item.document,
            uid=item.uid,
            version=item.version,
            delivered=item.delivered,
            source=item.source,
            start=item.start,
            sequence=item.sequence,
        )

    def _delete(self, tx: Tx, key: Key, held: Stored | None, mark: Mark | None, item: Item) -> None:
        if mark is not None and mark.theirs is not None and mark.theirs.uid == item.uid:
            self._forget_theirs(tx, key, held, mark)
        verdict = rules.on_delete(held, item, self._contains)
        if verdict is Verdict.STALE:
            self.stale += 1
        elif verdict is Verdict.APPLY:
            self.applied += 1
            tx.delete(key, delivered=item.delivered)
            if mark is not None:
                tx.delete(mark_key(key))

    def _sweep(self, tx: Tx, snapshot: Snapshot) -> None:
        """A snapshot is complete: what it does not hold goes, or is marked."""
        for key in _keys_in(tx, self.space, snapshot.buckets):
            if key in self._seen:
                continue
            held = tx.get(key)
            mark = conflicts.read(tx.get(mark_key(key)))
            if mark is not None:
                self._forget_theirs(tx, key, held, mark)
            elif held is None:
                continue
            elif rules.on_absence(held, self._contains, follow=self._follow) is Verdict.APPLY:
                self.applied += 1
                tx.delete(key, delivered=snapshot.cursor)
            else:
                self._mark(tx, key, Mark(held.uid, None))
        self._seen = set()

    # --- conflicts

    def _hold(self, tx: Tx, key: Key, held: Stored | None, item: Item) -> None:
        self._mark(tx, key, Mark(held.uid if held is not None else "", conflicts.theirs(item)))

    def _mark(self, tx: Tx, key: Key, mark: Mark) -> None:
        self.conflicts += 1
        conflicts.write(tx, key, mark)

    def _forget_theirs(self, tx: Tx, key: Key, held: Stored | None, mark: Mark) -> None:
        """The sender no longer has it: both sides agree when it is not held here either."""
        if held is None:
            tx.delete(mark_key(key))
        elif mark.theirs is not None:
            conflicts.write(tx, key, Mark(mark.ours, None, mark.decision))

    def _was_deleted(self, key: Key, item: Item) -> bool:
        """Would a sender with another history, one that forgot the deletion or is older than it, bring back what was deleted here?
        In one history its journal has answered that."""
        if self._follow or self._begin is None or self._begin.known:
            return False
        if self._gone is None:
            self._gone = self._deleted()
        gone = self._gone.get((key, item.uid))
        return gone is not None and (not self._contains(gone) or item.delivered[1] <= gone[1])

    def _deleted(self) -> dict[tuple[Key, str], Pair]:
        """By name and uid, what the journal remembers as deleted, or replaced by another of its name: the pair that did it."""
        gone: dict[tuple[Key, str], Pair] = {}
        for event in self._view.since(self._view.floor(self.space), self.space):
            now, before = event.stored, event.previous
            ended = now.uid if event.kind_of == "delete" else before.uid if before is not None and before.uid != now.uid else ""
            if ended and now.delivered is not None:
                gone[now.key, ended] = now.delivered
        return gone

    # --- the sender's history, the digest

    def _contains(self, pair: Pair) -> bool:
        if self._begin is not None and pair[0] == self._begin.history:
            return True  # given since its last opening: it cannot have forgotten those
        span = self._spans.get(pair[0])
        return span is not None and span[0] <= pair[1] <= span[1]

    def _learn(self, pair: Pair) -> None:
        """The sender named this pair itself; an opening's revisions follow on each other, so all between two known ones are known."""
        history, revision = pair
        first, last = self._spans.get(history, (revision, revision))
        self._spans[history] = min(first, revision), max(last, revision)

    def _compare(self, check: Check) -> list[ToSender]:
        if check.epoch != self._epoch or self._snapshot is not None or check.revision != self.cursor[1]:
            return []
        digest = Digest(self._held())
        return [Differ(self._epoch, check.revision, digest.buckets())] if digest.root() != check.digest else []

    def _held(self) -> Iterator[Held]:
        """What the sender would have, if all is well: for what is in conflict that is what it said it has."""
        marks = {conflicts.object_key(stored.key): stored for stored in self._view.scan(conflicts.space_of(self.space))}
        for stored in self._view.scan(self.space):
            if stored.key not in marks:
                yield stored.key, stored.uid, stored.version, stored.hash
        for key, stored in marks.items():
            mark = conflicts.read(stored)
            if mark is not None and mark.theirs is not None:
                yield key, mark.theirs.uid, mark.theirs.version, mark.theirs.hash

    def _key(self, item: Item) -> Key:
        return Key(self.space, item.kind, item.namespace, item.name)


def _keys_in(tx: Tx, space: str, buckets: bytes) -> list[Key]:
    """Keys held or marked in these buckets, those not yet committed too: the batch before a snapshot may be in the same commit."""
    held = (stored.key for stored in tx.scan(space))
    marked = (conflicts.object_key(stored.key) for stored in tx.scan(conflicts.space_of(space)))
    return [key for key in {*held, *marked} if in_mask(buckets, bucket_of(key))]


class Again(Struct, frozen=True):
    """The sender must begin anew: something is missing before what arrived."""

    epoch: int


Outcome = Ack | Check | Again


def _encode(cursor: Pair) -> bytes:
    return f"{cursor[0]} {cursor[1]}".encode()


def _decode(value: bytes | None) -> Pair:
    if not value:
        return NOTHING
    history, _, revision = value.decode().partition(" ")
    return history, int(revision)
