"""Members over real links: copies, revocations, replacements, renewals, leaving. Wall clocks are the test's."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.errors import Conflict, Forbidden, NotFound, StoreFull
from cluster_controller.identity import attach, revocation, standing
from cluster_controller.resources import kinds
from cluster_controller.store import Store
from cluster_controller.tree import listing, records
from cluster_controller.tree.names import Reserve
from cluster_controller.tunnel.handshake import Refused
from cluster_controller.tunnel.messages import Hello, Refusal, RefusalCode, Routes, Start, Withdrawal
from tests.tree.site import Clock, Site, join, member, root, run, running, until


def phase(parent: Site, uid: str) -> str:
    found = parent.store.find("own", "Cluster", uid)
    assert found is not None
    return records.decode(found.document, kinds.Cluster).status.phase


def refusal(site: Site) -> RefusalCode | None:
    error = site.tunnel.dial_error
    return error.refusal.code if isinstance(error, Refused) else None


# --- connecting ---


def test_what_a_child_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "r", "region-a") as region,
            member(region, tmp_path / "e", "edge-1") as edge,
        ):
            await until(lambda: edge.membership.child.path == (top.uid, region.uid))
            assert edge.membership.child.path_names == ("root", "region-a")
            await until(lambda: records.standing(edge.store))
            given = records.standing(edge.store)
            assert given is not None
            standing.verify(given, edge.identity().tree_ca)
            assert given.parents[0].uid == region.uid
            standing.adopt(given, edge.identity().peer, region.uid)
            await until(lambda: top.membership.router.next_hop(edge.uid) == region.uid)
            assert top.membership.router.path(edge.uid) == (region.uid, edge.uid)

    run(main())


def test_a_start_and_an_attach_are_on_disk_before_they_are_spoken(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "e", "edge-1") as edge:
            number = records.attach(edge.store)
            assert number == records.members(top.store)[edge.uid].attach == 1
            edge.tunnel.parent.close(1001, "test")  # type: ignore[union-attr]
            await until(lambda: records.members(top.store)[edge.uid].attach == 2)
            assert records.attach(edge.store) == 2
            assert records.starts(edge.store).ids[-1] == edge.membership.child.instance

    run(main())


def test_a_restart_takes_its_place_at_once(tmp_path: Path) -> None:
    """Also when the old link is still open: the parent's record is in the child's list of starts."""

    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", clock) as edge:
                await until(lambda: edge.uid in top.tunnel.links)
                old = top.tunnel.links[edge.uid]
                hello = old.hello
                assert hello is not None
                # The same data folder started again, while the old process is only frozen.
                begun = records.Starts((*records.starts(edge.store).ids, "next"), records.starts(edge.store).number + 1)
                await edge.store.commit(lambda tx: records.set_starts(tx, begun))
                again = await edge.membership.child.hello()
                assert edge.identity().peer is not None
                answer = await top.membership.welcome(again, edge.identity().peer)
                assert not isinstance(answer, Refusal) and old.closed
                assert records.members(top.store)[edge.uid].started.start == "next"

    run(main())


def test_starts_are_trimmed_to_what_the_parent_knows(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            for _ in range(3):  # starts with no parent in reach
                async with running(tmp_path / "e", clock, dial=False):
                    pass
            async with running(tmp_path / "e", clock) as edge:
                assert len(records.starts(edge.store).ids) == 4
                await until(lambda: len(records.starts(edge.store).ids) == 1)
                assert records.starts(edge.store).ids == (records.members(top.store)[edge.uid].started.start,)

    run(main())


def test_a_lying_hello_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "a", "region-a") as one,
            member(top, tmp_path / "b", "region-b") as two,
        ):
            honest = await one.membership.child.hello()
            theirs = await two.membership.child.hello()
            assert honest.attach is not None
            replace = msgspec.structs.replace
            cases: list[tuple[Hello, RefusalCode]] = [
                (replace(honest, uid=two.uid), RefusalCode.FORBIDDEN),
                (replace(honest, attach=theirs.attach), RefusalCode.FORBIDDEN),
                (replace(honest, attach=None), RefusalCode.FORBIDDEN),
                (replace(honest, attach=replace(honest.attach, attach=99)), RefusalCode.FORBIDDEN),
                (replace(honest, attach=replace(honest.attach, parent_uid=two.uid)), RefusalCode.FORBIDDEN),
                (replace(honest, starts=()), RefusalCode.INVALID),
                (replace(honest, starts=(Start(number=1, id="x" * 65),)), RefusalCode.INVALID),
                (replace(honest, starts=tuple(Start(number=n, id=str(n)) for n in range(1000))), RefusalCode.INVALID),
            ]
            for hello, code in cases:
                answer = await top.membership.welcome(hello, one.identity().peer)
                assert isinstance(answer, Refusal) and answer.code is code, hello
            assert not isinstance(await top.membership.welcome(honest, one.identity().peer), Refusal)
            replayed = await top.membership.welcome(honest, one.identity().peer)
            assert isinstance(replayed, Refusal) and replayed.code is RefusalCode.REPLAYED

    run(main())


def test_a_member_of_another_parent_is_no_child(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "a", "region-a") as one,
            member(top, tmp_path / "b", "region-b") as two,
            member(two, tmp_path / "e", "edge-1") as edge,
        ):
            answer = await one.membership.welcome(await edge.membership.child.hello(), edge.identity().peer)
            assert isinstance(answer, Refusal) and answer.code is RefusalCode.NOT_MY_CHILD

    run(main())


def test_a_waiting_member_is_not_let_in_by_an_older_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "e", "edge-1") as edge:
            record = records.members(top.store)[edge.uid]
            waiting = msgspec.structs.replace(record, state="pending")
            await top.store.commit(lambda tx: records.put_member(tx, waiting))
            answer = await top.membership.welcome(await edge.membership.child.hello(), edge.identity().peer)
            assert isinstance(answer, Refusal) and answer.code is RefusalCode.NOT_MY_CHILD

    run(main())


def test_a_parent_that_lost_its_store_knows_its_children_by_its_own_signature(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
        for path in (tmp_path / "root").glob("store*"):
            path.unlink()
        async with root(tmp_path / "root", clock, port=top.port) as top, running(tmp_path / "e", clock) as edge:
            await until(lambda: edge.uid in top.tunnel.links)
            assert [one.name for one in top.membership.members()] == ["edge-1"]

    run(main())


def test_a_restored_child_catches_up_with_its_own_counter(tmp_path: Path) -> None:
    """A data folder restored from a backup: its attach counter and its starts are behind what the parent knows."""

    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", clock) as edge:
                await until(lambda: edge.uid in top.tunnel.links)
            shutil.copytree(tmp_path / "e", tmp_path / "backup")
            for _ in range(5):
                async with running(tmp_path / "e", clock) as edge:
                    await until(lambda: edge.uid in top.tunnel.links)
                    await edge.hang_up()
            known = records.members(top.store)[edge.uid].attach
            async with running(tmp_path / "backup", clock) as restored:
                await until(lambda: restored.uid in top.tunnel.links)
                assert records.members(top.store)[restored.uid].attach > known

    run(main())


# --- copies ---


def test_a_copied_data_folder_is_held_and_a_person_decides(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", clock, dial=False):
                pass
            shutil.copytree(tmp_path / "e", tmp_path / "copy")
            async with running(tmp_path / "e", clock) as first:
                await until(lambda: first.uid in top.tunnel.links)
                async with running(tmp_path / "copy", clock) as second:
                    await until(lambda: refusal(second) is RefusalCode.HELD)
                    await until(lambda: "two instances run as edge-1" in first.membership.child.trouble)
                    assert phase(top, first.uid) == "Held"
                    instances = top.membership.instances("edge-1")
                    assert [(one.id, one.kept) for one in instances] == [
                        (first.membership.child.instance, True),
                        (second.membership.child.instance, False),
                    ]
                    assert top.tunnel.links[first.uid].hello.starts[-1].id == first.membership.child.instance  # type: ignore[union-attr]

                    with pytest.raises(NotFound, match="has no instance"):
                        await top.membership.keep_cluster("edge-1", "nonsense")
                    await top.membership.keep_cluster("edge-1", second.membership.child.instance)
                    assert first.uid not in top.tunnel.links or top.tunnel.links[first.uid].closed
                    second.dial()
                    await until(lambda: second.tunnel.parent is not None)
                    await until(lambda: refusal(first) is RefusalCode.HELD)
                    assert phase(top, second.uid) != "Held"
                async with running(tmp_path / "copy", clock) as second:
                    await until(lambda: second.tunnel.parent is not None)  # who was kept comes back
                    await until(lambda: refusal(first) is RefusalCode.HELD)

    run(main())


def test_a_copy_is_held_by_a_parent_whose_disk_takes_nothing_and_remembered_once_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", clock, dial=False):
                pass
            shutil.copytree(tmp_path / "e", tmp_path / "copy")
            async with running(tmp_path / "e", clock) as first:
                await until(lambda: first.uid in top.tunnel.links)

                async def full(work: object) -> None:
                    raise StoreFull("no space left: free some")

                with monkeypatch.context() as patched:
                    patched.setattr(top.store, "commit", full)
                    async with running(tmp_path / "copy", clock) as second:
                        await until(lambda: refusal(second) is not None)
                        assert refusal(second) is RefusalCode.HELD
                        await until(lambda: "two instances run as edge-1" in first.membership.child.trouble)
                assert not top.tunnel.links[first.uid].closed
                async with running(tmp_path / "copy", clock) as second:
                    await until(lambda: refusal(second) is RefusalCode.HELD)
                    assert phase(top, first.uid) == "Held"

    run(main())


def test_a_frozen_original_gives_way_to_its_restored_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", clock, dial=False):
                pass
            shutil.copytree(tmp_path / "e", tmp_path / "copy")
            async with running(tmp_path / "e", clock) as first:
                await until(lambda: first.uid in top.tunnel.links)
                asked: list[float] = []

                async def silent(timeout: float) -> bool:
                    asked.append(timeout)
                    return False

                monkeypatch.setattr(top.tunnel.links[first.uid], "probe", silent)
                async with running(tmp_path / "copy", clock) as second:
                    await until(lambda: second.tunnel.parent is not None)
                    assert set(asked) == {2.0}
                    await first.hang_up()

    run(main())


# --- revoking, replacing, removing, leaving ---


def test_a_revocation_cuts_the_link_and_keeps_it_cut(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "e", "edge-1") as edge:
            link = top.tunnel.links[edge.uid]
            await top.membership.revoke_cluster("edge-1", "stolen")
            assert link.closed, "the link is closed before the person is answered"
            await until(lambda: refusal(edge) is RefusalCode.REVOKED)
            assert "stolen" in str(edge.tunnel.dial_error) and phase(top, edge.uid) == "Revoked"
            assert edge.uid not in top.tunnel.links

    run(main())


def test_a_revocation_reaches_what_stands_below(tmp_path: Path) -> None:
    """Given at the root for a region: the region is cut; given for an edge by its parent, the root learns of it by report."""

    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "r", "region-a") as region,
            member(region, tmp_path / "e", "edge-1") as edge,
        ):
            await region.membership.revoke_cluster("edge-1")
            reported = region.store.get(records.revocation_key("report", edge.uid))
            assert reported is not None
            await top.store.commit(lambda tx: tx.put(records.revocation_key(f"up/{region.uid}", edge.uid), reported.document, uid=edge.uid))
            assert revocation.cluster(top.membership.barring.revoked(), edge.identity().peer) is not None
            lie = reported.document.replace(edge.uid.encode(), top.uid.encode())
            await top.store.commit(lambda tx: tx.put(records.revocation_key(f"up/{region.uid}", top.uid), lie, uid=top.uid))
            assert revocation.cluster(top.membership.barring.revoked(), region.identity().peer) is None

    run(main())


def test_a_revocation_from_above_cuts_a_live_link_below(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "r", "region-a") as region,
            member(region, tmp_path / "e1", "edge-1") as edge,
            member(region, tmp_path / "e2", "edge-2") as other,
        ):
            link = region.tunnel.links[edge.uid]
            document = kinds.Revocation(spec=kinds.RevocationSpec(subject="cluster", id=edge.uid, reason="from above"))
            # As sync would write what the root has put into down/region-a.
            await region.store.commit(
                lambda tx: tx.put(records.revocation_key("desired", edge.uid), records.encode(document), uid=edge.uid)
            )
            await until(lambda: link.closed)
            await until(lambda: refusal(edge) is RefusalCode.REVOKED)
            await until(lambda: region.store.get(records.revocation_key(f"down/{other.uid}", edge.uid)))
            assert other.uid in region.tunnel.links

    run(main())


def test_a_machine_that_died_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            text = await top.token(replace="edge-1")
            with pytest.raises(Exception, match="no member 'edge-1' here to replace"):
                await join(text, tmp_path / "new", "edge-1", clock)
            async with member(top, tmp_path / "old", "edge-1") as old:
                with pytest.raises(Exception, match="is connected"):
                    await join(text, tmp_path / "new", "edge-1", clock)
                labelled = top.store.find("own", "Cluster", old.uid)
                assert labelled is not None
                document = msgspec.json.decode(labelled.document)
                document["metadata"]["labels"] = {"tier": "edge"}
                await top.store.commit(lambda tx: tx.put(labelled.key, msgspec.json.encode(document), uid=old.uid))
            await until(lambda: old.uid not in top.tunnel.links)
            joined = await join(text, tmp_path / "new", "edge-1", clock)
            assert joined.identity.uid != old.uid
            found = top.store.list("own", "Cluster")
            assert [one.uid for one in found] == [joined.identity.uid]
            assert records.decode(found[0].document, kinds.Cluster).metadata.labels == {"tier": "edge"}
            async with running(tmp_path / "new", clock) as new, running(tmp_path / "old", clock) as ghost:
                await until(lambda: new.uid in top.tunnel.links)
                await until(lambda: refusal(ghost) is RefusalCode.REVOKED)

    run(main())


def test_leaving_frees_the_name_and_a_removed_one_stays_out(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            async with member(top, tmp_path / "a", "a") as one:
                with pytest.raises(Conflict, match="is connected"):
                    await top.membership.remove_cluster("a")
                silenced: list[list[str]] = []

                async def silence(uid: str) -> None:
                    silenced.append([uid, *(found.uid for found in top.store.list("own", "Cluster"))])

                top.membership.silence = silence
                await one.membership.leave()
                assert silenced == [[one.uid, one.uid]]  # before it was forgotten: no report of it comes afterwards
                await until(lambda: not top.store.list("own", "Cluster"))
            async with member(top, tmp_path / "b", "a") as two:  # the name is free
                uid = two.uid
                await top.store.commit(lambda tx: tx.put(listing.Key(f"down/{uid}", "Work", "", "w"), b"{}", uid="w"))
            await until(lambda: uid not in top.tunnel.links)
            await top.membership.remove_cluster("a")
            assert not list(top.store.scan(f"down/{uid}"))
            async with running(tmp_path / "b", clock) as gone:
                await until(lambda: refusal(gone) is RefusalCode.NOT_MY_CHILD)
            with pytest.raises(Forbidden, match="root of its tree"):
                await top.membership.leave()
            with pytest.raises(NotFound, match="no member of root"):
                await top.membership.revoke_cluster("nobody")

    run(main())


# --- routes, names ---


def test_a_lying_child_announces_its_sibling_in_vain(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "a", "region-a") as liar,
            member(top, tmp_path / "b", "region-b") as victim,
            member(victim, tmp_path / "e", "edge-1") as edge,
        ):
            router = top.membership.router
            await until(lambda: router.next_hop(edge.uid))
            for uid in (victim.uid, edge.uid):
                record = router.record(uid)
                assert record is not None
                later = msgspec.structs.replace(record, attach=record.attach + 1)
                below = msgspec.structs.replace(later, parent_uid=liar.uid)
                signed = attach.sign(uid, liar.uid, below.attach, liar.identity().spki, liar.identity().sign)
                by_the_liar = msgspec.structs.replace(below, nonce=signed.nonce, signature=signed.signature)
                with_its_key = msgspec.structs.replace(by_the_liar, public_key=signed.public_key)
                for said in (record, later, below, by_the_liar, with_its_key):
                    top.membership.control(top.tunnel.links[liar.uid], Routes(announce=(said,)))
                    assert (router.next_hop(uid), router.record(uid)) == (victim.uid, record)
                top.membership.control(top.tunnel.links[liar.uid], Routes(withdraw=(Withdrawal(uid=uid, attach=later.attach),)))
                assert (router.next_hop(uid), router.record(uid)) == (victim.uid, record)

    run(main())


def test_a_name_held_for_a_join_is_free_again_after_a_while(tmp_path: Path) -> None:
    async def main() -> None:
        clock, now = Clock(), [0.0]
        async with root(tmp_path / "root", clock) as top:
            names = top.membership.names
            names._boottime = lambda: now[0]
            assert (await names.reserve(Reserve("x", "uid-1"))).complete
            assert (await names.reserve(Reserve("x", "uid-1"))).complete
            assert (await names.reserve(Reserve("x", "uid-2"))).taken_by
            now[0] += 121
            assert not (await names.reserve(Reserve("x", "uid-2"))).taken_by

    run(main())


def test_a_silent_ancestor_makes_a_name_provisional(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "r", "region-a") as region:

            async def never(question: Reserve) -> Any:
                await asyncio.Event().wait()

            region.membership.names.ask_parent = never
            assert not (await region.membership.names.reserve_above("x", "uid", seconds=0.01)).complete

    run(main())


def test_membership_survives_a_store_that_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "e", "edge-1"):
            before = top.membership.members()
        store = await Store.open(tmp_path / "root")
        assert list(records.members(store).values()) == before
        await store.close()

    run(main())
