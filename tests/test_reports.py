"""Reports carry their observer's identity end to end: what is older at its source never replaces what is newer, whoever passes it on."""

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cluster_controller import reports
from cluster_controller.documents import encode
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Stored, Tx
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.source import Plan, Source
from cluster_controller.sync.target import Target
from tests.placement.tree import Site, Tree, put_application

THEN = datetime(2026, 1, 1, tzinfo=UTC)


KEY = Key("report", "ClusterStatus", "", "me")


def status(reason: str) -> kinds.ClusterStatus:
    return kinds.ClusterStatus(
        metadata=kinds.Metadata(name="me"),
        spec=kinds.ClusterStatusSpec(cluster="me", name="me", parent="", parent_name=""),
        status=kinds.ClusterStatusStatus(ready="Unknown", reason=reason),
    )


async def synchronised(reporter: Store, space: str, receiver: Store, into: str) -> Target:
    """One real session over real stores, from connecting until nothing moves."""
    source = Source(space, reporter, SyncLimits())
    target = Target(into, receiver, follow=True, limits=SyncLimits())
    source.resume(target.resume())
    while (following := source.next()) is not None:
        messages = [following.snapshot, *following.chunks] if isinstance(following, Plan) else [following]
        outcomes = await receiver.commit(lambda tx, messages=messages: target.apply(tx, messages))  # type: ignore[misc]
        for answer in target.answers(outcomes):
            {"Ack": source.acked, "Differ": source.differs, "Resume": source.resume}[type(answer).__name__](answer)  # type: ignore[operator]
    return target


def shown(site: Site, below: Site) -> kinds.ClusterStatus:
    """What a site's parent is told of a cluster."""
    return msgspec.json.decode(held(site, below).document, type=kinds.ClusterStatus)


def held(site: Site, below: Site) -> Stored:
    assert site.parent is not None
    stored = site.parent.store.get(Key(f"up/{site.uid}", "ClusterStatus", "", below.uid))
    assert stored is not None
    return stored


