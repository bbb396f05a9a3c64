"""One unit of work: a synchronous view of the newest pending state, with read-your-writes.

Pure. A `Tx` collects changes and gives each its revision; the store takes them all or none. `Head` is the newest state that
anybody has written, on disk or on its way there: the committed mirror under a thin layer of what is pending.
"""

from sys import intern

from cluster_controller.errors import InvalidInput, StoreError
from cluster_controller.store.mirror import Mirror
from cluster_controller.store.model import Event, Key, Limits, Stored, at_revision, content_hash, delivered_by

# A one-element tuple, so that each pending change has an identity of its own: when it is on disk, and nothing newer has
# replaced it meanwhile, the layer forgets it.
Slot = tuple[Stored | None]
FactSlot = tuple[bytes | None]


class Head:
    """The committed state and what is pending on top of it."""

    def __init__(self, mirror: Mirror, facts: dict[str, bytes], revision: int) -> None:
        self.mirror = mirror
        self.facts = facts
        self.revision = revision  # the newest that was handed out
        self.pending: dict[Key, Slot] = {}
        self.pending_facts: dict[str, FactSlot] = {}

    def get(self, key: Key) -> Stored | None:
        slot = self.pending.get(key)
        return slot[0] if slot is not None else self.mirror.get(key)

    def find(self, space: str, kind: str, uid: str) -> Key | None:
        """Under which name an object is, or was at last; what waits for the disk is little."""
        for key, (stored,) in self.pending.items():
            if stored is not None and stored.uid == uid and key.kind == kind and key.space == space:
                return key
        found = self.mirror.find(space, kind, uid)
        return found.key if found is not None else None

    def fact(self, name: str) -> bytes | None:
        slot = self.pending_facts.get(name)
        return slot[0] if slot is not None else self.facts.get(name)

    def drop_pending(self, revision: int) -> None:
        """Back to what is committed, at ``revision``."""
        self.pending.clear()
        self.pending_facts.clear()
        self.revision = revision


class Tx:
    """Handed to the function given to `Store.commit`; dead once that function has returned."""

    __slots__ = ("_head", "_limits", "_names", "_open", "_slots", "bytes", "delivered", "events", "facts", "revision")

    def __init__(self, head: Head, limits: Limits) -> None:
        self._head = head
        self._limits = limits
        self._slots: dict[Key, Slot] = {}
        self._names: dict[tuple[str, str, str], Key] = {}  # of what was written here, by space, kind and uid
        self._open = True
        self.events: list[Event] = []
        self.delivered: list[Stored] = []
        self.facts: dict[str, FactSlot] = {}
        self.revision = head.revision
        self.bytes = 0

    def get(self, key: Key) -> Stored | None:
        slot = self._slots.get(key)
        return slot[0] if slot is not None else self._head.get(key)

    def find(self, space: str, kind: str, uid: str) -> Stored | None:
        """By uid, whatever its name is by now."""
        key = self._names.get((space, kind, uid)) or self._head.find(space, kind, uid)
        found = self.get(key) if key is not None else None
        return found if found is not None and found.uid == uid else None

    def scan(self, space: str) -> list[Stored]:
        """Every object of a space, in no particular order."""
        found = {stored.key: stored for stored in self._head.mirror.scan(space)}
        for layer in (self._head.pending, self._slots):
            for key, slot in layer.items():
                if key.space != space:
                    continue
                if slot[0] is None:
                    found.pop(key, None)
                else:
                    found[key] = slot[0]
        return list(found.values())

    def list(self, space: str, kind: str, namespace: str | None = None) -> list[Stored]:
        """Sorted by namespace, then name."""
        layers = (self._head.pending, self._slots)
        over = {
            key: slot[0]
            for layer in layers
            for key, slot in layer.items()
            if key.kind == kind and key.space == space and (namespace is None or key.namespace == namespace)
        }
        committed = self._head.mirror.list(space, kind, namespace)
        if not over:
            return committed
        found = {stored.key: stored for stored in committed}
        for key, stored in over.items():
            if stored is None:
                found.pop(key, None)
            else:
                found[key] = stored
        return [found[key] for key in sorted(found)]

    def put(
        self,
        key: Key,
        document: bytes,
        *,
        uid: str,
        version: int | None = None,
        delivered: tuple[str, int] | None = None,
        source: str = "",
        start: int = 0,
        sequence: int = 0,
    ) -> Stored:
        """Create or replace. ``version`` None: the previous one plus 1, or unchanged when uid and bytes are.

        The same uid, bytes and version as before make no journal entry; a new ``delivered`` is still kept.
        Raises `InvalidInput` when the document is larger than the store takes.
        """
        self._check()
        before = self.get(key)
        same = before is not None and before.uid == uid and before.document == document
        if before is not None and same and version in {None, before.version}:
            return self._deliver(before, delivered)
        if version is None:
            version = before.version + 1 if before is not None and before.uid == uid else 1
        if len(document) > self._limits.document_bytes:
            raise InvalidInput(
                f"{key.kind} {key.name} has {len(document)} bytes, more than the {self._limits.document_bytes} that an object may have"
            )
        key = Key(intern(key.space), intern(key.kind), intern(key.namespace), key.name)
        self.revision += 1
        digest = before.hash if before is not None and same else content_hash(document)
        stored = Stored(key, uid, version, self.revision, digest, document, delivered, source, start, sequence)
        self._record(Event(self.revision, "put", stored, before), stored)
        return stored

    def delete(self, key: Key, *, delivered: tuple[str, int] | None = None) -> Stored | None:
        """Remove; returns what was there, None when nothing was. ``delivered``: the sender's pair for the deletion itself."""
        self._check()
        before = self.get(key)
        if before is None:
            return None
        self.revision += 1
        last = at_revision(before, self.revision)
        self._record(Event(self.revision, "delete", delivered_by(last, delivered) if delivered is not None else last, before), None)
        return before

    def fact(self, name: str) -> bytes | None:
        slot = self.facts.get(name)
        return slot[0] if slot is not None else self._head.fact(name)

    def set_fact(self, name: str, value: bytes | None) -> None:
        """A small unjournaled value under a name; None removes it."""
        self._check()
        if self.fact(name) != value:
            self.facts[name] = (value,)

    def seal(self) -> None:
        """No change is taken any more."""
        self._open = False

    def slots(self) -> dict[Key, Slot]:
        return self._slots

    def _deliver(self, before: Stored, delivered: tuple[str, int] | None) -> Stored:
        if delivered is None or delivered == before.delivered:
            return before
        stored = delivered_by(before, delivered)
        self._slots[stored.key] = (stored,)
        self.delivered.append(stored)
        return stored

    def _record(self, event: Event, stored: Stored | None) -> None:
        key = event.stored.key
        self._slots[key] = (stored,)
        if stored is not None:
            self._names[key.space, key.kind, stored.uid] = key
        self.events.append(event)
        self.bytes += len(event.stored.document)

    def _check(self) -> None:
        if not self._open:
            raise StoreError("a transaction cannot be used after its function has returned: call Store.commit again")
