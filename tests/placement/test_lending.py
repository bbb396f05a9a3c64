"""An ancestor serves strays while their home is away, and home takes over what they hold: nothing stopped, nothing doubled.

Whole controllers as in `tree`; what adopters carry is played: a stray's reports go to the ancestor, and what that lends comes back.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller import delivered, events
from cluster_controller.placement.lending import lend_space
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx
from cluster_controller.store.backup import RESTORED, Restored

from .tree import Site, Tree, application, component, copy, delete_application, put_application

EDGES = ("edge-1", "edge-2")


class Kin(Tree):
    """A tree whose clusters may be heard by an ancestor while their home is away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.carried: dict[str, str] = {}  # stray → ancestor that hears it, by name

    async def adopt(self, name: str, ancestor: str) -> None:
        site, above = self.sites[name], self.sites[ancestor]
        self.carried[name] = ancestor
        above.heard.add(site.uid)
        above.astray.add(site.uid)
        await site.store.commit(lambda tx: delivered.learn(tx, above.uid))
        above.engine.link_changed(site.uid)
        above.astrays.link_changed(site.uid)

    async def release(self, name: str) -> None:
        """It is heard no more by way of an adopter; a stray it remains until its home has reported it."""
        above = self.sites[self.carried.pop(name)]
        above.heard.discard(self.sites[name].uid)
        above.engine.link_changed(self.sites[name].uid)
        above.astrays.link_changed(self.sites[name].uid)

    async def back(self, name: str, ancestor: str) -> None:
        """As `tree.away` does once its home has reported it."""
        site, above = self.sites[name], self.sites[ancestor]
        above.astray.discard(site.uid)
        space = f"stray/{site.uid}"
        stale = list(above.store.scan(space))
        await above.store.commit(lambda tx: [tx.delete(stored.key) for stored in stale])
        above.engine.link_changed(site.uid)
        above.astrays.link_changed(site.uid)

    async def carry(self) -> None:
        for name, ancestor in self.carried.items():
            site, above = self.sites[name], self.sites[ancestor]
            await copy(site.store, "report", above.store, f"stray/{site.uid}")
            await copy(above.store, lend_space(site.uid), site.store, delivered.space_of(above.uid))

    async def quiet(self) -> None:
        for _ in range(4):
            await super().quiet()
            await self.carry()
            await self.settled()
        await super().quiet()


async def grown(folder: Path, **fields: Any) -> tuple[Kin, Site, str]:
    tree = Kin(folder)
    root = await tree.add("root")
    await tree.add("region", "root")
    for name in EDGES:
        await tree.add(name, "region", 1000, {"tier": "edge"})
    await tree.quiet()
    uid = await put_application(root, "emotion", fields.pop("replicas", 4), [component(replicas=4)] if not fields else [], **fields)
    await tree.quiet()
    return tree, root, uid


async def lose(tree: Kin) -> None:
    """The region is out of everybody's reach; its clusters are heard by the root."""
    for name in ("region", *EDGES):
        tree.set_cut(name, True)
    await tree.quiet()
    for name in EDGES:
        await tree.adopt(name, "root")
    await tree.quiet()


async def mend(tree: Kin, *, home_first: bool = True) -> None:
    """Home is in reach of the root, and its clusters return; or the other way round."""
    for name in ("region", *EDGES) if home_first else (*EDGES, "region"):
        if name != "region":
            await tree.release(name)
        tree.set_cut(name, False)
        await tree.quiet()
    for name in EDGES:
        await tree.back(name, "root")
    await tree.quiet()


def running(tree: Kin, uid: str) -> dict[str, int]:
    return {name: sum(tree.sites[name].running.get(uid, {}).values()) for name in EDGES}


def programs(tree: Kin, uid: str) -> set[str]:
    """What the clusters are told to run."""
    works = (tree.sites[name].store.get(Key("local", "Work", "", uid)) for name in EDGES)
    specs = (msgspec.json.decode(stored.document, type=kinds.Work).spec for stored in works if stored is not None)
    return {part.command[0] for spec in specs for part in spec.components if part.replicas}


def lent(tree: Kin) -> list[str]:
    """All that is kept of what was served: at the ancestor, and at those who were."""
    return [space for site in tree.sites.values() for space in site.store.spaces() if space.startswith(("lend/", "lent/"))]


def play(folder: Path, main: Any, **fields: Any) -> None:
    async def run() -> None:
        tree, root, uid = await grown(folder, **fields)
        try:
            await main(tree, root, uid)
        finally:
            await tree.close()

    asyncio.run(run())


