"""What the store holds, hands out and refuses: keys, objects, events, limits.

Invariants: a `Stored` never changes (a change is a new one with a higher revision); its document is the writer's bytes and
its hash is over those bytes (ARCHITECTURE law 10), so what is forwarded is what was written. An `Event` is made once and
shared by the journal and all watchers; documents are shared by reference, never copied.
"""

from hashlib import blake2b
from typing import Literal, NamedTuple

from msgspec import Struct

from cluster_controller.errors import BanyanError

HASH_BYTES = 16


class Key(NamedTuple):
    """Where an object lives. ``namespace`` is "" for kinds that have none."""

    space: str
    kind: str
    namespace: str
    name: str


class Stored(Struct, frozen=True):
    """One object as committed."""

    key: Key
    uid: str
    version: int  # the writer's counter over any change
    revision: int  # of the store; in commit order
    hash: bytes  # blake2b-128 of document
    document: bytes  # the writer's bytes, JSON
    delivered: tuple[str, int] | None = None  # (history id, revision) of the sender that delivered it
    source: str = ""  # who reported it, end to end ...
    start: int = 0  # ... in which of its starts ...
    sequence: int = 0  # ... as the how manieth report


class Event(Struct, frozen=True):
    """One committed change. A delete carries the object's last state with the revision of its deletion."""

    revision: int
    kind_of: Literal["put", "delete"]
    stored: Stored
    previous: Stored | None


class Limits(Struct, frozen=True):
    """Bounds of one store. The journal is trimmed from its old end when either of its bounds is passed."""

    journal_rows: int = 10_000
    journal_bytes: int = 16 * 1024 * 1024  # of documents, plus JOURNAL_ROW_BYTES for each row
    document_bytes: int = 2 * 1024 * 1024  # a larger one is refused with InvalidInput
    pending_rows: int = 50_000  # written but not yet on disk; beyond it commit raises Exhausted
    pending_bytes: int = 64 * 1024 * 1024
    history_entries: int = 1_024  # openings remembered; the oldest are forgotten, which can only cause Conflict, never loss
    wal_bytes: int = 4 * 1024 * 1024  # checkpointed when larger, as soon as nothing waits


JOURNAL_ROW_BYTES = 512


class Expired(BanyanError):
    """The revision asked for is past the retained journal (HTTP 410): list again and go on from there."""

    exit_code = 5


def content_hash(document: bytes) -> bytes:
    return blake2b(document, digest_size=HASH_BYTES).digest()


def at_revision(stored: Stored, revision: int) -> Stored:
    """The same state under the revision of its deletion."""
    return Stored(
        stored.key, stored.uid, stored.version, revision, stored.hash, stored.document,
        stored.delivered, stored.source, stored.start, stored.sequence,
    )  # fmt: skip


def delivered_by(stored: Stored, delivered: tuple[str, int]) -> Stored:
    """The same state, with another deliverer."""
    return Stored(
        stored.key, stored.uid, stored.version, stored.revision, stored.hash, stored.document,
        delivered, stored.source, stored.start, stored.sequence,
    )  # fmt: skip
