"""Adoption over real links: controllers with identity, store, membership and tunnel, and parents that go and come back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cluster_controller.errors import Unreachable
from cluster_controller.store import Key
from cluster_controller.tree import guests, records
from cluster_controller.tree.failover import HOME, SIBLING, UNCLE, Policy
from cluster_controller.tunnel import CloseCode, Stream, StreamReset, Welcome
from cluster_controller.tunnel.messages import RefusalCode
from tests.tree.site import ANYBODY, Clock, Site, join, member, root, run, running, until


@contextlib.asynccontextmanager
async def two_regions(
    folder: Path, policy: Policy = ANYBODY, *, lender: Policy = ANYBODY, clock: Clock | None = None
) -> AsyncIterator[tuple[Site, Site, Site, Site]]:
    """root, region-a, region-b, and edge-1 under region-a, which knows region-b as an alternate."""
    clock = clock or Clock()
    async with root(folder / "root", clock) as top:
        async with member(top, folder / "a", "region-a") as a, member(top, folder / "b", "region-b", policy=lender) as b:
            async with member(a, folder / "edge", "edge-1", policy=policy) as edge:
                await until(lambda: b.uid in alternates(edge) and b.uid in alternates(a) and a.uid in alternates(b))
                yield top, a, b, edge


def alternates(site: Site) -> dict[str, str]:
    standing = site.membership.child.standing
    return {one.uid: one.relation for one in standing.parents} if standing is not None else {}


def at(site: Site) -> str:
    return site.tunnel.parent.peer_name if site.tunnel.parent is not None else ""


async def stop_listening(site: Site) -> None:
    """As if it was killed: its port closes, and every link."""
    await site.hang_up()
    await site.tunnel.close()


def test_standings_name_the_alternates_and_are_told_anew_when_they_change(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path) as (top, a, b, edge):
            assert alternates(edge) == {a.uid: HOME, b.uid: UNCLE, top.uid: "grandparent"}
            assert alternates(a) == {top.uid: HOME, b.uid: SIBLING}
            async with member(a, tmp_path / "edge-2", "edge-2") as second:
                await until(lambda: alternates(edge).get(second.uid) == SIBLING)
                assert alternates(second)[edge.uid] == SIBLING
            held = records.standing(edge.store)
            assert held is not None and held.serial > 1 and held == edge.membership.child.standing  # on the disk

    run(main())


def test_a_child_whose_parent_is_gone_is_carried_by_its_uncle_and_comes_home(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path) as (top, a, b, edge):
            port = a.port
            await stop_listening(a)
            await until(lambda: at(edge) == "region-b" and top.membership.router.next_hop(edge.uid) == b.uid)
            assert edge.membership.adopter == (b.uid, "region-b") and edge.membership.adoptions == 1
            assert records.member(b.store, edge.uid) is None and list(b.membership.guests.present()) == [edge.uid]
            assert not b.store.spaces() or not any(edge.uid in space for space in b.store.spaces())
            assert edge.membership.path()[1] == ("root", "region-b", "edge-1")
            assert edge.membership.live() == (top.uid, b.uid, edge.uid)
            await a.come_back(port)
            await until(lambda: at(edge) == "region-a" and edge.uid in a.tunnel.links)
            await until(lambda: top.membership.router.next_hop(edge.uid) == a.uid)
            await until(lambda: not b.membership.guests.present())
            assert edge.membership.returns == 1

    run(main())


def test_a_child_whose_certificate_expires_while_its_home_is_gone_is_carried_on_and_renewed_at_home(tmp_path: Path) -> None:
    """Its home alone judges the dates, when it is back."""

    async def main() -> None:
        clock = Clock()
        async with two_regions(tmp_path, clock=clock) as (_, a, _b, edge):
            port = a.port
            await stop_listening(a)
            await until(lambda: at(edge) == "region-b")
            clock.advance(days=1000)
            assert edge.identity().not_after < clock()
            edge.tunnel.parent.close(CloseCode.GOING_AWAY, "cut")  # type: ignore[union-attr]
            await until(lambda: at(edge) == "")
            await until(lambda: at(edge) == "region-b")  # it comes in again, with the expired certificate
            await a.come_back(port)
            await until(lambda: at(edge) == "region-a" and edge.uid in a.tunnel.links)
            assert edge.identity().not_after > clock() and edge.identity().peer.home == a.uid

    run(main())


def test_a_newer_start_takes_the_guests_place_at_once_and_its_old_link_ends_with_the_reason(tmp_path: Path) -> None:
    """No waiting until TCP has noticed that the old connection is dead."""

    async def main() -> None:
        async with two_regions(tmp_path) as (_, a, b, edge):
            await stop_listening(a)
            await until(lambda: at(edge) == "region-b" and edge.uid in b.tunnel.links)
            old = b.tunnel.links[edge.uid]

            async def hold(stream: Stream) -> None:
                await stream.read()

            edge.tunnel.handle("held", hold)
            stream = await b.tunnel.open(edge.uid, "held")
            await edge.membership.child.begin()  # begun anew, as after a crash: its half-open link stands still
            hello = await edge.membership.child.hello(b.uid)
            assert old.peer is not None
            assert isinstance(await b.membership.welcome(hello, old.peer), Welcome)
            assert old.closed
            async with asyncio.timeout(10):
                with pytest.raises(StreamReset, match="anew"):
                    while await stream.read():
                        pass

    run(main())


def test_who_is_carried_cannot_leave_until_its_home_is_back_and_is_told_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path) as (_, a, _b, edge):
            port = a.port
            await stop_listening(a)
            await until(lambda: at(edge) == "region-b")
            with pytest.raises(Unreachable, match="region-a is out of reach, and region-b, which carries edge-1"):
                await edge.membership.leave()
            await a.come_back(port)
            await until(lambda: at(edge) == "region-a" and edge.membership.adopter is None)
            await edge.membership.leave()
            await until(lambda: not a.store.find("own", "Cluster", edge.uid))

    run(main())


def test_a_site_that_forbids_it_waits_for_its_parent(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path, Policy(allow=False)) as (_, a, b, edge):
            await stop_listening(a)
            await until(lambda: edge.tunnel.parent is None and edge.tunnel.dial_error is not None)
            assert [one.name for one in edge.membership.parents()] == ["region-a"] and not b.membership.guests.present()

    run(main())


def test_the_sites_policy_says_who_may_carry_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path) as (top, a, b, edge):
            assert [one.name for one in edge.membership.parents()] == ["region-a", "region-b", "root"]

            async def permit(*names: str) -> list[str]:
                document = {"metadata": {"name": "site"}, "spec": {"parents": list(names)}}
                key = Key("own", "SitePolicy", "", "site")
                await edge.store.commit(lambda tx: tx.put(key, msgspec.json.encode(document), uid="policy"))
                return [one.name for one in edge.membership.parents()]

            assert await permit("region-*") == ["region-a", "region-b"]
            assert await permit(top.uid) == ["region-a", "root"]
            assert await permit() == ["region-a"], "its own parent needs no permission"
            await stop_listening(a)
            await until(lambda: edge.tunnel.parent is None and edge.tunnel.dial_error is not None)
            assert not b.membership.guests.present()

    run(main())


def test_who_has_lost_its_own_way_up_takes_nobody_in_and_all_stay_put(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path) as (top, a, b, edge):
            await stop_listening(top)
            await until(lambda: a.tunnel.refusal is not None and b.tunnel.refusal is not None)  # each has asked the other
            assert {a.tunnel.refusal.refusal.code, b.tunnel.refusal.refusal.code} == {RefusalCode.OUT_OF_REACH}  # type: ignore[union-attr]
            assert at(edge) == "region-a" and not a.membership.guests.present() and not b.membership.guests.present()
            await until(lambda: edge.membership.live() == (a.uid, edge.uid))  # it knows how far up its parent is linked

    run(main())


def test_a_guest_is_sent_on_when_its_adopter_has_lost_every_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "PATIENCE_SECONDS", 0.05)

    async def main() -> None:
        async with two_regions(tmp_path) as (top, a, b, edge):
            await stop_listening(a)
            await until(lambda: at(edge) == "region-b")
            await stop_listening(top)
            await until(lambda: edge.tunnel.parent is None and not b.membership.guests.present())

    run(main())


def test_a_full_lender_names_a_time_and_the_next_alternate_takes_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path, lender=Policy(guests=0)) as (top, a, b, edge):
            await stop_listening(a)
            await until(lambda: at(edge) == "root")  # the grandparent
            assert records.member(top.store, edge.uid) is None and not b.membership.guests.present()

    run(main())


def test_a_member_of_another_tree_part_without_a_standing_is_still_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_regions(tmp_path) as (_, a, b, edge):
            hello = await edge.membership.child.hello(b.uid)
            assert hello.standing is not None
            forged = hello.standing.__class__(
                **{name: getattr(hello.standing, name) for name in hello.standing.__struct_fields__} | {"serial": 99}
            )
            peer = a.tunnel.links[edge.uid].peer
            assert peer is not None
            for shown, code in ((None, RefusalCode.NOT_MY_CHILD), (forged, RefusalCode.FORBIDDEN)):
                changed = hello.__class__(**{name: getattr(hello, name) for name in hello.__struct_fields__} | {"standing": shown})
                answer = await b.membership.welcome(changed, peer)
                assert answer.code is code  # type: ignore[union-attr]
            assert not b.membership.guests.get(edge.uid)

    run(main())


def test_a_child_that_joins_is_told_its_siblings_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "a", "one") as first:
            await join(await top.token(), tmp_path / "b", "two", clock)
            async with running(tmp_path / "b", clock) as second:
                await until(lambda: alternates(second).get(first.uid) == SIBLING)

    run(main())


def test_who_comes_in_a_crowd_is_told_a_time_and_taken_in_then(tmp_path: Path) -> None:
    async def main() -> None:
        only = Policy(alternates=("region-b",))
        async with two_regions(tmp_path, only, lender=Policy(guests_per_second=0.9)) as (_, a, b, edge):
            async with member(a, tmp_path / "edge-2", "edge-2", policy=only) as second:
                await until(lambda: b.uid in alternates(second))
                await stop_listening(a)
                await until(lambda: at(edge) == at(second) == "region-b")
                assert b.membership.guests.refused >= 1 and b.membership.guests.adopted == 2

    run(main())
