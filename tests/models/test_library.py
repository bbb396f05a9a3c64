"""Model folders: made when they are needed, gone when nothing needs them, and with them the room that they took."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from cluster_controller.models import transfer
from cluster_controller.models.blobs import BlobStore
from cluster_controller.models.library import Library
from cluster_controller.reconcile.resolve import ModelNeed
from cluster_shim.contract import ModelFile
from tests.models.test_blobs import digest_of, put


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def need(data: bytes, version: str) -> ModelNeed:
    files = (ModelFile(path="model.onnx", sha256=hashlib.sha256(data).hexdigest(), size=len(data)),)
    return ModelNeed(name="emotion", version=version, uid="m", files=files, runtime="onnx")


def test_folders_that_nobody_needs_go_and_what_is_wanted_again_meanwhile_stays(tmp_path: Path) -> None:
    async def main() -> None:
        blobs = await BlobStore.open(tmp_path / "blobs", 1 << 20)
        library = Library(blobs, tmp_path / "models", None)
        needs = [need(bytes([number]) * 1000, str(number)) for number in range(4)]
        for number, one in enumerate(needs):
            await blobs.write(one.files[0].sha256, 1000, once(bytes([number]) * 1000))
            await library.ensure(one)
        (tmp_path / "models" / f".{'0' * 32}.abc").mkdir()  # what a crash left
        asked = 0

        def needed() -> set[str]:
            nonlocal asked
            asked += 1
            return {needs[0].key} if asked == 1 else {needs[0].key, needs[1].key}

        await library.keep_only(needed)
        left = {path.name for path in (tmp_path / "models").iterdir()}
        assert needs[0].key in left and len(left) <= 2 and not any(name.startswith(".") for name in left)
        assert library.ready(needs[0]) is not None
        await library.keep_only(set)
        assert list((tmp_path / "models").iterdir()) == []
        assert all(blobs.has(one.files[0].sha256) for one in needs), "the cache keeps them, as its budget allows"

    asyncio.run(main())


def test_a_dropped_folder_frees_the_room_once_its_blob_is_evicted(tmp_path: Path) -> None:
    """Links share the blob's bytes: as long as a folder stands, evicting the blob alone gives nothing back."""

    async def main() -> None:
        blobs = await BlobStore.open(tmp_path / "blobs", 150_000)
        library = Library(blobs, tmp_path / "models", None)
        for number in range(5):
            data = bytes([number]) * 100_000
            one = need(data, str(number))
            await blobs.write(one.files[0].sha256, len(data), once(data))
            await library.ensure(one)
            await library.keep_only(lambda key=one.key: {key})  # type: ignore[misc]
        inodes = {path.stat().st_ino: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
        assert sum(size for size in inodes.values() if size >= 100_000) == 100_000

    asyncio.run(main())


def test_nothing_was_ever_laid_out(tmp_path: Path) -> None:
    async def main() -> None:
        library = Library(await BlobStore.open(tmp_path / "blobs", 1 << 20), tmp_path / "models", None)
        await library.keep_only(set)
        assert not (tmp_path / "models").exists()

    asyncio.run(main())


def test_progress_says_what_is_here_on_its_way_and_missing(tmp_path: Path) -> None:
    async def scenario() -> None:
        blobs = await BlobStore.open(tmp_path / "blobs", 10_000_000)
        library = Library(blobs, tmp_path / "models", None)
        here = await put(blobs, b"here")
        other, partial = digest_of(b"other"), digest_of(b"partial" * 10)
        async with blobs.receive(partial, 70) as incoming:
            await incoming.write(b"partial")
        found = {each.digest: each for each in library.progress([here, other, partial])}
        assert [found[one].state for one in (here, other, partial)] == ["Here", "Missing", "Partial"]
        assert found[partial].received == 7 and found[here].received == found[here].size == 4
        assert library.progress() == []

        flight = await transfer.join(blobs, partial)
        assert library.progress()[0].state == "Waiting" and "first word" in library.progress()[0].waiting
        async with blobs.receive(partial, 70) as incoming:
            flight.announce(incoming)
            await incoming.write(b"partial")
            flight.came = 7
            (moving,) = library.progress()
            assert (moving.state, moving.size, moving.received, moving.hops) == ("Arriving", 70, 14, 1) and moving.rate > 0
        flight.waiting = "the link is down"
        (waiting,) = library.progress()
        assert (waiting.state, waiting.received, waiting.waiting) == ("Waiting", 14, "the link is down")
        transfer.leave(blobs, partial, flight)

    asyncio.run(scenario())
