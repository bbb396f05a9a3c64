"""The retained tail of all changes, in memory: the watch cache, the source of sync, and the way back to an earlier page.

Pure. Revisions are consecutive, so an index is a subtraction. Each space has its own tail of the same events, so a quiet
space costs nothing when another is busy, and its cursor does not expire because others wrote: `floor(space)` is the highest
revision of *that space* that has been forgotten.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from cluster_controller.store.model import JOURNAL_ROW_BYTES, Event, Expired, Key, Limits, Stored


class Tail:
    """A list that is appended at one end and dropped from the other; both cheap, and indexable for bisection."""

    __slots__ = ("_events", "_head")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._events) - self._head

    def append(self, event: Event) -> None:
        self._events.append(event)

    def pop_oldest(self) -> Event:
        event = self._events[self._head]
        self._head += 1
        if self._head * 2 >= len(self._events):  # amortised: each event moves at most once
            del self._events[: self._head]
            self._head = 0
        return event

    def after(self, revision: int) -> list[Event]:
        events = self._events
        if self._head == len(events) or events[-1].revision <= revision:
            return []
        return events[bisect_right(events, revision, lo=self._head, key=_revision) :]

    def backwards(self, revision: int) -> Iterator[Event]:
        """From the newest to the first one after ``revision``."""
        for event in islice(reversed(self._events), len(self)):
            if event.revision <= revision:
                return
            yield event

    def last(self) -> int:
        return self._events[-1].revision if len(self) else 0


def _revision(event: Event) -> int:
    return event.revision


class Trimmed:
    """What leaves the journal at once: rows that nobody can ask for any more, and the floors that rise."""

    __slots__ = ("dead", "floor", "floors")

    def __init__(self) -> None:
        self.dead: list[int] = []  # revisions whose rows are neither live nor the previous state of a retained event
        self.floors: dict[str, int] = {}
        self.floor = 0

    def add(self, later: "Trimmed") -> None:
        self.dead += later.dead
        self.floors |= later.floors
        self.floor = max(self.floor, later.floor)


class Journal:
    """Bounded by rows and bytes. `append` never fails; what no longer fits is returned by `trim`."""

    def __init__(self, limits: Limits, floor: int = 0, floors: dict[str, int] | None = None) -> None:
        self._limits = limits
        self._all = Tail()
        self._spaces: dict[str, Tail] = {}
        self._floors = floors if floors is not None else {}
        self.floor = floor  # the highest revision that has been forgotten
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._all)

    def remember(self, stored: Stored) -> None:
        """A row from below the floor, read back: its space has forgotten at least this revision."""
        space = stored.key.space
        self._floors[space] = max(self._floors.get(space, 0), stored.revision)

    def append(self, event: Event) -> None:
        self._all.append(event)
        space = event.stored.key.space
        tail = self._spaces.get(space)
        if tail is None:
            tail = self._spaces[space] = Tail()
        tail.append(event)
        self.bytes += _cost(event)

    def trim(self) -> Trimmed:
        """Forget the oldest events until both bounds hold."""
        trimmed = Trimmed()
        while len(self._all) > self._limits.journal_rows or (self.bytes > self._limits.journal_bytes and len(self._all) > 1):
            event = self._all.pop_oldest()
            space = event.stored.key.space
            tail = self._spaces[space]
            tail.pop_oldest()
            if not len(tail):
                del self._spaces[space]
            self.bytes -= _cost(event)
            self._floors[space] = trimmed.floors[space] = event.revision
            self.floor = trimmed.floor = event.revision
            if event.previous is not None:
                trimmed.dead.append(event.previous.revision)
            if event.kind_of == "delete":
                trimmed.dead.append(event.revision)
        return trimmed

    def floor_of(self, space: str | None) -> int:
        """Changes at or below it have been forgotten; a cursor at or above it can be continued."""
        return self.floor if space is None else self._floors.get(space, 0)

    def floors(self) -> dict[str, int]:
        """By space."""
        return dict(self._floors)

    def since(self, revision: int, space: str | None = None) -> list[Event]:
        """Every event after ``revision``, oldest first."""
        floor = self.floor_of(space)
        if revision < floor:
            raise Expired(f"revision {revision} is past the retained journal, which begins after {floor}: list again and go on from there")
        tail = self._all if space is None else self._spaces.get(space)
        return tail.after(revision) if tail is not None else []

    def last(self, space: str) -> int:
        """The newest revision of a space that is known to the journal, forgotten ones included; 0: never changed."""
        tail = self._spaces.get(space)
        return max(tail.last() if tail is not None else 0, self._floors.get(space, 0))

    def undo(self, space: str, kind: str, revision: int) -> dict[Key, Stored | None]:
        """What differed at ``revision`` from now, for one kind: the state then of every key that has changed since."""
        floor = self.floor_of(space)
        if revision < floor:
            raise Expired(f"revision {revision} is past the retained journal, which begins after {floor}: list again from the beginning")
        then: dict[Key, Stored | None] = {}
        tail = self._spaces.get(space)
        for event in tail.backwards(revision) if tail is not None else ():
            if event.stored.key.kind == kind:
                then[event.stored.key] = event.previous
        return then


def _cost(event: Event) -> int:
    # A delete shares its document with `previous`; a put is charged for its own, and its predecessor while it is retained.
    size = JOURNAL_ROW_BYTES + len(event.stored.document)
    return size + len(event.previous.document) if event.kind_of == "put" and event.previous is not None else size
