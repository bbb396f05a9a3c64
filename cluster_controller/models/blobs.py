"""The blobs on this disk: ``FOLDER/sha256/ab/abcd…``, read-only files named by their content.

``FOLDER/chunks/DIGEST`` is the manifest of a blob of several chunks, here or arriving (`manifests`): 32 bytes for each MiB, which the
budget does not count.

Invariants
- A file under its name is complete and was verified when it was written; a wrong or half one never gets there.
- All bytes, arriving ones included, stay within the budget. Room is made by dropping the least recently used blob that nobody
  holds; then, before anything fails for want of room, one that somebody merely likes to keep (`keep`: the version before the one
  that runs). A held one is never dropped, whatever else fails for it.
- The index lives in memory and is rebuilt from names and sizes alone: starting reads no contents.
- Only the event loop changes the index; files are read, written and hashed in threads, a bounded step at a time.
"""

import asyncio
import hashlib
import itertools
import os
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cluster_controller.errors import Conflict, Exhausted, InvalidInput, NotFound, StoreCorrupt, StoreFull
from cluster_controller.models import manifests
from cluster_controller.models.chunks import Digester, Manifest, count_of
from cluster_controller.models.incoming import STEP, Growth, Incoming, WrongDigest, disk_error, survey, uninterrupted

if TYPE_CHECKING:
    from cluster_controller.models.transfer import Flight

log = structlog.get_logger()

DISK_RESERVE = 64 << 20  # bytes that the blobs leave free: the store's own commits must never find the disk full
MAX_PARTIALS = 32  # unfinished files kept for another attempt

__all__ = ["BlobReader", "BlobStore", "WrongDigest", "check_digest"]


def check_digest(digest: str) -> str:
    """``digest`` as it names a file: 64 lower-case hex digits. `InvalidInput` otherwise."""
    if len(digest) != 64 or any(character not in "0123456789abcdef" for character in digest):
        raise InvalidInput(f"{digest[:80]!r} is not a sha256 in lower-case hex")
    return digest


