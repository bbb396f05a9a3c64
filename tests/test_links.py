"""Sync over real links: two stores on disks, two tunnels over TLS on loopback, and what goes wrong between them."""

import asyncio
import contextlib
import functools
import gc
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cluster_controller import links as module
from cluster_controller import tasks
from cluster_controller.errors import Forbidden, StoreFull
from cluster_controller.links import SNAPSHOT, SYNC, Links
from cluster_controller.store import Key, Limits, Store
from cluster_controller.store.database import Batch
from cluster_controller.sync import SyncSession
from cluster_controller.sync.codec import Decoder, encode
from cluster_controller.sync.messages import Begin, Message, Resume, Snapshot
from cluster_controller.tunnel import CloseCode, Lane, Link, Stream, StreamReset
from cluster_controller.tunnel.protocol.connection import Connection
from cluster_controller.tunnel.protocol.stream import StreamState
from cluster_controller.tunnel.tls import TlsPipe
from cluster_controller.tunnel.wire import Wire
from tests.tunnel.support import Member, identity, root, run

PATIENCE = 20.0  # seconds; a bound against hanging, not a measure


class Site(Member):
    """A controller that is a store, a tunnel, and the links between them."""

    store: Store
    links: Links
    linked: list[tuple[str, bool]]  # child, up

    def install(self, store: Store) -> "Site":
        self.store = store
        self.linked = []
        self.links = Links(store, self.tunnel, self.uid, lambda child, heard: self.linked.append((child, heard is None)))
        return self

    def link_up(self, link: Link) -> None:
        super().link_up(link)
        if hasattr(self, "links"):
            self.links.up(link)

    def link_down(self, link: Link, reason: str) -> None:
        super().link_down(link, reason)
        if hasattr(self, "links"):
            self.links.down(link)

    async def holds(self, space: str, count: int) -> None:
        changed = asyncio.Event()
        end = self.store.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(PATIENCE):
                while self.store.size(space) != count:
                    changed.clear()
                    await changed.wait()
        finally:
            end()

    async def put(self, space: str, name: str, size: int = 2) -> None:
        document = b'"%s"' % (b"x" * (size - 2))
        await self.store.commit(lambda tx: tx.put(Key(space, "Work", "", name), document, uid=f"uid-{name}"))

    async def stop(self) -> None:
        """As the product does it."""
        await self.close()
        if hasattr(self, "links"):
            await self.links.close()
            await self.store.close()


@contextlib.asynccontextmanager
async def tree(folder: Path, *, limits: Limits | None = None, bare: bool = False) -> AsyncIterator[tuple[Site, Site, int]]:
    """A parent, a child that has not dialled yet, and the parent's port. ``bare``: the child has no store and no links."""
    parent = Site(root()).install(await Store.open(folder / "parent", limits))
    child = Site(identity("region"))
    try:
        if not bare:
            child.install(await Store.open(folder / "child", limits))
        yield parent, child, await parent.tunnel.serve("127.0.0.1", 0)
    finally:
        await child.stop()
        await parent.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def raw_sync(child: Site, parent: Site, *messages: Message) -> Stream:
    """A sync stream of a child that speaks for itself."""
    assert child.tunnel.parent is not None
    stream = await child.tunnel.parent.open(parent.uid, SYNC, lane=Lane.SYNC)
    await stream.write(b"".join(map(encode, messages)))
    return stream


async def hear(stream: Stream, kind: type[Message]) -> Message:
    decoder = Decoder()
    async with asyncio.timeout(PATIENCE):
        while data := await stream.read():
            for message in decoder.feed(data):
                if isinstance(message, kind):
                    return message
    raise AssertionError(f"the stream ended before a {kind.__name__}")


async def refused(stream: Stream, match: str) -> None:
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StreamReset, match=match):
            while await stream.read():
                pass


