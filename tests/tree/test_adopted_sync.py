"""What an adopted cluster says reaches its home by way of the adopter, or the nearest ancestor in reach; over real links and stores."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cluster_controller import delivered
from cluster_controller import links as module
from cluster_controller.errors import Forbidden, StoreFull
from cluster_controller.identity import attach, starts
from cluster_controller.identity.revocation import Revocation
from cluster_controller.links import SYNC, Links
from cluster_controller.store import Key
from cluster_controller.tree import away, gate, records
from cluster_controller.tree.away import encode, space_of
from cluster_controller.tree.child import chain_of
from cluster_controller.tunnel import CloseCode, Lane, Refusal, RefusalCode, Start, StreamReset, Welcome
from cluster_controller.tunnel.handshake import Refused
from tests.tree.site import Clock, Site, member, root, run, until


class Doors:
    """What a link means to the membership and to the links, as in `app`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.linked: list[tuple[str, bool]] = []
        self.links = Links(
            site.store, site.tunnel, site.uid, lambda child, heard: self.linked.append((child, heard is None)), site.membership.kin
        )
        self.up, self.down = site.membership.link_up, site.membership.link_down
        site.membership.link_up = self.link_up  # type: ignore[method-assign]
        site.membership.link_down = self.link_down  # type: ignore[method-assign]
        for link in (*site.tunnel.links.values(), *((site.tunnel.parent,) if site.tunnel.parent else ())):
            self.links.up(link)

    def link_up(self, link: object) -> None:
        self.up(link)  # type: ignore[arg-type]
        self.links.up(link)  # type: ignore[arg-type]

    def link_down(self, link: object, reason: str) -> None:
        self.down(link, reason)  # type: ignore[arg-type]
        self.links.down(link)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def grown(folder: Path) -> AsyncIterator[dict[str, Site]]:
    clock = Clock()
    async with root(folder / "root", clock) as top, member(top, folder / "a", "a") as a, member(top, folder / "b", "b") as b:
        async with member(a, folder / "edge", "edge") as edge:
            await until(lambda: edge.membership.child.standing and len(edge.membership.child.standing.parents) == 3)
            sites = {"root": top, "a": a, "b": b, "edge": edge}
            try:
                for site in sites.values():
                    site.doors = Doors(site)  # type: ignore[attr-defined]
                await says(edge, "first")
                await until(lambda: heard(a, f"up/{edge.uid}") == ["first"])
                yield sites
            finally:
                for site in sites.values():
                    await site.doors.links.close()  # type: ignore[attr-defined]


async def says(site: Site, name: str, space: str = "report") -> None:
    await site.store.commit(lambda tx: tx.put(Key(space, "WorkStatus", "", name), b"{}", uid=name))


def heard(site: Site, space: str) -> list[str]:
    return [stored.key.name for stored in site.store.list(space, "WorkStatus")]


def doors(site: Site) -> Doors:
    found: Doors = site.doors  # type: ignore[attr-defined]
    return found


async def cut(sites: dict[str, Site]) -> None:
    """Between a and its child only: a goes on, linked to the root."""
    a, edge = sites["a"], sites["edge"]
    for server in a.tunnel._servers:
        server.close()
    a.tunnel.links[edge.uid].close(CloseCode.GOING_AWAY, "cut")
    await until(lambda: edge.tunnel.parent is not None and edge.tunnel.parent.peer_name == "b")


