"""Files that are whole or absent: write beside, fdatasync, rename, fsync the folder. Private by default.

`remove_tree` never follows a symbolic link, because an instance's folder holds links to volumes that must survive it.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_FILE = 4 << 20


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: str, value: Any) -> None:
    beside = path + ".new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(json.dumps(value, separators=(",", ":")).encode())
        while view:
            view = view[os.write(fd, view) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)
    os.rename(beside, path)
    sync_folder(os.path.dirname(path))


def read_json(path: str) -> Any:
    """The document, or None when the file is absent or is not JSON (a folder that lost its data): the caller decides."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read(MAX_FILE))
    except (FileNotFoundError, ValueError):
        return None


def remove_tree(path: str) -> None:
    try:
        entries = list(os.scandir(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)
