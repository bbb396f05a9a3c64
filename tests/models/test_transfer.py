"""One blob over several hops: once per hop, resumed after cuts, right or not at all."""

import asyncio
import hashlib
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_controller import memory
from cluster_controller.errors import Exhausted, NotFound, ProtocolError, Unreachable
from cluster_controller.models import BlobStore, WrongDigest, fetch_blob, serve_blob, transfer
from tests.models.streams import WINDOW, MemoryStream, _Pipe, pair
from tests.models.test_blobs import content_of, digest_of, put

BUDGET = 50_000_000


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(bounded())


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


class Hop:
    """A controller's blob service: a store, and perhaps another hop above."""

    def __init__(self, store: BlobStore, above: "Hop | None") -> None:
        self.store, self.above = store, above
        self.asked = 0
        self.sent: list[_Pipe] = []  # answers, one for each stream that was opened to this hop
        self.requests: list[dict[str, Any]] = []
        self.plans: list[dict[str, int]] = []  # for the next streams: cut_after, flip_at
        self.refuse_opening = 0
        self.tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def make(cls, folder: Path, above: "Hop | None" = None, budget: int = BUDGET) -> "Hop":
        return cls(await BlobStore.open(folder, budget), above)

    async def fetch(self, digest: str) -> None:
        assert self.above is not None
        await fetch_blob(self.above.open, digest, self.store, sleep=no_sleep)

    async def open(self) -> MemoryStream:
        """What a child gets when it opens a stream to this hop."""
        self.asked += 1
        if self.refuse_opening:
            self.refuse_opening -= 1
            raise Unreachable("the link is down")
        near, far = pair()
        plan = self.plans.pop(0) if self.plans else {}
        far.outgoing.cut_after, far.outgoing.flip_at = plan.get("cut_after"), plan.get("flip_at")
        self.sent.append(far.outgoing)
        task = asyncio.create_task(serve_blob(far, self.store, self.fetch if self.above else None))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return near

    async def idle(self) -> None:
        """All streams have ended."""
        while self.tasks:
            await asyncio.gather(*self.tasks)


async def chain(folder: Path, length: int) -> list[Hop]:
    hops: list[Hop] = []
    for number in range(length):
        hops.append(await Hop.make(folder / str(number), hops[-1] if hops else None))
    return hops


def test_a_hundred_leaves_cost_the_root_one_copy(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region = await chain(tmp_path, 2)
        leaves = [await Hop.make(tmp_path / f"leaf-{number}", region) for number in range(100)]
        content = os.urandom(300_000)
        digest = await put(root.store, content)
        async with asyncio.TaskGroup() as group:
            for leaf in leaves:
                group.create_task(leaf.fetch(digest))
        assert root.asked == 1 and region.asked == 100
        for leaf in leaves:
            assert await content_of(leaf.store, digest) == content
        await region.idle()
        assert not region.store.flights and not root.store.flights

    run(scenario())


def test_when_the_last_of_several_has_come_its_buffers_go_back_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []

    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        digests = [await put(root.store, os.urandom(300_000)) for _ in range(3)]
        monkeypatch.setattr(memory, "trim", lambda: trimmed.append(len(leaf.store.flights)))
        async with asyncio.TaskGroup() as group:
            for digest in digests:
                group.create_task(leaf.fetch(digest))
        with pytest.raises(NotFound):
            await leaf.fetch("0" * 64)
        await asyncio.get_running_loop().shutdown_default_executor()
        assert all(leaf.store.has(digest) for digest in digests)

    run(scenario())
    assert trimmed == [0]


def test_bytes_flow_on_before_a_hop_has_all_of_them_in_bounded_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        content = os.urandom(8_000_000)
        digest = await put(root.store, content)
        root.plans = [{"cut_after": 5_000_000}]
        root.refuse_opening = 0
        seen: list[int] = []

        async def sleep(_: float) -> None:
            """The region was cut after 5 MB; what it had by then has already reached the leaf."""
            while (incoming := leaf.store._arriving.get(digest)) is None or incoming.received < 4_000_000:
                await asyncio.sleep(0)
            seen.append(incoming.received)

        async def fetch(digest: str) -> None:
            await fetch_blob(root.open, digest, region.store, sleep=sleep)

        region.fetch = fetch  # type: ignore[method-assign]
        await leaf.fetch(digest)
        await region.idle()
        assert await content_of(leaf.store, digest) == content == await content_of(region.store, digest)
        assert seen and seen[0] < len(content)
        assert max(pipe.largest for hop in (root, region) for pipe in hop.sent) <= WINDOW + 65536
        assert root.asked == 2 and region.asked == 1  # the leaf's stream was never cut
        assert root.sent[1].passed < 4_000_000  # the rest only

    run(scenario())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 400_000), cuts=st.lists(st.integers(0, 400_000), max_size=6), lower=st.lists(st.integers(0, 400_000), max_size=6)
)
def test_any_cuts_anywhere_end_in_the_right_blob(
    tmp_path_factory: pytest.TempPathFactory, size: int, cuts: list[int], lower: list[int]
) -> None:
    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path_factory.mktemp("cuts"), 3)
        content = os.urandom(size)
        digest = await put(root.store, content)
        root.plans = [{"cut_after": cut} for cut in cuts]
        region.plans = [{"cut_after": cut} for cut in lower]
        for _ in range(20):
            try:
                await leaf.fetch(digest)
                break
            except Unreachable:  # several cuts in a row without a byte; what came is kept
                pass
        assert await content_of(leaf.store, digest) == content
        await region.idle()
        assert not region.store.flights and not leaf.store.flights

    run(scenario())


