"""What is on the disk is right, within its budget, and still there after a restart."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_controller.errors import Conflict, Exhausted, InvalidInput, NotFound, StoreCorrupt, StoreFull
from cluster_controller.models import BlobStore, WrongDigest
from cluster_controller.models import incoming as incoming_module


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def put(store: BlobStore, content: bytes) -> str:
    digest = digest_of(content)
    await store.write(digest, len(content), pieces(content))
    return digest


async def content_of(store: BlobStore, digest: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in store.chunks(digest, offset)])


def files_below(folder: Path) -> set[str]:
    """But the manifests."""
    return {name for path in folder.rglob("*") if path.is_file() and not (name := str(path.relative_to(folder))).startswith("chunks/")}


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_what_was_written_is_read_and_found_again_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 10_000_000)
        content = os.urandom(3_000_001)
        digest = await put(store, content)
        empty = await put(store, b"")
        assert await content_of(store, digest) == content
        assert await content_of(store, digest, 2_999_000) == content[2_999_000:]
        assert files_below(tmp_path) == {f"sha256/{name[:2]}/{name}" for name in (digest, empty)}
        again = await BlobStore.open(tmp_path, 10_000_000)
        assert again.has(digest) and again.has(empty) and again.used == store.used == 3_000_001
        assert await content_of(again, digest) == content

    run(scenario())


@pytest.mark.parametrize("wrong", ["content", "shorter", "longer"])
def test_wrong_bytes_are_refused_and_nothing_is_kept(tmp_path: Path, wrong: str) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 1_000_000)
        right = b"a" * 5000
        sent = {"content": b"b" * 5000, "shorter": right[:-1], "longer": right + b"a"}[wrong]
        with pytest.raises(WrongDigest):
            await store.write(digest_of(right), len(right), pieces(sent))
        assert not store.has(digest_of(right)) and store.used == 0 and files_below(tmp_path) == set()
        await put(store, right)  # the name is not burnt
        with pytest.raises(WrongDigest):  # and who sends the wrong thing under a name that is here is told, too
            await store.write(digest_of(right), len(right), pieces(sent))
        assert await content_of(store, digest_of(right)) == right

    run(scenario())


@pytest.mark.parametrize("name", ["", "ab", "A" * 64, "../" + "a" * 61, "g" * 64, "a" * 65])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 1_000_000)
        with pytest.raises(InvalidInput):
            await store.write(name, 1, pieces(b"x"))
        with pytest.raises(InvalidInput):
            store.size(name)
        with pytest.raises(InvalidInput):
            store.hold("me", [name])

    run(scenario())


def test_a_cut_is_resumed_after_a_restart_and_the_old_bytes_are_hashed_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        content = os.urandom(2_500_000)
        digest = digest_of(content)
        store = await BlobStore.open(tmp_path, 10_000_000)
        async with store.receive(digest, len(content)) as incoming:
            await incoming.write(content[:1_700_000])
        assert not store.has(digest) and store.partial_size(digest) == 1_700_000
        store = await BlobStore.open(tmp_path, 10_000_000)
        assert store.partial_size(digest) == 1_700_000 and store.used == 1_700_000
        async with store.receive(digest, len(content)) as incoming:
            assert incoming.received == 1_700_000
            await incoming.write(content[1_700_000:])
            await incoming.commit()
        assert await content_of(store, digest) == content
        assert files_below(tmp_path) == {f"sha256/{digest[:2]}/{digest}"} and store.partial_size(digest) == 0

    run(scenario())


def test_a_partial_file_that_the_disk_spoiled_is_thrown_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        content = os.urandom(50_000)
        digest = digest_of(content)
        store = await BlobStore.open(tmp_path, 10_000_000)
        async with store.receive(digest, len(content)) as incoming:
            await incoming.write(content[:20_000])
        partial = tmp_path / "partial" / digest
        partial.write_bytes(b"\0" + partial.read_bytes()[1:])
        store = await BlobStore.open(tmp_path, 10_000_000)
        async with store.receive(digest, len(content)) as incoming:
            await incoming.write(content[incoming.received :])
            with pytest.raises(WrongDigest):
                await incoming.commit()
        assert store.partial_size(digest) == 0 and files_below(tmp_path) == set()

    run(scenario())


def test_two_cannot_receive_the_same_blob_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 10_000_000)
        digest = digest_of(b"abc")
        async with store.receive(digest, 3) as incoming:
            with pytest.raises(Conflict):
                async with store.receive(digest, 3):
                    pass
            await incoming.write(b"abc")
            await incoming.commit()
        assert await content_of(store, digest) == b"abc"

    run(scenario())


def test_room_is_made_by_dropping_what_was_used_longest_ago_and_is_not_held(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 3000)
        first, second, third = [await put(store, bytes([number]) * 1000) for number in range(3)]
        store.hold("application", [first])
        store.reader(second).close()  # now third is the one that was used longest ago, after first, which is held
        fourth = await put(store, b"4" * 1000)
        assert [store.has(digest) for digest in (first, second, third, fourth)] == [True, True, False, True]
        store.hold("other", [second, fourth])
        with pytest.raises(Exhausted, match="blob_budget"):
            await put(store, b"5" * 1000)
        assert store.used == 3000 and len(files_below(tmp_path)) == 3
        store.hold("application", [])
        await put(store, b"5" * 1000)
        assert not store.has(first)
        with pytest.raises(Exhausted):
            await put(store, b"6" * 3001)  # bigger than the whole budget: nothing is dropped in vain
        assert store.count == 3

    run(scenario())


def test_what_may_be_wanted_again_goes_after_all_that_nobody_names(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 3000)
        before, other, active = [await put(store, bytes([number]) * 1000) for number in range(3)]
        store.hold("work", [active])
        store.keep("work", [before])  # used longest ago, and yet:
        newer = await put(store, b"4" * 1000)
        assert [store.has(digest) for digest in (before, other, active, newer)] == [True, False, True, True]
        store.hold("fetch", [newer])
        newest = await put(store, b"5" * 1000)  # what is needed has room, whatever becomes of what was
        assert [store.has(digest) for digest in (before, active, newer, newest)] == [False, True, True, True]
        store.keep("work", [newest])
        store.keep("work", [])
        await put(store, b"6" * 1000)
        assert not store.has(newest)

    run(scenario())


def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 3000)
        digests = [await put(store, bytes([number]) * 1000) for number in range(3)]
        for age, digest in enumerate(digests):
            os.utime(store.path(digest), ns=(age, age))
        store.reader(digests[0]).close()
        store = await BlobStore.open(tmp_path, 3000)
        await put(store, b"new" * 300)
        assert [store.has(digest) for digest in digests] == [True, False, True]

    run(scenario())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["put", "use", "hold", "release", "cut", "restart"]), st.integers(0, 9)), max_size=40))
def test_never_over_budget_and_nothing_held_is_lost(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    contents = {number: bytes([number]) * (number * 97 + 50) for number in range(10)}
    names = {number: digest_of(content) for number, content in contents.items()}

    async def scenario() -> None:
        folder = tmp_path_factory.mktemp("blobs")
        store = await BlobStore.open(folder, 2000)
        held: set[int] = set()
        for step, number in steps:
            before = {other for other in held if store.has(names[other])}
            try:
                match step:
                    case "put":
                        await put(store, contents[number])
                    case "use" if store.has(names[number]):
                        assert await content_of(store, names[number]) == contents[number]
                    case "hold":
                        held.add(number)
                    case "release":
                        held.discard(number)
                    case "cut" if not store.has(names[number]):
                        async with store.receive(names[number], len(contents[number])) as incoming:
                            await incoming.write(contents[number][incoming.received :][:20])
                    case "restart":
                        store = await BlobStore.open(folder, 2000)
            except Exhausted:
                pass
            except WrongDigest:
                pytest.fail("right bytes were called wrong")
            store.hold("me", [names[other] for other in held])
            on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            assert on_disk == store.used <= 2000
            assert all(store.has(names[other]) for other in before)

    run(scenario())


def test_a_full_disk_is_a_clear_error_that_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, budget = os.pwrite, [4096]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if budget[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: min(len(data), budget[0])], offset)
        budget[0] -= written
        return written

    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 1_000_000)
        monkeypatch.setattr(incoming_module.os, "pwrite", pwrite)
        with pytest.raises(StoreFull, match="blob_budget"):
            await put(store, b"x" * 10_000)
        assert store.used == 0 and files_below(tmp_path) == set()

    run(scenario())


def test_the_last_megabytes_of_a_disk_are_left_to_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 1_000_000, disk_reserve=1 << 60)
        with pytest.raises(StoreFull, match="reserved"):
            await put(store, b"x")
        assert files_below(tmp_path) == set()

    run(scenario())


def test_a_blob_that_the_disk_spoiled_is_found_and_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 1_000_000)
        digest = await put(store, b"right" * 100)
        await store.verify(digest)
        store.path(digest).chmod(0o600)
        store.path(digest).write_bytes(b"wrong" * 100)
        with pytest.raises(StoreCorrupt, match="fetched again"):
            await store.verify(digest)
        assert not store.has(digest) and not store.path(digest).exists()
        digest = await put(store, b"right" * 100)
        store.path(digest).unlink()
        with pytest.raises(NotFound, match="by hand"):
            store.reader(digest)
        assert not store.has(digest)

    run(scenario())


def test_what_does_not_belong_there_is_left_alone_and_a_scan_reads_no_contents(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await BlobStore.open(tmp_path, 1_000_000)
        digest = await put(store, b"content")
        (tmp_path / "sha256" / digest[:2] / "notes.txt").write_text("mine")
        (tmp_path / "sha256" / "README").write_text("mine")
        store.path(digest).chmod(0o000)  # unreadable even: names and sizes are enough
        again = await BlobStore.open(tmp_path, 1_000_000)
        assert again.count == 1 and again.has(digest)

    run(scenario())


def test_a_read_only_folder_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")

    async def scenario() -> None:
        with pytest.raises(Exception, match="file") as caught:
            await BlobStore.open(file, 1000)
        assert type(caught.value).__name__ in ("StoreError", "StoreReadOnly")

    run(scenario())
