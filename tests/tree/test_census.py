"""The clusters of a subtree, on a real store: what is known of each, for how long, and what ancestors lay over it. No clock runs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.documents import decode, encode
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_controller.tree.admission import Member
from cluster_controller.tree.census import Census
from cluster_controller.tree.known import Heard
from cluster_controller.tree.listing import forget, show


class Bench:
    """A region with a parent: ``live`` are the children with a link, ``now`` the boot-time clock."""

    def __init__(self, store: Store, now: float = 100.0) -> None:
        self.store = store
        self.live: dict[str, float] = {}
        self.now = now
        self.time = "2026-01-01T00:00:00Z"
        self.own = kinds.ClusterFacts(shim="process")
        self.census = Census(
            store,
            Reporter("me", 1),
            uid="me",
            name="region",
            parent=lambda: ("top", "root"),
            facts=lambda: self.own,
            links=lambda: self.live,
            now=lambda: self.now,
            timestamp=lambda: self.time,
            path=lambda: ("top", "mid", "me"),
        )
        self.census.load()
        store.subscribe(self.census.changed, kinds=self.census.heeds)
        self.task = asyncio.create_task(self.census.run())

    async def quiet(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
            await self.store.commit(lambda tx: tx.set_fact("test/turn", str(id(tx)).encode()))

    async def close(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def cluster(self, name: str) -> kinds.Cluster:
        stored = self.store.get(Key("own", "Cluster", "", name))
        assert stored is not None, [one.key.name for one in self.store.list("own", "Cluster")]
        return decode(stored.document, kinds.Cluster)

    def names(self) -> list[str]:
        return [stored.key.name for stored in self.store.list("own", "Cluster")]

    def report(self, uid: str) -> kinds.ClusterStatus:
        stored = self.store.get(Key("report", "ClusterStatus", "", uid))
        assert stored is not None
        return decode(stored.document, kinds.ClusterStatus)

    def events(self) -> list[str]:
        found = [decode(stored.document, kinds.Event) for stored in self.store.list("own", "Event")]
        return sorted(f"{event.reason}: {event.message}" for event in found)

    async def joins(self, uid: str, name: str, phase: str = "Ready") -> None:
        member = Member(name=name, uid=uid, state="member", joined=self.time)
        await self.store.commit(lambda tx: show(tx, member, ("me", "region"), phase))
        await self.quiet()

    async def connects(self, uid: str) -> None:
        self.live[uid] = self.now
        self.census.link_changed(uid, None)
        await self.quiet()

    async def loses(self, uid: str) -> None:
        last = self.live.pop(uid)
        self.census.link_changed(uid, last)
        await self.quiet()

    async def says(self, via: str, uid: str, name: str, parent: tuple[str, str] = ("me", "region"), **status: Any) -> None:
        document = kinds.ClusterStatus(
            metadata=kinds.Metadata(name=uid, uid=uid),
            spec=kinds.ClusterStatusSpec(cluster=uid, name=name, parent=parent[0], parent_name=parent[1]),
            status=kinds.ClusterStatusStatus(**({"ready": "True"} | status)),
        )
        await self.put(Key(f"up/{via}", "ClusterStatus", "", uid), document, uid)

    async def put(self, key: Key, document: msgspec.Struct, uid: str) -> None:
        await self.store.commit(lambda tx: tx.put(key, encode(document), uid=uid))
        await self.quiet()

    async def delete(self, key: Key) -> None:
        await self.store.commit(lambda tx: tx.delete(key))
        await self.quiet()

    async def change(self, name: str, **fields: Any) -> None:
        """A person's overlay."""
        stored = self.store.get(Key("own", "Cluster", "", name))
        assert stored is not None
        document = msgspec.json.decode(stored.document)
        document["metadata"]["labels"] = fields.pop("labels", {})
        document["spec"] = fields
        await self.store.commit(lambda tx: tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid))
        await self.quiet()

    async def overlay(self, cluster: str, by: str, **spec: Any) -> None:
        document = kinds.ClusterOverlay(spec=kinds.ClusterOverlaySpec(cluster=cluster, set_by=f"name-{by}", set_by_uid=by, **spec))
        await self.put(Key("desired", "ClusterOverlay", "", f"{cluster}.{by}"), document, f"{cluster}.{by}")

    def sent_down(self, via: str) -> list[str]:
        return [stored.key.name for stored in self.store.list(f"down/{via}", "ClusterOverlay")]


