"""A Model says which of its files are here."""

import asyncio
from pathlib import Path

import msgspec

from cluster_controller.models.shelf import Shelf
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Tx

KEY = Key("own", "Model", "default", "emotion")


class Blobs:
    def __init__(self) -> None:
        self.here: set[str] = set()

    def has(self, digest: str) -> bool:
        return digest in self.here


def put(tx: Tx) -> None:
    files = [{"path": name, "sha256": name * 64, "size": 1} for name in "ab"]
    document = {"kind": "Model", "metadata": {"name": "emotion"}, "spec": {"versions": [{"name": "1", "files": files}]}, "extra": "kept"}
    tx.put(KEY, msgspec.json.encode(document), uid="m")


def test_what_is_missing_is_named_until_it_has_come(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        blobs = Blobs()
        shelf = Shelf(store, blobs)
        store.subscribe(shelf.changed, kinds=shelf.heeds)
        task = asyncio.create_task(shelf.run())

        async def seen() -> kinds.ModelVersionStatus:
            for _ in range(20):
                await asyncio.sleep(0)
                await store.commit(lambda tx: None)
            stored = store.get(KEY)
            assert stored is not None
            assert b'"extra":"kept"' in stored.document
            return msgspec.json.decode(stored.document, type=kinds.Model).status.versions[0]

        await store.commit(put)
        first = await seen()
        assert (first.present, first.missing) == (False, ["a" * 64, "b" * 64])
        assert "2 of 2 files" in first.reason
        blobs.here.add("a" * 64)
        shelf.arrived("a" * 64)
        assert (await seen()).missing == ["b" * 64]
        blobs.here.add("b" * 64)
        shelf.arrived("b" * 64)
        last = await seen()
        assert (last.present, last.missing, last.reason) == (True, [], "")
        revision = store.revision
        shelf.arrived("b" * 64)
        await seen()
        assert store.revision == revision  # nothing is written twice
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()

    asyncio.run(play())
