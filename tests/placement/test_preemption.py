"""Priorities on real stores and real placement, through several levels: who gives way, for whom, and that it comes to rest."""

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from cluster_controller.placement.deciding import Supposed
from cluster_controller.resources import kinds
from cluster_controller.store import Tx
from openapi.hooks.explain import explanation

from .tree import Site, Tree, application, component, delete_application, put_application


async def flat(folder: Path, edges: Iterable[str] = ("edge-1",), cpu_millis: int = 300) -> Tree:
    tree = Tree(folder)
    await tree.add("root")
    for name in edges:
        await tree.add(name, "root", cpu_millis, {"name": name})
    tree.watch = lambda: overbooked(tree)
    await tree.quiet()
    return tree


def overbooked(tree: Tree) -> None:
    assert not tree.overbooked()


def runs(tree: Tree, uid: str) -> dict[str, int]:
    counts = {name: sum(site.running.get(uid, {}).values()) for name, site in tree.sites.items()}
    return {name: count for name, count in counts.items() if count}


def events(site: Site, reason: str) -> list[tuple[str, str]]:
    found = [msgspec.json.decode(stored.document, type=kinds.Event) for stored in site.store.list("own", "Event")]
    return sorted((event.involved_object.name, event.message) for event in found if event.reason == reason)


async def at_rest(tree: Tree) -> None:
    """Settling everything anew, also after a restart, changes nothing."""
    await tree.quiet()
    before = {name: dict(site.running) for name, site in tree.sites.items()}
    shares = {name: [stored.document for stored in site.store.list("local", "Work")] for name, site in tree.sites.items()}
    for site in tree.sites.values():
        site.engine.load()
    await tree.quiet()
    for name in list(tree.sites):
        await tree.crash(name)
    await tree.quiet()
    assert {name: dict(site.running) for name, site in tree.sites.items()} == before
    assert {name: [stored.document for stored in site.store.list("local", "Work")] for name, site in tree.sites.items()} == shares


def test_the_lower_one_gives_way_and_says_to_whom_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        tree = await flat(tmp_path)
        root = tree.sites["root"]
        low = await put_application(root, "low", 3)
        await tree.quiet()
        assert runs(tree, low) == {"edge-1": 3}
        high = await put_application(root, "high", 1, spec={"priority": 5})
        await tree.quiet()
        assert (runs(tree, high), runs(tree, low)) == ({"edge-1": 1}, {"edge-1": 2})
        status = application(root, "low").status  # type: ignore[union-attr]
        assert (status.ready, status.unplaced, status.components[0].reason) == (2, 1, "Unplaced")
        assert "preempted by high (priority 5) on edge-1" in status.components[0].message
        assert status.components[0].preempted_by == kinds.Preemptor(
            namespace="default", name="high", uid=high, priority=5, cluster="edge-1"
        )
        assert application(root, "high").status.phase == "Running"  # type: ignore[union-attr]
        assert events(tree.sites["edge-1"], "Preempted") == [
            ("edge-1", "1 of default/low (priority 0) gave way to default/high (priority 5)")
        ]
        assert events(root, "Preempted") == [("low", "serve gave way to default/high (priority 5) on edge-1")]
        assert events(root, "Preempts") == [("high", "serve of default/low (priority 0) gave way on edge-1")]
        await at_rest(tree)
        status = application(root, "low").status  # type: ignore[union-attr]
        assert "preempted by high" in status.components[0].message, "also after a restart"
        await delete_application(root, "high")
        await tree.quiet()
        assert runs(tree, low) == {"edge-1": 3}
        status = application(root, "low").status  # type: ignore[union-attr]
        assert (status.phase, status.components[0].preempted_by) == ("Running", None)
        await tree.close()

    asyncio.run(main())


def test_who_gave_way_goes_where_there_is_room(tmp_path: Path) -> None:
    async def main() -> None:
        tree = await flat(tmp_path, ("edge-1", "edge-2"))
        root = tree.sites["root"]
        low = await put_application(root, "low", 3, clusterNames=["edge-1"])
        await tree.quiet()
        await put_application(root, "low", 3)
        high = await put_application(root, "high", 2, spec={"priority": 5}, clusterNames=["edge-1"])
        tree.watch = lambda: (overbooked(tree), bounded(tree, low, 3))  # type: ignore[assignment, return-value, func-returns-value]
        await tree.quiet()
        assert (runs(tree, high), runs(tree, low)) == ({"edge-1": 2}, {"edge-1": 1, "edge-2": 2})
        assert application(root, "low").status.unplaced == 0  # type: ignore[union-attr]
        await at_rest(tree)
        await tree.close()

    asyncio.run(main())


