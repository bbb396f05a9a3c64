"""Two stores on real disks, two sessions, streams in memory."""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster_controller.store import Event, Key, Limits, Store, Tx
from cluster_controller.store.database import Batch
from cluster_controller.sync import SyncLimits, SyncSession
from cluster_controller.sync.codec import Decoder
from cluster_controller.sync.messages import Message, Resume
from tests.sync.streams import MemoryStream, StreamLost, pair

PATIENCE = 30.0  # seconds; a bound against hanging, not a measure


class Ends:
    """A parent and a child, with their stores, linked and cut at will."""

    def __init__(self, parent: Store, child: Store, limits: SyncLimits | None = None) -> None:
        self.parent = parent
        self.child = child
        self.arrived: list[Event] = []  # heard as the product hears of it: from the store, for longer than a session lives
        child.subscribe(self.arrived.extend, "desired")
        self.down = SyncSession(parent, send_space="down/kid", receive_space="up/kid", me="parent", peer="kid", limits=limits)
        self.up = SyncSession(child, send_space="report", receive_space="desired", me="kid", peer="parent", limits=limits)
        self.bulks = 0
        self.streams: list[MemoryStream] = []
        self.running: list[asyncio.Task[None]] = []

    async def link(self) -> None:
        upper, lower = pair()
        bulk: asyncio.Future[MemoryStream] = asyncio.get_running_loop().create_future()

        async def open_bulk() -> MemoryStream:
            self.bulks += 1
            above, below = pair(limit=4096)
            bulk.set_result(above)
            return below

        async def wait_bulk() -> MemoryStream:
            return await bulk

        self.streams = [upper, lower]
        self.running = [asyncio.create_task(self.down.run(upper, wait_bulk)), asyncio.create_task(self.up.run(lower, open_bulk))]

    async def cut(self) -> None:
        for stream in self.streams:
            stream.abort()
        results = await asyncio.wait_for(asyncio.gather(*self.running, return_exceptions=True), PATIENCE)
        assert all(isinstance(result, StreamLost) for result in results), results

    async def until(self, store: Store, condition: Callable[[], bool]) -> None:
        """Wait for what is committed; who subscribed has been told of it when this returns."""
        changed = asyncio.Event()
        end = store.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    for task in self.running:
                        if task.done():
                            task.result()
                    changed.clear()
                    await changed.wait()
        finally:
            end()
        await asyncio.sleep(0)  # a store shows a commit one turn of the loop before it tells of it


@contextlib.asynccontextmanager
async def ends(folder: Path, limits: SyncLimits | None = None, store_limits: Limits | None = None) -> AsyncIterator[Ends]:
    parent = await Store.open(folder / "parent", store_limits)
    child = await Store.open(folder / "child", store_limits)
    both = Ends(parent, child, limits)
    try:
        yield both
    finally:
        await both.cut()
        await parent.close()
        await child.close()


async def no_bulk() -> MemoryStream:
    raise AssertionError("nothing large is sent")


async def first_message(stream: MemoryStream) -> Message:
    decoder = Decoder()
    while not (messages := decoder.feed(await stream.read())):
        pass
    return messages[0]


async def put(store: Store, space: str, name: str, document: bytes, kind: str = "Work") -> None:
    await store.commit(lambda tx: tx.put(Key(space, kind, "", name), document, uid=f"uid-{name}"))


def content(store: Store, space: str) -> dict[str, tuple[str, int, bytes]]:
    return {stored.key.name: (stored.uid, stored.version, stored.document) for stored in store.scan(space)}


def test_changes_go_both_ways_and_say_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ends(tmp_path) as tree:
            await put(tree.parent, "down/kid", "a", b'{"n":1}')
            await tree.link()
            await tree.until(tree.child, lambda: tree.child.size("desired") == 1)
            await put(tree.child, "report", "a", b'{"ready":true}', "WorkStatus")
            await tree.until(tree.parent, lambda: tree.parent.size("up/kid") == 1)
            await put(tree.parent, "down/kid", "a", b'{"n":2}')
            await tree.until(tree.child, lambda: tree.child.get(Key("desired", "Work", "", "a")).version == 2)  # type: ignore[union-attr]
            await tree.parent.commit(lambda tx: tx.delete(Key("down/kid", "Work", "", "a")))
            await tree.until(tree.child, lambda: tree.child.size("desired") == 0)
            assert [(event.kind_of, event.stored.version) for event in tree.arrived] == [("put", 1), ("put", 2), ("delete", 2)]

    asyncio.run(scenario())


def test_a_cut_link_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ends(tmp_path) as tree:
            await tree.link()
            for n in range(50):
                await put(tree.parent, "down/kid", f"w{n}", b"{}")
                if n % 10 == 5:
                    await tree.cut()
                    await put(tree.child, "report", f"r{n}", b"{}")
                    await tree.link()
            await tree.until(tree.child, lambda: tree.child.size("desired") == 50)
            await tree.until(tree.parent, lambda: tree.parent.size("up/kid") == 5)
            assert len(tree.arrived) == 50, "each arrived once"
            assert tree.bulks == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [100, 4000])
