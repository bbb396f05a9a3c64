"""Who is told once more that a cluster has left it, and who is not: by what is reported and signed, on a real store."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.documents import encode
from cluster_controller.moves.left import KIND, OPEN_SECONDS, PAUSES, Doubts, Elsewhere, elsewhere
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store
from cluster_controller.tree import records
from cluster_controller.tree.admission import Member
from cluster_controller.tunnel.messages import AttachRecord

FOUND = Elsewhere(cluster="edge", old="zone", parent="other", attach=7)


class Bench:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.doubts = Doubts(store)
        self.heard: list[Event] = []
        store.subscribe(self.heard.extend)

    async def says(self, speaker: str, parent: str, **status: Any) -> bool:
        """A child of this controller speaks of the cluster; whether that is one more doubt."""
        document = kinds.ClusterStatus(
            metadata=kinds.Metadata(name="edge", uid="edge"),
            spec=kinds.ClusterStatusSpec(cluster="edge", name="edge", parent=parent),
            status=kinds.ClusterStatusStatus(**{"ready": "True"} | status),
        )
        self.heard.clear()
        await self.store.commit(lambda tx: tx.put(Key(f"up/{speaker}", KIND, "", "edge"), encode(document), uid="edge"))
        await asyncio.sleep(0)
        return self.doubts.changed(self.heard)

    async def lists(self, state: str = "member", **fields: Any) -> None:
        member = Member(uid="edge", name="edge", state=state, **fields)
        await self.store.commit(lambda tx: records.put_member(tx, member))

    def judge(self, uid: str, parent: str = "other", way: str = "right") -> Elsewhere | None:
        return elsewhere(self.store, "me", uid, AttachRecord(uid=uid, parent_uid=parent, attach=7), way)


def play(folder: Path, main: Callable[[Bench], Any]) -> None:
    async def run() -> None:
        store = await Store.open(folder)
        try:
            await main(Bench(store))
        finally:
            await store.close()

    asyncio.run(run())


def test_whom_a_cluster_has_left_is_told_after_a_while_and_ever_more_seldom(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        assert not await bench.says("right", "other")
        assert not bench.doubts
        assert await bench.says("left", "zone", ready="Unknown")
        assert not await bench.says("left", "zone", ready="Unknown", children=1)  # no first word
        now, told = 0.0, []
        while now < 200.0:
            told += [(now, found) for found in bench.doubts.ripe(now, bench.judge)]
            now += 1.0
        assert [found for _, found in told] == [FOUND] * 4
        assert [at for at, _ in told] == [PAUSES[0] * each for each in (1, 3, 7, 15)]
        again = Doubts(bench.store)
        again.load()  # after a start
        assert again and not again.ripe(0.0, bench.judge) and again.ripe(PAUSES[0], bench.judge) == [FOUND]
        await bench.store.commit(lambda tx: tx.delete(Key("up/left", KIND, "", "edge")))
        assert not bench.doubts.ripe(now, bench.judge) and not bench.doubts

    play(tmp_path, main)


def test_who_is_set_back_may_be_this_very_controller(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.lists()
        assert await bench.says("right", "other")
        assert bench.judge("edge") == Elsewhere("edge", "me", "other", 7)
        assert bench.doubts.own() == ["edge"]  # what it holds is left alone until it has said what it took along
        assert not bench.doubts.ripe(0.0, bench.judge) and bench.doubts.own() == ["edge"]
        assert bench.doubts.ripe(PAUSES[0], bench.judge) and not bench.doubts.own()
        later = Doubts(bench.store)
        later.load()
        assert not later.ripe(0.0, lambda uid: None) and later.own() == ["edge"]  # it may be silent for a moment
        assert not later.ripe(OPEN_SECONDS, lambda uid: None) and not later.own()
        assert not bench.doubts.ripe(PAUSES[0], lambda uid: None)
        assert not bench.doubts.ripe(PAUSES[0], bench.judge) and not bench.doubts.own()  # not for ever
        await bench.lists(state="left")
        assert not bench.doubts.ripe(0.0, bench.judge) and not bench.doubts
        assert bench.judge("edge") is None

    play(tmp_path, main)


@pytest.mark.parametrize(
    ("why", "said", "route"),
    [
        ("it is carried by another", {"adopted_by": "neighbour"}, {}),
        ("it is silent there", {"ready": "Unknown"}, {}),
        ("what it signed names another", {}, {"parent": "neighbour"}),
        ("it is not reached", {}, {"way": "nobody"}),
        ("both speak of one parent", {}, {"both": "other"}),
    ],
)
def test_nobody_is_told_while_it_is_not_certain(tmp_path: Path, why: str, said: Any, route: dict[str, str]) -> None:
    async def main(bench: Bench) -> None:
        await bench.says("right", "other", **said)
        await bench.says("left", route.pop("both", "zone"), ready="Unknown")
        assert bench.judge("edge", **route) is None, why

    play(tmp_path, main)


def test_a_move_that_comes_to_this_controller_is_no_doubt(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.lists(coming="m")
        assert not await bench.says("left", "zone")

    play(tmp_path, main)
