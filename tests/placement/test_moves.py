"""Moves between children with everything that may go wrong on the way: crashes between any two commits, cuts, changes of mind.

Invariants, looked at after each step: never more run than were wanted at once, no cluster holds more than it has, and no controller
assigns more than it was given. In the end everything comes to rest as it was wanted last.
"""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .tree import Site, Tree, application, component, put_application

EDGES = {"edge-1": "region-a", "edge-2": "region-a", "edge-3": "region-b", "edge-4": "region-b"}


async def grow(folder: Path) -> Tree:
    tree = Tree(folder)
    await tree.add("root")
    await tree.add("region-a", "root")
    await tree.add("region-b", "root")
    for name, region in EDGES.items():
        await tree.add(name, region, 300, {"zone": region})
    await tree.quiet()
    return tree


def bounds(tree: Tree, root: Site, uid: str, most: Callable[[], int]) -> None:
    assert tree.total(uid) <= most(), f"{tree.total(uid)} run, at most {most()} were wanted at once"
    for site in (root, *root.children.values()):
        assert tree.assigned(site, uid) <= most(), f"{site.name} assigned {tree.assigned(site, uid)}"
    assert not tree.overbooked()


async def play(folder: Path, seed: int, steps: int) -> None:
    chooser = random.Random(seed)
    tree = await grow(folder)
    root = tree.sites["root"]
    wanted, zone = 4, ""
    highest = wanted

    async def ask() -> str:
        if not zone:
            return await put_application(root, "emotion", wanted)
        return await put_application(root, "emotion", wanted, clusterSelector={"matchLabels": {"zone": zone}})

    uid = await ask()
    tree.watch = lambda: bounds(tree, root, uid, lambda: highest)
    for _ in range(steps):
        what = chooser.random()
        if what < 0.04:
            wanted = chooser.randint(0, 7)
            highest = max(highest, wanted)
            await ask()
        elif what < 0.10:
            zone = chooser.choice(["", "region-a", "region-b"])
            await ask()
        elif what < 0.16:
            name = chooser.choice([*EDGES, "region-a", "region-b"])
            tree.set_cut(name, name not in tree.cut)
        elif what < 0.24:
            await tree.crash(chooser.choice(list(tree.sites)))
        await tree.step(chooser)
    for name in list(tree.cut):
        tree.set_cut(name, False)
    await tree.quiet()
    fits = 12 if not zone else 6
    status = application(root, "emotion").status  # type: ignore[union-attr]
    assert (tree.total(uid), status.ready, status.unplaced) == (min(wanted, fits), min(wanted, fits), max(0, wanted - fits))
    assert sum(row.ready for row in status.clusters) == status.ready
    await tree.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_between_any_two_commits_doubles_nothing_and_loses_nothing(tmp_path: Path, seed: int) -> None:
    asyncio.run(play(tmp_path, seed, 150))


async def crowd(folder: Path, seed: int, steps: int) -> None:
    """Several applications of several components, all asking for more than half of a cluster, come and go at once."""
    chooser = random.Random(seed)
    tree = await grow(folder)
    tree.watch = lambda: bounds_of_clusters(tree)
    root, region = tree.sites["root"], tree.sites["region-a"]
    for _ in range(steps):
        if chooser.random() < 0.15:
            parts = [
                component(f"c{number}", chooser.randint(0, 3), f"{chooser.choice([60, 110, 160, 200])}m")
                for number in range(chooser.randint(1, 3))
            ]
            origin = chooser.choice([root, region])
            name = f"app-{chooser.randrange(10**6)}"
            await put_application(origin, name, 0, parts, strategy=chooser.choice(["Divided", "Duplicated"]))
        elif chooser.random() < 0.05:
            await tree.crash(chooser.choice(list(tree.sites)))
        await tree.step(chooser)
    await tree.quiet()
    await tree.close()


def bounds_of_clusters(tree: Tree) -> None:
    assert not tree.overbooked()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_at_once_no_cluster_is_overbooked(tmp_path: Path, seed: int) -> None:
    asyncio.run(crowd(tmp_path, seed, 100))


def test_the_receiving_child_dies_in_the_middle_of_a_move(tmp_path: Path) -> None:
    """It was given the share and is never heard of again: nothing is doubled, and the rest of what is wanted goes on."""

    async def main() -> None:
        tree = await grow(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 4, clusterSelector={"matchLabels": {"zone": "region-a"}})
        await tree.quiet()
        tree.watch = lambda: bounds(tree, root, uid, lambda: 4)
        await put_application(root, "emotion", 4, clusterSelector={"matchLabels": {"zone": "region-b"}})
        chooser = random.Random(1)
        for _ in range(2000):
            if tree.assigned(tree.sites["region-b"], uid):
                break
            await tree.step(chooser)
        dead = next(edge for edge in ("edge-3", "edge-4") if tree.assigned_to(tree.sites["region-b"], edge, uid))
        tree.set_cut(dead, True)
        await tree.quiet()
        status = application(root, "emotion").status  # type: ignore[union-attr]
        held = tree.assigned_to(tree.sites["region-b"], dead, uid)
        assert held > 0, "a silent cluster keeps its share (Keep)"
        assert status.ready == tree.total(uid) - tree.sites[dead].running.get(uid, {}).get("serve", 0)
        assert status.ready + held >= 4 or status.unplaced
        tree.set_cut(dead, False)
        await tree.quiet()
        assert tree.total(uid) == 4
        await tree.close()

    asyncio.run(main())


@given(st.integers(0, 10**9))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_with_a_seed_of_the_day(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    asyncio.run(play(tmp_path_factory.mktemp("play"), seed, 60))
    asyncio.run(crowd(tmp_path_factory.mktemp("crowd"), seed, 40))
