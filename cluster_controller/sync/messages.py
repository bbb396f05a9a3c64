"""What the two ends of a replication say to each other, as plain data.

Pure. `codec` turns these into protobuf and back; the state machines know nothing of it. Every message names its epoch, which
the receiving store begins with `Resume`, so what is left over from before a reconnect is recognised and ignored.
"""

from msgspec import Struct

Pair = tuple[str, int]  # (history id, revision): names one change of one store for ever
NOTHING: Pair = ("", 0)


class Item(Struct, frozen=True):
    """One object as its sender holds it, or its deletion."""

    deleted: bool
    kind: str
    namespace: str
    name: str
    uid: str
    version: int
    delivered: Pair
    document: bytes = b""
    source: str = ""
    start: int = 0
    sequence: int = 0


class Resume(Struct, frozen=True):
    """Receiver → sender: go on after ``cursor``. ``histories`` are those that delivered what I hold; ``start`` is the latest of the
    sender's own starts under which it reported what I hold."""

    epoch: int
    cursor: Pair
    histories: tuple[str, ...] = ()
    zstd: bool = False
    start: int = 0


class Begin(Struct, frozen=True):
    """Sender → receiver: of the histories asked about, these revisions are mine; ``history`` is my present one."""

    epoch: int
    history: str
    spans: dict[str, tuple[int, int]]
    known: bool  # the cursor is of my history


class Batch(Struct, frozen=True):
    """Sender → receiver: all changes of the space after ``after`` up to ``through``."""

    epoch: int
    after: int
    through: Pair
    items: tuple[Item, ...]


class Ack(Struct, frozen=True):
    """Receiver → sender: all up to ``revision`` is on my disk, and with it the snapshot with this id, when there is one."""

    epoch: int
    revision: int
    snapshot: int = 0


class Check(Struct, frozen=True):
    """Sender → receiver: at ``revision`` the digest over the space is this."""

    epoch: int
    revision: int
    digest: bytes


class Differ(Struct, frozen=True):
    """Receiver → sender: mine is another; these are my buckets."""

    epoch: int
    revision: int
    buckets: bytes


class Snapshot(Struct, frozen=True):
    """Sender → receiver: the space (or these buckets of it) as of ``cursor`` follows."""

    epoch: int
    id: int
    cursor: Pair
    buckets: bytes = b""  # 256 bits, lowest first; empty: all
    bulk: bool = False  # its chunks come on the second stream


class Chunk(Struct, frozen=True):
    epoch: int
    snapshot: int
    index: int  # counts the chunks of one snapshot
    items: tuple[Item, ...]
    last: bool


ToSender = Resume | Ack | Differ
ToReceiver = Begin | Batch | Check | Snapshot | Chunk
Message = ToSender | ToReceiver
