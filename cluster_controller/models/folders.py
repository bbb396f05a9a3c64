"""A model version as a folder that a worker reads: hard links to blobs, put in place in one rename.

A folder under its name is complete and was verified, or is not there at all. Links cost no space; a disk that cannot link (another
file system) gets copies.
"""

import asyncio
import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cluster_controller.durable import sync_folder
from cluster_controller.errors import InvalidInput, NotFound
from cluster_controller.models.blobs import BlobStore
from cluster_controller.models.incoming import disk_error, uninterrupted
from cluster_shim.contract import ModelFile

MAX_FILES = 1024
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


async def materialise(files: Sequence[ModelFile], folder: Path, store: BlobStore) -> None:
    """Make ``folder`` hold exactly ``files``. Doing it again does nothing.

    `NotFound` names a blob that is missing, `StoreCorrupt` one that the disk spoiled (it is removed, fetch it again), `InvalidInput` a
    path that leads out of the folder. In each case what stood at ``folder`` before still stands there.
    """
    wanted = _check(files)
    for digest in {file.sha256 for file in files}:
        store.size(digest)
    try:
        if await asyncio.to_thread(_is_there, wanted, folder, store):
            return
        for digest in {file.sha256 for file in files}:
            await store.verify(digest)
        await uninterrupted(asyncio.to_thread(_build, wanted, folder, store))
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename} went away while {folder} was being put together; try again") from error
    except OSError as error:
        raise disk_error(folder, error) from error


async def discard_folder(folder: Path) -> None:
    """Remove a materialised folder; the blobs stay. Nothing half removed is ever seen under the name.

    The name is free when the first await begins: whoever decided it in this turn of the loop can't be overtaken.
    """
    try:
        doomed = _retire(folder)
        if doomed is not None:
            await uninterrupted(asyncio.to_thread(shutil.rmtree, doomed))
    except OSError as error:
        raise disk_error(folder, error) from error


def _check(files: Sequence[ModelFile]) -> dict[PurePosixPath, ModelFile]:
    if not files or len(files) > MAX_FILES:
        raise InvalidInput(f"a model of {len(files)} files; expected 1 to {MAX_FILES}", "files")
    wanted: dict[PurePosixPath, ModelFile] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in file.path:
            raise InvalidInput(f"{file.path!r} is not a path below the model's folder", "files.path")
        if path in wanted:
            raise InvalidInput(f"{file.path!r} is named twice", "files.path")
        wanted[path] = file
    for path in wanted:
        if any(parent in wanted for parent in path.parents):
            raise InvalidInput(f"'{path}' lies below a file of the same model", "files.path")
    return wanted


def _is_there(wanted: dict[PurePosixPath, ModelFile], folder: Path, store: BlobStore) -> bool:
    """Exactly the wanted files, each the blob itself (same inode) or a copy of the same size made from it."""
    found = {PurePosixPath(path.relative_to(folder)): path for path in folder.rglob("*") if not path.is_dir()} if folder.is_dir() else {}
    if found.keys() != wanted.keys():
        return False
    for path, file in wanted.items():
        here, blob = found[path].lstat(), store.path(file.sha256).stat()
        linked = (here.st_dev, here.st_ino) == (blob.st_dev, blob.st_ino)
        copied = (here.st_size, here.st_mtime_ns) == (blob.st_size, _stamp(file.sha256))
        if not linked and not copied:
            return False
    return True


def _stamp(digest: str) -> int:
    """A copy carries its digest's first bits as modification time, so that it is recognised without reading it."""
    return int(digest[:12], 16) * 1000


def _build(wanted: dict[PurePosixPath, ModelFile], folder: Path, store: BlobStore) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    scratch.mkdir(mode=0o700)
    try:
        for path, file in wanted.items():
            target = scratch / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _put(store.path(file.sha256), target, file.sha256)
        for inner in [scratch, *(path for path in scratch.rglob("*") if path.is_dir())]:
            sync_folder(inner)
        _discard(folder)
        scratch.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(blob: Path, target: Path, digest: str) -> None:
    try:
        target.hardlink_to(blob)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(blob, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        target.chmod(0o444)
        os.utime(target, ns=(_stamp(digest), _stamp(digest)))


def _discard(folder: Path) -> None:
    doomed = _retire(folder)
    if doomed is not None:
        shutil.rmtree(doomed)


def _retire(folder: Path) -> Path | None:
    """Take the name away from what is to be removed; None when nothing is there."""
    if not folder.exists():
        return None
    doomed = folder.with_name(f".{folder.name.lstrip('.')}.{secrets.token_hex(6)}")
    folder.rename(doomed)
    return doomed
