"""Strays that are served from two levels up, and who takes over from whom."""

import asyncio
from pathlib import Path

import pytest

from tests.placement.test_lending import EDGES, Kin, change, lent, programs, running, steady

from .tree import component, put_application


@pytest.mark.parametrize("alive", ["region", "zone", ""])
def test_two_levels_up_the_same_holds_whoever_of_those_between_is_back_first(tmp_path: Path, alive: str) -> None:
    async def main() -> None:
        tree = Kin(tmp_path)
        root = await tree.add("root")
        await tree.add("region", "root")
        await tree.add("zone", "region")
        for name in EDGES:
            await tree.add(name, "zone", 1000, {"tier": "edge"})
        await tree.quiet()
        uid = await put_application(root, "emotion", 4, [component(replicas=4)])
        await tree.quiet()
        before = running(tree, uid)
        chain = ("region", "zone", *EDGES)
        try:
            for name in chain:
                tree.set_cut(name, True)
            await tree.quiet()
            for name in EDGES:
                await tree.adopt(name, "root")
            await change(root)
            await tree.quiet()
            assert programs(tree, uid) == {"newer"} and running(tree, uid) == before
            tree.watch = lambda: steady(tree, uid, before)
            for name in sorted(chain, key=lambda name: name != alive):
                if name in tree.carried:
                    await tree.release(name)
                tree.set_cut(name, False)
                await tree.quiet()
            for name in EDGES:
                await tree.back(name, "root")
            await tree.quiet()
            assert running(tree, uid) == before and not lent(tree)
        finally:
            await tree.close()

    asyncio.run(main())


def test_the_ancestor_between_takes_over_from_the_one_above_it(tmp_path: Path) -> None:
    """First the root serves, then the region, which is back, while the zone stays away: the later word counts."""

    async def main() -> None:
        tree = Kin(tmp_path)
        root = await tree.add("root")
        region = await tree.add("region", "root")
        await tree.add("zone", "region")
        for name in EDGES:
            await tree.add(name, "zone", 1000, {"tier": "edge"})
        await tree.quiet()
        uid = await put_application(root, "emotion", 4, [component(replicas=4)])
        await tree.quiet()
        before = running(tree, uid)
        try:
            for name in ("region", "zone", *EDGES):
                tree.set_cut(name, True)
            await tree.quiet()
            for name in EDGES:
                await tree.adopt(name, "root")
            await change(root, program="first")
            await tree.quiet()
            assert programs(tree, uid) == {"first"}
            tree.set_cut("region", False)
            await tree.quiet()
            for name in EDGES:
                await tree.release(name)
                await tree.adopt(name, "region")
            await change(root, program="second")
            await tree.quiet()
            assert programs(tree, uid) == {"second"} and running(tree, uid) == before
            assert region.engine.lent == 2
            for name in ("zone", *EDGES):
                if name in tree.carried:
                    await tree.release(name)
                tree.set_cut(name, False)
                await tree.quiet()
            for name in EDGES:
                await tree.back(name, "region")
                await tree.back(name, "root")
            await tree.quiet()
            assert programs(tree, uid) == {"second"} and running(tree, uid) == before and not lent(tree)
        finally:
            await tree.close()

    asyncio.run(main())


def test_who_stands_below_somebody_that_is_served_is_not_counted_again(tmp_path: Path) -> None:
    """The region is lost, then the zone that was served in its place, too: its clusters keep what they have, and nobody gives back."""

    async def main() -> None:
        tree = Kin(tmp_path)
        root = await tree.add("root")
        await tree.add("region", "root")
        await tree.add("zone", "region")
        for name in EDGES:
            await tree.add(name, "zone", 1000, {"tier": "edge"})
        await tree.quiet()
        uid = await put_application(root, "emotion", 4, [component(replicas=4)])
        await tree.quiet()
        before = running(tree, uid)
        try:
            for name in ("region", "zone"):
                tree.set_cut(name, True)
            await tree.adopt("zone", "root")
            await change(root, program="first")
            await tree.quiet()
            assert programs(tree, uid) == {"first"} and running(tree, uid) == before
            await tree.release("zone")
            for name in EDGES:
                tree.set_cut(name, True)
                await tree.adopt(name, "root")
            await change(root, program="newer")
            await tree.quiet()
            assert running(tree, uid) == before, "nothing is taken from what their zone, which is away, was given for them"
            for name in (*EDGES, "zone", "region"):
                if name in tree.carried:
                    await tree.release(name)
                tree.set_cut(name, False)
                await tree.quiet()
                assert running(tree, uid) == before
            for name in ("zone", *EDGES):
                await tree.back(name, "root")
            await tree.quiet()
            assert programs(tree, uid) == {"newer"} and not lent(tree)
        finally:
            await tree.close()

    asyncio.run(main())