def bounded(tree: Tree, uid: str, most: int) -> None:
    assert tree.total(uid) <= most


def test_an_equal_one_never_gives_way_nor_to_one_that_does_not_preempt(tmp_path: Path) -> None:
    async def main() -> None:
        tree = await flat(tmp_path)
        root = tree.sites["root"]
        low = await put_application(root, "low", 3, spec={"priority": 5})
        await tree.quiet()
        equal = await put_application(root, "equal", 1, spec={"priority": 5})
        polite = await put_application(root, "polite", 1, spec={"priority": 9, "preemptionPolicy": "Never"})
        await tree.quiet()
        assert (runs(tree, low), runs(tree, equal), runs(tree, polite)) == ({"edge-1": 3}, {}, {})
        await put_application(root, "low", 2, spec={"priority": 5})
        await tree.quiet()
        assert (runs(tree, equal), runs(tree, polite)) == ({}, {"edge-1": 1}), "first in line when there is room"
        await tree.close()

    asyncio.run(main())


def test_no_more_than_needed_the_lowest_first_where_it_costs_least(tmp_path: Path) -> None:
    async def main() -> None:
        tree = await flat(tmp_path, ("edge-1", "edge-2"))
        root = tree.sites["root"]
        small = await put_application(root, "small", 0, [component(replicas=3, cpu="100m")], clusterNames=["edge-1"])
        large = await put_application(root, "large", 0, [component(replicas=1, cpu="300m")], clusterNames=["edge-2"])
        await tree.quiet()
        high = await put_application(root, "high", 0, [component(replicas=1, cpu="300m")], spec={"priority": 1})
        await tree.quiet()
        assert (runs(tree, high), runs(tree, large), runs(tree, small)) == ({"edge-2": 1}, {}, {"edge-1": 3}), "one rather than three"
        await delete_application(root, "high")
        await tree.quiet()
        await put_application(root, "large", 0, [component(replicas=1, cpu="300m")], clusterNames=["edge-2"], spec={"priority": 2})
        await tree.quiet()
        high = await put_application(root, "high", 0, [component(replicas=1, cpu="300m")], spec={"priority": 3}, life=2)
        await tree.quiet()
        assert (runs(tree, high), runs(tree, large)) == ({"edge-1": 1}, {"edge-2": 1}), "three lower rather than one higher"
        await at_rest(tree)
        await tree.close()

    asyncio.run(main())


