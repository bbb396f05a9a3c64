"""A blob in chunks between hops: what is wrong costs itself, who has no room is passed by, who is older is understood."""

import asyncio
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.errors import Exhausted, NotFound, Unreachable
from cluster_controller.models import BlobStore, fetch_blob
from cluster_controller.models.chunks import CHUNK
from cluster_controller.models.pace import Pace
from cluster_controller.windows import Windows
from tests.models.streams import MemoryStream, pair
from tests.models.test_blobs import content_of, digest_of, put
from tests.models.test_transfer import BUDGET, Hop, chain, no_sleep, run


def test_a_wrong_chunk_costs_itself_and_is_not_passed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        content = os.urandom(5 * CHUNK + 7)
        digest = await put(root.store, content)
        root.plans = [{"flip_at": 2 * CHUNK + CHUNK // 2}]  # in the third chunk
        await leaf.fetch(digest)
        await region.idle()
        assert await content_of(leaf.store, digest) == content == await content_of(region.store, digest)
        assert root.asked == 2 and region.asked == 1  # the leaf never saw it
        assert root.sent[1].passed <= 4 * CHUNK + 1000  # the first two were kept

    run(scenario())


def test_what_a_power_loss_left_is_judged_chunk_by_chunk(tmp_path: Path) -> None:
    """A file that was not synced has holes and old blocks anywhere; what is right of it is not asked for again."""

    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        content = os.urandom(6 * CHUNK + 100)
        digest = await put(root.store, content)
        root.plans = [{"cut_after": 5 * CHUNK + 1000}] + [{"cut_after": 0}] * 9
        with pytest.raises(Unreachable):
            await leaf.fetch(digest)
        root.plans = []
        partial = tmp_path / "1" / "partial" / digest
        data = bytearray(partial.read_bytes())
        assert len(data) == 5 * CHUNK
        data[CHUNK : 2 * CHUNK] = bytes(CHUNK)
        data[3 * CHUNK + 5] ^= 1
        partial.write_bytes(data)
        leaf = Hop(await BlobStore.open(tmp_path / "1", BUDGET), root)
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content
        assert root.sent[-1].passed <= 3 * CHUNK + 100 + 1000  # two of them, and the rest
        assert leaf.store.used == len(content)

    run(scenario())


def test_all_came_and_the_crash_was_before_the_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        content = os.urandom(2 * CHUNK)
        digest = await put(root.store, content)
        await leaf.fetch(digest)
        leaf.store.path(digest).rename(tmp_path / "1" / "partial" / digest)
        leaf = Hop(await BlobStore.open(tmp_path / "1", BUDGET), root)
        asked = root.asked
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content and root.asked == asked

    run(scenario())


def test_the_next_ancestor_is_asked_when_the_parent_has_no_room_or_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = await Hop.make(tmp_path / "root")
        small = await Hop.make(tmp_path / "small", root, budget=1000)
        leaf = await Hop.make(tmp_path / "leaf", small)
        content = os.urandom(3 * CHUNK)
        digest = await put(root.store, content)
        await fetch_blob((small.open, root.open), digest, leaf.store, sleep=no_sleep)
        assert await content_of(leaf.store, digest) == content and small.asked == 1 and not small.store.has(digest)
        leaf.store.remove(digest)
        small.refuse_opening = 1 << 30
        root.plans = [{"cut_after": CHUNK + 1000}]
        await fetch_blob((small.open, root.open), digest, leaf.store, sleep=no_sleep)
        assert await content_of(leaf.store, digest) == content
        assert root.sent[-1].passed < 2 * CHUNK + 1000  # it went on where the cut was

    run(scenario())


def test_when_nobody_gives_it_the_nearest_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = await Hop.make(tmp_path / "root")
        small = await Hop.make(tmp_path / "small", root, budget=1000)
        leaf = await Hop.make(tmp_path / "leaf", small, budget=1000)
        digest = await put(root.store, os.urandom(5000))
        with pytest.raises(NotFound, match="nobody above"):
            await fetch_blob((root.open, small.open), digest_of(b"?"), leaf.store, sleep=no_sleep)
        asked = root.asked
        with pytest.raises(Exhausted, match="blob_budget"):  # its own want of room is no reason to ask others
            await fetch_blob((root.open, root.open), digest, leaf.store, sleep=no_sleep)
        assert root.asked == asked + 1

    run(scenario())


def old_holder(content: bytes) -> Any:
    """Answers as a version before this one: no manifest, bytes from the offset on."""

    async def open_stream() -> MemoryStream:
        near, far = pair()

        async def answer() -> None:
            request = json.loads(await far.read(4096))
            await far.write(json.dumps({"size": len(content)}).encode() + b"\n" + content[request.get("offset", 0) :])
            await far.close_write()

        open_stream.tasks.append(asyncio.create_task(answer()))  # type: ignore[attr-defined]
        return near

    open_stream.tasks = []  # type: ignore[attr-defined]
    return open_stream


@pytest.mark.parametrize("first", ["nothing", "chunks"])
def test_a_holder_of_the_version_before_is_understood(tmp_path: Path, first: str) -> None:
    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        content = os.urandom(3 * CHUNK + 5)
        digest = await put(root.store, content)
        if first == "chunks":  # an attempt by the new one was cut, then the old one goes on
            root.plans = [{"cut_after": CHUNK + 1000}] + [{"cut_after": 0}] * 9
            with pytest.raises(Unreachable):
                await region.fetch(digest)
        old = old_holder(content)

        async def fetch(digest: str) -> None:
            await fetch_blob(old, digest, region.store, sleep=no_sleep)

        region.fetch = fetch  # type: ignore[method-assign]
        await leaf.fetch(digest)
        await region.idle()
        assert await content_of(leaf.store, digest) == content == await content_of(region.store, digest)

    run(scenario())


def test_an_asker_of_the_version_before_is_answered_as_it_asks(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region = await chain(tmp_path, 2)
        content = os.urandom(2 * CHUNK + 5)
        digest = await put(root.store, content)
        for _ in ("passed on as it comes", "from its disk"):
            stream = await region.open()
            await stream.write(json.dumps({"sha256": digest, "offset": 100}).encode() + b"\n")
            found = b""
            while part := await stream.read(1 << 20):
                found += part
            head, _, body = found.partition(b"\n")
            assert json.loads(head) == {"size": len(content)} and body == content[100:]
            await region.idle()

    run(scenario())


def test_a_manifest_that_was_never_kept_or_was_spoiled_is_made_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        content = os.urandom(3 * CHUNK)
        digest = await put(root.store, content)
        for spoil in (True, False):
            path = tmp_path / "0" / "chunks" / digest
            path.write_bytes(b"nonsense") if spoil else path.unlink()
            await leaf.fetch(digest)
            assert await content_of(leaf.store, digest) == content and path.stat().st_size > 96
            leaf.store.remove(digest)
            await root.idle()
        assert not list((tmp_path / "1" / "chunks").iterdir())

    run(scenario())


def test_models_wait_for_their_window_and_keep_what_came(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        content = os.urandom(4 * CHUNK)
        digest = await put(root.store, content)
        minutes = [0]

        def local() -> datetime:
            minutes[0] += 1  # each look is a minute
            return datetime(2026, 1, 1, minutes[0] // 60 % 24, minutes[0] % 60)

        pace = Pace(windows=Windows(("00:00-00:10",)), local=local)
        with pytest.raises(Unreachable, match="model_windows"):
            await fetch_blob(root.open, digest, leaf.store, pace=pace, sleep=no_sleep)
        assert not leaf.store.flights and 0 < (kept := leaf.store.partial_size(digest)) < len(content)
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content
        assert root.sent[-1].passed <= len(content) - kept + 400

    run(scenario())