def test_with_home_in_reach_through_the_tree_everything_is_as_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge, top = sites["a"], sites["b"], sites["edge"], sites["root"]
            await cut(sites)
            await says(edge, "second")
            await until(lambda: heard(a, f"up/{edge.uid}") == ["first", "second"])
            await says(a, "task", f"down/{edge.uid}")  # desired state comes down the same way
            await until(lambda: heard(edge, "desired") == ["task"])
            assert edge.uid in doors(a).links.heard() and edge.uid not in doors(b).links.heard()
            assert doors(a).linked[-1] == (edge.uid, True) and (edge.uid, True) not in doors(b).linked
            record = records.member(a.store, edge.uid)
            assert record is not None and record.adopted_by == b.uid and record.attach == 2
            for site in (b, top):
                assert not [space for space in site.store.spaces() if edge.uid in space]
            await a.listen(a.port)
            await until(lambda: edge.tunnel.parent is not None and edge.tunnel.parent.peer_name == "a")
            await says(edge, "third")
            await until(lambda: heard(a, f"up/{edge.uid}") == ["first", "second", "third"])
            record = records.member(a.store, edge.uid)
            assert record is not None and not record.adopted_by and doors(a).links.heard().keys() == {edge.uid}

    run(main())


def test_with_home_gone_the_nearest_ancestor_keeps_what_is_said_and_serves_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.1)

    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, edge, top = sites["a"], sites["edge"], sites["root"]
            await says(a, "task", f"down/{edge.uid}")
            await until(lambda: heard(edge, "desired") == ["task"])
            await a.hang_up()
            await a.tunnel.close()
            await until(lambda: heard(top, space_of(edge.uid)) == ["first"])
            await says(edge, "second")
            await until(lambda: heard(top, space_of(edge.uid)) == ["first", "second"])
            assert edge.uid in doors(top).links.heard() and top.membership.away.heard() == {edge.uid}
            assert heard(edge, "desired") == ["task"] and not top.store.list(f"down/{edge.uid}", "WorkStatus")
            await says(top, "newer", f"lend/{edge.uid}")
            await until(lambda: heard(edge, delivered.space_of(top.uid)) == ["newer"])
            assert heard(edge, "desired") == ["task"] and delivered.sources(edge.store) == (top.uid,)
            assert records.member(top.store, edge.uid) is None

            report = b'{"spec": {"cluster": "x", "name": "x"}, "status": {"ready": "True"}}'
            key = Key(f"up/{a.uid}", "ClusterStatus", "", edge.uid)
            await top.store.commit(lambda tx: tx.put(key, report, uid=edge.uid))
            assert heard(top, space_of(edge.uid)) == ["first", "second"]  # it is still heard by way of b: that counts
            await edge.hang_up()
            await until(lambda: not top.membership.away.heard())
            await top.store.commit(lambda tx: tx.put(key, report + b" ", uid=edge.uid))
            await until(lambda: not top.membership.away.strays and not heard(top, space_of(edge.uid)))

    run(main())


