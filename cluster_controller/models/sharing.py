"""What of a blob lies on this disk already, in others: the version before, of which only some chunks have changed.

Such a chunk is copied, not asked for. It is verified as any other when it is put in its place (`Incoming.put`), so a file that the disk
has spoiled, or a kept manifest that is wrong, costs asking and nothing else. A copy, for each version is a file of its own that a worker
reads; what is spared is the link.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from cluster_controller.errors import BanyanError
from cluster_controller.models import manifests
from cluster_controller.models.blobs import BlobStore
from cluster_controller.models.chunks import CHUNK, Tally
from cluster_controller.models.incoming import Incoming, WrongChunk, uninterrupted

MOST = 256  # other blobs that are looked at, those used last first


class Copy(Struct, frozen=True):
    """Chunk ``index`` of what arrives is chunk ``number`` of ``blob``, which is here."""

    index: int
    blob: str
    number: int


async def find(store: BlobStore, tally: Tally) -> list[Copy]:
    """For each missing chunk that another blob has, where; those of one blob together."""
    others = [(digest, store.size(digest), store.manifest_path(digest)) for digest in store.recent(CHUNK, MOST)]
    return await uninterrupted(asyncio.to_thread(_find, others, tally.lacking())) if others else []


def _find(others: Iterable[tuple[str, int, Path]], lacking: dict[bytes, list[int]]) -> list[Copy]:
    found: list[Copy] = []
    for blob, size, path in others:
        if not lacking:
            break
        if (manifest := manifests.read(path, blob, size)) is not None:
            here = list(manifest.holds(lacking))
            found += {index: Copy(index, blob, number) for index, number in here}.values()
            for _, number in here:
                lacking.pop(manifest.digest(number), None)
    return found


async def copy(store: BlobStore, incoming: Incoming, copies: Iterable[Copy]) -> int:
    """Bytes that were copied. What proves wrong, or has gone meanwhile, is left out; a full disk raises."""
    copied, todo = 0, deque(copies)
    while todo:
        blob = todo[0].blob
        try:
            reader = store.reader(blob)
        except BanyanError:  # dropped, or removed by hand: it is asked for
            while todo and todo[0].blob == blob:
                todo.popleft()
            continue
        try:
            while todo and todo[0].blob == blob:
                one = todo.popleft()
                data = bytearray(await reader.read(one.number * CHUNK, CHUNK))
                try:
                    await incoming.put(one.index, data)
                except WrongChunk:
                    continue
                copied += len(data)
        finally:
            reader.close()
    return copied
