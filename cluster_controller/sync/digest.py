"""Anti-entropy: two stores find out in one frame that they hold the same, and else in which 256th they differ.

Pure. Each object adds (XOR) a 64-bit hash of its key, uid, version and content hash to the bucket that its key chooses. The
hash guards against faults, not against forgery: whoever may speak for a space can say anything in it anyway.
"""

from collections.abc import Iterable
from hashlib import blake2b
from zlib import crc32

from cluster_controller.store.model import Key

BUCKETS = 256
BUCKET_BYTES = 8
MASK_BYTES = BUCKETS // 8

Held = tuple[Key, str, int, bytes]  # key, uid, version, content hash


def bucket_of(key: Key) -> int:
    """The same for a space and its replica: the space is no part of it."""
    return crc32("\0".join(key[1:]).encode()) % BUCKETS


class Digest:
    def __init__(self, held: Iterable[Held] = ()) -> None:
        self._sums = [0] * BUCKETS
        for key, uid, version, content in held:
            self.toggle(key, uid, version, content)

    def toggle(self, key: Key, uid: str, version: int, content: bytes) -> None:
        """Add an object, or take it away again."""
        name = "\0".join(key[1:]).encode()
        whole = blake2b(b"%b\0%b\0%d\0%b" % (name, uid.encode(), version, content), digest_size=BUCKET_BYTES)
        self._sums[crc32(name) % BUCKETS] ^= int.from_bytes(whole.digest(), "big")

    def buckets(self) -> bytes:
        return b"".join(total.to_bytes(BUCKET_BYTES, "big") for total in self._sums)

    def root(self) -> bytes:
        return blake2b(self.buckets(), digest_size=16).digest()


def differing(ours: bytes, theirs: bytes) -> bytes:
    """The mask of the buckets in which two lists of bucket digests differ; empty when in none."""
    mask = bytearray(MASK_BYTES)
    for bucket in range(BUCKETS):
        at = slice(bucket * BUCKET_BYTES, (bucket + 1) * BUCKET_BYTES)
        if ours[at] != theirs[at]:
            mask[bucket // 8] |= 1 << bucket % 8
    return bytes(mask) if any(mask) else b""


def in_mask(mask: bytes, bucket: int) -> bool:
    """An empty mask holds every bucket."""
    return not mask or bool(mask[bucket // 8] >> bucket % 8 & 1)
