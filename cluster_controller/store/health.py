"""Whether the disk takes writes, and noticing when it does again.

A refused commit is an answer to one caller only; who watches a controller from outside asks here. Nothing may want to write for
hours, so while there is trouble the disk is tried every few seconds; a commit that succeeds ends it at once.

Invariants: trouble begins with a failed write and ends with a successful one, or with a trial that found room; what a failed
fdatasync left behind (`lost`) never ends. A trial reaches no disk: it is a file that is removed before it is written back.
"""

import asyncio
import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from msgspec import Struct

from cluster_controller.clock import boottime
from cluster_controller.errors import StoreError
from cluster_controller.store.folder import store_error

log = structlog.get_logger()

TRIAL_SECONDS = 5.0  # between two trials
TRIAL_BYTES = 256 * 1024
ROOM_BYTES = 4 * 1024 * 1024  # free on the disk: the largest object, what it adds to the pages around it, and some
SCRATCH = "store.trial"


class Trouble(Struct, frozen=True):
    """Why commits fail (StoreFull, StoreReadOnly, …), and since when on the boot-time clock, in seconds."""

    error: StoreError
    since: float


class Health:
    """Of the store in the database file ``path``; trials run in its ``thread``, between writes."""

    def __init__(self, path: Path, thread: ThreadPoolExecutor) -> None:
        self.trouble: Trouble | None = None
        self._path = path
        self._thread = thread
        self._timer: asyncio.TimerHandle | None = None
        self._final = False

    def failed(self, error: StoreError) -> None:
        """A write was refused."""
        self._set(error)
        if not self._final and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TRIAL_SECONDS, self._try)

    def lost(self, error: StoreError) -> None:
        """What is on the disk can no longer be told: until the store is opened again."""
        self._set(error)
        self.close()

    def wrote(self) -> None:
        """A write is on the disk."""
        if self.trouble is not None and not self._final:
            log.info("store.writes_again", path=str(self._path), after_s=round(boottime() - self.trouble.since, 1))
            self.trouble = None

    def close(self) -> None:
        self._final = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, error: StoreError) -> None:
        self.trouble = Trouble(error, boottime() if self.trouble is None else self.trouble.since)

    def _try(self) -> None:
        self._timer = None
        if self.trouble is not None:
            trial = asyncio.get_running_loop().run_in_executor(self._thread, try_room, self._path)
            trial.add_done_callback(self._tried)

    def _tried(self, trial: "asyncio.Future[None]") -> None:
        error = trial.exception()
        if self.trouble is None or self._final:
            return
        if error is None:
            self.wrote()
        else:
            self.failed(error if isinstance(error, StoreError) else self.trouble.error)


def try_room(path: Path) -> None:
    """Would the store's files grow? Raises what keeps them from it: StoreFull, StoreReadOnly, StoreError."""
    scratch = path.with_name(SCRATCH)
    try:
        disk = os.statvfs(path.parent)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(scratch, max(_size(path), _size(path.with_name(path.name + "-wal"))))
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def _write(scratch: Path, offset: int) -> None:
    """Where the store's largest file ends: there a limit on the size of a file shows, too."""
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        end = offset + TRIAL_BYTES
        while offset < end:
            offset += os.pwrite(fd, bytes(end - offset), offset)
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
