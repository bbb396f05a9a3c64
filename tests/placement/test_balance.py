"""Rebalancing: the pure decision by properties, and whole trees in which clusters join and come back."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement.balance import PATIENCE, Move, Rule, Spot, Watch, excess, find, moved, step, unrest
from cluster_controller.resources import validate
from cluster_controller.store import Key

from .tree import Tree, application, put_application

RULE = Rule(after=300, pause=60, most=1, skew=1)
MOVE = Move(component="serve", source="a", target="b", count=1)
NOW = {"afterSeconds": 0, "pauseSeconds": 0}

_spots = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=6)


def spots_of(drawn: list[tuple[int, int, int]]) -> list[Spot]:
    return [Spot(name=f"t{index}", share=share, weight=weight, room=room) for index, (share, weight, room) in enumerate(drawn)]


@given(_spots, st.integers(1, 4), st.integers(1, 3))
def test_every_move_mends_so_it_ends_and_nothing_goes_back_and_forth(drawn: list[tuple[int, int, int]], most: int, skew: int) -> None:
    spots = spots_of(drawn)
    rule = Rule(after=0, pause=0, most=most, skew=skew)
    total = sum(spot.share for spot in spots)
    gave: set[str] = set()
    for _ in range(500):
        move = find("serve", spots, rule)
        if move is None:
            break
        assert 1 <= move.count <= most
        shares = {spot.name: spot.share for spot in spots}
        shares[move.source] -= move.count
        shares[move.target] += move.count
        after = moved(spots, shares)
        after = [msgspec.structs.replace(each, room=each.room - move.count) if each.name == move.target else each for each in after]
        assert unrest(after) < unrest(spots)
        assert sum(shares.values()) == total
        assert min(shares.values()) >= 0
        gave.add(move.source)
        spots = after
    else:
        raise AssertionError("it does not end")
    loads = [spot.share / spot.weight for spot in spots if spot.weight]
    open_to = [spot for spot in spots if spot.weight and spot.room]
    if skew == 1 and loads and open_to and len({spot.weight for spot in spots}) == 1:
        assert max(loads) - min(spot.share / spot.weight for spot in open_to) <= 2 / spots[0].weight


@given(st.integers(0, 20), st.integers(1, 5), st.integers(0, 20), st.integers(1, 5))
def test_as_many_as_can_go_before_the_other_carries_more(one: int, its: int, other: int, own: int) -> None:
    source, target = Spot(name="a", share=one, weight=its), Spot(name="b", share=other, weight=own)
    count = excess(source, target)
    if count:
        assert (one - count) / its >= (other + count) / own
    assert (one - count - 1) / its < (other + count + 1) / own


def test_a_loss_of_balance_has_to_last_and_moves_have_pauses() -> None:
    watch, move, again = step(Watch(), MOVE, settled=True, rule=RULE, now=100)
    assert (move, again, watch.lost_since) == (None, 300, 100)
    watch, move, _ = step(watch, None, settled=True, rule=RULE, now=200)  # mended by itself: the time begins anew
    assert (move, watch.lost_since) == (None, None)
    watch, move, again = step(watch, MOVE, settled=True, rule=RULE, now=300)
    watch, move, again = step(watch, MOVE, settled=True, rule=RULE, now=600)
    assert (move, again, watch.moving) == (MOVE, PATIENCE, MOVE)
    watch, move, again = step(watch, None, settled=False, rule=RULE, now=610)
    assert (move, again, watch.moving) == (None, PATIENCE - 10, MOVE)
    watch, move, again = step(watch, MOVE, settled=True, rule=RULE, now=620)
    assert (move, again) == (None, 60)
    watch, move, again = step(watch, MOVE, settled=True, rule=RULE, now=680)
    assert move == MOVE
    watch, move, again = step(watch, None, settled=False, rule=RULE, now=680 + PATIENCE)
    assert (watch.moving, move, again) == (None, None, None)


def test_while_something_else_is_under_way_no_time_counts() -> None:
    watch, _, _ = step(Watch(), MOVE, settled=True, rule=RULE, now=100)
    watch, move, again = step(watch, None, settled=False, rule=RULE, now=200)
    assert (watch.lost_since, move, again) == (None, None, None)


def counts(tree: Tree, uid: str) -> dict[str, int]:
    return {site.name: sum(site.running.get(uid, {}).values()) for site in tree.sites.values() if site.cpu_millis}


def play(folder: Path, main: Any) -> None:
    async def whole() -> None:
        tree = Tree(folder)
        await tree.add("root")
        for name in ("edge-1", "edge-2"):
            await tree.add(name, "root", 1000)
        await tree.quiet()
        try:
            await main(tree)
        finally:
            await tree.close()

    asyncio.run(whole())


async def patiently(tree: Tree, seconds: float = 1.0) -> None:
    for _ in range(12):
        await tree.wait(seconds)
        await tree.quiet()


def test_a_cluster_that_joins_gets_its_part_a_few_at_a_time_and_never_more_than_was_given(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 6, rebalance={"afterSeconds": 300, "pauseSeconds": 60})
        await tree.quiet()
        await tree.add("edge-3", "root", 1000)
        await tree.quiet()
        assert counts(tree, uid) == {"edge-1": 3, "edge-2": 3, "edge-3": 0}
        low = 6

        def watch() -> None:
            nonlocal low
            assert tree.assigned(root, uid) <= 6
            low = min(low, tree.total(uid))

        tree.watch = watch
        await tree.wait(299)
        await tree.quiet()
        assert counts(tree, uid)["edge-3"] == 0
        await tree.wait(1)
        await tree.quiet()
        assert counts(tree, uid)["edge-3"] == 1
        await tree.wait(59)
        await tree.quiet()
        assert counts(tree, uid)["edge-3"] == 1
        await tree.wait(1)
        await tree.quiet()
        assert counts(tree, uid) == {"edge-1": 2, "edge-2": 2, "edge-3": 2}
        assert low == 5  # of one move
        assert root.engine.rebalanced == 2
        before = counts(tree, uid)
        await patiently(tree, 400)
        assert counts(tree, uid) == before
        assert [event["reason"] for event in events(root)].count("Rebalanced") == 2

    play(tmp_path, main)


def events(site: Any) -> list[dict[str, Any]]:
    return [msgspec.json.decode(stored.document) for stored in site.store.list("own", "Event")]


def test_nothing_moves_unless_it_is_asked_for(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        uid = await put_application(tree.sites["root"], "emotion", 6)
        await tree.quiet()
        await tree.add("edge-3", "root", 1000)
        await patiently(tree, 400)
        assert counts(tree, uid)["edge-3"] == 0

    play(tmp_path, main)


@pytest.mark.parametrize("trouble", ["cut", "drain", "sick"])
def test_nothing_moves_while_somebody_is_cut_off_drained_or_not_ready(tmp_path: Path, trouble: str) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 6, rebalance=NOW)
        await tree.quiet()
        if trouble == "cut":
            tree.set_cut("edge-2", True)
        elif trouble == "sick":
            tree.sites["edge-2"].sick[uid] = 1
        elif trouble == "drain":
            await tree.add("edge-4", "root", 0)
            key = Key("own", "Cluster", "", "edge-4")
            await tree.quiet()
            stored = root.store.get(key)
            assert stored is not None
            document = msgspec.json.decode(stored.document)
            document["spec"] = {"taints": [{"key": "banyan.dev/drain", "effect": "NoSchedule"}]}
            await root.store.commit(lambda tx: tx.put(key, msgspec.json.encode(document), uid=stored.uid))
        await tree.quiet()
        await tree.add("edge-3", "root", 1000)
        await patiently(tree)
        assert counts(tree, uid)["edge-3"] == 0
        explained = await root.store.commit(lambda tx: root.engine.explain(tx, uid))
        assert explained is not None
        assert "nothing else is under way" in explained.balance

    play(tmp_path, main)


def test_weights_and_free_room_are_balance_too_and_explain_says_what_would_move(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 8, rebalance={"afterSeconds": 50}, division={"by": "FreeCapacity"})
        await tree.quiet()
        await tree.add("edge-3", "root", 4000)
        await tree.quiet()
        explained = await root.store.commit(lambda tx: root.engine.explain(tx, uid))
        assert explained is not None
        assert explained.balance == "out of balance: 1 of serve from edge-2 to edge-3 when it has been so for 50 s (now 0 s)"
        await patiently(tree, 70)
        assert counts(tree, uid)["edge-3"] >= 4
        explained = await root.store.commit(lambda tx: root.engine.explain(tx, uid))
        assert explained is not None
        assert explained.balance == "in balance, as far as there is room"

    play(tmp_path, main)


def test_a_branch_is_balanced_by_itself_below(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        await tree.add("region", "root")
        await tree.add("leaf-1", "region", 1000)
        await tree.quiet()
        uid = await put_application(root, "emotion", 6, rebalance=NOW, clusterNames=["leaf-1", "leaf-2"])
        await tree.quiet()
        assert counts(tree, uid)["leaf-1"] == 6
        await tree.add("leaf-2", "region", 1000)
        await patiently(tree)
        assert (counts(tree, uid)["leaf-1"], counts(tree, uid)["leaf-2"]) == (3, 3)
        assert application(root, "emotion").status.phase == "Running"  # type: ignore[union-attr]

    play(tmp_path, main)


@pytest.mark.parametrize("placement", [{"division": {"by": "LowestCost"}}, {"strategy": "Duplicated"}])
def test_where_it_means_nothing_it_is_refused(placement: dict[str, Any]) -> None:
    document = {
        "apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"components": [{"name": "c", "command": ["x"]}], "placement": {"rebalance": {}, **placement}},
    }  # fmt: skip
    with pytest.raises(validate.InvalidDocument, match=r"spec\.placement\.rebalance: means nothing"):
        validate.check("Application", document)