def test_after_a_restart_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        content = os.urandom(3_000_000)
        digest = await put(root.store, content)
        root.plans = [{"cut_after": 2_500_000}]
        root.refuse_opening = 0
        opened = root.open

        async def once() -> MemoryStream:
            if root.asked:
                raise Unreachable("edge-1 has no parent in reach")
            return await opened()

        with pytest.raises(Unreachable, match="are kept"):
            await fetch_blob(once, digest, leaf.store, sleep=no_sleep)
        kept = leaf.store.partial_size(digest)
        assert 2_000_000 < kept <= 2_500_000
        leaf = Hop(await BlobStore.open(tmp_path / "1", BUDGET), root)
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content
        assert root.sent[-1].passed <= len(content) - kept + 400  # the head and the manifest

    run(scenario())


def test_bytes_spoiled_on_the_way_never_arrive_and_are_fetched_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        content = os.urandom(2_000_000)
        digest = await put(root.store, content)
        root.plans = [{"flip_at": 1_000_000}]  # between root and region
        await leaf.fetch(digest)
        await region.idle()
        assert await content_of(leaf.store, digest) == content == await content_of(region.store, digest)
        assert 2 <= root.asked <= 4  # the second time it was right

        other = await put(root.store, os.urandom(100_000))
        root.plans = [{"flip_at": 5000}] * 10
        with pytest.raises((WrongDigest, Unreachable, ProtocolError)):
            await leaf.fetch(other)
        for hop in (region, leaf):
            assert not hop.store.has(other)

    run(scenario())


