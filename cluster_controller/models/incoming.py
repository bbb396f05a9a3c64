"""One blob that is being received.

It grows in ``partial/DIGEST``, is hashed as it flows, and is renamed to its name only when size and digest are right and the disk
holds it (fsync). With a manifest (`take_up`, `put`) chunks come in any order and each is verified before it is written; without one
(`write`) bytes come in their order. A cut keeps what came, for the next attempt; a wrong digest or a full disk keeps nothing.
Others may follow the growth (`wait_beyond`, `wait_chunk`), which is how a relay hands on chunks before it has all of them; they get
the last one only when the whole has been verified.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from cluster_controller.durable import sync_folder
from cluster_controller.errors import InvalidInput, StoreError, StoreFull, StoreReadOnly
from cluster_controller.models.chunks import CHUNK, Digester, Manifest, Tally

T = TypeVar("T")

STEP = CHUNK  # bytes handled in one go in a thread: bounds memory, and the time that cancelling takes


class WrongDigest(InvalidInput):
    """The bytes are not what their name says; none of them was kept."""


class WrongChunk(InvalidInput):
    """One chunk is not what the manifest says; the others are kept."""


class Growth:
    """What is known of a blob that comes in chunks, from one attempt to the next: which are here, and the hash of those in order."""

    def __init__(self, manifest: Manifest) -> None:
        self.tally = Tally(manifest)
        self.hash = hashlib.sha256()
        self.hashed = 0  # so many chunks from the beginning on are in ``hash``
        self.compared = False  # what other blobs here hold of it was looked for

    def add(self, index: int, data: bytes | bytearray) -> None:
        self.tally.add(index)
        self.follow(index, data)

    def follow(self, index: int, data: bytes | bytearray) -> None:
        if index == self.hashed:
            self.hash.update(data)
            self.hashed += 1


class Incoming:
    """Made by `BlobStore.receive`; ended by `commit`, `pause` or `discard`. One writer; any number of followers."""

    def __init__(self, digest: str, size: int, partial: Path, target: Path, growth: Growth | None = None) -> None:
        self.digest = digest
        self.size = size
        self.growth = growth
        self.received = growth.tally.bytes if growth is not None else 0
        self.right = False  # all came and has the digest
        self.verified = False  # and the disk holds it under its name
        self.ended = False  # no more bytes come into this one
        self.spoiled = False  # what came was wrong and is gone
        self._partial = partial
        self._target = target
        self._hash = hashlib.sha256()
        self._digester = Digester()
        self._fd = -1
        self._followers: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Take up what an earlier attempt left. Its digest is computed again: nothing on a disk is trusted unread."""
        await _in_thread(self._partial, self._open)

    async def write(self, data: bytes) -> None:
        """Append. `WrongDigest` when there is more than ``size``; `StoreFull` when the disk is."""
        if self.received + len(data) > self.size:
            self.discard()
            raise WrongDigest(f"blob {self.digest} is longer than the announced {self.size} bytes; nothing was kept")
        for start in range(0, len(data), STEP):
            part = data[start : start + STEP]
            await self._keep(self._append, part)
            self.received += len(part)
            self._wake()

    async def put(self, index: int, data: bytearray) -> None:
        """Keep one chunk. `WrongChunk` when it is not what the manifest says; `StoreFull` when the disk is."""
        growth = self.growth
        assert growth is not None
        if index in growth.tally:
            return
        await self._keep(self._place, index, data)
        growth.tally.add(index)
        self.received = growth.tally.bytes
        self._wake()

    async def commit(self) -> Manifest:
        """Verify, make durable, show; returns its manifest. `WrongDigest` when the bytes are not what the name says."""
        if self.received != self.size:
            raise WrongDigest(f"blob {self.digest}: {self.received} of {self.size} bytes came")
        growth = self.growth
        if growth is not None:
            while growth.hashed < growth.tally.manifest.count:
                await self._keep(self._catch_up, growth)
        found = (growth.hash if growth is not None else self._hash).hexdigest()
        if found != self.digest:
            self.discard()
            raise WrongDigest(f"blob {self.digest}: the bytes have sha256 {found}; nothing was kept, send the right file")
        self.right = True
        self._wake()  # what followers wait for does not depend on this disk
        await self._keep(self._publish)
        self.verified = True
        self._end()
        return growth.tally.manifest if growth is not None else self._digester.manifest()

    def pause(self) -> None:
        """The sender is gone: what came stays for the next attempt."""
        self._end()

    def discard(self) -> None:
        """What came is worthless."""
        self.spoiled = True
        self._partial.unlink(missing_ok=True)
        self._end()

    # --- followers ---------------------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """How many bytes a follower may pass on: the last one only after the digest was right."""
        received = self.growth.tally.prefix_bytes if self.growth is not None else self.received
        return received if self.right else max(min(received, self.size - 1), 0)

    async def wait_beyond(self, position: int) -> bool:
        """True when bytes after ``position`` are available, False when there will be none."""
        await self._wait(lambda: self.available > position)
        return self.available > position and not self.spoiled

    async def wait_chunk(self, index: int) -> bool:
        """True when a follower may pass on that chunk, False when it does not come by this attempt."""
        await self._wait(lambda: self._passes(index))
        return self._passes(index) and not self.spoiled

    async def wait_right(self) -> None:
        """Until all of it was found to be right, or this attempt has ended."""
        await self._wait(lambda: self.right)

    def reader(self) -> int:
        """A file descriptor of what arrives, the follower's own to close: it stays valid when the file gets its name or goes."""
        return os.dup(self._fd) if self._fd >= 0 else os.open(self._target, os.O_RDONLY | os.O_CLOEXEC)

    def _passes(self, index: int) -> bool:
        assert self.growth is not None
        tally = self.growth.tally
        return index in tally and (self.right or index < tally.manifest.count - 1)

    async def _wait(self, reached: Callable[[], bool]) -> None:
        while not reached() and not self.ended:
            waiter = asyncio.get_running_loop().create_future()
            self._followers.add(waiter)
            try:
                await waiter
            finally:
                self._followers.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._followers:
            if not waiter.done():
                waiter.set_result(None)

    # --- the file ----------------------------------------------------------------------------------------------------

    async def _keep(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            await _in_thread(self._partial, work, *arguments)
        except StoreError:
            self.discard()  # a full disk needs these bytes for more important things
            raise

    def _open(self) -> None:
        self._partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._partial.chmod(0o600)  # a crash came between making it read-only and giving it its name
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, 0)
        if self.growth is not None:
            return
        while part := os.pread(self._fd, STEP, self.received):
            self._hash.update(part)
            self._digester.update(part)
            self.received += len(part)

    def _append(self, data: bytes) -> None:
        _pwrite(self._fd, data, self.received)
        self._hash.update(data)
        self._digester.update(data)

    def _place(self, index: int, data: bytearray) -> None:
        growth = self.growth
        assert growth is not None
        if not growth.tally.manifest.right(index, data):
            raise WrongChunk(f"blob {self.digest}: chunk {index} has another sha256 than the manifest says")
        _pwrite(self._fd, data, index * CHUNK)
        growth.follow(index, data)

    def _catch_up(self, growth: Growth) -> None:
        growth.follow(growth.hashed, os.pread(self._fd, CHUNK, growth.hashed * CHUNK))

    def _publish(self) -> None:
        os.fchmod(self._fd, 0o444)
        os.fsync(self._fd)
        self._target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._partial.rename(self._target)
        sync_folder(self._target.parent)

    def _end(self) -> None:
        self.ended = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._wake()


def survey(partial: Path, growth: Growth) -> None:
    """Find out which chunks a file of an earlier process holds: those that it has and that are right. Blocks: call it from a thread."""
    try:
        fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        manifest = growth.tally.manifest
        for index in range(manifest.count):
            data = os.pread(fd, CHUNK, index * CHUNK)
            if not data:
                break
            if manifest.right(index, data):
                growth.add(index, data)
    finally:
        os.close(fd)


def disk_error(path: Path, error: OSError) -> StoreError:
    """The disk's refusal as one of ours, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{path}: the disk is full; free some space, or lower blob_budget")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly(f"{path}: {error.strerror}; the blob folder must be writable")
    return StoreError(f"{path}: {error.strerror}; check the disk")


def _pwrite(fd: int, data: bytes | bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        position += written
        view = view[written:]


async def _in_thread(path: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Shielded: a cancelled caller must not close a file under a thread that still writes to it."""
    try:
        await uninterrupted(asyncio.to_thread(work, *arguments))
    except OSError as error:
        raise disk_error(path, error) from error


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work`` even when cancelled, and only then pass the cancellation on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
