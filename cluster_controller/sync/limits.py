"""The bounds of one replication, in both directions."""

from msgspec import Struct

ITEM_BYTES = 200  # what an item costs beside its document, roughly


class SyncLimits(Struct, frozen=True):
    batch_bytes: int = 256 * 1024  # of documents; one larger object is a batch of its own
    batch_items: int = 256
    window_bytes: int = 1024 * 1024  # sent and not acknowledged
    window_batches: int = 64
    inline_bytes: int = 64 * 1024  # a snapshot up to this size needs no second stream
    document_bytes: int = 2 * 1024 * 1024  # a larger object is neither sent nor taken; it is counted, the rest goes on
    objects: int = 100_000  # that a peer may put into a space; beyond it the session ends with Exhausted
    histories: int = 1_024  # that a receiver may ask about; the rest are taken as foreign
