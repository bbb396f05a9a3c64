"""A cluster goes from one region to another, everything in any order: what runs runs on, and no book ever says more than was wanted."""

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from cluster_controller.placement import transferring
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx
from cluster_controller.tree import listing
from cluster_controller.tree.admission import Member

from .tree import Site, Tree, copy, put_application

MOVE = "m"


class Moving:
    """The controllers' part of a move, played; rooms of placement are the real ones."""

    def __init__(self, tree: Tree, moved: str, chooser: random.Random) -> None:
        self.tree = tree
        self.chooser = chooser
        self.root, self.old, self.new = (tree.sites[name] for name in ("root", "region-a", "region-b"))
        self.moved = tree.sites[moved]
        self.gone = self.counted = self.complete = self.forgotten = False
        self.held: dict[str, dict[str, int]] = {}
        self.after = 0
        self.root.engine.transferring.unsettled = self.unsettled
        self.root.census._way = lambda uid: self.new.uid if self.gone and uid in self.subtree else None
        self.subtree = {self.moved.uid, *(child.uid for child in self.moved.children.values())}

    def there(self, tx: Tx) -> bool:
        stored = self.root.store.find("own", "Cluster", self.moved.uid)
        found = tx.get(stored.key) if stored is not None else None
        return found is not None and msgspec.json.decode(found.document, type=kinds.Cluster).status.parent_uid == self.new.uid

    def unsettled(self, tx: Tx) -> set[str]:
        return {self.old.uid} if self.gone and not self.counted and self.there(tx) else set()

    async def go(self) -> None:
        for stored in self.moved.store.list("desired", "Work"):
            spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
            self.held[spec.application.uid] = {component.name: component.replicas for component in spec.components}
            self.after = max(self.after, spec.shares[-1].id)
        name = self.moved.name
        self.tree.set_cut(name, True)
        del self.old.children[name]
        self.moved.parent = self.new
        self.new.children[name] = self.moved
        for child in self.moved.children:
            if self.chooser.random() < 0.8:
                self.tree.set_cut(child, True)  # it comes back when it likes
        await self.tree.crash(name)  # a new life below the new parent
        self.tree.cut.discard(name)
        self.new.live.add(self.moved.uid)
        self.gone = True

    async def count(self) -> None:
        transfer = kinds.Transfer(
            move=MOVE, cluster=self.moved.uid, out=[self.old.uid, self.moved.uid], into=[self.new.uid, self.moved.uid], after=self.after
        )

        def work(tx: Tx) -> None:
            for uid, components in self.held.items():
                self.root.engine.transfer(tx, uid, msgspec.structs.replace(transfer, components=components))

        await self.root.store.commit(work)
        self.counted = True
        self.root.engine.settle_again(self.old.uid, self.held)

    async def forget(self) -> None:
        member = Member(uid=self.moved.uid, name=self.moved.name, state="left")
        await self.old.store.commit(lambda tx: listing.forget(tx, member))
        self.forgotten = True

    async def look(self) -> None:
        """What the common ancestor and both parents do when it is time."""
        if self.gone and not self.counted and await self.root.store.commit(self.there):
            await self.count()
        if self.counted and not self.complete:
            self.complete = all(transferring.done(self.new.store, uid, MOVE) for uid in self.held)
        if self.counted and not self.forgotten:
            shares = (uid for uid in self.held if uid != "app-root-everywhere")  # where each has the whole of it, there are no parts
            if all(self.old.store.get(Key(f"down/{self.moved.uid}", "Work", "", uid)) is None for uid in shares):
                await self.forget()

    async def step(self, chooser: random.Random) -> None:
        site = chooser.choice([*self.tree.sites.values()])
        if chooser.random() < 0.3:
            await site.shim()
        elif site.name in self.tree.cut:
            if chooser.random() < 0.02:
                self.tree.set_cut(site.name, False)
        elif site.parent is not None and chooser.random() < 0.5:
            await copy(site.store, "report", site.parent.store, f"up/{site.uid}")
        elif site.parent is not None and (site is not self.moved or not self.gone or self.complete):
            await copy(site.parent.store, f"down/{site.uid}", site.store, "desired")
        for _ in range(chooser.randint(0, 3)):
            await asyncio.sleep(0)
        if chooser.random() < 0.2:
            await self.look()


