"""Certificates are renewed before their end, and after it, with the root out of reach too. Wall clocks are the test's."""

from pathlib import Path

import pytest

from cluster_controller.errors import NotFound
from cluster_controller.identity import load, renew_root
from cluster_controller.tunnel.messages import Refusal, RefusalCode
from tests.tree.site import Clock, join, member, root, run, running, until


def test_renewal_before_the_end_over_the_live_link(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "r", "region-a") as region:
            before = region.identity()
            clock.advance(days=61)
            assert region.membership.child.due(clock()) == 0
            assert await region.membership.child.renew_once(region.membership.ask_renewal, 20.0)
            after = region.identity()
            assert after.uid == before.uid and after.not_after > before.not_after
            assert load(tmp_path / "r" / "identity").not_after == after.not_after
            assert region.membership.child.due(clock()) > 0
            await join(await region.token(), tmp_path / "e", "edge-1", clock)  # with the rotated issuing key

    run(main())


def test_an_expired_site_renews_when_it_is_back_with_the_root_out_of_reach(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "r", "region-a", clock)
        async with running(tmp_path / "r", clock, dial=False) as region:
            await join(await region.token(), tmp_path / "e", "edge-1", clock)
        clock.advance(days=1000)  # both certificates are long past
        async with running(tmp_path / "r", clock, port=region.port, dial=False) as region, running(tmp_path / "e", clock) as edge:
            await until(lambda: edge.uid in region.tunnel.links)
            assert edge.identity().not_after > clock()
            peer = region.tunnel.links[edge.uid].peer
            assert peer is not None and peer.not_after > clock(), "it came back with the fresh certificate"

    run(main())


def test_an_expired_certificate_opens_no_link_and_a_revoked_one_no_renewal(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            async with member(top, tmp_path / "e", "edge-1") as edge:
                pass
            clock.advance(days=100)
            async with running(tmp_path / "e", clock, dial=False) as edge:
                peer = edge.identity().peer
                answer = await top.membership.welcome(await edge.membership.child.hello(), peer)
                assert isinstance(answer, Refusal) and answer.code is RefusalCode.EXPIRED
                reply = await top.membership.renew(edge.membership.child.renew_request(), peer)
                assert reply.refusal is None and reply.certificate_chain
                await top.membership.revoke_cluster("edge-1")
                reply = await top.membership.renew(edge.membership.child.renew_request(), peer)
                assert reply.refusal is not None and reply.refusal.code is RefusalCode.REVOKED

    run(main())


def test_a_renewal_for_another_key_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "a", "a") as one,
            member(top, tmp_path / "b", "b") as two,
        ):
            reply = await top.membership.renew(two.membership.child.renew_request(), one.identity().peer)
            assert reply.refusal is not None and reply.refusal.code is RefusalCode.FORBIDDEN

    run(main())


def test_a_child_never_refuses_its_parent_for_dates(tmp_path: Path) -> None:
    """The parent's own certificate is long past, and its clock years ahead of the child's."""

    async def main() -> None:
        clock, slow = Clock(), Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", slow)
        slow.advance(days=-3000)
        async with root(tmp_path / "root", clock, port=top.port) as top, running(tmp_path / "e", slow) as edge:
            await until(lambda: edge.uid in top.tunnel.links)

    run(main())


def test_the_root_renews_itself(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            clock.advance(days=61)
            assert await top.membership.child.renew_once(top.membership.ask_renewal, 1.0)
            assert load(tmp_path / "root" / "identity").not_after == top.identity().not_after
            async with member(top, tmp_path / "e", "edge-1"):
                pass
            (tmp_path / "root" / "identity" / "tree-ca.key").unlink()
            assert not await top.membership.child.renew_once(top.membership.ask_renewal, 1.0)
            with pytest.raises(NotFound):
                renew_root(tmp_path / "root" / "identity", top.identity(), clock())

    run(main())