def fail_once(monkeypatch: pytest.MonkeyPatch, uid: str, error: Exception) -> None:
    """The first session of ``uid`` dies of ``error`` once it is connected."""
    real, died = SyncSession.run, []

    async def failing(session: SyncSession, stream: Any, open_bulk: Callable[[], Awaitable[Any]]) -> None:
        if session._me == uid and not died:
            died.append(session)
            raise error
        await real(session, stream, open_bulk)

    monkeypatch.setattr(SyncSession, "run", failing)


def test_sync_comes_and_goes_with_the_link(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            await parent.put(f"down/{child.uid}", "a")
            child.dial(port)
            await child.holds("desired", 1)
            await child.put("report", "a")
            await parent.holds(f"up/{child.uid}", 1)
            assert parent.linked == [(child.uid, True)] and child.linked == []
            assert set(parent.links.sessions) == {child.uid} and set(child.links.sessions) == {parent.uid}

            parent.tunnel.links[child.uid].close(CloseCode.GOING_AWAY, "cut by the test")
            assert parent.linked == [(child.uid, True), (child.uid, False)]
            await parent.put(f"down/{child.uid}", "b")
            await child.holds("desired", 2)
            assert parent.linked == [(child.uid, True), (child.uid, False), (child.uid, True)]

    run(main)


def test_a_session_that_begins_anew_goes_on_with_the_counts_of_the_one_before_for_as_long_as_the_link_stands(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await child.put("report", "a")
            await parent.holds(f"up/{child.uid}", 1)
            first = parent.links.sessions[child.uid]
            assert parent.links.counts()[child.uid].applied == 1
            parent.links.again(child.uid)
            await until(lambda: parent.links.sessions.get(child.uid) is not first)
            assert parent.links.counts()[child.uid].applied == 1
            await child.put("report", "b")
            await parent.holds(f"up/{child.uid}", 2)
            assert parent.links.counts()[child.uid].applied == 2
            parent.tunnel.links[child.uid].close(CloseCode.GOING_AWAY, "cut by the test")
            await until(lambda: child.uid not in parent.links.sessions)
            assert child.uid not in parent.links._counts

    run(main)


def test_a_newer_link_takes_over_and_the_older_ones_end_is_no_loss(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await parent.put(f"down/{child.uid}", "a")
            await child.holds("desired", 1)
            twin = Site(identity("region"), attach=1_000_000)  # the older one's attaches never get there
            twin.install(await Store.open(tmp_path / "twin"))
            try:
                twin.dial(port)
                await twin.holds("desired", 1)
                await until(lambda: parent.downs)
                await parent.put(f"down/{child.uid}", "b")
                await twin.holds("desired", 2)
                assert parent.linked == [(child.uid, True), (child.uid, True)], "the child was never gone"
                assert set(parent.links.sessions) == {child.uid}
                await until(lambda: not child.links.sessions)
            finally:
                await twin.stop()

    run(main)


def test_the_end_of_an_older_link_to_the_parent_leaves_the_newer_ones_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await parent.put(f"down/{child.uid}", "a")
            await child.holds("desired", 1)
            link = child.tunnel.parent
            assert link is not None
            first = child.links.sessions[parent.uid]
            child.links.up(link)
            child.links.down(link)
            await until(lambda: child.links.sessions.get(parent.uid) not in {None, first})
            await parent.put(f"down/{child.uid}", "b")
            await child.holds("desired", 2)

    run(main)


@pytest.mark.parametrize("side", ["child", "parent"])
def test_a_defect_in_a_session_is_logged_counted_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            sick, owner = (child, "links") if side == "child" else (parent, "tunnel")
            before = tasks.crashes[owner]
            fail_once(monkeypatch, sick.uid, ZeroDivisionError("a defect"))
            with capture_logs() as logs:
                child.dial(port)
                await parent.put(f"down/{child.uid}", "a")
                await child.holds("desired", 1)
            assert tasks.crashes[owner] == before + 1
            (crash,) = [entry for entry in logs if entry["event"] == "task.crashed"]
            assert crash["log_level"] == "error" and crash["exc_info"] and crash["owner"] == owner
            await child.put("report", "a")
            await parent.holds(f"up/{child.uid}", 1)

    run(main)


@pytest.mark.parametrize("side", ["child", "parent"])
def test_a_full_disk_interrupts_sync_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await parent.put(f"down/{child.uid}", "a")
            await child.holds("desired", 1)
            sick, other, space = (child, parent, f"down/{child.uid}") if side == "child" else (parent, child, "report")
            write, refusals = sick.store._database.write, []

            def full(batch: Batch) -> None:
                if len(refusals) < 2:
                    refusals.append(batch)
                    raise StoreFull("no space left: free some")
                write(batch)

            monkeypatch.setattr(sick.store._database, "write", full)
            with capture_logs() as logs:
                await other.put(space, "b")
                await sick.holds("desired" if side == "child" else f"up/{child.uid}", 2 if side == "child" else 1)
            assert len(refusals) == 2 and sick.links.interrupted == 2
            warnings = [entry for entry in logs if entry["event"] == "sync.interrupted" and entry["log_level"] == "warning"]
            assert any(entry["reason"] == "no space left: free some" for entry in warnings)
            assert not [entry for entry in logs if entry["event"] == "task.crashed"]

    run(main)


def test_one_session_at_a_time_the_newest_after_the_last_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one still waits for its disk when the second comes."""

    async def main() -> None:
        async with tree(tmp_path, bare=True) as (parent, child, port):
            child.dial(port)
            await child.until(lambda: child.tunnel.parent is not None)
            running = most = 0
            real = SyncSession.run
            release = asyncio.Event()

            async def counted(session: SyncSession, stream: Any, open_bulk: Callable[[], Awaitable[Any]]) -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                try:
                    await real(session, stream, open_bulk)
                finally:
                    with contextlib.suppress(asyncio.CancelledError):
                        await release.wait()
                    running -= 1

            monkeypatch.setattr(SyncSession, "run", counted)
            resume = Resume(1, ("", 0), (), False)
            first = await raw_sync(child, parent, resume)
            await hear(first, Begin)
            second = await raw_sync(child, parent, resume)
            third = await raw_sync(child, parent, resume)
            await refused(second, "the service failed")
            release.set()
            await hear(third, Begin)
            await refused(first, "the service failed")
            assert most == 1 and running == 1

    run(main)


@pytest.mark.parametrize("down", [True, False], ids=["down", "up"])
def test_a_large_snapshot_has_a_stream_of_its_own(tmp_path: Path, down: bool) -> None:
    async def main() -> None:
        async with tree(tmp_path, limits=Limits(journal_rows=5)) as (parent, child, port):
            source, space = (parent, f"down/{child.uid}") if down else (child, "report")
            for n in range(60):
                await source.put(space, f"w{n}", 3000)
            opened: list[str] = []
            serve = parent.links._serve_snapshot

            async def noted(stream: Stream) -> None:
                opened.append(stream.service)
                await serve(stream)

            parent.tunnel.handle(SNAPSHOT, noted)
            child.dial(port)
            await (child.holds("desired", 60) if down else parent.holds(f"up/{child.uid}", 60))
            assert opened == [SNAPSHOT]

    run(main)


def test_a_snapshot_whose_stream_never_opens_is_given_up_readably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(module, "SNAPSHOT_SECONDS", 0.05)
        async with tree(tmp_path, limits=Limits(journal_rows=5), bare=True) as (parent, child, port):
            for n in range(60):
                await parent.put(f"down/{child.uid}", f"w{n}", 3000)
            child.dial(port)
            await child.until(lambda: child.tunnel.parent is not None)
            with capture_logs() as logs:
                stream = await raw_sync(child, parent, Resume(1, ("", 0), (), False))
                await hear(stream, Snapshot)
                await refused(stream, "did not open the stream for it within 0.05 s: sync begins again")
            assert [entry["log_level"] for entry in logs if entry["event"] == "sync.interrupted"] == ["warning"]
            assert not [entry for entry in logs if entry["event"] == "task.crashed"]
            assert not parent.links.sessions and not parent.links._children and not parent.links._snapshots
            await hear(await raw_sync(child, parent, Resume(1, ("", 0), (), False)), Begin)

    run(main)


def test_a_snapshot_stream_that_nobody_waits_for_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path, bare=True) as (parent, child, port):
            child.dial(port)
            await child.until(lambda: child.tunnel.parent is not None)
            assert child.tunnel.parent is not None
            open_snapshot = functools.partial(child.tunnel.parent.open, parent.uid, SNAPSHOT, lane=Lane.BULK)
            await refused(await open_snapshot(), "no snapshot was announced")
            stream = await raw_sync(child, parent, Resume(1, ("", 0), (), False))
            await hear(stream, Begin)
            kept = await open_snapshot()
            await refused(await open_snapshot(), "no snapshot was announced")
            stream.abort("enough")
            async with asyncio.timeout(PATIENCE):
                assert await kept.read() == b"", "with the session its second stream ends"

    run(main)


def test_who_may_open_what(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (top, region, port):
            region.dial(port)
            edge = Site(identity("edge", "region"))
            try:
                edge.dial(await region.tunnel.serve("127.0.0.1", 0))
                await top.until(lambda: top.router.next_hop(edge.uid))
                for site in (top, region, edge):
                    site.tunnel.policy = lambda source, destination, service: True
                for service in (SYNC, SNAPSHOT):  # a grandchild is served by its own parent
                    await refused(await edge.tunnel.open(top.uid, service), f"{service} is served to children only")
                    await refused(await top.tunnel.open(region.uid, service), f"{service} is served to children only")

                judged: list[object] = []

                async def judge(stream: Stream) -> None:
                    try:
                        region.links.require_parent(stream)
                    except Forbidden as error:
                        judged.append(str(error))
                    else:
                        judged.append(True)

                region.tunnel.handle("people", judge)
                for opener in (top, edge):
                    stream = await opener.tunnel.open(region.uid, "people")
                    assert await stream.read() == b""
                assert judged == [True, "people is believed only when it comes from the parent"]
            finally:
                await edge.stop()

    run(main)


@pytest.mark.parametrize("first", ["child", "parent"])
def test_closing_in_the_middle_of_sync_leaves_nothing(tmp_path: Path, first: str) -> None:
    async def main() -> None:
        mine = asyncio.all_tasks()
        release = threading.Event()
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await parent.put(f"down/{child.uid}", "a")
            await child.holds("desired", 1)
            write, writing = child.store._database.write, threading.Event()

            def slow(batch: Batch) -> None:
                writing.set()
                assert release.wait(PATIENCE)
                write(batch)

            child.store._database.write = slow  # type: ignore[method-assign]
            await parent.put(f"down/{child.uid}", "b")
            await until(writing.is_set)
            if first == "parent":
                await parent.stop()
            else:
                await child.close()
                await child.links.close()
            assert not child.links.sessions or first == "parent"
            release.set()
            await until(lambda: child.store.size("desired") == 2)
            if first == "parent":
                await until(lambda: not child.links.sessions)
                parent.install(await Store.open(tmp_path / "parent"))  # for the end of `tree`
        assert not parent.links.sessions and not child.links.sessions
        assert asyncio.all_tasks() == mine

    run(main)


def test_that_a_parent_was_set_back_is_said_once_for_each_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (_, child, _):
            told: list[str] = []
            child.links.set_back = lambda: told.append("anew")
            for cursor in (("life", 4), ("life", 4), ("other", 4)):
                child.links._parent_set_back(cursor)
            assert told == ["anew"] * 2

    run(main)


def test_what_a_child_that_leaves_still_has_to_say_brings_nothing_back(tmp_path: Path) -> None:
    """Its link stands until it has heard that it is out, and its reports do not end by themselves."""

    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await child.put("report", "before")
            await parent.holds(f"up/{child.uid}", 1)
            writing = asyncio.create_task(write(child))
            await until(lambda: parent.store.size(f"up/{child.uid}") > 20)
            await parent.links.silence(child.uid)
            await parent.store.commit(lambda tx: [tx.delete(each.key) for each in list(parent.store.scan(f"up/{child.uid}"))])
            written = child.store.size("report")
            await until(lambda: child.store.size("report") > written + 50)
            assert child.links.interrupted  # it was told, and tries again
            assert parent.store.size(f"up/{child.uid}") == 0
            assert child.uid in parent.tunnel.links
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await child.store.commit(lambda tx: None)
            parent.tunnel.links[child.uid].close(CloseCode.GOING_AWAY, "test")
            await parent.holds(f"up/{child.uid}", child.store.size("report"))  # should it ever be let in again
            await parent.links.silence("who has gone already")
            assert not parent.links._leaving

    async def write(child: Site) -> None:
        for number in range(100_000):
            await child.put("report", f"o{number}")

    run(main)


LINKED = (Link, Wire, TlsPipe, Stream, StreamState, Connection, SyncSession, asyncio.Task, ssl.SSLObject)


def linked_objects() -> dict[str, int]:
    """How many there are of what comes with a link."""
    gc.collect()
    found = Counter(type(one) for one in gc.get_objects() if isinstance(one, LINKED))
    return {kind.__name__: count for kind, count in found.items()}


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_the_buffers_of_links_that_are_gone_do_not_wait_for_the_garbage_collector(tmp_path: Path, uvloop: bool) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            await until(lambda: child.uid in parent.links.sessions)
            for _ in range(10):
                link = parent.tunnel.links[child.uid]
                link.wire._transport.abort()  # type: ignore[union-attr]
                await until(lambda link=link: parent.tunnel.links.get(child.uid) not in (None, link))  # type: ignore[misc]
            assert sum(isinstance(one, TlsPipe) for one in gc.get_objects()) == 2, "one at each end of the link that stands"

    gc.collect()
    gc.disable()
    try:
        run(main, uvloop=uvloop)
    finally:
        gc.enable()


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_links_that_come_and_go_leave_nothing_behind(tmp_path: Path, uvloop: bool) -> None:
    """Neither ends that break nor handshakes that fail: the sixth time as after thirty."""

    async def main() -> None:
        async with tree(tmp_path) as (parent, child, port):
            child.dial(port)
            counts = []
            for number in range(30):
                await parent.put(f"down/{child.uid}", "one", 10 + number)  # a session for each
                await until(lambda: parent.uid in child.links.sessions and child.uid in parent.links.sessions)
                await child.holds("desired", 1)
                await until(lambda size=10 + number: len(child.store.list("desired", "Work")[0].document) == size)  # type: ignore[misc]
                if number in (5, 29):
                    await asyncio.sleep(0)
                    counts.append(linked_objects())
                link = parent.tunnel.links[child.uid]
                if number % 2:
                    await turned_away(parent, port)
                if number % 3:
                    link.close(CloseCode.GOING_AWAY, "told")
                else:
                    link.wire._transport.abort()  # type: ignore[union-attr]  # as a cable that is cut
                await until(lambda link=link: link.closed and parent.tunnel.links.get(child.uid) not in (None, link))  # type: ignore[misc]
            assert counts[0] == counts[1]

    run(main, uvloop=uvloop)


async def turned_away(parent: Site, port: int) -> None:
    """Somebody without a certificate of the tree, who is gone again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.close()
    await until(lambda: not parent.tunnel.pending)
