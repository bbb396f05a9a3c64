"""The parts of a move over real links: what each answers, that asking twice changes nothing, and that the rename alone decides."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster_controller.documents import encode
from cluster_controller.errors import BanyanError, StoreError
from cluster_controller.identity import load
from cluster_controller.links import Links
from cluster_controller.moves import words
from cluster_controller.moves.part import Part, mine, put
from cluster_controller.moves.words import Answer, Gone, No, NotYet, Question, Stayed, Yes
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx
from cluster_controller.tree import records
from cluster_controller.tunnel.stream import StreamForbidden, StreamNotServed
from tests.tree.site import Clock, Site, member, root, running, until

APPLICATION = kinds.ApplicationReference(uid="app", name="app", namespace="default", origin="root", origin_name="root")


def part(site: Site) -> Part:
    """As `Controller` puts it together, with sync over its links."""
    sync = Links(site.store, site.tunnel, site.uid, lambda child, heard: None, site.membership.kin)
    site.membership.silence = sync.silence
    up, down = site.membership.link_up, site.membership.link_down

    def link_up(link):  # type: ignore[no-untyped-def]
        up(link)
        sync.up(link)

    def link_down(link, reason):  # type: ignore[no-untyped-def]
        down(link, reason)
        sync.down(link)

    site.membership.link_up, site.membership.link_down = link_up, link_down  # type: ignore[method-assign]
    return Part(
        site.store,
        site.identity,
        site.membership,
        site.tunnel,
        sync,
        addresses=site.addresses,
        moved=lambda: None,
        wall=site.clock,
        proxy="",
    )


@contextlib.asynccontextmanager
async def grove(folder: Path) -> AsyncIterator[tuple[Site, Site, Site, Site]]:
    """A root with two regions, and an edge below the first."""
    clock = Clock()
    async with (
        root(folder / "root", clock) as top,
        member(top, folder / "old", "old") as old,
        member(top, folder / "new", "new") as new,
        member(old, folder / "edge", "edge", may_have_children=False) as edge,
    ):
        parts = [part(site) for site in (top, old, new, edge)]
        await until(lambda: top.membership.router.next_hop(edge.uid) == old.uid)
        yield top, old, new, edge
        for one in parts:
            await one.close()


async def ask(top: Site, whom: Site, question: Question) -> Answer:
    """Asked twice, for a question may come again."""
    await put(top.tunnel, whom.uid, question)
    return await put(top.tunnel, whom.uid, question)


def go(new: Site) -> words.Go:
    return words.Go(move="m", parent=new.uid, parent_name="new", addresses=new.addresses())


async def prepared(top: Site, old: Site, new: Site, edge: Site) -> None:
    assert await ask(top, new, words.Prepare(move="m", cluster=edge.uid, name="edge")) == Yes(addresses=new.addresses())
    assert await ask(top, old, words.Depart(move="m", cluster=edge.uid)) == Yes()


def test_a_cluster_goes_and_everybody_knows(tmp_path: Path) -> None:
    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            spec = kinds.WorkSpec(application=APPLICATION, cluster=edge.uid, shares=[kinds.Share(allotter=old.uid, id=41)],
                                  components=[kinds.Component(name="main", replicas=2)])  # fmt: skip
            work = kinds.Work(metadata=kinds.Metadata(name="app", uid="w"), spec=spec)
            await old.store.commit(lambda tx: tx.put(Key(f"down/{edge.uid}", "Work", "", "app"), encode(work), uid="w"))
            await prepared(top, old, new, edge)
            old_link = old.tunnel.links[edge.uid]
            answer = await put(top.tunnel, edge.uid, go(new))
            assert isinstance(answer, Gone)
            await until(lambda: edge.uid in new.tunnel.links and top.membership.router.next_hop(edge.uid) == new.uid)
            assert old_link.closed and edge.identity().path == (top.uid, new.uid, edge.uid)
            assert await ask(top, edge, go(new)) == answer == await ask(top, edge, words.Where(move="m", parent=new.uid))
            assert await ask(top, edge, words.Stay(move="m", parent=new.uid)) == answer  # too late

            about = {"move": "m", "cluster": edge.uid}
            waits = await ask(top, new, words.Complete(**about, applications=("app",)))
            assert isinstance(waits, NotYet) and "not come down" in waits.reason
            held = await ask(top, old, words.Forget(**about, applications=("app",)))
            assert isinstance(held, NotYet)
            await old.store.commit(lambda tx: tx.delete(Key(f"down/{edge.uid}", "Work", "", "app")))
            assert await ask(top, new, words.Complete(**about, applications=())) == Yes()
            assert await ask(top, old, words.Forget(**about, applications=("app",), parent_name="new")) == Yes()
            left, came = records.member(old.store, edge.uid), records.member(new.store, edge.uid)
            assert left is not None and left.state == "left" and came is not None and (came.state, came.coming) == ("member", "")
            # what it was told by its old parent goes, for the new one has said what it shall hold: nothing
            await until(lambda: not edge.store.list("desired", "Work") and not edge.store.list("conflict/desired", "Work"))

    asyncio.run(play())


def test_who_cannot_reach_its_new_parent_stays(tmp_path: Path) -> None:
    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            await prepared(top, old, new, edge)
            nowhere = words.Go(move="m", parent=new.uid, parent_name="new", addresses=("127.0.0.1:1",))
            answer = await put(top.tunnel, edge.uid, nowhere)
            assert isinstance(answer, Stayed) and "cannot go to new" in answer.reason
            assert await ask(top, edge, go(new)) == answer  # called off is called off
            wrong = words.Go(move="other", parent=new.uid, parent_name="new", addresses=old.addresses())
            answer = await put(top.tunnel, edge.uid, wrong)
            assert isinstance(answer, Stayed) and "answers where new is expected" in answer.reason
            for site in (new, old):
                assert await ask(top, site, words.Release(move="m", cluster=edge.uid)) == Yes()
            left, stays = records.member(new.store, edge.uid), records.member(old.store, edge.uid)
            assert left is not None and left.state == "left" and stays is not None and (stays.state, stays.leaving) == ("member", "")
            assert edge.identity().parent_uid == old.uid == load(edge.folder / "identity").parent_uid
            document = b'{"metadata": {"name": "after"}}'
            await old.store.commit(lambda tx: tx.put(Key(f"down/{edge.uid}", "ConfigMap", "", "after"), document, uid="after"))
            await until(lambda: edge.store.list("desired", "ConfigMap"))  # and goes on as before

    asyncio.run(play())


def test_called_off_before_it_was_told(tmp_path: Path) -> None:
    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            await prepared(top, old, new, edge)
            assert await ask(top, edge, words.Stay(move="m", parent=new.uid)) == Stayed()
            assert await ask(top, edge, go(new)) == Stayed(reason="it was called off")
            assert isinstance(await ask(top, edge, words.Where(move="m", parent=new.uid)), NotYet)

    asyncio.run(play())


def test_a_crash_after_the_rename_leads_to_the_new_parent(tmp_path: Path) -> None:
    async def play() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "new", "new") as new:
            async with member(top, tmp_path / "edge", "edge", may_have_children=False) as edge:
                parts = [part(site) for site in (top, new, edge)]
                assert await parts[0].answer(words.Depart(move="m", cluster=edge.uid)) == Yes()
                assert isinstance(await put(top.tunnel, new.uid, words.Prepare(move="m", cluster=edge.uid, name="edge")), Yes)
                assert isinstance(await put(top.tunnel, edge.uid, go(new)), Gone)
                await edge.hang_up()  # at once
                await parts[2].close()
            async with running(tmp_path / "edge", clock, port=None) as again:
                last = mine(again.store)
                assert last is not None and last.parent == new.uid == again.identity().parent_uid
                assert part(again).takes_over()  # it has what it had, until the new parent has spoken
                await until(lambda: again.uid in new.tunnel.links)
            for one in parts[:2]:
                await one.close()

    asyncio.run(play())


def test_refusals_say_why(tmp_path: Path) -> None:
    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            async with member(new, tmp_path / "taken", "taken"):
                taken = await ask(top, new, words.Prepare(move="m", cluster=edge.uid, name="taken"))
                assert isinstance(taken, No) and "the name taken belongs to another cluster" in taken.reason
                clash = await ask(top, new, words.Check(move="m", cluster=edge.uid, names={"taken": "somebody"}))
                assert isinstance(clash, No) and "taken" in clash.reason
                assert await ask(top, new, words.Check(move="m", cluster=edge.uid, names={"edge": edge.uid})) == Yes()
            deep = await ask(top, new, words.Prepare(move="m", cluster=edge.uid, name="edge", height=99))
            assert isinstance(deep, No) and "deeper than the tree may be" in deep.reason
            leaf = await ask(top, edge, words.Prepare(move="m", cluster="x", name="x"))
            assert isinstance(leaf, No) and "may not take children" in leaf.reason
            above = await ask(top, new, words.Prepare(move="m", cluster=top.uid, name="root"))
            assert isinstance(above, No) and "stands above" in above.reason
            nobody = await ask(top, old, words.Depart(move="m", cluster="nobody"))
            assert isinstance(nobody, No) and "no member of old" in nobody.reason
            assert await ask(top, old, words.Depart(move="m", cluster=edge.uid)) == Yes()
            other = await ask(top, old, words.Depart(move="another", cluster=edge.uid))
            assert isinstance(other, No) and "another move of edge" in other.reason
            below = words.Go(move="m", parent=edge.uid, parent_name="edge", addresses=())
            stays = await ask(top, edge, below)
            assert isinstance(stays, Stayed) and "stands below" in stays.reason

    asyncio.run(play())


def test_only_ancestors_move_and_who_knows_no_moves_says_so(tmp_path: Path) -> None:
    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            with pytest.raises(StreamForbidden):
                await put(edge.tunnel, old.uid, words.Depart(move="m", cluster=edge.uid))
            async with member(new, tmp_path / "older", "older") as older:
                await until(lambda: top.membership.router.next_hop(older.uid) == new.uid)
                with pytest.raises(StreamNotServed):
                    await put(top.tunnel, older.uid, words.Where(move="m", parent=new.uid))

    asyncio.run(play())


def test_a_full_disk_is_said_with_its_reason_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise StoreError("no space left for store.db")

    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            await prepared(top, old, new, edge)
            with monkeypatch.context() as patched:
                patched.setattr(Part, "_note_what_it_holds", full)
                patched.setattr(Part, "_keep", full)
                with pytest.raises(BanyanError, match="no space left"):
                    await put(top.tunnel, edge.uid, go(new))
            assert edge.identity().parent_uid == old.uid
            assert isinstance(await put(top.tunnel, edge.uid, go(new)), Gone)

    asyncio.run(play())


def test_an_old_parent_that_knows_nothing_of_the_move_forgets_who_is_elsewhere_by_a_later_attach(tmp_path: Path) -> None:
    async def play() -> None:
        async with grove(tmp_path) as (top, old, new, edge):
            about = {"move": "m", "cluster": edge.uid, "applications": ("app",), "parent_name": "new"}
            record = records.member(old.store, edge.uid)
            assert record is not None
            assert await ask(top, old, words.Forget(**about, attach=record.attach + 1)) == Yes()  # type: ignore[arg-type]
            assert records.member(old.store, edge.uid) == record  # it is here
            await prepared(top, old, new, edge)
            assert isinstance(await put(top.tunnel, edge.uid, go(new)), Gone)
            await until(lambda: top.membership.router.next_hop(edge.uid) == new.uid and edge.uid not in old.tunnel.links)
            route = top.membership.router.record(edge.uid)
            assert route is not None
            spec = kinds.WorkSpec(application=APPLICATION, cluster=edge.uid, components=[kinds.Component(name="main", replicas=2)])
            work = encode(kinds.Work(metadata=kinds.Metadata(name="app", uid="w"), spec=spec))

            def set_back(tx: Tx) -> None:
                records.put_member(tx, record)
                for space in ("desired", f"down/{edge.uid}"):
                    tx.put(Key(space, "Work", "", "app"), work, uid="w")

            await old.store.commit(set_back)
            assert await ask(top, old, words.Forget(**about, attach=record.attach)) == Yes()  # type: ignore[arg-type]
            assert records.member(old.store, edge.uid) == record  # nothing newer is known of it
            waits = await ask(top, old, words.Forget(**about, attach=route.attach))  # type: ignore[arg-type]
            assert isinstance(waits, NotYet)  # what came from above has yet to be lowered there
            await old.store.commit(lambda tx: tx.delete(Key(f"down/{edge.uid}", "Work", "", "app")))
            assert await ask(top, old, words.Forget(**about, attach=route.attach)) == Yes()  # type: ignore[arg-type]
            left = records.member(old.store, edge.uid)
            assert left is not None and left.state == "left"

    asyncio.run(play())
