"""A model folder is whole or not there."""

import asyncio
import errno
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.errors import InvalidInput, NotFound, StoreCorrupt, StoreFull
from cluster_controller.models import BlobStore, discard_folder, folders, materialise
from cluster_shim.contract import ModelFile
from tests.models.test_blobs import put


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def files(store: BlobStore, **contents: bytes) -> list[ModelFile]:
    return [
        ModelFile(path=name.replace("__", "/").replace("_", "."), sha256=await put(store, content), size=len(content))
        for name, content in contents.items()
    ]


@pytest.mark.parametrize("links", [True, False])
def test_a_folder_holds_exactly_the_files_and_doing_it_again_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refuse(self: Path, target: Path) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(Path, "hardlink_to", refuse)

    async def scenario() -> None:
        store = await BlobStore.open(tmp_path / "blobs", 1_000_000)
        folder = tmp_path / "models" / "emotion-1"
        model = await files(store, model_onnx=b"model", extra__labels_txt=b"happy\n", same_onnx=b"model")
        await materialise(model, folder, store)
        assert listing(folder) == {"model.onnx": b"model", "extra/labels.txt": b"happy\n", "same.onnx": b"model"}
        assert (folder / "model.onnx").stat().st_mode & 0o222 == 0
        assert ((folder / "model.onnx").stat().st_nlink > 1) is links
        before = folder.stat().st_ino
        await materialise(model, folder, store)
        assert folder.stat().st_ino == before  # untouched
        (folder / "stray").write_text("by hand")
        await materialise(model, folder, store)
        assert "stray" not in listing(folder)
        newer = await files(store, model_onnx=b"model two")
        await materialise(newer, folder, store)
        assert listing(folder) == {"model.onnx": b"model two"}
        assert [path.name for path in folder.parent.iterdir()] == ["emotion-1"]  # no scratch is left
        await discard_folder(folder)
        await discard_folder(folder)
        assert list(folder.parent.iterdir()) == [] and store.count == 3

    run(scenario())


def test_what_cannot_be_had_whole_leaves_the_old_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path / "blobs", 1_000_000)
        folder = tmp_path / "models" / "emotion-1"
        old = await files(store, model_onnx=b"old")
        await materialise(old, folder, store)
        missing = ModelFile(path="more.onnx", sha256="a" * 64, size=1)
        with pytest.raises(NotFound, match=r"a{64}"):
            await materialise([*old, missing], folder, store)
        spoiled = await files(store, model_onnx=b"new", second_onnx=b"second")
        blob = store.path(spoiled[1].sha256)
        blob.chmod(0o600)
        blob.write_bytes(b"SECOND")
        with pytest.raises(StoreCorrupt):
            await materialise(spoiled, folder, store)
        assert not store.has(spoiled[1].sha256)
        again = await files(store, model_onnx=b"new", second_onnx=b"second")

        def full(self: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "hardlink_to", full)
        with pytest.raises(StoreFull):
            await materialise(again, folder, store)
        assert listing(folder) == {"model.onnx": b"old"}
        assert [path.name for path in folder.parent.iterdir()] == ["emotion-1"]

    run(scenario())


@pytest.mark.parametrize(
    "paths",
    [["/etc/passwd"], ["../up"], ["a/../../b"], [""], ["."], ["a\0b"], ["a", "a"], ["a", "./a"], ["a", "a/b"], []],
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, paths: list[str]) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path / "blobs", 1_000_000)
        digest = await put(store, b"x")
        with pytest.raises(InvalidInput):
            await materialise([ModelFile(path=path, sha256=digest, size=1) for path in paths], tmp_path / "models" / "m", store)
        assert not (tmp_path / "models").exists()

    run(scenario())


def test_a_power_cut_between_the_two_renames_is_healed_by_doing_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path / "blobs", 1_000_000)
        folder = tmp_path / "models" / "m"
        await materialise(await files(store, model_onnx=b"old"), folder, store)
        new = await files(store, model_onnx=b"new")

        class PowerCut(BaseException):
            pass

        real = folders._discard

        def cut(target: Path) -> None:
            real(target)
            raise PowerCut

        monkeypatch.setattr(folders, "_discard", cut)
        with pytest.raises(PowerCut):
            await materialise(new, folder, store)
        assert not folder.exists()  # not there at all, rather than half
        monkeypatch.undo()
        await materialise(new, folder, store)
        assert listing(folder) == {"model.onnx": b"new"}
        assert [path.name for path in folder.parent.iterdir()] == ["m"]

    run(scenario())