async def change(root: Site, replicas: int = 4, program: str = "newer", **placement: Any) -> None:
    await put_application(root, "emotion", replicas, [component(replicas=replicas, command=[program])], **placement)


def test_a_new_version_reaches_strays_and_home_takes_over_without_a_change(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        before = running(tree, uid)
        assert sum(before.values()) == 4 and not lent(tree)
        await lose(tree)
        assert not lent(tree)  # they have the newest: there is nothing to serve
        await change(root)
        await tree.quiet()
        assert programs(tree, uid) == {"newer"} and running(tree, uid) == before
        assert len(lent(tree)) == 4
        told = root.engine._works
        work = await root.store.commit(lambda tx: told.get(tx, "uid-region", uid))
        assert work is not None and sum(one.components["serve"] for one in work.lent) == 4
        shown = application(root, "emotion")
        assert shown is not None and (shown.status.ready, shown.status.updated) == (4, 4)
        tree.watch = lambda: steady(tree, uid, before)
        await mend(tree)
        assert programs(tree, uid) == {"newer"} and running(tree, uid) == before and not lent(tree)
        shown = application(root, "emotion")
        assert shown is not None and shown.status.phase == "Running" and shown.status.updated == 4

    play(tmp_path, main)


def steady(tree: Kin, uid: str, before: dict[str, int]) -> None:
    assert running(tree, uid) == before
    assert programs(tree, uid) == {"newer"}


def test_strays_take_no_part_in_moves_of_others(tmp_path: Path) -> None:
    """One of their neighbours was moved to another region; the Work of theirs says so, and they do not stand on either way."""

    async def main(tree: Kin, root: Site, uid: str) -> None:
        before = running(tree, uid)
        await lose(tree)
        out, into = ["uid-region", "uid-gone"], ["uid-other", "uid-gone"]
        moved = kinds.Transfer(move="m", cluster="uid-gone", out=out, into=into, components={"serve": 1})

        def note(tx: Tx) -> None:
            stored = tx.get(Key("down/uid-region", "Work", "", uid))
            assert stored is not None
            work = msgspec.json.decode(stored.document, type=kinds.Work)
            spec = msgspec.structs.replace(work.spec, transfers=[moved])
            tx.put(stored.key, msgspec.json.encode(msgspec.structs.replace(work, spec=spec)), uid=stored.uid)

        await root.store.commit(note)
        await change(root)
        await tree.quiet()
        assert programs(tree, uid) == {"newer"} and running(tree, uid) == before
        assert not [name for name in EDGES if tree.sites[name].store.get(Key("down/uid-other", "Work", "", uid))]
        shown = application(root, "emotion")
        assert shown is not None and (shown.status.ready, shown.status.updated) == (4, 4)

    play(tmp_path, main)


def test_clusters_that_return_before_their_home_has_heard_of_it_keep_the_newer_version(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        before = running(tree, uid)
        await lose(tree)
        await change(root)
        await tree.quiet()
        tree.watch = lambda: steady(tree, uid, before)
        await mend(tree, home_first=False)
        assert running(tree, uid) == before and not lent(tree)

    play(tmp_path, main)


def test_fewer_replicas_are_taken_from_strays_and_stay_where_they_were_left(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        await lose(tree)
        await change(root, replicas=1)
        await tree.quiet()
        left = running(tree, uid)
        assert sum(left.values()) == 1
        tree.watch = lambda: steady(tree, uid, left)
        await mend(tree)
        assert running(tree, uid) == left and not lent(tree)
        tree.watch = lambda: None
        await change(root, replicas=3)
        await tree.quiet()
        assert sum(running(tree, uid).values()) == 3

    play(tmp_path, main)


def test_a_deleted_application_ends_at_strays_and_does_not_come_back(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        await lose(tree)
        await delete_application(root, "emotion")
        await tree.quiet()
        assert sum(running(tree, uid).values()) == 0
        tree.watch = lambda: _none(tree, uid)
        await mend(tree)
        assert not lent(tree) and application(root, "emotion") is None

    play(tmp_path, main)


def _none(tree: Kin, uid: str) -> None:
    assert sum(running(tree, uid).values()) == 0


def test_a_deletion_that_came_before_they_were_heard_reaches_them_too(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        for name in ("region", *EDGES):
            tree.set_cut(name, True)
        await tree.quiet()
        await delete_application(root, "emotion")
        await tree.quiet()
        assert sum(running(tree, uid).values()) == 4 and application(root, "emotion") is None
        for name in EDGES:
            await tree.adopt(name, "root")
        await tree.quiet()
        assert sum(running(tree, uid).values()) == 0

    play(tmp_path, main)


def test_what_is_new_waits_for_home_and_explain_says_so(tmp_path: Path) -> None:
    """More replicas, and what was created meanwhile: nothing is given to strays, nor forgotten."""

    async def main(tree: Kin, root: Site, uid: str) -> None:
        before = running(tree, uid)
        await lose(tree)
        await change(root, replicas=6, program="true")
        fresh = await put_application(root, "fresh", 2)
        await tree.quiet()
        assert running(tree, uid) == before and not any(running(tree, fresh).values())
        for application_uid, missing in ((uid, 2), (fresh, 2)):
            told = await root.store.commit(lambda tx, asked=application_uid: root.engine.explain(tx, asked))
            assert told is not None and sum(told.placement.unplaced.values()) == missing
            said = {item.cluster: item for item in told.placement.refusals if item.filter == "HomeAway"}
            assert said.keys() == {f"uid-{name}" for name in EDGES}
            assert "only its home can give it more, behind root → region" in said["uid-edge-1"].message
            assert "banyan move edge-1 --parent NAME" in said["uid-edge-1"].remedy
        await mend(tree)
        assert (sum(running(tree, uid).values()), sum(running(tree, fresh).values())) == (6, 2)

    play(tmp_path, main)


def test_what_the_absent_home_wrote_itself_runs_on_unchanged(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        own = await put_application(tree.sites["region"], "own", 2)
        await tree.quiet()
        await lose(tree)
        await change(root)
        await tree.quiet()
        assert sum(running(tree, own).values()) == 2
        works = [root.store.get(Key(space, "Work", "", own)) for space in root.store.spaces() if space.startswith("lend/")]
        assert works and not any(works)

    play(tmp_path, main)


def test_a_configmap_that_changes_reaches_strays(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        async def put(text: str) -> None:
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "default"}, "data": {"a": text}}
            key = Key("own", "ConfigMap", "default", "settings")
            await root.store.commit(lambda tx: tx.put(key, msgspec.json.encode(body), uid="settings"))

        await put("one")
        parts = [component(replicas=4, envFrom=[{"configMapRef": {"name": "settings"}}])]
        await put_application(root, "emotion", 4, parts)
        await tree.quiet()
        await lose(tree)
        await put("two")
        await put_application(root, "emotion", 4, [component(replicas=4, command=["newer"], envFrom=parts[0]["envFrom"])])
        await tree.quiet()
        for name in EDGES:
            found = delivered.reference(tree.sites[name].store, "ConfigMap", "settings")
            assert found is not None and b"two" in found.document
        await mend(tree)
        assert not lent(tree)

    play(tmp_path, main)


def test_what_home_lowered_stays_lowered(tmp_path: Path) -> None:
    """Home is in reach of its cluster again, not of the root: it may take away, and waits for no answer to a share that it did not give."""

    async def main(tree: Kin, root: Site, uid: str) -> None:
        await lose(tree)
        await change(root)
        await tree.quiet()
        await tree.release("edge-1")
        tree.set_cut("edge-1", False)
        await tree.quiet()
        region, edge = tree.sites["region"], tree.sites["edge-1"]
        stored = edge.store.get(Key("report", "WorkStatus", "", uid))
        assert stored is not None and msgspec.json.decode(stored.document, type=kinds.WorkStatus).status.version == 0
        work = region.engine._works

        def lower(tx: Any) -> None:
            found = tx.get(Key("down/uid-edge-1", "Work", "", uid))
            document = msgspec.json.decode(found.document)
            document["spec"]["components"][0]["replicas"] = 1
            document["spec"]["shares"][-1]["id"] = work.next_share(tx)
            tx.put(found.key, msgspec.json.encode(document), uid=found.uid)

        await region.store.commit(lower)
        await copy(region.store, "down/uid-edge-1", edge.store, "desired")
        await tree.settled()
        await edge.shim()
        assert running(tree, uid)["edge-1"] == 1 and programs(tree, uid) == {"newer"}

    play(tmp_path, main)


@pytest.mark.parametrize("met", [False, True])
def test_a_restored_ancestor_serves_nobody_below_a_branch_that_it_has_not_met(tmp_path: Path, met: bool) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        restored = msgspec.json.encode(Restored(made="2026-01-01", revision=1, restored="2026-01-02", settled=True))
        if met:
            await root.store.commit(lambda tx: tx.set_fact(RESTORED, restored))
            await change(root, program="again")
            await tree.quiet()
        await lose(tree)
        await root.store.commit(lambda tx: tx.set_fact(RESTORED, restored))
        await change(root)
        await tree.quiet()
        assert programs(tree, uid) == ({"newer"} if met else {"true"})

    play(tmp_path, main)


def test_a_duplicated_application_follows_its_count_per_cluster(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        assert running(tree, uid) == {"edge-1": 1, "edge-2": 1}
        await lose(tree)
        await change(root, replicas=2, strategy="Duplicated")
        await tree.quiet()
        assert running(tree, uid) == {"edge-1": 2, "edge-2": 2}
        await mend(tree)
        assert running(tree, uid) == {"edge-1": 2, "edge-2": 2} and not lent(tree)

    play(tmp_path, main, replicas=1, strategy="Duplicated")


def test_with_replace_what_strays_hold_is_not_replaced_by_anybody_at_any_time(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        await tree.add("spare", "root", 1000, {"tier": "edge"})
        policy = {"action": "Replace", "afterSeconds": 10}
        held: dict[str, Any] = {"clusterSelector": {"matchLabels": {"tier": "edge"}}, "onUnreachable": policy}
        await change(root, program="true", **held)
        await tree.quiet()
        await tree.wait(1)
        before = running(tree, uid)
        await lose(tree)
        tree.watch = lambda: _at_most(tree, uid, 4)
        await change(root, **held)
        await tree.quiet()
        await tree.wait(60)
        await tree.quiet()
        assert running(tree, uid) == before and tree.total(uid) == 4
        await mend(tree)
        assert running(tree, uid) == before and tree.total(uid) == 4

    play(tmp_path, main)


def _at_most(tree: Kin, uid: str, most: int) -> None:
    assert tree.total(uid) <= most


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_in_whatever_order_counts_are_exact_in_the_end(tmp_path: Path, seed: int) -> None:
    """Changes, losses, adoptions and returns at random; never more run than were wanted at once, in the end exactly what is wanted."""

    async def main(tree: Kin, root: Site, uid: str) -> None:
        chooser = random.Random(seed)
        wanted = highest = 4
        version = 0
        for _ in range(60):
            what = chooser.random()
            if what < 0.1:
                version += 1
                wanted = chooser.choice([wanted, wanted, chooser.randint(0, 6)])
                highest = max(highest, wanted)
                await change(root, wanted, f"v{version}")
            elif what < 0.2:
                name = chooser.choice(("region", *EDGES))
                cut = name not in tree.cut
                if not cut and name in tree.carried:
                    await tree.release(name)
                tree.set_cut(name, cut)
            elif what < 0.3:
                lost = [name for name in EDGES if name in tree.cut and "region" in tree.cut and name not in tree.carried]
                for name in lost:
                    await tree.adopt(name, "root")
            elif what < 0.4:
                await tree.carry()
            else:
                await tree.step(chooser)
            _at_most(tree, uid, highest)
        for name in list(tree.carried):
            await tree.release(name)
        for name in list(tree.cut):
            tree.set_cut(name, False)
        tree.watch = lambda: _at_most(tree, uid, highest)
        await tree.quiet()
        for name in EDGES:
            await tree.back(name, "root")
        await tree.quiet()
        assert tree.total(uid) == wanted and not lent(tree)
        assert programs(tree, uid) <= {f"v{version}" if version else "true"}

    play(tmp_path, main)


def test_what_a_stray_tells_of_its_own_applications_is_told_above_and_stays_when_it_is_back(tmp_path: Path) -> None:
    async def main(tree: Kin, root: Site, uid: str) -> None:
        edge = tree.sites["edge-1"]
        own = await put_application(edge, "mine", 1)
        await lose(tree)
        about = kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Application", namespace="default", name="mine", uid=own)
        told = {"kind": "Normal", "reason": "Tested", "message": "told", "component": "test", "timestamp": "2026-01-01T00:00:00Z"}
        await edge.store.commit(lambda tx: events.record_status(tx, about=about, **told))  # type: ignore[arg-type]
        await tree.quiet()

        def heard() -> list[str]:
            found = (msgspec.json.decode(stored.document, type=kinds.Event) for stored in root.store.list("own", "Event"))
            return [each.involved_object.name for each in found if each.reason == "Tested"]

        assert heard() == ["mine.edge-1"]
        await mend(tree)
        assert heard() == ["mine.edge-1"]

    play(tmp_path, main)