async def play(folder: Path, seed: int, moved: str) -> None:
    chooser = random.Random(seed)
    tree = Tree(folder)
    root = await tree.add("root")
    for region in ("region-a", "region-b"):
        await tree.add(region, "root")
    if moved == "inner":
        await tree.add("inner", "region-a")
    for name, region in {"edge-1": "inner" if moved == "inner" else "region-a", "edge-2": "region-a", "edge-3": "region-b"}.items():
        await tree.add(name, region, 400, {"zone": region})
    wanted = {
        await put_application(root, "divided", 5): 5,
        await put_application(root, "everywhere", 1, strategy="Duplicated"): 3,
        await put_application(root, "named", 1, clusterNames=["edge-1"]): 1,
    }
    await tree.quiet()
    before = runs(tree)
    assert {uid: tree.total(uid) for uid in wanted} == wanted
    assert all(uid in before["edge-1"] for uid in wanted)
    moving = Moving(tree, moved, chooser)

    def watch() -> None:
        assert runs(tree) == before
        assert all(tree.assigned(root, uid) <= count for uid, count in wanted.items() if uid != "app-root-everywhere")

    await moving.go()
    for _ in range(1500):
        await moving.step(chooser)
        watch()
        if moving.complete and moving.forgotten:
            break
    assert moving.complete and moving.forgotten
    tree.watch = watch
    await tree.quiet()
    for name in sorted(tree.cut):
        tree.set_cut(name, False)
    await tree.quiet()
    assert moved not in {stored.key.name for stored in moving.old.store.list("own", "Cluster")}
    assert [given(moving.new, moved, uid) for uid in wanted] == [given_here(tree.sites["edge-1"], uid) for uid in wanted]
    await put_application(root, "divided", 3)  # and everything goes on as ever
    tree.watch = lambda: None
    await tree.quiet()
    assert tree.total("app-root-divided") == 3
    await tree.close()


def runs(tree: Tree) -> dict[str, dict[str, dict[str, int]]]:
    return {name: {uid: dict(counts) for uid, counts in site.running.items() if any(counts.values())} for name, site in tree.sites.items()}


def given(site: Site, child: str, uid: str) -> int:
    stored = site.store.get(Key(f"down/uid-{child}", "Work", "", uid))
    assert stored is not None
    return sum(one.replicas for one in msgspec.json.decode(stored.document, type=kinds.Work).spec.components)


def given_here(site: Site, uid: str) -> int:
    return sum(site.running.get(uid, {}).values())


@pytest.mark.parametrize("moved", ["edge-1", "inner"])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_runs_is_touched(tmp_path: Path, seed: int, moved: str) -> None:
    """``inner`` is a region: what is below it is out of reach when it comes, or not, and comes back at any time."""
    asyncio.run(play(tmp_path, seed, moved))


async def grown(folder: Path) -> tuple[Tree, Moving, str]:
    """Two regions, and five replicas below them; ``edge-1`` is to go from the first to the second."""
    tree = Tree(folder)
    root = await tree.add("root")
    for region in ("region-a", "region-b"):
        await tree.add(region, "root")
    for name, region in {"edge-1": "region-a", "edge-2": "region-a", "edge-3": "region-b"}.items():
        await tree.add(name, region, 1000)
    uid = await put_application(root, "divided", 5)
    await tree.quiet()
    return tree, Moving(tree, "edge-1", random.Random(0)), uid


def test_who_has_left_is_given_nothing_any_more_whatever_it_had_not_answered(tmp_path: Path) -> None:
    """A share that was raised and never acknowledged is forgotten with it, or its move would wait for its answer for ever."""

    async def main() -> None:
        tree, moving, uid = await grown(tmp_path)
        old = moving.old
        before = given(old, "edge-1", uid)
        await put_application(moving.root, "divided", 10)
        await tree.settled()
        await copy(moving.root.store, f"down/{old.uid}", old.store, "desired")
        await tree.settled()
        assert given(old, "edge-1", uid) > before  # and it has not heard of that
        await moving.go()
        await moving.count()
        await tree.settled()
        await copy(moving.root.store, f"down/{old.uid}", old.store, "desired")
        for _ in range(2):
            await tree.settled()
            assert old.store.get(Key(f"down/{moving.moved.uid}", "Work", "", uid)) is None
            old.engine.look_at(uid)
        await tree.close()

    asyncio.run(main())