def test_past_the_journal_a_snapshot_brings_what_is_and_removes_what_is_not(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        async with ends(tmp_path, store_limits=Limits(journal_rows=20)) as tree:
            await put(tree.parent, "down/kid", "old", b"{}")
            await tree.link()
            await tree.until(tree.child, lambda: tree.child.size("desired") == 1)
            await tree.cut()
            await tree.parent.commit(lambda tx: tx.delete(Key("down/kid", "Work", "", "old")))
            for n in range(60):
                await put(tree.parent, "down/kid", f"w{n}", b'"%s"' % (b"x" * size))
            await tree.link()
            await tree.until(tree.child, lambda: content(tree.child, "desired") == content(tree.parent, "down/kid"))
            assert tree.bulks == (1 if size == 4000 else 0)
            await put(tree.parent, "down/kid", "after", b"{}")
            await tree.until(tree.child, lambda: tree.child.size("desired") == 61)

    asyncio.run(scenario())


def test_large_snapshots_in_both_directions_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ends(tmp_path, store_limits=Limits(journal_rows=5)) as tree:
            for n in range(100):
                await put(tree.parent, "down/kid", f"w{n}", b'"%s"' % (b"x" * 3000))
                await put(tree.child, "report", f"w{n}", b'"%s"' % (b"y" * 3000))
            await tree.link()
            await tree.until(tree.child, lambda: content(tree.child, "desired") == content(tree.parent, "down/kid"))
            await tree.until(tree.parent, lambda: content(tree.child, "report") == content(tree.parent, "up/kid"))

    asyncio.run(scenario())


def test_what_a_session_was_writing_when_it_was_cut_is_heard_of_and_not_asked_for_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        release = threading.Event()
        async with ends(tmp_path) as tree:
            write = tree.child._database.write
            held = asyncio.Event()
            loop = asyncio.get_running_loop()

            def slow(batch: Batch) -> None:
                loop.call_soon_threadsafe(held.set)
                assert release.wait(PATIENCE)
                write(batch)

            tree.child._database.write = slow  # type: ignore[method-assign]
            await tree.link()
            await put(tree.parent, "down/kid", "w", b"{}")
            await held.wait()
            for task in tree.running:
                task.cancel()
            await asyncio.gather(*tree.running, return_exceptions=True)
            tree.running = []

            above, below = pair()
            again = asyncio.create_task(tree.up.run(below, no_bulk))
            asked = asyncio.create_task(first_message(above))
            for _ in range(50):  # turns of the loop, more than a message needs
                await asyncio.sleep(0)
            early = asked.done()
            release.set()
            resume = await asked
            assert not early, "the cursor is not known before that commit has returned"
            assert isinstance(resume, Resume) and resume.cursor[1] == 1
            assert [event.stored.key.name for event in tree.arrived] == ["w"]
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)

    asyncio.run(scenario())


def test_a_receiver_is_told_that_the_sender_has_forgotten_what_it_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[tuple[str, int]] = []

        def ends_of(parent: Store, child: Store, *, follow: bool = False) -> Ends:
            tree = Ends(parent, child)
            names = {"send_space": "report", "receive_space": "desired", "me": "kid", "peer": "parent"}
            tree.up = SyncSession(child, follow=follow, forgotten=told.append, **names)
            return tree

        parent, child = await Store.open(tmp_path / "parent"), await Store.open(tmp_path / "child")
        await put(parent, "down/kid", "a", b'{"n":1}')
        await parent.close()
        shutil.copytree(tmp_path / "parent", tmp_path / "backup")
        shutil.copytree(tmp_path / "parent", tmp_path / "other")
        for folder, size, expected in (("parent", 2, 0), ("parent", 3, 0), ("backup", 2, 1), ("backup", 3, 1), ("other", 2, 1)):
            parent = await Store.open(tmp_path / folder)
            tree = ends_of(parent, child, follow=folder == "other")  # of another parent nothing else is expected
            await put(parent, "down/kid", f"{folder}-{size}", b"{}")
            await tree.link()
            await tree.until(child, lambda name=f"{folder}-{size}": name in content(child, "desired"))  # type: ignore[misc]
            assert len(told) == expected
            await tree.cut()
            await parent.close()
        assert told[0][1] > 0
        await child.close()

    asyncio.run(scenario())


def test_a_sender_that_was_set_back_is_told_that_the_receiver_holds_more_than_it_knows_of(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[str] = []

        def ends_of(parent: Store, child: Store) -> Ends:
            tree = Ends(parent, child)
            names = {"send_space": "report", "receive_space": "desired", "me": "kid", "peer": "parent"}
            tree.up = SyncSession(child, set_back=lambda: told.append("set back"), **names)
            return tree

        parent, child = await Store.open(tmp_path / "parent"), await Store.open(tmp_path / "child")
        await put(child, "report", "a", b'{"n":1}')
        await child.close()
        shutil.copytree(tmp_path / "child", tmp_path / "backup")
        for folder, size, expected in (("child", 2, []), ("child", 3, []), ("backup", 2, ["set back"]), ("backup", 3, ["set back"])):
            child = await Store.open(tmp_path / folder)
            tree = ends_of(parent, child)
            await put(child, "report", f"{folder}-{size}", b"{}")
            await tree.link()
            await tree.until(parent, lambda name=f"{folder}-{size}": name in content(parent, "up/kid"))  # type: ignore[misc]
            assert told == expected
            await tree.cut()
            await child.close()
        await parent.close()

    asyncio.run(scenario())


def test_a_sender_is_told_under_which_of_its_starts_the_receiver_holds_its_reports(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[int] = []
        parent, child = await Store.open(tmp_path / "parent"), await Store.open(tmp_path / "child")

        def held(tx: Tx) -> None:
            for name, source, start in (("a", "kid", 7), ("b", "kid", 5), ("c", "below", 9)):
                tx.put(Key("up/kid", "WorkStatus", "", name), b"{}", uid=name, source=source, start=start, sequence=1)

        await parent.commit(held)
        tree = Ends(parent, child)
        tree.up = SyncSession(child, send_space="report", receive_space="desired", me="kid", peer="parent", reported=told.append)
        await tree.link()
        await put(child, "report", "d", b"{}")
        await tree.until(parent, lambda: "d" in content(parent, "up/kid"))
        assert told == [7]
        await tree.cut()
        await parent.close()
        await child.close()

    asyncio.run(scenario())