def test_a_region_that_was_restored_from_a_backup_rolls_no_report_back(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        await tree.add("root")
        region = await tree.add("region", "root")
        edge = await tree.add("edge", "region", 1000, {"line": "old"})
        try:
            await tree.quiet()
            await synchronised(region.store, "report", tree.sites["root"].store, f"up/{region.uid}")
            await region.stop()
            shutil.copytree(tmp_path / "region", tmp_path / "backup")
            await region.revive(tmp_path / "region")
            edge.labels = {"line": "new"}
            edge.census.self_changed()
            await tree.quiet()
            await synchronised(region.store, "report", tree.sites["root"].store, f"up/{region.uid}")
            assert shown(region, edge).status.facts.labels["line"] == "new"
            first = held(region, edge)
            assert first.source == edge.uid  # not who passed it on

            await region.stop()
            await region.revive(tmp_path / "backup")  # it believes that its link stands, and knows only the old
            await tree.settled()
            target = await synchronised(region.store, "report", tree.sites["root"].store, f"up/{region.uid}")
            assert target.stale
            assert shown(region, edge).status.facts.labels["line"] == "new"

            tree.set_cut("edge", cut=True)  # its own observation is believed: it is the one who has the link
            await tree.settled()
            await synchronised(region.store, "report", tree.sites["root"].store, f"up/{region.uid}")
            assert shown(region, edge).status.ready == "Unknown"
            assert held(region, edge).source == region.uid

            tree.set_cut("edge", cut=False)
            await tree.quiet()
            await synchronised(region.store, "report", tree.sites["root"].store, f"up/{region.uid}")
            assert shown(region, edge).status.ready == "True"
            assert held(region, edge).source == edge.uid
        finally:
            await tree.close()

    asyncio.run(play())


def test_starts_are_numbered_upwards_whatever_the_clock_does(tmp_path: Path) -> None:
    async def start(count: int, at: datetime) -> int:
        store = await Store.open(tmp_path)
        try:
            reporter = await reports.begin(store, "me", at)
            await store.commit(lambda tx: reporter.put(tx, KEY, status(f"start {count}"), "me"))
            stored = store.get(KEY)
            assert stored is not None
            return stored.start
        finally:
            await store.close()

    moments = (THEN, THEN, datetime(2025, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    numbers = [asyncio.run(start(count, moment)) for count, moment in enumerate(moments)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == int(moments[-1].timestamp() * 1000)


def test_of_one_start_the_later_report_has_the_higher_number(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        reporter = await reports.begin(store, "me", THEN)
        seen: list[tuple[str, int, int]] = []
        for word in ("one", "two", "one"):
            for _ in range(2):  # the second time it is no change
                await store.commit(lambda tx, word=word: reporter.put(tx, KEY, status(word), "me"))  # type: ignore[misc]
            stored = store.get(KEY)
            assert stored is not None
            seen.append((stored.source, stored.start, stored.sequence))
        assert seen == sorted(set(seen))
        assert len(seen) == 3
        await store.close()

    asyncio.run(play())


def test_events_of_an_application_are_told_to_all_above_and_go_when_it_drops_them(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        region = await tree.add("region", "root")
        edge = await tree.add("edge", "region", 1000)
        try:
            await tree.quiet()
            await put_application(edge, "lamp", 1)
            await tree.quiet()
            for site in (root, region):
                found = [msgspec.json.decode(stored.document, type=kinds.Event) for stored in site.store.list("own", "Event")]
                lamp = [event for event in found if event.involved_object.name == "lamp.edge"]
                assert {event.reason for event in lamp} == {"Running"}
                assert {event.source.host for event in lamp} == {"edge"}
                assert {event.involved_object.kind for event in lamp} == {"SubtreeApplication"}
                assert not [event for event in found if event.involved_object.name == "lamp"]
            await edge.store.commit(lambda tx: [tx.delete(stored.key) for stored in tx.list("own", "Event")])
            await tree.quiet()
            for site in (root, region):
                assert not [stored for stored in site.store.list("own", "Event") if stored.key.name.startswith("lamp")]
        finally:
            await tree.close()

    asyncio.run(play())


def test_a_report_about_an_application_that_nobody_knows_is_dropped_and_counted(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        edge = await tree.add("edge", "root", 1000)
        try:
            await put_application(root, "lamp", 1)
            await tree.quiet()
            assert root.engine.unknown == 0
            settled = root.engine.settled
            status = kinds.WorkStatus(
                spec=kinds.WorkStatusSpec(application=kinds.ApplicationReference(uid="nobody", name="x"), cluster=edge.uid)
            )
            key = Key(f"up/{edge.uid}", "WorkStatus", "", "nobody")
            await root.store.commit(lambda tx: tx.put(key, msgspec.json.encode(status), uid="nobody"))
            await tree.settled()
            assert (root.engine.unknown, root.engine.settled) == (1, settled)
        finally:
            await tree.close()

    asyncio.run(play())


def test_after_a_copy_has_spoken_what_did_not_change_is_reported_once_more(tmp_path: Path) -> None:
    """The copy's words have a later start; the original's, which lie unchanged, would be taken for old ones for ever."""

    async def play() -> None:
        edge, region = await Store.open(tmp_path / "edge"), await Store.open(tmp_path / "region")
        try:
            first = await reports.begin(edge, "e", THEN)
            await edge.commit(lambda tx: first.put(tx, KEY, status("as it is"), "e"))
            await synchronised(edge, "report", region, "up/e")
            await region.commit(lambda tx: copied(tx, reports.Reporter("e", 2**50)))
            assert spoken(region) == "by the copy"
            await edge.commit(lambda tx: first.put(tx, KEY, status("as it is"), "e"))  # nothing changed: nothing is said
            assert spoken(region) == "by the copy"
            said = Target("up/e", region, follow=True, limits=SyncLimits()).resume()
            assert said.start == 2**50 > first.start  # the copy's clock was ahead
            await first.again(edge, THEN, said.start)
            await synchronised(edge, "report", region, "up/e")
            assert spoken(region) == "as it is"
        finally:
            await edge.close()
            await region.close()

    def copied(tx: Tx, copy: reports.Reporter) -> None:
        before = tx.get(Key("up/e", *KEY[1:]))
        assert before is not None
        copy.put(tx, before.key, status("by the copy"), "e")

    def spoken(region: Store) -> str:
        stored = region.get(Key("up/e", *KEY[1:]))
        assert stored is not None
        return msgspec.json.decode(stored.document, type=kinds.ClusterStatus).status.reason

    asyncio.run(play())


def test_a_region_that_was_set_back_to_the_same_words_says_when_they_were_said_last(tmp_path: Path) -> None:
    """Above they are held under a later identity: passed on under the one of the backup they are taken for old ones for ever."""

    async def play() -> None:
        root, region = await Store.open(tmp_path / "root"), await Store.open(tmp_path / "region")
        reporter, below = reports.Reporter("region", 1), Key("up/e", *KEY[1:])

        async def heard(word: str, sequence: int) -> None:
            def work(tx: Tx) -> None:
                there = tx.get(below)
                version = there.version + 1 if there is not None else 1
                said = tx.put(below, encode(status(word)), uid="e", version=version, source="e", start=1, sequence=sequence)
                reporter.put(tx, KEY, status(word), "e", relayed=said)

            await region.commit(work)

        try:
            await heard("well", 1)
            await region.close()
            shutil.copytree(tmp_path / "region", tmp_path / "backup")
            region = await Store.open(tmp_path / "region")
            for sequence, word in enumerate(("not so well", "well"), 2):
                await heard(word, sequence)
                await synchronised(region, "report", root, "up/region")
            await region.close()
            region = await Store.open(tmp_path / "backup")
            await heard("well", 3)
            target = await synchronised(region, "report", root, "up/region")
            mine, theirs = region.get(KEY), root.get(Key("up/region", *KEY[1:]))
            assert mine is not None
            assert theirs is not None
            assert (mine.version, mine.sequence, mine.hash) == (theirs.version, theirs.sequence, theirs.hash)
            assert not target.stale
            revision = region.revision
            await heard("well", 3)  # said and passed on before: those above are told nothing
            assert [event.stored.key for event in region.since(revision, "report")] == []
        finally:
            await region.close()
            await root.close()

    asyncio.run(play())
