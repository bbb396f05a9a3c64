"""A blob in chunks of 1 MiB, each with its own digest, and which of them are here.

Pure: no disk, no stream. With a manifest each chunk is judged alone: a right one is kept and passed on whatever becomes of the others,
a wrong one costs itself only, and after a cut or a power loss nothing but what is missing is asked for.

The manifest is the holder's word: it sorts right from wrong early, and no more. A blob counts only when all of it has the sha256 that
is its name; then its manifest is right, too, for each of its chunks was.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from cluster_controller.errors import InvalidInput

CHUNK = 1 << 20
DIGEST_BYTES = 32
MAX_RANGES = 64  # asked for at once; what lies behind them is asked for as one
MAX_CHUNKS = 1 << 20  # a TiB; its manifest has 32 MiB

Ranges = Sequence[tuple[int, int]]  # of chunks: the first, and the one after the last


def count_of(size: int) -> int:
    """How many chunks a blob of ``size`` bytes has; an empty one has none."""
    return -(-size // CHUNK)


class Manifest(Struct, frozen=True):
    """``digests``: the sha256 of each chunk, 32 bytes each, one after the other. Use `of` for what others say."""

    size: int
    digests: bytes

    @classmethod
    def of(cls, name: str, size: int, digests: bytes) -> "Manifest":
        """`InvalidInput` when it cannot be that of the blob ``name``."""
        if len(digests) != DIGEST_BYTES * count_of(size) or count_of(size) > MAX_CHUNKS:
            raise InvalidInput(f"blob {name}: a manifest of {len(digests)} bytes for {size} bytes")
        if count_of(size) == 1 and digests.hex() != name:
            raise InvalidInput(f"blob {name}: its only chunk would have sha256 {digests.hex()}")
        return cls(size, digests)

    @property
    def count(self) -> int:
        return count_of(self.size)

    @property
    def seal(self) -> str:
        return hashlib.sha256(self.digests).hexdigest()

    def length(self, index: int) -> int:
        return min(CHUNK, self.size - index * CHUNK)

    def digest(self, index: int) -> bytes:
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def right(self, index: int, data: bytes | bytearray) -> bool:
        return hashlib.sha256(data).digest() == self.digest(index)

    def holds(self, lacking: Mapping[bytes, Sequence[int]]) -> Iterator[tuple[int, int]]:
        """(chunk of another blob with the same bytes, chunk of this one), for each of ``lacking`` (`Tally.lacking`) that is here, too."""
        for number in range(self.count):
            for index in lacking.get(self.digest(number), ()):
                yield index, number


class Digester:
    """The manifest of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._chunk = hashlib.sha256()
        self._length = 0  # of the chunk that is not full yet
        self._size = 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            part = view[: CHUNK - self._length]
            self._chunk.update(part)
            self._length += len(part)
            self._size += len(part)
            if self._length == CHUNK:
                self._close()
            view = view[len(part) :]

    def manifest(self) -> Manifest:
        """Ends it."""
        if self._length:
            self._close()
        return Manifest(self._size, bytes(self._digests))

    def _close(self) -> None:
        self._digests += self._chunk.digest()
        self._chunk, self._length = hashlib.sha256(), 0


class Tally:
    """Which chunks of a blob are here and right: one mark for each."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.bytes = 0  # of the chunks that are here
        self.prefix = 0  # so many chunks from the beginning on are here without a gap
        self._here = bytearray(manifest.count)

    def __contains__(self, index: int) -> bool:
        return bool(self._here[index])

    @property
    def complete(self) -> bool:
        return self.prefix == self.manifest.count

    @property
    def prefix_bytes(self) -> int:
        return min(self.prefix * CHUNK, self.manifest.size)

    def add(self, index: int) -> None:
        if self._here[index]:
            return
        self._here[index] = 1
        self.bytes += self.manifest.length(index)
        while self.prefix < len(self._here) and self._here[self.prefix]:
            self.prefix += 1

    def lacking(self) -> dict[bytes, list[int]]:
        """The chunks that are not here, by their digest."""
        found: dict[bytes, list[int]] = {}
        for index in (number for number, mark in enumerate(self._here) if not mark):
            found.setdefault(self.manifest.digest(index), []).append(index)
        return found

    def missing(self) -> list[tuple[int, int]]:
        """At most `MAX_RANGES`; the last of so many covers all that is behind it, here already or not."""
        found: list[tuple[int, int]] = []
        start = self._here.find(0, self.prefix)
        while start >= 0:
            end = self._here.find(1, start)
            end = len(self._here) if end < 0 else end
            if len(found) == MAX_RANGES - 1:
                found.append((start, len(self._here)))
                break
            found.append((start, end))
            start = self._here.find(0, end)
        return found


def indexes(want: Ranges, count: int) -> Iterator[int]:
    """The chunks that an asker wants of a blob of ``count``, in order; all when it names none."""
    if not want:
        yield from range(count)
    for start, end in want:
        yield from range(start, min(end, count))


def bitmap_bytes(count: int) -> int:
    return -(-count // 8)


def bitmap(wanted: Iterable[int], count: int) -> bytes:
    """A bit for each of ``count`` chunks, the lowest of each byte first."""
    found = bytearray(bitmap_bytes(count))
    for index in wanted:
        found[index // 8] |= 1 << index % 8
    return bytes(found)


def marked(bits: bytes | bytearray, count: int) -> Iterator[int]:
    """The chunks whose bit is set, in order."""
    return (index for index in range(count) if bits[index // 8] >> index % 8 & 1)


def check_ranges(want: Ranges) -> None:
    """`InvalidInput` unless they ascend, are not empty and do not overlap."""
    before = 0
    for start, end in want:
        if start < before or end <= start:
            raise InvalidInput(f"chunks {start} to {end}: ranges ascend and do not overlap")
        before = end
    if len(want) > MAX_RANGES:
        raise InvalidInput(f"{len(want)} ranges of chunks; at most {MAX_RANGES} are taken at once")