def play(folder: Path, main: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = await Store.open(folder)
        bench = Bench(store)
        await bench.quiet()
        try:
            await main(bench)
        finally:
            await bench.close()
            await store.close()

    asyncio.run(whole())


async def family(bench: Bench) -> None:
    """edge-1 is a child; deep stands below it."""
    await bench.joins("e1", "edge-1")
    await bench.connects("e1")
    await bench.says("e1", "e1", "edge-1", facts=kinds.ClusterFacts(shim="process", labels={"tier": "edge"}), children=1)
    await bench.says("e1", "deep", "deep", ("e1", "edge-1"))


def test_a_subtree_is_listed_and_told_upwards(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        assert bench.names() == ["deep", "edge-1", "region"]
        own, edge, deep = bench.cluster("region"), bench.cluster("edge-1"), bench.cluster("deep")
        assert (own.status.path, own.status.parent, own.status.phase, own.status.children) == ([], "root", "Ready", 1)
        assert (edge.status.path, edge.status.phase, edge.status.labels) == (["edge-1"], "Ready", {"tier": "edge"})
        assert (deep.status.path, deep.status.parent_uid, deep.status.parent) == (["edge-1", "deep"], "e1", "edge-1")
        assert edge.status.conditions[0].status == "True"
        said = bench.report("deep")
        assert (said.spec.parent, said.spec.parent_name, said.status.ready) == ("e1", "edge-1", "True")
        revision = bench.store.revision
        bench.census.self_changed()
        bench.census.link_changed("e1", None)
        await bench.quiet()
        assert bench.store.revision == revision  # settling again writes nothing

    play(tmp_path, main)


def test_what_the_census_writes_itself_is_not_looked_at_again(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        settled: list[str] = []
        settle = bench.census._settler._settle
        bench.census._settler._settle = lambda tx, uid: (settled.append(uid), settle(tx, uid))  # type: ignore[func-returns-value,assignment]
        await bench.says("e1", "deep", "deep", ("e1", "edge-1"), ready="Unknown", reason="LinkLost")
        assert bench.cluster("deep").status.phase == "Unknown" and settled == ["deep"]
        await bench.change("deep", labels={"room": "7"})
        assert bench.cluster("deep").status.labels["room"] == "7" and settled == ["deep", "deep"], "what a person writes is"

    play(tmp_path, main)


def test_a_lost_link_is_written_for_the_child_and_all_below_it_in_one_commit(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        groups: list[set[str]] = []
        bench.store.subscribe(
            lambda events: groups.append({event.stored.key.name for event in events if event.stored.key.kind == "Cluster"}), "own"
        )
        bench.time = "2026-01-01T00:01:00Z"
        await bench.loses("e1")
        assert {"edge-1", "deep"} in groups
        for name in ("edge-1", "deep"):
            status = bench.cluster(name).status
            assert (status.phase, status.broken_hop) == ("Unknown", "region → edge-1")
            (ready,) = status.conditions
            assert (ready.status, ready.reason, ready.last_transition_time) == ("Unknown", "LinkLost", bench.time)
            assert bench.report("deep").status.broken_hop == "region → edge-1"
        assert "LinkLost: region → edge-1 is cut" in bench.events()
        bench.time = "2026-01-01T00:02:00Z"
        await bench.connects("e1")
        assert {bench.cluster(name).status.phase for name in ("edge-1", "deep")} == {"Ready"}
        assert "Ready: edge-1 is Ready, it was Unknown" in bench.events()

    play(tmp_path, main)


def test_a_hop_that_broke_further_down_keeps_its_name(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.says("e1", "deep", "deep", ("e1", "edge-1"), ready="Unknown", reason="LinkLost", broken_hop="edge-1 → deep")
        assert bench.cluster("deep").status.broken_hop == "edge-1 → deep"
        assert bench.cluster("edge-1").status.phase == "Ready"
        bench.now += 7
        assert bench.census.heard("deep") == Heard(7.0, at_least=True, broken_hop="edge-1 → deep")
        await bench.says("e1", "deep", "deep", ("e1", "edge-1"), ready="False", reason="ShimLost")
        assert bench.cluster("deep").status.phase == "NotReady"

    play(tmp_path, main)


def test_how_long_ago_a_cluster_was_heard(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        assert bench.census.heard("me") is None and bench.census.heard("nobody") is None
        bench.now += 3
        assert bench.census.heard("e1") == bench.census.heard("deep") == Heard(3.0)
        bench.live["e1"] = bench.now
        bench.now += 10
        await bench.loses("e1")
        assert bench.census.heard("deep") == Heard(10.0, broken_hop="region → edge-1")
        assert bench.census.silent() == {"e1": "region → edge-1"}

        await bench.close()  # a restart: nobody can know how much longer it was
        again = Bench(bench.store, now=500.0)
        await again.quiet()
        again.now += 4
        assert again.census.heard("e1") == Heard(4.0, at_least=True, broken_hop="region → edge-1")
        assert again.census.heard("deep") == Heard(4.0, at_least=True, broken_hop="region → edge-1")
        await again.connects("e1")
        again.now += 1
        assert again.census.heard("e1") == Heard(1.0)
        assert again.census.silent() == {}
        await again.close()

    play(tmp_path, main)


def test_a_child_that_joined_and_said_nothing_yet(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.joins("e1", "edge-1")
        status = bench.cluster("edge-1").status
        assert (status.phase, status.conditions[0].reason, status.broken_hop) == ("Unknown", "LinkLost", "region → edge-1")
        await bench.connects("e1")
        assert bench.cluster("edge-1").status.conditions[0].reason == "NeverReported"
        bench.now += 5
        heard = bench.census.heard("e1")
        assert heard is not None and heard.at_least

    play(tmp_path, main)


@pytest.mark.parametrize("phase", ["Pending", "Held", "Revoked"])
def test_what_was_decided_stands_until_it_is_ended(tmp_path: Path, phase: str) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.joins("e1", "edge-1", phase)
        await bench.loses("e1")
        await bench.connects("e1")
        assert bench.cluster("edge-1").status.phase == phase
        await bench.joins("e1", "edge-1", "Ready")
        assert bench.cluster("edge-1").status.phase == "Ready"

    play(tmp_path, main)


def test_a_removed_child_takes_all_below_it_with_it(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.change("deep", labels={"x": "1"})
        assert bench.sent_down("e1") == ["deep.me"]
        await bench.loses("e1")
        member = Member(name="edge-1", uid="e1", state="removed", joined="")
        last = Key("up/e1", "Event", "", "last-words")
        await asyncio.gather(  # a report of its own, not on the disk yet when it is removed, goes too
            bench.store.commit(lambda tx: tx.put(last, b"{}", uid="x")), bench.store.commit(lambda tx: forget(tx, member))
        )
        await bench.quiet()
        assert bench.names() == ["region"]
        assert [stored.key.name for stored in bench.store.list("report", "ClusterStatus")] == ["me"]
        assert (list(bench.store.scan("down/e1")), list(bench.store.scan("up/e1"))) == ([], [])
        assert bench.census.heard("deep") is None

    play(tmp_path, main)


def test_a_grandchild_that_its_parent_removed_goes_with_what_was_laid_over_it(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.overlay("deep", "top", labels={"x": "1"})
        assert bench.sent_down("e1") == ["deep.top"]
        await bench.delete(Key("up/e1", "ClusterStatus", "", "deep"))
        assert bench.names() == ["edge-1", "region"]
        assert bench.sent_down("e1") == []

    play(tmp_path, main)


def test_a_cluster_that_moved_stays_when_the_old_way_forgets_it(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.joins("e2", "edge-2")
        await bench.connects("e2")
        await bench.says("e2", "e2", "edge-2")
        await bench.change("deep", labels={"x": "1"})
        await bench.says("e2", "deep", "deep", ("e2", "edge-2"))
        await bench.delete(Key("up/e1", "ClusterStatus", "", "deep"))
        assert bench.cluster("deep").status.path == ["edge-2", "deep"]
        assert (bench.sent_down("e1"), bench.sent_down("e2")) == ([], ["deep.me"])
        # and the other way round: the old way speaks last, then falls silent
        await bench.says("e1", "deep", "deep", ("e1", "edge-1"))
        await bench.delete(Key("up/e1", "ClusterStatus", "", "deep"))
        assert bench.cluster("deep").status.path == ["edge-2", "deep"]

    play(tmp_path, main)


def test_of_two_that_speak_of_one_the_way_to_it_counts_also_while_strays_are_heard(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.joins("e2", "edge-2")
        await bench.connects("e2")
        await bench.says("e2", "e2", "edge-2")
        stray = kinds.ClusterStatus(
            metadata=kinds.Metadata(name="lost", uid="lost"), spec=kinds.ClusterStatusSpec(cluster="lost", name="lost")
        )
        await bench.put(Key("stray/lost", "ClusterStatus", "", "lost"), stray, "lost")
        for way in ("e2", "e1"):
            bench.census._way = {"deep": way}.get
            for speaker in ("e1", "e2", "e1"):
                name = f"edge-{speaker[1]}"
                await bench.says(speaker, "deep", "deep", (speaker, name), ready="True" if speaker == way else "Unknown", children=len(way))
                await bench.delete(Key("up/e2", "Nothing", "", "x"))
            bench.census.link_changed("e1", None)
            assert bench.cluster("deep").status.parent == f"edge-{way[1]}", way
            assert bench.cluster("deep").status.phase == "Ready"

    play(tmp_path, main)


def test_a_stray_that_still_speaks_of_a_cluster_which_has_left_it_does_not_count(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.says("e1", "lost", "lost", ("e1", "edge-1"))
        await bench.joins("mine", "mine")
        await bench.connects("mine")
        await bench.says("mine", "mine", "mine")
        bench.census._way = {"mine": "mine"}.get
        del bench.live["e1"]
        bench.census.link_changed("e1", 0.0)
        bench.live["lost"] = bench.now
        for uid in ("lost", "mine"):
            said = kinds.ClusterStatus(
                metadata=kinds.Metadata(name=uid, uid=uid),
                spec=kinds.ClusterStatusSpec(cluster=uid, name=uid, parent="lost", parent_name="lost"),
                status=kinds.ClusterStatusStatus(ready="Unknown"),
            )
            await bench.put(Key("stray/lost", "ClusterStatus", "", uid), said, uid)
        bench.census.link_changed("lost", None)
        await bench.quiet()
        assert (bench.cluster("mine").status.parent, bench.cluster("mine").status.phase) == ("region", "Ready")
        assert bench.cluster("lost").status.phase == "Unknown"  # of itself it says so

    play(tmp_path, main)


def test_equal_names_get_an_alias_and_a_condition_and_nobody_is_overwritten(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.joins("e2", "edge-2")
        await bench.connects("e2")
        await bench.says("e2", "e2", "edge-2")
        await bench.says("e2", "deep-2", "deep", ("e2", "edge-2"))
        await bench.says("e1", "deep-3", "deep", ("x", "edge-2"))  # below another cluster of that name
        await bench.says("e1", "deep-4", "deep", ("x", "edge-2"))
        assert bench.names() == ["deep", "deep.deep-4", "deep.edge-2", "deep.x", "edge-1", "edge-2", "region"]
        assert bench.cluster("deep").status.uid == "deep"
        alias = bench.cluster("deep.edge-2").status
        (conflict,) = [item for item in alias.conditions if item.type == "NameConflict"]
        assert (alias.uid, conflict.status) == ("deep-2", "True")
        assert "listed as deep.edge-2" in conflict.message
        assert bench.report("deep-2").spec.name == "deep"  # its own name goes up
        assert not [item for item in bench.cluster("deep").status.conditions if item.type == "NameConflict"]
        revision = bench.store.revision
        for uid in ("deep", "deep-2", "deep-3", "deep-4"):
            bench.census._settler.mark(uid)
        await bench.quiet()
        assert bench.store.revision == revision

    play(tmp_path, main)


def test_overlays_go_down_and_the_nearest_ancestor_is_laid_on_first(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        taint = kinds.Taint(key="gpu", value="yes", effect="NoSchedule")
        # In the order of their uids the root would come after the one between; in the tree it has the last word.
        await bench.overlay("deep", "mid", labels={"tier": "mid", "a": "mid"}, unschedulable=True)
        await bench.overlay("deep", "top", labels={"tier": "top"}, taints=[taint])
        await bench.overlay("deep", "aaa", labels={"a": "unknown"})
        await bench.change("deep", labels={"tier": "mine", "b": "mine"})
        status = bench.cluster("deep").status
        assert status.labels == {"tier": "top", "a": "unknown", "b": "mine"}
        assert (status.unschedulable, status.taints) == (True, [taint])
        assert {source.key: source.set_by for source in status.sources} == {
            "a": "name-aaa", "b": "region", "tier": "name-top", "cordon": "name-mid", "taint gpu:NoSchedule": "name-top",
        }  # fmt: skip
        assert bench.sent_down("e1") == ["deep.aaa", "deep.me", "deep.mid", "deep.top"]

        await bench.delete(Key("desired", "ClusterOverlay", "", "deep.mid"))
        await bench.delete(Key("desired", "ClusterOverlay", "", "deep.aaa"))
        await bench.change("deep")
        assert bench.sent_down("e1") == ["deep.top"]
        assert (bench.cluster("deep").status.unschedulable, bench.cluster("deep").status.labels) == (False, {"tier": "top"})

    play(tmp_path, main)


def test_users_that_are_named_for_a_controller_are_named_for_all_below_it(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        def sent(uid: str) -> dict[str, tuple[str, str]]:
            found = (decode(stored.document, kinds.ClusterOverlay).spec for stored in bench.store.list("down/e1", "ClusterOverlay"))
            return {each.name: (each.address, spec.set_by) for spec in found if spec.cluster == uid for each in spec.users}

        await family(bench)
        hall, dock = kinds.UserPoint(name="hall", address="a:1"), kinds.UserPoint(name="dock", address="b:2")
        await bench.overlay("me", "top", users=[hall])
        assert sent("e1") == sent("deep") == {"hall": ("a:1", "name-top")}
        assert list(bench.census.users) == [hall]
        await bench.change("region", users=[{"name": "dock", "address": "b:2"}])
        assert sent("deep") == {"hall": ("a:1", "name-top"), "dock": ("b:2", "region")}
        assert list(bench.census.users) == [dock, hall]
        assert {source.key: source.value for source in bench.cluster("region").status.sources} == {"users hall": "a:1", "users dock": "b:2"}
        nearer = kinds.UserPoint(name="hall", address="c:3")
        await bench.overlay("deep", "top", users=[nearer], unschedulable=True)
        assert sent("deep")["hall"] == ("c:3", "name-top"), "what is said of the cluster itself comes first"
        await bench.delete(Key("desired", "ClusterOverlay", "", "deep.top"))
        await bench.delete(Key("desired", "ClusterOverlay", "", "me.top"))
        await bench.change("region")
        assert sent("e1") == sent("deep") == {} and not bench.census.users

    play(tmp_path, main)


def test_what_is_laid_over_this_cluster_counts_here_and_goes_no_further(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        bench.own = kinds.ClusterFacts(labels={"site": "x"})
        await bench.overlay("me", "top", unschedulable=True, labels={"tier": "edge"})
        status = bench.cluster("region").status
        assert (status.unschedulable, status.labels) == (True, {"site": "x", "tier": "edge"})
        assert not [space for space in bench.store.spaces() if space.startswith("down/")]

    play(tmp_path, main)


def test_overlays_that_were_withdrawn_while_this_was_stopped_go_too(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await bench.change("deep", labels={"x": "1"})
        assert bench.sent_down("e1") == ["deep.me"]
        await bench.close()
        await bench.delete(Key("up/e1", "ClusterStatus", "", "deep"))
        again = Bench(bench.store)
        await again.quiet()
        assert again.names() == ["edge-1", "region"]
        assert again.sent_down("e1") == []
        await again.close()

    play(tmp_path, main)


def test_conflicts_with_a_restored_parent_are_shown_at_every_ancestor(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        for when in ("2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"):
            bench.time = when
            await bench.says("e1", "deep", "deep", ("e1", "edge-1"), facts=kinds.ClusterFacts(conflicts=2, version=when))
        (conflict,) = [item for item in bench.cluster("deep").status.conditions if item.type == "Conflict"]
        assert (conflict.status, conflict.last_transition_time) == ("True", "2026-01-02T00:00:00Z")
        assert "2 objects" in conflict.message and "banyan cluster conflicts deep" in conflict.message
        assert bench.report("deep").status.facts.conflicts == 2
        await bench.says("e1", "deep", "deep", ("e1", "edge-1"))
        assert [item.type for item in bench.cluster("deep").status.conditions] == ["Ready"]

    play(tmp_path, main)


def test_what_a_silent_cluster_has_yet_to_withdraw_is_listed_there(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        reference = kinds.ApplicationReference(uid="app", name="emotion", namespace="shop")
        said = kinds.WorkStatus(
            spec=kinds.WorkStatusSpec(application=reference, cluster="e1"),
            status=kinds.WorkStatusStatus(clusters=[kinds.ClusterRow(cluster="deep", ready=1, desired=1)]),
        )
        work = kinds.Work(spec=kinds.WorkSpec(application=reference, cluster="e1"))
        await bench.put(Key("down/e1", "Work", "", "app"), work, "w")
        await bench.put(Key("up/e1", "WorkStatus", "", "app"), said, "app")
        await bench.loses("e1")
        assert bench.cluster("deep").status.withdrawing == []
        await bench.delete(Key("down/e1", "Work", "", "app"))
        assert bench.cluster("deep").status.withdrawing == ["shop/emotion"]
        assert bench.cluster("edge-1").status.withdrawing == []
        await bench.connects("e1")
        await bench.delete(Key("up/e1", "WorkStatus", "", "app"))
        assert bench.cluster("deep").status.withdrawing == []

    play(tmp_path, main)


def test_a_name_that_passes_to_a_successor_within_one_commit_is_not_taken_for_the_old_cluster(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        old = Member(name="edge-1", uid="e1", state="replaced", joined="")
        new = Member(name="edge-1", uid="e9", state="member", joined="")
        await bench.change("edge-1", labels={"place": "hall"})

        def replace(tx: Any) -> None:
            show(tx, new, ("me", "region"), "Ready", replaced=old)
            bench.census.settle(tx, "e1")
            bench.census.settle(tx, "e9")

        await bench.store.commit(replace)
        await bench.quiet()
        found = bench.cluster("edge-1")
        assert (found.status.uid, found.metadata.labels) == ("e9", {"place": "hall"})

    play(tmp_path, main)
