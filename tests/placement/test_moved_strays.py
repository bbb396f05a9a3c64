"""A cluster is moved out of a branch, or into it, while the branch is lost: what an ancestor serves in its place counts the move once."""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.placement import transferring
from cluster_controller.placement.lending import lend_space
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Stored, Tx
from cluster_controller.tree import listing
from cluster_controller.tree.admission import Member
from tests.placement.test_lending import Kin

from .test_transferring import Moving, given, runs
from .tree import Site, copy, put_application

MOVE = "m"


async def grown(folder: Path) -> tuple[Kin, Site, str]:
    """The zone stands below a region; seven replicas run on four clusters."""
    tree = Kin(folder)
    root = await tree.add("root")
    for name, parent in {"region-a": "root", "region-b": "root", "zone": "region-a"}.items():
        await tree.add(name, parent)
    for name, parent in {"edge-1": "zone", "edge-2": "zone", "edge-3": "region-a", "edge-4": "region-b"}.items():
        await tree.add(name, parent, 1000)
    await tree.quiet()
    uid = await put_application(root, "app", 7)
    await tree.quiet()
    return tree, root, uid


async def move(tree: Kin, root: Site, uid: str, name: str, out: list[str], into: list[str]) -> Moving:
    """It goes, and the root counts it; nobody below has heard of that yet."""
    moving = Moving(tree, name, random.Random(0))
    moving.old, moving.new = tree.sites[out[-1]], tree.sites[into[-1]]
    await moving.go()
    root.engine.transferring.unsettled = lambda tx: ()
    transfer = kinds.Transfer(
        move=MOVE, cluster=moving.moved.uid, out=[f"uid-{each}" for each in (*out, name)], into=[f"uid-{each}" for each in (*into, name)],
        components=moving.held[uid], after=moving.after,
    )  # fmt: skip
    await root.store.commit(lambda tx: root.engine.transfer(tx, uid, transfer))
    root.engine.settle_again(f"uid-{out[0]}", [uid])
    await tree.settled()
    return moving


async def forgotten(moving: Moving) -> None:
    member = Member(uid=moving.moved.uid, name=moving.moved.name, state="left")
    await moving.old.store.commit(lambda tx: listing.forget(tx, member))


def count(work: Stored | None) -> int:
    assert work is not None
    return sum(one.replicas for one in msgspec.json.decode(work.document, type=kinds.Work).spec.components)


def steady(tree: Kin, before: Any) -> None:
    assert runs(tree) == before, (runs(tree), before)


@pytest.mark.parametrize("heard", [False, True])
def test_what_has_left_a_lost_branch_is_not_served_there_once_more(tmp_path: Path, heard: bool) -> None:
    """``heard``: the zone had the root's word about the move before its region was lost."""

    async def main() -> None:
        tree, root, uid = await grown(tmp_path)
        before, zone, region = runs(tree), tree.sites["zone"], tree.sites["region-a"]
        moving = await move(tree, root, uid, "edge-1", ["region-a", "zone"], ["region-b"])
        tree.watch = lambda: steady(tree, before)
        if heard:
            await copy(root.store, f"down/{region.uid}", region.store, "desired")
            await tree.settled()
            await copy(region.store, f"down/{zone.uid}", zone.store, "desired")
            await tree.settled()
            await forgotten(moving)
        for name in ("region-a", "zone"):
            tree.set_cut(name, True)
        await tree.settled()
        await tree.adopt("zone", "root")
        await tree.quiet()
        assert transferring.done(zone.store, uid, MOVE), "it is told by whoever serves it"
        served = root.store.get(Key(lend_space(zone.uid), "Work", "", uid))
        assert count(served) == sum(before["edge-2"][uid].values())
        if not heard:
            await forgotten(moving)
        await tree.quiet()
        await tree.release("zone")
        for name in ("region-a", "zone"):
            tree.set_cut(name, False)
            await tree.quiet()
        await tree.back("zone", "root")
        await tree.quiet()
        assert tree.assigned(root, uid) == 7 and given(region, "zone", uid) == tree.assigned(zone, uid)
        await tree.close()

    asyncio.run(main())


def test_what_came_to_a_lost_branch_is_served_there(tmp_path: Path) -> None:
    async def main() -> None:
        tree, root, uid = await grown(tmp_path)
        before, zone = runs(tree), tree.sites["zone"]
        moving = await move(tree, root, uid, "edge-4", ["region-b"], ["region-a", "zone"])
        tree.watch = lambda: steady(tree, before)
        await copy(root.store, "down/uid-region-b", moving.old.store, "desired")
        await tree.settled()
        await forgotten(moving)
        for name in ("region-a", "zone", "edge-4"):  # sync brings nothing down to it before it is counted at the zone
            tree.set_cut(name, True)
        await tree.adopt("zone", "root")
        await tree.quiet()
        assert transferring.done(zone.store, uid, MOVE)
        tree.set_cut("edge-4", False)
        await tree.quiet()
        assert given(zone, "edge-4", uid) == sum(before["edge-4"][uid].values())
        await tree.release("zone")
        for name in ("region-a", "zone"):
            tree.set_cut(name, False)
            await tree.quiet()
        await tree.back("zone", "root")
        await tree.quiet()
        assert tree.assigned(root, uid) == 7
        await tree.close()

    asyncio.run(main())


def test_an_older_move_that_comes_again_is_not_carried_out_again(tmp_path: Path) -> None:
    """What an ancestor serves speaks of fewer moves than the word of the home parent, which comes again."""

    async def main() -> None:
        tree, _, uid = await grown(tmp_path)
        engine, zone = tree.sites["zone"].engine, tree.sites["zone"]
        older, newer = (kinds.Transfer(move=name, cluster="gone", out=[zone.uid, "gone"], components={"serve": 1}) for name in "ab")
        newest = msgspec.structs.replace(newer, move="c")

        def work(tx: Tx) -> None:
            allotment = engine._deciding.allotment(tx, uid)
            assert allotment is not None
            for carried in ([older, newer], [newer, newest], [older, newer, newest]):
                engine.transferring.made(tx, msgspec.structs.replace(allotment, transfers=carried), {})
                assert not engine.transferring._due(transferring.read(tx, uid), [older, newer])

        await zone.store.commit(work)
        await tree.close()

    asyncio.run(main())


def test_a_move_that_is_decided_once_more_is_carried_out_once(tmp_path: Path) -> None:
    async def main() -> None:
        tree, root, uid = await grown(tmp_path)
        before = runs(tree)
        tree.watch = lambda: steady(tree, before)
        moving = await move(tree, root, uid, "edge-4", ["region-b"], ["region-a", "zone"])
        given = tree.assigned_to(root, "region-a", uid)
        await moving.count()
        await tree.settled()
        assert tree.assigned_to(root, "region-a", uid) == given and not transferring.read(root.store, uid).waiting
        await tree.close()

    asyncio.run(main())
