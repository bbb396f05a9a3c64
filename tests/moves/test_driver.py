"""What the common ancestor plans and refuses, by what it knows of those on both ways; and that a restart goes on where it was."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cluster_controller.documents import encode
from cluster_controller.errors import BanyanError, Unreachable
from cluster_controller.moves import left, state, words
from cluster_controller.moves.driver import Driver
from cluster_controller.moves.state import Phase
from cluster_controller.placement.engine import Engine
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Tx

TREE = {"root": "", "region-a": "root", "region-b": "root", "inner": "region-a", "edge-1": "inner", "edge-2": "region-b"}
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SILENT = {"phase": "Unknown", "broken_hop": "root → region-b"}
OLDER = {"facts": kinds.ClusterFacts(version="0.0.9")}


def cluster(name: str, **fields: Any) -> kinds.Cluster:
    parent = TREE[name]
    facts = fields.pop("facts", kinds.ClusterFacts(understands=[kinds.MOVES], can_parent=not name.startswith("edge")))
    status = {"uid": f"uid-{name}", "parent": parent, "parent_uid": f"uid-{parent}" if parent else "", "phase": "Ready", "facts": facts}
    return kinds.Cluster(metadata=kinds.Metadata(name=name, uid=f"uid-{name}"), status=kinds.ClusterState(**status | fields))


def driver(store: Store) -> Driver:
    engine = Engine(
        store, Reporter("uid-root", 1), uid="uid-root", name="root", silent=dict, silence=lambda uid: 0.0, now=lambda: 0.0,
        timestamp=lambda: "2026-01-01T00:00:00Z",
    )  # fmt: skip
    part: Any = SimpleNamespace(grace=lambda uid: 0.0)
    made = Driver(store, engine, part, part, me=lambda: ("uid-root", "root"), way=lambda uid: None, wall=lambda: NOW)
    made.load()
    return made


def played(folder: Path, check: "Callable[[Store, Driver], Any]", *changed: kinds.Cluster) -> None:
    async def play() -> None:
        store = await Store.open(folder)
        there = {one.metadata.name: one for one in (*(cluster(name) for name in TREE), *changed)}

        def write(tx: Tx) -> None:
            for name, one in there.items():
                tx.put(Key("own", "Cluster", "", name), encode(one), uid=one.metadata.uid)

        await store.commit(write)
        try:
            result = check(store, driver(store))
            if asyncio.iscoroutine(result):
                await result
        finally:
            await store.close()

    asyncio.run(play())


def test_a_plan_names_both_ways_and_all_below(tmp_path: Path) -> None:
    def check(_: Store, made: Driver) -> None:
        move = made._plan("inner", "region-b")
        assert move.out == ("uid-region-a", "uid-inner") and move.into == ("uid-region-b", "uid-inner")
        assert (move.old_name, move.parent_name, move.height) == ("region-a", "region-b", 1)
        assert move.names == {"inner": "uid-inner", "edge-1": "uid-edge-1"}
        up = made._plan("edge-1", "root")
        assert (up.out, up.into, up.height) == (("uid-region-a", "uid-inner", "uid-edge-1"), ("uid-edge-1",), 0)

    played(tmp_path, check)


@pytest.mark.parametrize(
    ("name", "parent", "reason", "changed"),
    [
        ("inner", "edge-1", "cannot be moved under itself", ()),
        ("inner", "region-a", "is the parent of inner already", ()),
        ("root", "region-a", "is this controller itself", ()),
        ("edge-1", "region-a", "banyan --at region-a move edge-1 --parent region-a", ()),
        ("edge-1", "nobody", "no cluster nobody", ()),
        ("edge-1", "region-b", "region-b is Unknown: root → region-b is cut", (("region-b", SILENT),)),
        ("edge-1", "region-b", "inner is carried by region-b", (("inner", {"adopted_by": "region-b"}),)),
        ("edge-1", "region-b", "region-a runs version 0.0.9, which knows no moves", (("region-a", OLDER),)),
        ("edge-1", "region-b", "wait for a decision", (("edge-1", {"facts": kinds.ClusterFacts(conflicts=1, understands=[kinds.MOVES])}),)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path, name: str, parent: str, reason: str, changed: Any) -> None:
    def check(_: Store, made: Driver) -> None:
        with pytest.raises(BanyanError, match=reason):
            made._plan(name, parent)

    played(tmp_path, check, *(cluster(one, **fields) for one, fields in changed))


def test_one_move_at_a_time_and_a_restart_goes_on(tmp_path: Path) -> None:
    async def check(store: Store, made: Driver) -> None:
        move = await made.begin("inner", "region-b", "admin")
        for name, parent in (("inner", "root"), ("edge-1", "region-b"), ("region-a", "region-b")):
            with pytest.raises(BanyanError, match="a move of inner to region-b is under way"):
                made._plan(name, parent)
        again = driver(store)
        assert again.last("inner") == move and move.phase is Phase.ASKING and move.by == "admin"
        stored = store.find("own", "Cluster", "uid-inner")
        assert stored is not None and b"Moving" in stored.document  # shown for as long as it is under way
        off = await again.call_off("inner", "admin")
        assert off.phase is Phase.UNDOING and "called off by admin" in off.reason
        with pytest.raises(BanyanError, match="only one that is not made yet"):
            await again.call_off("inner", "admin")
        with pytest.raises(BanyanError, match="was never moved from here"):
            again.last("edge-2")

    played(tmp_path, check)


def test_who_was_moved_with_others_and_has_gone_on_since_is_reached_where_it_is(tmp_path: Path) -> None:
    async def check(store: Store, made: Driver) -> None:
        moved = await made.begin("inner", "region-b", "admin")
        routes: dict[str, str] = dict.fromkeys(moved.names.values(), "uid-region-a")
        made._route = routes.get
        for phase, way in ((Phase.ARRIVING, "uid-region-a"), (Phase.CLOSING, "uid-region-b"), (Phase.DONE, "uid-region-a")):
            made._moves[moved.cluster] = msgspec.structs.replace(moved, phase=phase)
            assert {uid: made.way(uid) for uid in routes} == dict.fromkeys(routes, way), phase
        made._moves[moved.cluster] = msgspec.structs.replace(moved, phase=Phase.CLOSING)
        routes["uid-edge-1"] = "uid-region-c"  # carried by another, or moved on
        assert made.way("uid-edge-1") == "uid-region-c" and made.way("uid-inner") == "uid-region-b"
        del routes["uid-edge-1"]
        assert made.way("uid-edge-1") == "uid-region-b"
        assert made.way("uid-edge-2") is None

    played(tmp_path, check)


def test_what_is_just_being_rolled_out_waits(tmp_path: Path) -> None:
    async def check(store: Store, made: Driver) -> None:
        row = kinds.ClusterRow(cluster="uid-edge-1", name="edge-1", ready=1, desired=1)
        for phase, troubles in (("Progressing", 1), ("Complete", 0)):
            status = kinds.ApplicationStatus(clusters=[row], rollout=kinds.RolloutStatus(phase=phase))
            metadata = kinds.Metadata(name="app", namespace="default", uid="app")
            document = kinds.Application(
                metadata=metadata,
                spec=kinds.ApplicationSpec(components=[kinds.Component(name="main")]),
                status=status,
            )
            await store.commit(
                lambda tx, document=document: tx.put(Key("own", "Application", "default", "app"), encode(document), uid="app")  # type: ignore[misc]
            )
            found = made._rolling_out(made._plan("inner", "region-b"))
            assert len(found) == troubles and all("being rolled out" in one for one in found)

    played(tmp_path, check)


def test_somebody_out_of_reach_is_asked_now_and_then_and_nothing_is_written_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []
    monkeypatch.setattr("cluster_controller.moves.driver.PAUSES", (1e-6, 1e9))

    async def nobody(ask: Any) -> Any:
        asked.append(ask.key)
        raise Unreachable("nobody answers")

    async def check(store: Store, made: Driver) -> None:
        move = await made.begin("inner", "region-b", "admin")
        going = msgspec.structs.replace(move, phase=Phase.CLOSING, told=True)
        made._put = nobody  # type: ignore[method-assign]
        await made._save(going)
        running = asyncio.create_task(made.run())
        try:
            while len(asked) < 8:  # what changes elsewhere is a reason to look
                made._wake.set()
                await asyncio.sleep(0)
            revision = store.revision
            while len(asked) < 80:
                made._wake.set()
                await asyncio.sleep(0)
            assert store.revision == revision and "nobody answers" in made.last("inner").reason
            asked.clear()
            made._wake.clear()
            for _ in range(200):
                await asyncio.sleep(0)
            assert not asked  # what it wrote itself is none
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    played(tmp_path, check)


@pytest.mark.parametrize("known", [True, False])
def test_an_old_parent_that_was_set_back_is_told_again_also_by_who_has_forgotten_the_move(tmp_path: Path, known: bool) -> None:
    async def check(store: Store, made: Driver) -> None:
        move = await made.begin("edge-1", "region-b", "admin")
        done = msgspec.structs.replace(move, phase=Phase.DONE, told=True)
        await made._save(done)
        asked: list[Any] = []

        async def answers(ask: Any) -> Any:
            asked.append(ask)
            return words.Gone(held={"app": {"main": 2}}, after=9, move=move.id if known else "m")

        made._put = answers  # type: ignore[method-assign]
        await made._once_more(left.Elsewhere("uid-edge-1", "uid-inner", "uid-region-b", 7))
        again = made.last("edge-1")
        if known:
            assert (again.id, again.phase, again.counted) == (move.id, Phase.CLOSING, ("app",))
        else:  # what the cluster took along is counted, under the id of the move that was
            assert (again.id, again.phase, again.held, again.after) == ("m", Phase.ARRIVING, {"app": {"main": 2}}, 9)
            assert (again.out, again.into) == (move.out, move.into)
            again = state.counted(again, ("app",))
        asks = {ask.whom: ask.question for ask in state.asks(again, again.counted)}
        assert asks["uid-inner"].attach == 7 and asks["uid-inner"].move == again.id
        assert made._elsewhere("uid-edge-1") is None  # while it is under way
        made._doubts = SimpleNamespace(own=lambda: ["uid-edge-1", "uid-edge-2"])  # type: ignore[assignment]
        assert "uid-edge-1" not in await store.commit(made.unsettled)  # or what it took along would never be counted
        assert "uid-edge-2" in await store.commit(made.unsettled)

    played(tmp_path, check)


def test_who_came_by_no_move_is_not_counted(tmp_path: Path) -> None:
    async def check(_: Store, made: Driver) -> None:
        async def stayed(ask: Any) -> Any:
            return words.NotYet(reason="edge-1 has not gone")

        made._put = stayed  # type: ignore[method-assign]
        await made._once_more(left.Elsewhere("uid-edge-1", "uid-inner", "uid-region-b", 7))
        with pytest.raises(BanyanError, match="was never moved from here"):
            made.last("edge-1")

    played(tmp_path, check)
