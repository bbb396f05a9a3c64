"""The data folder: private to its owner, and owned by one running process at a time.

The lock is a flock on an open file, so it goes with the process however that ends; the pid inside is only for the message.
"""

import errno
import fcntl
import os
from pathlib import Path

from cluster_controller.durable import sync_folder
from cluster_controller.errors import StoreError, StoreFull, StoreInUse, StoreReadOnly

DATABASE = "store.db"
LOCK = "store.lock"


class FolderLock:
    """Held from construction until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise StoreInUse(
                f"{folder} is in use by the running process {owner or '(pid unknown)'}: "
                "stop that controller, or give this one another data folder"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


def prepare(folder: Path) -> FolderLock:
    """Make the folder (0700) if it is missing, and lock it."""
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
            sync_folder(folder.parent)
        return FolderLock(folder)
    except OSError as error:
        raise store_error(error, folder) from error


def full(path: Path, number: int = errno.ENOSPC) -> StoreFull:
    match number:
        case errno.EDQUOT:
            remedy = f"the disk quota of user {os.getuid()} is used up; free some of its files, or have it raised"
        case errno.EFBIG:
            remedy = "a file may not grow so large; raise the limit (`ulimit -f`, LimitFSIZE= of the systemd unit) or move the data folder"
        case _:
            remedy = "free some"
    return StoreFull(f"no space left for {path}: {remedy}; nothing acknowledged is lost, and writing goes on by itself once there is room")


def store_error(error: OSError, path: Path) -> StoreError:
    """What the system said about a file of the store, as something to act on."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return full(path, error.errno)
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return StoreReadOnly(f"{path} cannot be written by user {os.getuid()} ({error.strerror}): check its owner, its mode and the mount")
    return StoreError(f"{path}: {error.strerror}")