def test_a_holder_whose_disk_spoiled_the_blob_notices_and_repairs_itself_from_above(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        content = os.urandom(2_000_000)
        digest = await put(root.store, content)
        await region.fetch(digest)
        path = region.store.path(digest)
        path.chmod(0o600)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        await leaf.fetch(digest)
        await region.idle()
        assert await content_of(leaf.store, digest) == content == await content_of(region.store, digest)

    run(scenario())


def test_nobody_has_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        _, region, leaf = await chain(tmp_path, 3)
        with pytest.raises(NotFound, match="nobody above"):
            await leaf.fetch(digest_of(b"never pushed"))
        await region.idle()
        assert not region.store.flights and not leaf.store.flights
        assert leaf.store.used == region.store.used == 0

    run(scenario())


def test_no_room_below_is_the_askers_error_and_no_room_between_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = await Hop.make(tmp_path / "root")
        small = await Hop.make(tmp_path / "small", root, budget=1000)
        leaf = await Hop.make(tmp_path / "leaf", small)
        digest = await put(root.store, os.urandom(5000))
        with pytest.raises(Exhausted, match="blob_budget"):
            await small.fetch(digest)
        with pytest.raises(Exhausted, match="blob_budget"):
            await leaf.fetch(digest)

    run(scenario())


def test_an_asker_that_leaves_ends_the_pull_when_it_was_the_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, region = await chain(tmp_path, 2)
        digest = await put(root.store, os.urandom(5_000_000))
        first, _ = pair()
        blocked = asyncio.Event()

        async def open_blocked() -> MemoryStream:
            blocked.set()
            return first  # nobody answers

        one = asyncio.create_task(fetch_blob(open_blocked, digest, region.store))
        two = asyncio.create_task(fetch_blob(open_blocked, digest, region.store))
        await blocked.wait()
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert list(region.store.flights) == [digest] and not two.done()
        two.cancel()
        await asyncio.gather(two, return_exceptions=True)
        assert not region.store.flights
        await region.fetch(digest)
        assert region.store.has(digest)

    run(scenario())


def test_flights_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(transfer, "MAX_FLIGHTS", 2)
        leaf = await Hop.make(tmp_path)

        async def never() -> MemoryStream:
            return pair()[0]

        tasks = [asyncio.create_task(fetch_blob(never, digest_of(bytes([number])), leaf.store)) for number in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Exhausted):
            await fetch_blob(never, digest_of(b"third"), leaf.store)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello\n", "invalid"),
        (b'{"sha256": "../../etc/passwd"}\n', "invalid"),
        (b'{"sha256": "' + b"a" * 64 + b'", "offset": -1}\n', "invalid"),
        (b'{"sha256": "' + b"a" * 64 + b'", "offset": "x"}\n', "invalid"),
        (b'{"sha256": "' + b"a" * 64 + b'"}\n', "not_found"),
        (b"x" * 10_000, "invalid"),
        (b"", "invalid"),
    ],
)
def test_a_malformed_request_is_answered_with_a_reason(tmp_path: Path, line: bytes, code: str) -> None:
    async def scenario() -> None:
        root = await Hop.make(tmp_path)
        stream = await root.open()
        await stream.write(line)
        await stream.close_write()
        reply = json.loads(await stream.read(100_000))
        assert reply["code"] == code and reply["error"]
        await root.idle()

    run(scenario())


def test_an_offset_behind_the_end_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        root = await Hop.make(tmp_path)
        digest = await put(root.store, b"abc")
        stream = await root.open()
        await stream.write(json.dumps({"sha256": digest, "offset": 4}).encode() + b"\n")
        assert json.loads(await stream.read())["code"] == "invalid"

    run(scenario())


@pytest.mark.parametrize(
    "reply", [b"{}\n", b'{"size": -5}\n', b"nonsense\n", b'{"size": "many"}\n', b'{"error": "odd", "code": "failed"}\n']
)
def test_a_holder_that_breaks_the_protocol_is_an_error_not_a_loop(tmp_path: Path, reply: bytes) -> None:
    async def scenario() -> None:
        leaf = await Hop.make(tmp_path)

        async def odd() -> MemoryStream:
            near, far = pair()
            await far.write(reply)
            return near

        with pytest.raises(ProtocolError):
            await fetch_blob(odd, digest_of(b"x"), leaf.store, sleep=no_sleep)

    run(scenario())


def test_a_lying_size_does_not_fill_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        leaf = await Hop.make(tmp_path, budget=100_000)

        async def liar() -> MemoryStream:
            near, far = pair()
            await far.write(b'{"size": 1000}\n' + b"x" * 200_000)
            return near

        with pytest.raises(WrongDigest):
            await fetch_blob(liar, digest_of(b"x"), leaf.store, sleep=no_sleep)
        assert leaf.store.used == 0

        async def giant() -> MemoryStream:
            near, far = pair()
            await far.write(b'{"size": 1000000000000}\n')
            return near

        with pytest.raises(Exhausted):
            await fetch_blob(giant, digest_of(b"x"), leaf.store, sleep=no_sleep)

    run(scenario())


def test_an_empty_blob_crosses_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, _, leaf = await chain(tmp_path, 3)
        digest = await put(root.store, b"")
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == b"" and digest == hashlib.sha256(b"").hexdigest()

    run(scenario())


# --- chunks ------------------------------------------------------------------------------------------------------------