def test_a_revocation_by_a_cluster_whose_home_is_gone_counts_above(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, edge, top = sites["a"], sites["edge"], sites["root"]
            await a.hang_up()
            await a.tunnel.close()
            await until(lambda: top.membership.away.heard() == {edge.uid})
            stolen = Revocation("cluster", "leaf", "leaf", "stolen", "2026-01-01T00:00:00Z")
            await edge.store.commit(lambda tx: records.put_revocation(tx, "report", stolen))
            await until(lambda: "leaf" in top.membership.barring.revoked())
            (found,) = top.membership.barring.revoked()["leaf"]
            assert found.via == (edge.uid,) and found.reason == "stolen"  # it bars only what stands below the cluster that said it
            await until(lambda: top.store.list("report", "Revocation"))  # and goes on up

    run(main())


def test_what_arrives_is_judged(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge, top = sites["a"], sites["b"], sites["edge"], sites["root"]
            await cut(sites)
            await until(lambda: edge.uid in doors(a).links.heard())
            shown = edge.membership.kin.arrival()
            parsed = away.decode(shown)
            way = (top.uid, b.uid, edge.uid)
            assert await a.membership.away.arrived(shown, way) == (edge.uid, True, "b")  # again, the same
            assert await top.membership.away.arrived(shown, (b.uid, edge.uid)) == (edge.uid, False, "b")
            for source, why in (((top.uid, edge.uid), "not about the way"), ((top.uid, b.uid, a.uid), "not about the way")):
                with pytest.raises(Forbidden, match=why):
                    await a.membership.away.arrived(shown, source)
            with pytest.raises(Forbidden, match="does not stand below"):
                await b.membership.away.arrived(shown, (b.uid, edge.uid))
            older = encode(msgspec.structs.replace(parsed, attach=msgspec.structs.replace(parsed.attach, attach=1)))
            with pytest.raises(Forbidden, match="is not signed by it"):
                await a.membership.away.arrived(older, way)
            stolen = encode(msgspec.structs.replace(parsed, chain=chain_of(b.identity())))
            with pytest.raises(Forbidden, match="certificates shown are those of b"):
                await a.membership.away.arrived(stolen, way)
            copied = encode(msgspec.structs.replace(parsed, starts=("another",)))
            record = records.member(a.store, edge.uid)
            assert record is not None
            with pytest.raises(Forbidden, match="seen before"):  # a copy that says the same attach
                await a.membership.away.arrived(copied, way)
            known = records.member(top.store, a.uid)
            assert known is not None
            await top.store.commit(lambda tx: records.put_member(tx, msgspec.structs.replace(known, state="left")))
            with pytest.raises(Forbidden, match="stood below a, which has left"):
                await top.membership.away.arrived(shown, (b.uid, edge.uid))

    run(main())


def test_a_guest_is_served_nothing_by_its_adopter(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            b, edge = sites["b"], sites["edge"]
            await cut(sites)
            parent = edge.tunnel.parent
            assert parent is not None
            for service in (SYNC, "snapshot", "membership"):
                stream = await parent.open(b.uid, service, edge.membership.kin.arrival() if service == SYNC else b"", lane=Lane.SYNC)
                async with asyncio.timeout(10):
                    with pytest.raises(StreamReset):
                        while await stream.read():
                            pass
            stream = await parent.open(sites["root"].uid, "http")  # nothing but sync is carried up
            async with asyncio.timeout(10):
                with pytest.raises(StreamReset, match="do not leave its subtree"):
                    await stream.read()

    run(main())


def spoken(edge: Site, adopter: Site, number: int, *starts: str) -> bytes:
    """What `edge`, or a copy of it, shows when `adopter` has taken it in for the ``number``-th time."""
    identity = edge.identity()
    begun = records.starts(edge.store)
    return encode(
        away.Arrival(
            attach=attach.sign(identity.uid, adopter.uid, number, identity.spki, identity.sign),
            starts=starts or begun.ids,
            number=begun.number,
            chain=chain_of(identity),
            adopter=adopter.name,
        )
    )


def test_a_link_that_is_half_open_gives_way_to_the_child_that_speaks_by_way_of_an_adopter(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge, top = sites["a"], sites["b"], sites["edge"], sites["root"]
            link = a.tunnel.links[edge.uid]
            assert (await a.membership.away.arrived(spoken(edge, b, 50), (top.uid, b.uid, edge.uid)))[1]
            assert link.closed
            record = records.member(a.store, edge.uid)
            assert record is not None and (record.attach, record.adopted_by) == (50, b.uid)
            with pytest.raises(Forbidden, match="seen before"):  # late, by the older way
                await a.membership.away.arrived(spoken(edge, b, 49), (top.uid, b.uid, edge.uid))

    run(main())


def test_a_copied_data_folder_is_held_also_by_way_of_an_adopter(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge, top = sites["a"], sites["b"], sites["edge"], sites["root"]
            link = a.tunnel.links[edge.uid]
            with pytest.raises(Forbidden, match="two instances run as edge"):
                await a.membership.away.arrived(spoken(edge, b, 50, "copy"), (top.uid, b.uid, edge.uid))
            record = records.member(a.store, edge.uid)
            assert record is not None and record.held == ("copy",) and not link.closed
            await until(lambda: "two instances" in edge.membership.child.trouble)  # it is told, too
            await a.membership.keep_cluster("edge", "copy")
            assert (await a.membership.away.arrived(spoken(edge, b, 51, "copy"), (top.uid, b.uid, edge.uid)))[1]

    run(main())


def test_a_copy_that_comes_by_way_of_an_adopter_is_not_believed_by_a_home_whose_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge, top = sites["a"], sites["b"], sites["edge"], sites["root"]

            async def full(work: object) -> None:
                raise StoreFull("no space left: free some")

            monkeypatch.setattr(a.store, "commit", full)
            with pytest.raises(Forbidden, match="two instances run as edge"):
                await a.membership.away.arrived(spoken(edge, b, 50, "copy"), (top.uid, b.uid, edge.uid))
            monkeypatch.undo()
            await until(lambda: "two instances" in edge.membership.child.trouble)
            assert not a.tunnel.links[edge.uid].closed

    run(main())


def test_a_copy_that_its_home_does_not_believe_lets_go_of_the_adopter(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, edge = sites["a"], sites["edge"]
            record = records.member(a.store, edge.uid)
            assert record is not None
            chosen = starts.keep(record.started, "another", [record.started.start])  # a person has decided against this instance
            decided = msgspec.structs.replace(record, started=chosen)
            await a.store.commit(lambda tx: records.put_member(tx, decided))
            for server in a.tunnel._servers:
                server.close()
            a.tunnel.links[edge.uid].close(CloseCode.GOING_AWAY, "cut")
            await until(lambda: edge.membership.adoptions >= 1 and "two instances run" in edge.membership.child.trouble)
            await until(lambda: edge.uid not in sites["b"].tunnel.links)
            assert edge.uid not in doors(a).links.heard()

    run(main())


def test_who_is_held_by_its_home_goes_to_no_neighbour_not_even_once_home_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HELD_RETRY_SECONDS", 0.2)

    def held(site: Site) -> bool:
        return isinstance(site.tunnel.dial_error, Refused) and site.tunnel.dial_error.refusal.code is RefusalCode.HELD

    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge = sites["a"], sites["b"], sites["edge"]
            record = records.member(a.store, edge.uid)
            assert record is not None
            chosen = starts.keep(record.started, "another", [record.started.start])  # a person has decided against this instance
            await a.store.commit(lambda tx: records.put_member(tx, msgspec.structs.replace(record, started=chosen)))
            a.tunnel.links[edge.uid].close(CloseCode.GOING_AWAY, "cut")
            await until(lambda: held(edge))
            for server in a.tunnel._servers:
                server.close()
            await until(lambda: edge.tunnel.dial_error is not None and not held(edge))  # it has asked home again, in vain
            assert edge.membership.adoptions == 0 and edge.uid not in b.tunnel.links

    run(main())


def test_a_copy_of_a_guest_is_held_by_the_adopter(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            b, edge = sites["b"], sites["edge"]
            await cut(sites)
            peer = b.tunnel.links[edge.uid].peer
            assert peer is not None
            hello = await edge.membership.child.hello(b.uid)
            copied = msgspec.structs.replace(hello, starts=(Start(number=1, id="copy"),))
            answer = await b.membership.welcome(copied, peer)
            assert isinstance(answer, Refusal) and answer.code is RefusalCode.HELD and not b.tunnel.links[edge.uid].closed
            older = await b.membership.welcome(msgspec.structs.replace(hello, attach=edge.tunnel.parent.hello.attach), peer)  # type: ignore[union-attr]
            assert isinstance(older, Refusal) and older.code is RefusalCode.REPLAYED
            assert isinstance(await b.membership.welcome(hello, peer), Welcome)  # the same, restarted: the old link goes
            assert b.membership.guests.refused == 2

    run(main())


def test_a_revoked_cluster_is_carried_by_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with grown(tmp_path) as sites:
            a, b, edge, top = sites["a"], sites["b"], sites["edge"], sites["root"]
            await a.membership.revoke_cluster("edge", "stolen")
            with pytest.raises(Forbidden, match="revoked"):
                await a.membership.away.arrived(spoken(edge, b, 50), (top.uid, b.uid, edge.uid))

    run(main())
