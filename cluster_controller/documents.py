"""Read and write stored documents as typed structs, decoding each version of an object once.

Documents stay the writer's bytes in the store (ARCHITECTURE law 10); this cache only remembers what was read from them.
"""

from collections import OrderedDict
from typing import Any, TypeVar

import msgspec

from cluster_controller.store import Key, Stored, Tx

T = TypeVar("T", bound=msgspec.Struct)

CACHED = 4096
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}
_encoder = msgspec.json.Encoder(order="deterministic")


class Documents:
    """A bounded cache of decoded documents, least recently used first out."""

    def __init__(self, capacity: int = CACHED) -> None:
        self._capacity = capacity
        self._cache: OrderedDict[tuple[Key, type[msgspec.Struct]], tuple[bytes, msgspec.Struct]] = OrderedDict()

    def read(self, stored: Stored, as_type: type[T]) -> T:
        """The document of ``stored``; raises msgspec.ValidationError for bytes that no writer of this kind made."""
        slot = (stored.key, as_type)
        cached = self._cache.get(slot)
        if cached is not None and cached[0] is stored.document:
            self._cache.move_to_end(slot)
            found = cached[1]
            if isinstance(found, as_type):
                return found
        decoded = decode(stored.document, as_type)
        self._cache[slot] = (stored.document, decoded)
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
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
