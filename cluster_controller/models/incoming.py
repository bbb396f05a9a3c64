"""One blob that is being received.

It grows in ``partial/DIGEST``, is hashed as it flows, and is renamed to its name only when size and digest are right and the disk
holds it (fsync). A cut keeps what came, for the next attempt; a wrong digest or a full disk keeps nothing. Others may follow the
growth (`wait_beyond`, `read`), which is how a relay hands on bytes before it has all of them; they get the last byte only when
the whole has been verified.
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

T = TypeVar("T")

STEP = 1 << 20  # bytes handled in one go in a thread: bounds memory, and the time that cancelling takes


class WrongDigest(InvalidInput):
    """The bytes are not what their name says; none of them was kept."""


class Incoming:
    """Made by `BlobStore.receive`; ended by `commit`, `pause` or `discard`. One writer; any number of followers."""

    def __init__(self, digest: str, size: int, partial: Path, target: Path) -> None:
        self.digest = digest
        self.size = size
        self.received = 0
        self.verified = False
        self.ended = False  # no more bytes come into this one
        self.spoiled = False  # what came was wrong and is gone
        self._partial = partial
        self._target = target
        self._hash = hashlib.sha256()
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
            try:
                await _in_thread(self._partial, self._append, part)
            except StoreError:
                self.discard()  # a full disk needs these bytes for more important things
                raise
            self.received += len(part)
            self._wake()

    async def commit(self) -> Path:
        """Verify, make durable, show. `WrongDigest` when the bytes are not what the name says."""
        if self.received != self.size:
            raise WrongDigest(f"blob {self.digest}: {self.received} of {self.size} bytes came")
        if (found := self._hash.hexdigest()) != self.digest:
            self.discard()
            raise WrongDigest(f"blob {self.digest}: the bytes have sha256 {found}; nothing was kept, send the right file")
        try:
            await _in_thread(self._partial, self._publish)
        except StoreError:
            self.discard()
            raise
        self.verified = True
        self._end()
        return self._target

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
        return self.received if self.verified else max(min(self.received, self.size - 1), 0)

    async def wait_beyond(self, position: int) -> bool:
        """True when bytes after ``position`` are available, False when there will be none."""
        while self.available <= position and not self.ended:
            waiter = asyncio.get_running_loop().create_future()
            self._followers.add(waiter)
            try:
                await waiter
            finally:
                self._followers.discard(waiter)
        return self.available > position and not self.spoiled

    def reader(self) -> int:
        """A file descriptor of what arrives, the follower's own to close: it stays valid when the file gets its name or goes."""
        return os.dup(self._fd) if self._fd >= 0 else os.open(self._target, os.O_RDONLY | os.O_CLOEXEC)

    def _wake(self) -> None:
        for waiter in self._followers:
            if not waiter.done():
                waiter.set_result(None)

    # --- the file ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, 0)
        while part := os.pread(self._fd, STEP, self.received):
            self._hash.update(part)
            self.received += len(part)

    def _append(self, data: bytes) -> None:
        position = self.received
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, position)
            position += written
            view = view[written:]
        self._hash.update(data)

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


def disk_error(path: Path, error: OSError) -> StoreError:
    """The disk's refusal as one of ours, with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{path}: the disk is full; free some space, or lower blob_budget")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly(f"{path}: {error.strerror}; the blob folder must be writable")
    return StoreError(f"{path}: {error.strerror}; check the disk")


async def _in_thread(path: Path, work: Callable[..., None], *arguments: bytes) -> None:
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
