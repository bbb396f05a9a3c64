"""The store's promises to the rest of the controller, on a real disk."""

import asyncio
import gc
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from cluster_controller.errors import Exhausted, StoreError, StoreFull
from cluster_controller.store import Event, Expired, Key, Limits, Store, Stored, Tx
from cluster_controller.store.database import Batch


def key(name: str, space: str = "own", namespace: str = "default") -> Key:
    return Key(space, "Application", namespace, name)


def put(name: str, document: bytes = b"{}", space: str = "own", uid: str = "") -> Callable[[Tx], Stored]:
    return lambda tx: tx.put(key(name, space), document, uid=uid or f"uid-{name}")


def delete(name: str) -> Callable[[Tx], Stored | None]:
    return lambda tx: tx.delete(key(name))


def play(folder: Path, scenario: "Callable[[Store], object]", limits: Limits | None = None) -> None:
    async def run() -> None:
        store = await Store.open(folder, limits)
        try:
            await scenario(store)  # type: ignore[misc]
        finally:
            await store.close()

    asyncio.run(run())


def test_what_is_written_is_there_after_opening_again(tmp_path: Path) -> None:
    async def first(store: Store) -> None:
        await store.commit(put("a", b'{"n": 1 }'))
        await store.commit(put("a", b'{"n": 2 }'))
        await store.commit(put("b"))
        await store.commit(delete("b"))
        await store.commit(lambda tx: tx.set_fact("attach", b"7"))
        await store.commit(
            lambda tx: tx.put(key("c", "up/kid"), b"{}", uid="c", version=9, delivered=("h", 3), source="leaf", start=2, sequence=5)
        )

    async def second(store: Store) -> None:
        a, c = store.get(key("a")), store.get(key("c", "up/kid"))
        assert a is not None and (a.version, a.revision, a.document, a.uid) == (2, 2, b'{"n": 2 }', "uid-a")
        assert c is not None and (c.version, c.delivered, c.source, c.start, c.sequence) == (9, ("h", 3), "leaf", 2, 5)
        assert store.get(key("b")) is None
        assert store.fact("attach") == b"7"
        assert store.revision == 5
        assert [(e.kind_of, e.stored.key.name, e.revision) for e in store.since(2)] == [
            ("put", "b", 3),
            ("delete", "b", 4),
            ("put", "c", 5),
        ]
        assert store.since(1, "own")[0].previous == store.since(0)[0].stored
        assert store.find("own", "Application", "uid-a") is a
        assert store.spaces() == ["own", "up/kid"] and store.kinds("own") == ["Application"] and store.size("own") == 1
        assert len(store.history) == 2 and store.history[1][1] == 6

    play(tmp_path, first)
    play(tmp_path, second)


def test_openings_that_wrote_nothing_leave_no_trace_in_the_history(tmp_path: Path) -> None:
    async def nothing(store: Store) -> None:
        assert len(store.history) == 1

    for _ in range(3):
        play(tmp_path, nothing)