class BlobReader:
    """An open blob. Stays readable when the blob is dropped meanwhile."""

    def __init__(self, digest: str, size: int, fd: int) -> None:
        self.digest = digest
        self.size = size
        self._fd = fd

    def pread(self, offset: int, limit: int = STEP) -> bytes:
        """Blocks: call it from a thread."""
        return os.pread(self._fd, limit, offset)

    async def read(self, offset: int, limit: int = STEP) -> bytes:
        return await uninterrupted(asyncio.to_thread(self.pread, offset, limit))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class BlobStore:
    """Use `open`. ``budget``: bytes on disk, for finished and arriving blobs together."""

    def __init__(self, folder: Path, budget: int, disk_reserve: int = DISK_RESERVE) -> None:
        self.folder = folder
        self.budget = budget
        self.flights: dict[str, Flight] = {}  # pulls from upstream, see `transfer`
        self.pulled = 0  # bytes that came from upstream since this start
        self.shared = 0  # bytes of pulled blobs that others here held already
        self.cuts = 0  # pulls that were cut, and went on
        self._disk_reserve = disk_reserve
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._partials: OrderedDict[str, int] = OrderedDict()  # of attempts that were cut; oldest first
        self._arriving: dict[str, Incoming] = {}
        self._growing: dict[str, Growth] = {}  # what this process knows of `_partials` that come in chunks
        self._holds: dict[str, frozenset[str]] = {}
        self._kept: dict[str, frozenset[str]] = {}

    @classmethod
    async def open(cls, folder: Path, budget: int, disk_reserve: int = DISK_RESERVE) -> "BlobStore":
        """Make the folder or find what is in it. `StoreReadOnly` and the like when the disk refuses."""
        store = cls(folder, budget, disk_reserve)
        try:
            sizes, partials = await asyncio.to_thread(_scan, folder)
        except OSError as error:
            raise disk_error(folder, error) from error
        store._sizes.update(sizes)
        store._partials.update(partials)
        log.info("blobs.opened", folder=str(folder), count=len(sizes), bytes=store.used, partial=len(partials))
        return store

    # --- what is here ------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        return sum(self._sizes.values()) + sum(self._partials.values()) + sum(item.size for item in self._arriving.values())

    @property
    def count(self) -> int:
        return len(self._sizes)

    def has(self, digest: str) -> bool:
        return digest in self._sizes

    def missing(self, digests: Iterable[str]) -> list[str]:
        return [digest for digest in digests if digest not in self._sizes]

    def size(self, digest: str) -> int:
        """In bytes. `NotFound` when the blob is not here."""
        try:
            return self._sizes[check_digest(digest)]
        except KeyError:
            raise NotFound(f"blob {digest} is not here") from None

    def path(self, digest: str) -> Path:
        return self.folder / "sha256" / digest[:2] / digest

    def recent(self, above: int, most: int) -> list[str]:
        """At most so many blobs of more than ``above`` bytes, the one used last first."""
        return list(itertools.islice((digest for digest in reversed(self._sizes) if self._sizes[digest] > above), most))

    def partial_size(self, digest: str) -> int:
        """How many bytes an attempt that was cut has left."""
        return self._partials.get(digest, 0)

    # --- who needs what ----------------------------------------------------------------------------------------------

    def hold(self, owner: str, digests: Iterable[str]) -> None:
        """From now on ``owner`` needs exactly these, here or yet to come; what it held before and does not name is let go."""
        wanted = frozenset(check_digest(digest) for digest in digests)
        if wanted:
            self._holds[owner] = wanted
        else:
            self._holds.pop(owner, None)

    def keep(self, owner: str, digests: Iterable[str]) -> None:
        """The same for what ``owner`` may want again: dropped after all that nobody names, and only so that what is needed has room."""
        wanted = frozenset(check_digest(digest) for digest in digests)
        if wanted:
            self._kept[owner] = wanted
        else:
            self._kept.pop(owner, None)

    def held(self, digest: str) -> bool:
        return any(digest in digests for digests in self._holds.values())

    # --- reading -----------------------------------------------------------------------------------------------------

    def reader(self, digest: str) -> BlobReader:
        """Marks the blob as used. `NotFound` when it is not here; the caller closes it."""
        size = self.size(digest)
        path = self.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.utime(path)  # the order of use survives a restart as modification times
        except FileNotFoundError:
            del self._sizes[digest]
            raise NotFound(f"blob {digest} was removed from {path} by hand; it will be fetched again") from None
        except OSError as error:
            raise disk_error(path, error) from error
        self._sizes.move_to_end(digest)
        return BlobReader(digest, size, fd)

    async def chunks(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The blob from ``offset`` on, in steps of at most 1 MiB."""
        reader = self.reader(digest)
        try:
            while chunk := await reader.read(offset):
                offset += len(chunk)
                yield chunk
        finally:
            reader.close()

    async def verify(self, digest: str) -> None:
        """Read it all again. `StoreCorrupt` when the disk spoiled it; then it is removed, so that it can be fetched again."""
        await self._digested(digest)

    async def _digested(self, digest: str) -> Manifest:
        seen, digester = hashlib.sha256(), Digester()
        async for chunk in self.chunks(digest):
            await uninterrupted(asyncio.to_thread(_both, seen, digester, chunk))
        if seen.hexdigest() != digest:
            self.remove(digest)
            raise StoreCorrupt(f"blob {digest} was spoiled on the disk ({self.path(digest)}); it was removed and must be fetched again")
        return digester.manifest()

    async def manifest(self, digest: str) -> Manifest:
        """The digests of its chunks; read from the blob itself when they were never kept, or the disk spoiled them."""
        size = self.size(digest)
        if count_of(size) <= 1:
            return Manifest.of(digest, size, bytes.fromhex(digest) if size else b"")
        kept = await asyncio.to_thread(manifests.read, self.manifest_path(digest), digest, size)
        if kept is None:
            kept = await self._digested(digest)
            await self._keep_manifest(digest, kept)
        return kept

    async def _keep_manifest(self, digest: str, manifest: Manifest) -> None:
        if manifest.count > 1:
            path = self.manifest_path(digest)
            try:
                await uninterrupted(asyncio.to_thread(manifests.write, path, manifest))
            except OSError as error:
                raise disk_error(path, error) from error

    # --- writing -----------------------------------------------------------------------------------------------------

    async def write(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep exactly ``size`` bytes whose sha256 is ``digest``. `WrongDigest` when they are not, and nothing is kept.

        What is here already is compared all the same, so that a sender learns of its mistake.
        """
        if self.has(digest):
            await _compare(digest, size, chunks)
            return
        self._drop_partial(digest)  # the sender starts at the beginning
        async with _Receiving(self, digest, size, keep_partial=False) as incoming:
            async for chunk in chunks:
                await incoming.write(chunk)
            await self._keep_manifest(digest, await incoming.commit())

    def receive(self, digest: str, size: int, growth: Growth | None = None) -> "_Receiving":
        """``async with store.receive(digest, size) as incoming``: continues where an earlier attempt was cut (`Incoming.received`).

        With ``growth`` (of `growing` or `grow`) it comes in chunks, in any order. `Conflict` when somebody is receiving it already,
        `Exhausted` or `StoreFull` when there is no room.
        """
        return _Receiving(self, digest, size, keep_partial=True, growth=growth)

    async def growing(self, digest: str) -> Growth | None:
        """What an earlier attempt left that came in chunks: each is read again once, unless this process wrote it. None: nothing."""
        if digest in self._arriving or (digest not in self._partials and digest not in self._growing):
            return None
        if (known := self._growing.get(digest)) is not None:
            return known
        path = self.manifest_path(digest)
        manifest = await asyncio.to_thread(manifests.read, path, digest, None)
        if manifest is None:
            return None
        growth = Growth(manifest)
        try:
            await uninterrupted(asyncio.to_thread(survey, self._partial_path(digest), growth))
        except OSError as error:
            raise disk_error(self._partial_path(digest), error) from error
        if digest in self._partials:
            self._growing[digest] = growth
        return growth

    async def grow(self, digest: str, manifest: Manifest) -> Growth:
        """Begin anew with that manifest: what an earlier attempt left by another one, or by none, is dropped."""
        if digest in self._arriving:
            raise Conflict(f"blob {digest} is being received already; wait for it, then ask again")
        self._drop_partial(digest)
        await self._keep_manifest(digest, manifest)
        return Growth(manifest)

    def forget_growth(self, digest: str, keep: int) -> None:
        """Of an attempt in chunks keep the first ``keep`` bytes, for one that goes on without a manifest."""
        self._growing.pop(digest, None)
        self.manifest_path(digest).unlink(missing_ok=True)
        if digest in self._partials:
            os.truncate(self._partial_path(digest), keep)
            self._partials[digest] = keep

    def remove(self, digest: str) -> None:
        """Drop a blob, held or not."""
        if self._sizes.pop(digest, None) is not None:
            self.path(digest).unlink(missing_ok=True)
            self.manifest_path(digest).unlink(missing_ok=True)

    def _make_room(self, digest: str, size: int) -> None:
        """Decide first, drop then: what cannot fit costs nobody else its place."""
        partials, blobs, freed = self._victims(size)
        if self.used - freed + size > self.budget:
            raise Exhausted(
                f"blob {digest} of {size} bytes does not fit: {self.used - freed} of the budget of {self.budget} bytes are taken by"
                " models in use; raise blob_budget, or withdraw an application"
            )
        free = shutil.disk_usage(self.folder).free + freed
        if free - size < self._disk_reserve:
            raise StoreFull(
                f"blob {digest} needs {size} bytes; the disk that holds {self.folder} has {free} to give,"
                f" of which {self._disk_reserve} stay reserved; free some space"
            )
        for other in partials:
            self._drop_partial(other)
        for other in blobs:
            self.remove(other)
            log.info("blob.evicted", digest=other, for_digest=digest)

    def _victims(self, size: int) -> tuple[list[str], list[str], int]:
        """Unfinished and finished blobs to drop, and the bytes that they free. Unfinished ones are the cheapest to lose."""
        held = frozenset[str]().union(*self._holds.values())
        kept = frozenset[str]().union(*self._kept.values())
        needed, freed = self.used + size - self.budget, 0
        partials: list[str] = []
        for other, length in self._partials.items():
            if freed >= needed and len(self._partials) - len(partials) < MAX_PARTIALS:
                break
            partials.append(other)
            freed += length
        blobs: list[str] = []
        for other, length in sorted(self._sizes.items(), key=lambda item: item[0] in kept):  # stable: least recently used first
            if freed >= needed:
                break
            if other not in held:
                blobs.append(other)
                freed += length
        return partials, blobs, freed

    def _drop_partial(self, digest: str) -> None:
        self._growing.pop(digest, None)
        if self._partials.pop(digest, None) is not None:
            self._partial_path(digest).unlink(missing_ok=True)
            self.manifest_path(digest).unlink(missing_ok=True)

    def manifest_path(self, digest: str) -> Path:
        return self.folder / "chunks" / digest

    def _partial_path(self, digest: str) -> Path:
        return self.folder / "partial" / digest

    def _begin(self, digest: str, size: int, growth: Growth | None) -> Incoming:
        check_digest(digest)
        if size < 0:
            raise InvalidInput(f"blob {digest}: a size of {size} bytes")
        if digest in self._arriving:
            raise Conflict(f"blob {digest} is being received already; wait for it, then ask again")
        partial = self._partials.pop(digest, 0)  # counted from here on with the whole size
        try:
            self._make_room(digest, size)
        except (Exhausted, StoreFull):
            self._partials[digest] = partial
            if not partial:
                del self._partials[digest]
            raise
        self._growing.pop(digest, None)
        incoming = Incoming(digest, size, self._partial_path(digest), self.path(digest), growth)
        self._arriving[digest] = incoming
        return incoming

    def _end(self, incoming: Incoming, keep_partial: bool) -> None:
        del self._arriving[incoming.digest]
        if incoming.verified:
            self._sizes[incoming.digest] = incoming.size
        elif keep_partial and not incoming.spoiled and incoming.received:
            incoming.pause()
            self._partials[incoming.digest] = incoming.received
            if incoming.growth is not None:
                self._growing[incoming.digest] = incoming.growth
        else:
            incoming.discard()
            self.manifest_path(incoming.digest).unlink(missing_ok=True)


class _Receiving:
    """The context of one `Incoming`: whatever happens inside, the index says what the disk holds afterwards."""

    def __init__(self, store: BlobStore, digest: str, size: int, keep_partial: bool, growth: Growth | None = None) -> None:
        self._store, self._digest, self._size, self._keep = store, digest, size, keep_partial
        self._growth = growth
        self._incoming: Incoming | None = None

    async def __aenter__(self) -> Incoming:
        incoming = self._incoming = self._store._begin(self._digest, self._size, self._growth)
        try:
            await incoming.open()
        except BaseException:
            self._store._end(incoming, keep_partial=False)
            raise
        return incoming

    async def __aexit__(self, *exc: object) -> None:
        assert self._incoming is not None
        self._store._end(self._incoming, self._keep)


async def _compare(digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
    seen, length = hashlib.sha256(), 0
    async for chunk in chunks:
        length += len(chunk)
        if length > size:
            break
        await uninterrupted(asyncio.to_thread(seen.update, chunk))
    if length != size or seen.hexdigest() != digest:
        raise WrongDigest(f"blob {digest}: the bytes sent have sha256 {seen.hexdigest()}; what is here already stays")


def _both(seen: "hashlib._Hash", digester: Digester, chunk: bytes) -> None:
    seen.update(chunk)
    digester.update(chunk)


def _scan(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Finished and unfinished blobs with their sizes, least recently used first."""
    shelves = folder / "sha256"
    for needed in (folder, shelves, folder / "partial", folder / "chunks"):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    found: list[tuple[int, str, int]] = []
    with os.scandir(shelves) as entries:
        for shelf in entries:
            if len(shelf.name) == 2 and shelf.is_dir():
                found += _files(Path(shelf.path))
    finished = [(digest, size) for _, digest, size in sorted(found)]
    unfinished = [(digest, size) for _, digest, size in sorted(_files(folder / "partial"))]
    manifests.clean(folder / "chunks", {digest for digest, _ in (*finished, *unfinished)})
    return finished, unfinished


def _files(folder: Path) -> list[tuple[int, str, int]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(entry.name) == 64 and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime_ns, entry.name, status.st_size))
    return found
