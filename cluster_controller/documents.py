"""Read and write stored documents as typed structs, decoding each version of an object once.

Documents stay the writer's bytes in the store (ARCHITECTURE law 10); this cache only remembers what was read from them. Several rooms
look at the same change one after the other, and at what was before it: the newest documents of each type are decoded once for all of them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from cluster_controller.store import Key, Stored, Tx

T = TypeVar("T", bound=msgspec.Struct)

CACHED = 4096
LOOK_AT_LEAST = 32
RECENT = 16  # documents of each type that all rooms share ...
RECENT_BYTES = 16 * 1024  # ... none of which is larger
_recent: dict[type[msgspec.Struct], dict[bytes, msgspec.Struct]] = {}
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}
_encoder = msgspec.json.Encoder(order="deterministic")


class Documents:
    """A cache of decoded documents. ``current`` tells what is stored now (`Store.get`): what is deleted or has a newer version is let go.

    Bounded twice: never more than ``capacity``, least recently used first out; and, with ``current``, never more than twice as many as
    were in use when it last looked, so that objects that come and go leave nothing behind.
    """

    def __init__(self, current: Callable[[Key], Stored | None] | None = None, capacity: int = CACHED) -> None:
        self._current = current
        self._capacity = capacity
        self._look_at = LOOK_AT_LEAST
        self._cache: OrderedDict[tuple[Key, type[msgspec.Struct]], tuple[bytes, msgspec.Struct]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._cache)

    def read(self, stored: Stored, as_type: type[T]) -> T:
        """The document of ``stored``; raises msgspec.ValidationError for bytes that no writer of this kind made."""
        slot = (stored.key, as_type)
        cached = self._cache.get(slot)
        if cached is not None and cached[0] is stored.document:
            self._cache.move_to_end(slot)
            found = cached[1]
            if isinstance(found, as_type):
                return found
        decoded = recall(stored.document, as_type)
        self._cache[slot] = (stored.document, decoded)
        if len(self._cache) > self._look_at and self._current is not None:
            self._let_go(self._current)
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return decoded

    def _let_go(self, current: Callable[[Key], Stored | None]) -> None:
        """Of what is no longer stored. Each look is paid for by as many readings as it looks at."""
        for slot, (document, _) in list(self._cache.items()):
            stored = current(slot[0])
            if stored is None or stored.document is not document:
                del self._cache[slot]
        self._look_at = max(LOOK_AT_LEAST, 2 * len(self._cache))


def recall(document: bytes, as_type: type[T]) -> T:
    """One document, decoded anew only if nobody has read these bytes lately. Not for secrets: they would be remembered."""
    recent = _recent.setdefault(as_type, {})
    found = recent.get(document)
    if isinstance(found, as_type):
        return found
    decoded = decode(document, as_type)
    if len(document) <= RECENT_BYTES:
        recent[document] = decoded
        if len(recent) > RECENT:
            del recent[next(iter(recent))]
    return decoded


def decode(document: bytes, as_type: type[T]) -> T:
    """One document without the cache."""
    decoder = _decoders.get(as_type)
    if decoder is None:
        decoder = _decoders[as_type] = msgspec.json.Decoder(as_type)
    decoded: T = decoder.decode(document)
    return decoded


def encode(document: msgspec.Struct) -> bytes:
    """Bytes to store; equal structs give equal bytes, so that writing the same again is no change."""
    return _encoder.encode(document)


def put_changed(tx: Tx, key: Key, document: msgspec.Struct, uid: str) -> None:
    """Write only what differs: an unchanged object costs nothing on disk and on no link."""
    encoded = encode(document)
    there = tx.get(key)
    if there is None or there.document != encoded:
        tx.put(key, encoded, uid=uid)