def test_a_commit_sees_what_is_pending_and_readers_only_what_is_committed(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        first = asyncio.create_task(store.commit(put("a")))
        await asyncio.sleep(0)
        assert store.get(key("a")) is None and store.revision == 0

        def look(tx: Tx) -> list[str]:
            tx.put(key("b", namespace="a-first"), b"{}", uid="b")
            tx.put(key("gone"), b"{}", uid="gone")
            tx.delete(key("gone"))
            return [stored.key.name for stored in tx.list("own", "Application")]

        assert await store.commit(look) == ["b", "a"]
        assert first.done()
        assert [stored.key.name for stored in store.list("own", "Application")] == ["b", "a"]
        assert [stored.key.name for stored in store.list("own", "Application", "default")] == ["a"]
        assert store.get(key("gone")) is None

    play(tmp_path, scenario)


def test_a_commit_finds_by_uid_what_was_written_before_it_and_in_it(tmp_path: Path) -> None:
    def found(tx: Tx, uid: str) -> str:
        stored = tx.find("own", "Application", uid)
        return stored.key.name if stored is not None else ""

    async def scenario(store: Store) -> None:
        seen: list[list[str]] = []

        def look(tx: Tx) -> None:
            seen.append([found(tx, uid) for uid in ("uid-a", "uid-b", "uid-c", "nobody")])

        def rename(tx: Tx) -> None:
            tx.put(key("other"), b"{}", uid="uid-b")
            tx.delete(key("b"))
            look(tx)

        await store.commit(put("a"))
        await store.commit(put("b"))
        await asyncio.gather(
            store.commit(put("c")), store.commit(look), store.commit(rename), store.commit(delete("a")), store.commit(look)
        )
        await store.commit(look)
        assert store.find("own", "Application", "uid-b") is store.get(key("other"))
        assert seen == [["a", "b", "c", ""], ["a", "other", "c", ""], ["", "other", "c", ""], ["", "other", "c", ""]]
        await asyncio.gather(store.commit(put("a", uid="successor")), store.commit(look))
        await store.commit(lambda tx: (tx.put(key("a"), b"{}", uid="uid-a"), look(tx)))
        assert [names[0] for names in seen[4:]] == ["", "a"]

    play(tmp_path, scenario)


def test_a_function_that_fails_changes_nothing(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        def fail(tx: Tx) -> None:
            tx.put(key("a"), b"{}", uid="a")
            raise LookupError("no")

        with pytest.raises(LookupError):
            await store.commit(fail)
        kept: list[Tx] = []
        await store.commit(kept.append)
        with pytest.raises(StoreError, match="after its function has returned"):
            kept[0].put(key("a"), b"{}", uid="a")
        await store.commit(put("b"))
        assert [s.key.name for s in store.list("own", "Application")] == ["b"] and store.revision == 1

    play(tmp_path, scenario)


def test_the_same_again_is_no_change(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        one = await store.commit(put("a"))
        assert await store.commit(put("a")) is one
        same = await store.commit(lambda tx: tx.put(key("a"), b"{}", uid="uid-a", version=1, delivered=("h", 4)))
        assert same.delivered == ("h", 4) and same.revision == 1 == store.revision
        assert store.get(key("a")) == same
        bumped = await store.commit(lambda tx: tx.put(key("a"), b"{}", uid="uid-a", version=7))
        assert (bumped.version, bumped.revision) == (7, 2)
        other = await store.commit(put("a", uid="another"))
        assert (other.version, other.revision) == (1, 3)

    async def again(store: Store) -> None:
        assert [e.revision for e in store.since(0)] == [1, 2, 3]
        first = store.since(0)[0].stored
        assert first.delivered == ("h", 4), "the deliverer is kept, though it made no entry"

    play(tmp_path, scenario)
    play(tmp_path, again)


def test_watchers_share_events_and_one_that_fails_takes_nothing_from_the_others(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        everything: list[Event] = []
        mine: list[Event] = []
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

        def bad(events: Sequence[Event]) -> None:
            raise ZeroDivisionError

        end_bad = store.subscribe(bad)
        end = store.subscribe(everything.extend)
        store.subscribe(mine.extend, "down/kid")
        await asyncio.gather(store.commit(put("a")), store.commit(put("b", space="down/kid")))
        assert [event.revision for event in everything] == [1, 2]
        assert mine == everything[1:] and mine[0] is everything[1] and mine[0] is store.since(1)[0]
        assert isinstance(reported[0], ZeroDivisionError)
        end_bad()
        end()
        end()
        await store.commit(put("c"))
        assert len(everything) == 2

    play(tmp_path, scenario)


def test_who_heeds_some_kinds_is_not_called_for_others(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        calls: list[list[str]] = []
        mine: list[list[str]] = []
        numbers = itertools.count()

        def of(kind: str, space: str = "down/kid") -> Callable[[Tx], Stored]:
            return lambda tx: tx.put(Key(space, kind, "", f"{next(numbers)}"), b"{}", uid="uid")

        store.subscribe(lambda events: calls.append([event.stored.key.kind for event in events]), kinds=("Work", "Model"))
        end = store.subscribe(lambda events: mine.append([event.stored.key.kind for event in events]), "down/kid", kinds=("Work",))
        await asyncio.gather(*(store.commit(of(each)) for each in ("Work", "Cluster", "Model")))
        await store.commit(of("Cluster", "own"))
        await store.commit(of("Model", "own"))
        assert calls == [["Work", "Model"], ["Model"]]
        assert mine == [["Work"]]
        end()
        await store.commit(of("Work"))
        assert len(calls) == 3 and len(mine) == 1

    play(tmp_path, scenario)


def test_the_journal_is_bounded_and_a_quiet_space_does_not_expire(tmp_path: Path) -> None:
    limits = Limits(journal_rows=50)

    async def write(store: Store) -> None:
        await store.commit(put("quiet", space="down/kid"))
        await store.commit(put("left", space="down/gone"))
        await store.commit(lambda tx: tx.delete(key("left", "down/gone")))
        for n in range(600):
            await store.commit(put(f"o{n % 5}", b'{"n":%d}' % n))
            if n % 7 == 0:
                await store.commit(delete("o0"))

    async def check(store: Store) -> None:
        last = store.revision
        assert len(store.since(store.floor())) == 50 == last - store.floor()
        with pytest.raises(Expired, match="past the retained journal"):
            store.since(store.floor() - 1)
        with pytest.raises(Expired, match="another history"):
            store.since(last + 1)
        assert store.since(1, "down/kid") == [] and store.last("down/kid") == 1
        with pytest.raises(Expired):
            store.since(2, "down/gone")
        assert store.since(3, "down/gone") == [] and store.last("down/gone") == 3
        assert store.size("own") == 4 and store.size("down/kid") == 1

    play(tmp_path, write, limits)
    play(tmp_path, check, limits)
    import sqlite3

    with sqlite3.connect(tmp_path / "store.db") as connection:
        rows = connection.execute("SELECT count(*) FROM changes").fetchone()[0]
    connection.close()
    assert rows < 50 + 256 + 64, "what leaves the journal leaves the disk"


@pytest.mark.parametrize("seed", range(10))
def test_what_was_deleted_and_forgotten_stays_deleted_after_opening_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A dead row that stayed on the disk once its deletion is forgotten would live again. Commits that change nothing come in between."""
    monkeypatch.setattr("cluster_controller.store.store.DEAD_ROWS", 3)
    chance = random.Random(seed)
    held: dict[str, bytes] = {}

    async def change(store: Store) -> None:
        for number in range(120):
            name = chance.choice("abcd")
            document = b'{"n":%d}' % number
            work: list[Awaitable[object]] = [store.commit(delete(name) if chance.random() < 0.3 else put(name, document))]
            if chance.random() < 0.5:
                work.append(store.commit(lambda tx: None))
            await asyncio.gather(*work)
        held.update({stored.key.name: stored.document for stored in store.list("own", "Application")})

    async def look(store: Store) -> None:
        assert {stored.key.name: stored.document for stored in store.list("own", "Application")} == held

    play(tmp_path, change, Limits(journal_rows=5))
    play(tmp_path, look, Limits(journal_rows=5))


def test_a_page_is_of_the_revision_it_was_begun_at(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        for n in range(10):
            await store.commit(put(f"o{n}", b'{"at":1}'))
        then = store.list("own", "Application")
        page, left = store.list_at("own", "Application", 10, limit=4)
        assert (page, left) == (then[:4], 6)
        await store.commit(put("o7", b'{"at":2}'))
        await store.commit(delete("o5"))
        await store.commit(delete("o9"))
        await store.commit(put("o9", b'{"at":3}', uid="another"))
        await store.commit(put("o55"))
        await store.commit(put("elsewhere", space="down/kid"))
        found = page
        while left:
            page, left = store.list_at("own", "Application", 10, after=(found[-1].key.namespace, found[-1].key.name), limit=4)
            found = found + page
        assert found == then
        assert store.list_at("own", "Application", 10, "default") == (then, 0)
        assert store.list_at("own", "Application", 10, "other") == ([], 0)
        assert store.list_at("own", "Application", store.revision)[0] == store.list("own", "Application")
        with pytest.raises(Expired):
            store.list_at("own", "Application", store.revision + 1)

    play(tmp_path, scenario)


def test_past_the_journal_a_page_is_gone(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        for n in range(30):
            await store.commit(put("a", b'{"n":%d}' % n))
        with pytest.raises(Expired, match="list again"):
            store.list_at("own", "Application", 5)

    play(tmp_path, scenario, Limits(journal_rows=10))


def test_too_much_that_waits_is_refused_and_counted_off_again(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        results = await asyncio.gather(*(store.commit(put(f"o{n}")) for n in range(30)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exhausted)]
        assert len(refused) == 10 and refused[0].retry_after == 1.0
        assert store.size("own") == 20
        await store.commit(put("later"))

    play(tmp_path, scenario, Limits(pending_rows=20))


def test_a_cancelled_commit_is_written_all_the_same(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        task = asyncio.create_task(store.commit(put("a")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.commit(put("b"))
        assert store.size("own") == 2

    play(tmp_path, scenario)


def test_a_failed_write_fails_what_was_built_on_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(store: Store) -> None:
        await store.commit(put("before"))
        write = store._database.write

        def fail(batch: Batch) -> None:
            raise StoreFull("no space")

        monkeypatch.setattr(store._database, "write", fail)
        first = asyncio.create_task(store.commit(put("a")))
        await asyncio.sleep(0)
        built_on = asyncio.create_task(store.commit(lambda tx: tx.get(key("a"))))
        forgotten = asyncio.create_task(store.commit(put("forgotten")))
        await asyncio.sleep(0)
        forgotten.cancel()
        results = await asyncio.gather(first, built_on, forgotten, return_exceptions=True)
        assert [type(result) for result in results] == [StoreFull, StoreFull, asyncio.CancelledError]
        monkeypatch.setattr(store._database, "write", write)
        assert (await store.commit(put("b"))).revision == 2
        assert [s.key.name for s in store.list("own", "Application")] == ["b", "before"]
        gc.collect()  # no "exception was never retrieved"

    play(tmp_path, scenario)


def test_after_closing_nothing_is_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path)
        waiting = asyncio.create_task(store.commit(put("a")))
        await asyncio.sleep(0)
        await store.close()
        assert (await waiting).revision == 1
        with pytest.raises(StoreError, match="closed"):
            await store.commit(put("b"))

    asyncio.run(scenario())


def test_idle_nothing_is_written(tmp_path: Path) -> None:
    async def scenario(store: Store) -> None:
        await store.commit(put("a"))
        sizes = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
        for _ in range(100):
            await store.commit(put("a"))
            await store.commit(lambda tx: tx.set_fact("missing", None))
        assert {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == sizes

    play(tmp_path, scenario)
