"""The sending end: a space's changes after the receiver's cursor, or all of it.

Pure. Nothing is queued per receiver: the journal is the queue, a cursor and a window are all that is kept. A cursor of another
history, or past the journal, gets a snapshot. Changes wait for a snapshot's acknowledgement, so the receiver sees every
change of the space in order.

Invariants: only committed changes are sent; what is unacknowledged is bounded by the window; a batch holds, of several
changes to one object, the last.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from cluster_controller.store.history import History, Opening
from cluster_controller.store.model import Event, Expired, Key, Stored
from cluster_controller.sync.digest import BUCKET_BYTES, BUCKETS, Digest, bucket_of, differing, in_mask
from cluster_controller.sync.limits import ITEM_BYTES, SyncLimits
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Chunk, Differ, Item, Resume, Snapshot


class SourceView(Protocol):
    """What is read of the sending store: committed state only."""

    @property
    def history(self) -> Sequence[Opening]: ...
    @property
    def revision(self) -> int: ...
    def since(self, revision: int, space: str | None = None) -> list[Event]: ...
    def floor(self, space: str | None = None) -> int: ...
    def last(self, space: str) -> int: ...
    def scan(self, space: str) -> Iterator[Stored]: ...


class Plan(Struct, frozen=True):
    """A snapshot to be sent: its announcement, then its chunks, in order, before anything else of this source."""

    snapshot: Snapshot
    chunks: tuple[Chunk, ...]


Next = Begin | Batch | Check | Plan


class Source:
    """Sends ``space`` to one receiver, for the life of one session."""

    def __init__(self, space: str, view: SourceView, limits: SyncLimits) -> None:
        self.space = space
        self.zstd = False  # the receiver decompresses
        self.oversized = 0  # objects met that are too large to be sent
        self.repairs = 0  # digests that differed
        self.set_back = False  # the receiver holds what this store does not know that it ever said
        self._view = view
        self._limits = limits
        self._epoch = 0
        self._begin: Begin | None = None
        self._mask: bytes | None = None  # of the snapshot that is due; empty: all of the space
        self._sending: Snapshot | None = None  # not yet acknowledged
        self._check_due = False
        self._sent = 0  # every change of the space up to here has been sent in this epoch
        self._snapshots = 0
        self._acked = 0  # the receiver has everything up to here
        self._unacked: deque[tuple[int, int]] = deque()  # (through, bytes) of each batch
        self._unacked_bytes = 0

    @property
    def lag(self) -> int:
        """Revisions of the store since the last change of this space that the receiver holds; 0 when it holds all."""
        return max(0, self._view.last(self.space) - self._acked)

    # --- what the receiver says

    def resume(self, message: Resume) -> None:
        """A new epoch; what was underway is forgotten. Of two epochs the later one counts."""
        if message.epoch <= self._epoch:
            return
        history = self._history()
        asked = (message.cursor[0], *message.histories[: self._limits.histories])
        spans = {name: span for name in asked if (span := history.span(name)) is not None}
        known = history.contains(message.cursor)
        self.set_back = bool(message.cursor[0]) and not known
        self._epoch = message.epoch
        self.zstd = message.zstd
        self._begin = Begin(message.epoch, history.openings[-1][0], spans, known)
        self._sent = self._acked = message.cursor[1] if known else 0
        self._mask = None if known else b""
        self._check_due = known
        self._sending = None
        self._unacked.clear()
        self._unacked_bytes = 0

    def acked(self, message: Ack) -> None:
        if message.epoch != self._epoch:
            return
        self._acked = max(self._acked, message.revision)
        while self._unacked and self._unacked[0][0] <= message.revision:
            self._unacked_bytes -= self._unacked.popleft()[1]
        if self._sending is not None and message.snapshot == self._sending.id:
            self._sending = None

    def differs(self, message: Differ) -> None:
        """Send the buckets that differ, if the receiver spoke of what is here now; else compare again once it has caught up."""
        if message.epoch != self._epoch or self._sending is not None or self._mask is not None:
            return
        if message.revision != self._sent or len(message.buckets) != BUCKETS * BUCKET_BYTES or self._behind():
            self._check_due = True
            return
        mask = differing(self._digest().buckets(), message.buckets)
        if mask:
            self.repairs += 1
            self._mask = mask

    def check(self) -> None:
        """Compare digests once all is sent."""
        self._check_due = True

    # --- what is sent next

    def next(self) -> Next | None:
        """What to send now; None when there is nothing, or the window is full."""
        if self._begin is not None:
            begin, self._begin = self._begin, None
            return begin
        if not self._epoch or self._sending is not None:
            return None
        if self._mask is not None and not (self._mask and self._behind()):
            return self._snapshot(self._mask)  # some buckets alone: what has changed meanwhile in the others goes before, or never would
        if self._unacked_bytes >= self._limits.window_bytes or len(self._unacked) >= self._limits.window_batches:
            return None
        try:
            events = self._view.since(self._sent, self.space)
        except Expired:
            return self._snapshot(b"")
        if events:
            return self._batch(events)
        if self._check_due:
            self._check_due = False
            return Check(self._epoch, self._sent, self._digest().root())
        return None

    def _behind(self) -> bool:
        return self._view.last(self.space) > self._sent

    def _batch(self, events: Sequence[Event]) -> Batch:
        """The last change of each object, oldest first, as many as fit; a deletion stays even when the name is used again."""
        chosen: dict[tuple[Key, str], Event] = {}  # deletions apart, one for each uid that had the name
        size = 0
        for count, event in enumerate(events):
            cost = ITEM_BYTES + len(event.stored.document)
            if count and (size + cost > self._limits.batch_bytes or count >= self._limits.batch_items):
                break
            size += cost
            key = event.stored.key
            chosen.pop((key, ""), None)
            gone = event.stored.uid if event.kind_of == "delete" else ""
            chosen.pop((key, gone), None)
            chosen[key, gone] = event
            through = event.revision
        after, self._sent = self._sent, through
        self._unacked.append((through, size))
        self._unacked_bytes += size
        history = self._history()
        items = tuple(
            self._item(history, event.stored, bool(gone))
            for (_, gone), event in chosen.items()
            if gone or self._fits(event.stored)  # a deletion carries no document: what grew too large can still be withdrawn
        )
        return Batch(self._epoch, after, history.origin(through), items)

    def _snapshot(self, mask: bytes) -> Plan:
        self._mask = None
        self._snapshots += 1
        self._sent = self._view.revision
        history = self._history()
        objects = sorted((s for s in self._objects() if in_mask(mask, bucket_of(s.key))), key=_revision)
        size = sum(len(stored.document) + ITEM_BYTES for stored in objects)
        snapshot = Snapshot(self._epoch, self._snapshots, history.origin(self._sent), mask, size > self._limits.inline_bytes)
        groups = list(self._groups(objects))
        chunks = tuple(
            Chunk(self._epoch, snapshot.id, index, tuple(self._item(history, stored, False) for stored in group), index == len(groups) - 1)
            for index, group in enumerate(groups)
        )
        self._sending = snapshot
        self._unacked.clear()
        self._unacked_bytes = 0
        return Plan(snapshot, chunks)

    def _groups(self, objects: Sequence[Stored]) -> Iterator[list[Stored]]:
        """At least one, each within the bounds of a batch."""
        group: list[Stored] = []
        size = 0
        for stored in objects:
            cost = ITEM_BYTES + len(stored.document)
            if group and (size + cost > self._limits.batch_bytes or len(group) >= self._limits.batch_items):
                yield group
                group, size = [], 0
            group.append(stored)
            size += cost
        yield group

    def _item(self, history: History, stored: Stored, deleted: bool) -> Item:
        return Item(
            deleted,
            *stored.key[1:],
            stored.uid,
            stored.version,
            history.origin(stored.revision),
            b"" if deleted else stored.document,
            stored.source,
            stored.start,
            stored.sequence,
        )

    def _objects(self) -> Iterable[Stored]:
        return (stored for stored in self._view.scan(self.space) if self._fits(stored))

    def _fits(self, stored: Stored) -> bool:
        fits = len(stored.document) <= self._limits.document_bytes
        self.oversized += not fits
        return fits

    def _digest(self) -> Digest:
        return Digest((stored.key, stored.uid, stored.version, stored.hash) for stored in self._objects())

    def _history(self) -> History:
        return History(self._view.history, self._view.revision)


def _revision(stored: Stored) -> int:
    return stored.revision