def test_a_cut_off_region_lets_its_own_go_first_within_what_it_was_given(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        region = await tree.add("region", "root")
        await tree.add("edge-1", "region", 300)
        await tree.add("edge-2", "region", 300)
        await tree.add("edge-3", "root", 300)
        await tree.quiet()
        low = await put_application(root, "low", 8)
        await tree.quiet()
        held = tree.assigned(region, low)
        tree.watch = lambda: (overbooked(tree), bounded(tree, low, 8))  # type: ignore[assignment, return-value, func-returns-value]
        tree.set_cut("region", True)
        await tree.quiet()
        high = await put_application(region, "high", 3, spec={"priority": 5})
        await tree.quiet()
        assert tree.total(high) == 3
        assert tree.assigned(region, low) <= held
        assert sum(runs(tree, low).get(name, 0) for name in ("edge-1", "edge-2")) == 3
        tree.set_cut("region", False)
        await tree.quiet()
        assert (tree.total(high), tree.total(low)) == (3, 6)
        status = application(root, "low").status  # type: ignore[union-attr]
        assert "preempted by high (priority 5)" in status.components[0].message
        await at_rest(tree)
        await tree.close()

    asyncio.run(main())


def test_a_cluster_that_becomes_smaller_loses_the_lowest_then_who_came_last(tmp_path: Path) -> None:
    async def main() -> None:
        tree = await flat(tmp_path, cpu_millis=400)
        root, edge = tree.sites["root"], tree.sites["edge-1"]
        tree.watch = lambda: None
        high = await put_application(root, "high", 1, spec={"priority": 3})
        await tree.quiet()
        old = await put_application(root, "old", 1)
        await tree.quiet()
        new = await put_application(root, "new", 1)
        lower = await put_application(root, "lower", 1, spec={"priority": -1})
        await tree.quiet()
        assert [tree.total(uid) for uid in (high, old, new, lower)] == [1, 1, 1, 1]
        for left, expected in ((300, [1, 1, 1, 0]), (200, [1, 1, 0, 0]), (100, [1, 0, 0, 0]), (0, [1, 0, 0, 0]), (400, [1, 1, 1, 1])):
            if not left:
                continue
            edge.cpu_millis = left
            edge.census.self_changed()
            await tree.quiet()
            assert [tree.total(uid) for uid in (high, old, new, lower)] == expected, left
            assert not tree.overbooked()
        await at_rest(tree)
        await tree.close()

    asyncio.run(main())


def test_what_if_says_who_would_give_way(tmp_path: Path) -> None:
    async def main() -> None:
        tree = await flat(tmp_path)
        root, edge = tree.sites["root"], tree.sites["edge-1"]
        await put_application(root, "low", 3)
        high = await put_application(root, "high", 1)
        await tree.quiet()
        for site, known in ((root, ""), (edge, "default/low")):
            stored = next((each for each in site.store.list("own", "Application") if each.uid == high), None)
            if stored is None:
                continue
            document = msgspec.json.decode(stored.document)
            document["spec"]["priority"] = 7
            supposed = Supposed(document=msgspec.json.encode(document))

            def look(tx: Tx, site: Site = site, supposed: Supposed = supposed) -> object:
                return site.engine.explain(tx, high, supposed)

            found = await site.store.commit(look)
            assert found is not None
            [each] = found.placement.preempting  # type: ignore[attr-defined]
            assert (each.cluster, each.replicas) == (edge.uid, 1)
            [(resident, count)] = each.yields
            assert (resident.priority, resident.name, count) == (0, known, 1)
            if site is root:
                told = await site.store.commit(
                    lambda tx, supposed=supposed: explanation(tx, root.engine.explain, lambda uid: None, high, supposed)  # type: ignore[misc]
                )
                assert (told["components"][0]["priority"], told["components"][0]["moves"]) == (7, 0)
                assert told["components"][0]["notes"] == ["1 get room on edge-1 when others give way: 1 of default/low (priority 0)"]
        assert tree.total(high) == 0, "nothing was changed"
        await tree.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_nothing_is_overbooked_and_no_higher_one_waits_where_a_lower_one_runs(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        chooser = random.Random(seed)
        tree = Tree(tmp_path)
        root = await tree.add("root", cpu_millis=chooser.choice([0, 200]))
        region = await tree.add("region", "root")
        for name, parent in (("edge-1", "region"), ("edge-2", "region"), ("edge-3", "root")):
            await tree.add(name, parent, chooser.choice([200, 300]), {"name": name})
        await tree.quiet()
        tree.watch = lambda: overbooked(tree)
        wanted: dict[str, tuple[int, int]] = {}
        for number in range(chooser.randint(4, 7)):
            priority, replicas = chooser.randint(0, 3), chooser.randint(1, 4)
            site = chooser.choice([root, root, region])
            cpu = chooser.choice(["100m", "100m", "200m"]) if chooser.random() < 0.3 else "100m"
            uid = await put_application(site, f"app-{number}", 0, [component(replicas=replicas, cpu=cpu)], spec={"priority": priority})
            wanted[uid] = priority, replicas
            for _ in range(chooser.randint(0, 25)):
                await tree.step(chooser)
        await tree.quiet()
        for uid, (priority, replicas) in wanted.items():
            assert tree.total(uid) <= replicas
            if tree.total(uid) == replicas:
                continue
            within = list(tree.sites) if uid.startswith("app-root") else ["region", "edge-1", "edge-2"]
            size = max(
                (
                    site.asked[uid].cpu_millis // max(1, sum(site.running[uid].values()))
                    for site in tree.sites.values()
                    if site.running.get(uid)
                ),
                default=0,
            )
            for name in within:
                site = tree.sites[name]
                lower = sum(asked.cpu_millis for other, asked in site.asked.items() if wanted[other][0] < priority)
                free = site.cpu_millis - sum(asked.cpu_millis for asked in site.asked.values())
                assert lower + free < max(size, 100) or (lower + free < 200 and not size), f"{uid} could be on {name}"
        await at_rest(tree)
        await tree.close()

    asyncio.run(main())
