"""Placement through three levels of real stores, in any order of what links carry and shims see."""

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from cluster_controller import reports
from cluster_controller.errors import StoreFull
from cluster_controller.resources import kinds
from cluster_controller.store import Tx

from .tree import Tree, application, component, copy, delete_application, put_application


async def three_levels(folder: Path) -> Tree:
    tree = Tree(folder)
    await tree.add("root")
    await tree.add("region-a", "root")
    await tree.add("region-b", "root")
    await tree.add("edge-1", "region-a", 300, {"tier": "edge"})
    await tree.add("edge-2", "region-a", 300, {"tier": "edge"})
    await tree.add("edge-3", "region-b", 300, {"tier": "edge"})
    await tree.quiet()
    return tree


def test_an_application_is_divided_level_by_level_and_its_status_comes_back(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        assert {stored.key.name for stored in root.store.list("own", "Cluster")} == set(tree.sites)
        uid = await put_application(root, "emotion", 5)
        await tree.quiet()
        assert tree.total(uid) == 5
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (status.desired, status.ready, status.unplaced, status.phase) == (5, 5, 0, "Running")
        assert {row.name: row.path for row in status.clusters}["edge-1"] == ["region-a", "edge-1"]
        await put_application(root, "emotion", 12)  # nine fit
        await tree.quiet()
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (tree.total(uid), status.ready, status.unplaced, status.phase) == (9, 9, 3, "Degraded")
        assert "cpu: asks 100m, free 0m" in status.conditions[0].message
        await put_application(root, "emotion", 2)
        await tree.quiet()
        assert tree.total(uid) == 2
        await delete_application(root, "emotion")
        await tree.quiet()
        assert tree.total(uid) == 0
        assert application(root, "emotion") is None
        assert all(not site.store.list(space, "Work") for site in tree.sites.values() for space in site.store.spaces())
        await tree.close()

    asyncio.run(play())


def test_a_deleted_application_leaves_at_once_and_a_cut_off_leaf_withdraws_it_when_it_is_back(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 3)
        await tree.quiet()
        tree.set_cut("edge-1", True)
        await tree.quiet()
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert status.ready == 2
        assert {row.name: row.reason for row in status.clusters}["edge-1"] == "Unreachable"
        assert tree.total(uid) == 3  # Keep: it is not replaced
        await delete_application(root, "emotion")
        await tree.quiet()
        assert application(root, "emotion") is None
        assert tree.total(uid) == 1
        edge = root.store.find("own", "Cluster", "uid-edge-1")
        assert edge is not None
        assert b'"withdrawing":["default/emotion"]' in edge.document
        assert b"region-a \xe2\x86\x92 edge-1" in edge.document
        tree.set_cut("edge-1", False)
        await tree.quiet()
        assert tree.total(uid) == 0
        edge = root.store.find("own", "Cluster", "uid-edge-1")
        assert edge is not None
        assert b"withdrawing" not in edge.document
        await tree.close()

    asyncio.run(play())


def test_what_somebody_elses_finalizer_holds_runs_on_and_says_for_what_it_waits(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 3)
        await tree.quiet()
        await delete_application(root, "emotion", holders=["example.com/drain", "example.com/bill"])
        await tree.quiet()
        held = application(root, "emotion")
        assert held is not None
        assert (tree.total(uid), held.status.phase, held.status.ready, held.status.withdrawing) == (3, "Running", 3, [])
        said = {condition.type: (condition.status, condition.reason, condition.message) for condition in held.status.conditions}
        assert said["Ready"][0] == "True"
        assert said["Withdrawing"][:2] == ("False", "HeldByFinalizer")
        assert said["Withdrawing"][2].startswith("deletion waits for finalizers example.com/drain, example.com/bill;")
        await delete_application(root, "emotion")  # they have let go
        await tree.settled()
        going = application(root, "emotion")
        assert going is not None
        assert (going.status.phase, going.status.withdrawing, going.status.ready) == ("Withdrawing", ["region-a", "region-b"], 3)
        said = {condition.type: (condition.status, condition.reason, condition.message) for condition in going.status.conditions}
        assert said["Ready"][:2] == ("False", "Withdrawing")
        assert said["Withdrawing"] == ("True", "Withdrawing", "waits until region-a, region-b have stopped it")
        region = tree.sites["region-b"]
        edge = tree.sites["edge-3"]
        for _ in range(2):  # one of the two has stopped it
            await copy(root.store, f"down/{region.uid}", region.store, "desired")
            await tree.settled()
            await copy(region.store, f"down/{edge.uid}", edge.store, "desired")
            await tree.settled()
            await edge.shim()
            await tree.settled()
            await copy(edge.store, "report", region.store, f"up/{edge.uid}")
            await tree.settled()
            await copy(region.store, "report", root.store, f"up/{region.uid}")
            await tree.settled()
        going = application(root, "emotion")
        assert going is not None
        assert (going.status.withdrawing, going.status.ready) == (["region-a"], 2)
        assert {row.name for row in going.status.clusters} == {"edge-1", "edge-2"}
        await tree.quiet()
        assert application(root, "emotion") is None
        assert tree.total(uid) == 0
        await tree.close()

    asyncio.run(play())


async def overlay(tree: Tree, site: str, about: str, **spec: object) -> None:
    """What a person at ``site`` writes into a Cluster."""

    def write(tx: Tx) -> None:
        stored = next(each for each in tx.list("own", "Cluster") if each.uid == tree.sites[about].uid)
        document = msgspec.json.decode(stored.document)
        document["spec"] = spec
        tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

    await tree.sites[site].store.commit(write)
    await tree.quiet()


def test_a_cordon_holds_for_the_whole_branch_and_a_drain_moves_it_within_what_is_wanted(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root, region = tree.sites["root"], tree.sites["region-a"]
        uid = await put_application(root, "emotion", 3)
        await tree.quiet()
        assert sum(tree.sites["edge-3"].running[uid].values()) == 1

        def bounded() -> None:
            assert tree.total(uid) <= 3

        tree.watch = bounded
        await overlay(tree, "root", "region-a", unschedulable=True)
        assert tree.total(uid) == 3, "what runs, runs on"
        tree.set_cut("region-a", True)
        own = await put_application(region, "own", 1)
        await tree.quiet()
        assert tree.total(own) == 0, "the word of an ancestor holds without it"
        tree.set_cut("region-a", False)
        await overlay(tree, "root", "region-a", unschedulable=True, taints=[{"key": "banyan.dev/drain", "effect": "NoExecute"}])
        assert (tree.total(uid), sum(tree.sites["edge-3"].running[uid].values())) == (3, 3)
        await overlay(tree, "region-a", "edge-1", unschedulable=True)
        await overlay(tree, "root", "region-a")
        assert sum(tree.sites["edge-1"].running.get(own, {}).values()) == 0, "its own region's cordon stays"
        assert sum(tree.sites["edge-2"].running[own].values()) == 1
        await overlay(tree, "root", "region-b", taints=[{"key": "maker", "effect": "NoExecute"}])
        assert sum(tree.sites["edge-3"].running[uid].values()) == 3, "another taint is about the cluster that has it"
        await tree.close()

    asyncio.run(play())


def test_a_drain_keeps_what_has_no_room_elsewhere_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 5)
        await tree.quiet()
        filler = await put_application(root, "filler", 3)
        await tree.quiet()
        assert (tree.total(uid), tree.total(filler)) == (5, 3)

        def held(name: str, application: str) -> int:
            return sum(tree.sites[name].running.get(application, {}).values())

        on = {name: held(name, uid) + held(name, filler) for name in ("edge-1", "edge-2", "edge-3")}
        drained = next(name for name in on if on[name] == 3)
        drain = [{"key": "banyan.dev/drain", "effect": "NoExecute"}]
        await overlay(tree, "root", drained, unschedulable=True, taints=drain)
        assert (tree.total(uid), tree.total(filler)) == (5, 3), "only one has room elsewhere"
        assert held(drained, uid) + held(drained, filler) == 2
        said = [msgspec.json.decode(stored.document, type=kinds.Event) for stored in root.store.list("own", "Event")]
        words = [event.message for event in said if event.reason == "CannotDrain" and event.involved_object.name == drained]
        assert any("cannot drain: no room for" in word and "they run on" in word for word in words)
        await put_application(root, "filler", 1)
        await tree.quiet()
        assert (tree.total(uid), tree.total(filler), held(drained, uid) + held(drained, filler)) == (5, 1, 0), "there is room now"
        await put_application(root, "filler", 3)
        await overlay(tree, "root", drained)
        await tree.quiet()
        assert (tree.total(uid), tree.total(filler)) == (5, 3)
        await overlay(tree, "root", "edge-3", unschedulable=True, taints=[drain[0] | {"value": "force"}])
        assert held("edge-3", uid) + held("edge-3", filler) == 0
        assert tree.total(uid) + tree.total(filler) == 6, "what has no room elsewhere went too"
        await tree.close()

    asyncio.run(play())


def test_a_restored_store_gives_no_share_id_again(tmp_path: Path) -> None:
    """Its children answer shares that it never heard of; each start lifts the counter above what an earlier life gave."""

    async def play() -> None:
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 3)
        await tree.quiet()

        def newest() -> int:
            works = (stored for space in ("down/uid-region-a", "down/uid-region-b") for stored in root.store.list(space, "Work"))
            return max(msgspec.json.decode(stored.document, type=kinds.Work).spec.shares[-1].id for stored in works)

        assert newest() < 100
        for start, replicas in ((5000, 4), (4000, 5)):  # a clock that went back takes nothing back
            await root.store.commit(lambda tx, start=start: tx.set_fact(reports.START, str(start).encode()))  # type: ignore[misc]
            before = newest()
            await put_application(root, "emotion", replicas)
            await tree.quiet()
            assert newest() > max(before, 4999)
        assert tree.total(uid) == 5
        await tree.close()

    asyncio.run(play())


