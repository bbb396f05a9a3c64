"""Manifests on the disk: the digests of a blob's chunks, its size before them, their seal behind them.

A file that a power loss or the disk spoiled is as good as none: what it says can be found out again. So nothing here is synced, and a
seal that does not agree is no error. Every function blocks: call it from a thread.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Collection
from pathlib import Path

from cluster_controller.errors import InvalidInput
from cluster_controller.models.chunks import DIGEST_BYTES, MAX_CHUNKS, Manifest

SIZE_BYTES = 8
LONGEST = SIZE_BYTES + DIGEST_BYTES * (MAX_CHUNKS + 1)


def write(path: Path, manifest: Manifest) -> None:
    content = manifest.size.to_bytes(SIZE_BYTES, "big") + manifest.digests
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        scratch.write_bytes(content + hashlib.sha256(content).digest())
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)


def read(path: Path, digest: str, size: int | None) -> Manifest | None:
    """None when there is none, or none that can be believed. ``size``: of the blob, where it is known."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError:  # it is read from the blob again
        return None
    body, seal = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if len(body) < SIZE_BYTES or hashlib.sha256(body).digest() != seal:
        return None
    found = int.from_bytes(body[:SIZE_BYTES], "big")
    if size is not None and found != size:
        return None
    try:
        return Manifest.of(digest, found, body[SIZE_BYTES:])
    except InvalidInput:
        return None


def clean(folder: Path, wanted: Collection[str]) -> None:
    """Remove those of blobs that are gone, and what a crash left half written."""
    for path in folder.iterdir():
        if path.name not in wanted:
            with contextlib.suppress(IsADirectoryError):
                path.unlink(missing_ok=True)