def test_a_region_has_applications_of_its_own_and_the_root_sees_them(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        tree.set_cut("region-a", True)
        uid = await put_application(tree.sites["region-a"], "local", 2)
        same_name = await put_application(tree.sites["root"], "local", 1)
        await tree.quiet()
        assert (tree.total(uid), tree.total(same_name)) == (2, 1)
        root = tree.sites["root"].store
        assert root.find("own", "SubtreeApplication", uid) is None
        tree.set_cut("region-a", False)
        await tree.quiet()
        shown = root.find("own", "SubtreeApplication", uid)
        assert shown is not None
        assert shown.key.name == "local.region-a"
        fresh = msgspec.json.decode(shown.document, type=kinds.SubtreeApplication).status
        assert (fresh.phase, fresh.ready) == ("Running", 2)
        tree.set_cut("region-a", True)
        await tree.quiet()
        shown = root.find("own", "SubtreeApplication", uid)
        assert shown is not None
        stale = msgspec.json.decode(shown.document, type=kinds.SubtreeApplication).status
        assert (stale.phase, stale.desired, stale.ready, stale.updated) == ("Unknown", 2, 0, 0)
        assert {(row.ready, row.reason, row.message) for row in stale.clusters} == {
            (0, "Unreachable", "out of reach: root → region-a is cut")
        }
        ready = next(item for item in stale.conditions if item.type == "Ready")
        assert (ready.status, ready.reason) == ("Unknown", "Unreachable")
        tree.set_cut("region-a", False)
        await tree.quiet()
        shown = root.find("own", "SubtreeApplication", uid)
        assert shown is not None
        assert msgspec.json.decode(shown.document, type=kinds.SubtreeApplication).status == fresh
        await tree.close()


def test_what_a_leaf_below_a_region_writes_is_stale_at_every_level_above_a_cut(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        uid = await put_application(tree.sites["edge-1"], "local", 1)
        await tree.quiet()
        tree.set_cut("edge-1", True)
        await tree.quiet()
        for name in ("region-a", "root"):
            shown = tree.sites[name].store.find("own", "SubtreeApplication", uid)
            assert shown is not None
            status = msgspec.json.decode(shown.document, type=kinds.SubtreeApplication).status
            assert (status.phase, status.ready, status.clusters[0].message) == ("Unknown", 0, "out of reach: region-a → edge-1 is cut")
        await tree.close()

    asyncio.run(play())


def test_an_application_of_the_same_name_is_another_while_a_cut_off_leaf_still_runs_the_old_one(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root, edge = tree.sites["root"], tree.sites["edge-1"]
        old = await put_application(root, "emotion", 1, clusterName="edge-1")
        await tree.quiet()
        tree.set_cut("edge-1", True)
        await tree.quiet()
        await delete_application(root, "emotion")
        await tree.quiet()
        new = await put_application(root, "emotion", 2, life=2, clusterNames=["edge-1", "edge-3"])
        await tree.quiet()
        assert old != new
        assert (tree.total(old), tree.total(new)) == (1, 2)
        assert edge.running.get(new) is None, "it is out of reach: nothing new goes there"
        for name in ("root", "region-a"):
            stored = tree.sites[name].store.find("own", "Cluster", edge.uid)
            assert stored is not None
            assert msgspec.json.decode(stored.document, type=kinds.Cluster).status.withdrawing == ["default/emotion"]
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (status.ready, status.desired, status.phase, {row.name for row in status.clusters}) == (2, 2, "Running", {"edge-3"})
        tree.set_cut("edge-1", False)
        await tree.quiet()
        assert (tree.total(old), tree.total(new)) == (0, 2)
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (status.ready, status.desired) == (2, 2)
        stored = root.store.find("own", "Cluster", edge.uid)
        assert stored is not None
        assert not msgspec.json.decode(stored.document, type=kinds.Cluster).status.withdrawing
        await tree.close()

    asyncio.run(play())


def test_a_commit_that_failed_leaves_nothing_forgotten(tmp_path: Path) -> None:
    """What a failed commit would have removed is remembered: the next look at it removes it."""

    async def play() -> None:
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 2)
        await tree.settled()  # given, and nobody has answered yet
        assert tree.assigned(root, uid) == 2
        for task in root.tasks:
            task.cancel()
        await asyncio.gather(*root.tasks, return_exceptions=True)
        root.tasks.clear()
        await delete_application(root, "emotion")

        def fails(tx: Tx) -> None:
            root.engine.settle(tx, uid)
            raise StoreFull("the disk is full")

        with pytest.raises(StoreFull):
            await root.store.commit(fails)
        assert tree.assigned(root, uid) == 2
        for room in (root.census, root.upward, root.engine):
            root.tasks.append(asyncio.create_task(room.run()))
        await tree.quiet()
        assert (tree.assigned(root, uid), application(root, "emotion")) == (0, None)
        await tree.close()

    asyncio.run(play())


def test_a_change_of_one_application_looks_at_no_other(tmp_path: Path) -> None:
    async def play(stored: int) -> int:
        tree = await three_levels(tmp_path / str(stored))
        root = tree.sites["root"]
        for number in range(stored):
            await put_application(root, f"app-{number}", 0, [component("serve", 1, "1m")])
        await tree.quiet()
        before = sum(site.engine.settled for site in tree.sites.values())
        await put_application(root, "app-1", 0, [component("serve", 2, "1m")])
        await tree.quiet()
        assert tree.total("app-root-app-1") == 2
        looked = sum(site.engine.settled for site in tree.sites.values()) - before
        await tree.close()
        return looked

    for stored in (2, 60):
        (tmp_path / str(stored)).mkdir()
    assert asyncio.run(play(60)) <= asyncio.run(play(2)) + 2


def test_a_new_distance_concerns_what_is_placed_by_latency_and_nothing_else(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await three_levels(tmp_path)
        root, edge = tree.sites["root"], tree.sites["edge-1"]
        for number in range(20):
            await put_application(root, f"app-{number}", 0, [component("serve", 6, "1m")])
        await tree.quiet()

        async def moved_away(millis: float) -> int:
            before = sum(site.engine.settled for site in tree.sites.values())
            edge.rtt_millis = millis
            edge.census.self_changed()
            await tree.quiet()
            return sum(site.engine.settled for site in tree.sites.values()) - before

        assert await moved_away(10.0) == 0
        near = await put_application(root, "near", 1, latency={"to": ["edge-1"], "maxMillis": 50})
        await tree.quiet()
        assert tree.total(near) == 1
        assert 0 < await moved_away(20.0) < 10
        await tree.close()

    asyncio.run(play())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_order_never_more_than_wanted_runs_and_all_comes_to_rest(tmp_path: Path, seed: int) -> None:
    async def play() -> None:
        chooser = random.Random(seed)
        tree = await three_levels(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 4)
        bound = 4

        def watch() -> None:
            assert tree.total(uid) <= bound, f"{tree.total(uid)} run, at most {bound} were ever wanted at once"

        tree.watch = watch
        wanted = 4
        for _ in range(150):
            if chooser.random() < 0.05:
                wanted = chooser.randint(0, 9)
                bound = max(bound, wanted)
                await put_application(root, "emotion", wanted)
            elif chooser.random() < 0.05:
                name = chooser.choice(["region-a", "edge-2", "edge-3"])
                tree.set_cut(name, name not in tree.cut)
            await tree.step(chooser)
        for name in list(tree.cut):
            tree.set_cut(name, False)
        await tree.quiet()
        assert tree.total(uid) == wanted
        await tree.close()

    asyncio.run(play())
