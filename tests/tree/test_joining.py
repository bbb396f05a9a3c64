"""`banyan join` on real sockets: the way in, and every way in which it ends."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.errors import AlreadyExists, Conflict, Exhausted, InvalidInput, JoinError
from cluster_controller.identity import create_root, folder, load, token
from cluster_controller.identity.join import (
    JoinRevoked,
    NameTaken,
    NotApproved,
    ParentUnreachable,
    ProxyRefused,
    TokenAltered,
    TokenExpired,
    TokenForeign,
    TokenUsed,
    WrongAuthority,
)
from cluster_controller.tree import joining
from cluster_controller.tunnel.messages import JoinReply, Refusal, RefusalCode
from tests.tree.site import Clock, altered, join, member, nothing_left, root, run, running, until


def test_every_cause_has_its_own_exit_code() -> None:
    causes: list[type[JoinError]] = [TokenUsed, TokenExpired, TokenForeign, TokenAltered, NameTaken, WrongAuthority, ParentUnreachable]
    causes += [NotApproved, JoinRevoked, ProxyRefused]
    assert sorted(cause.exit_code for cause in causes) == list(range(20, 30))
    assert all(issubclass(cause, JoinError) for cause in causes)


def test_a_site_joins_with_one_command_and_connects(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            joined = await join(await parent.token(), tmp_path / "edge", "edge-1", clock, labels={"tier": "edge"})
            assert joined.fresh and not joined.provisional
            assert joined.identity.parent_uid == parent.uid and joined.identity.saved.labels == {"tier": "edge"}
            files = {path.name for path in (tmp_path / "edge" / "identity").iterdir()}
            assert files == {folder.IDENTITY_FILE}
            async with running(tmp_path / "edge", clock) as edge:
                await until(lambda: edge.uid in parent.tunnel.links)
                assert parent.membership.members()[0].labels == {"tier": "edge"}

    run(main())


def test_a_region_admits_with_the_root_out_of_reach(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "region", "region-a", clock)
        async with running(tmp_path / "region", clock, dial=False) as region:
            joined = await join(await region.token(), tmp_path / "edge", "edge-1", clock)
            assert joined.provisional, "no ancestor could be asked for the name"
            assert joined.identity.path == (top.uid, region.uid, joined.identity.uid)
            async with running(tmp_path / "edge", clock) as edge:
                await until(lambda: edge.uid in region.tunnel.links)

    run(main())


def test_the_second_use_of_a_token_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()
            await join(text, tmp_path / "a", "a", clock)
            with pytest.raises(TokenUsed, match="used by another cluster"):
                await join(text, tmp_path / "b", "b", clock)
            assert nothing_left(tmp_path / "b")
            assert [one.name for one in parent.membership.members()] == ["a"]

    run(main())


def test_running_join_twice_is_safe(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()
            first = await join(text, tmp_path / "a", "a", clock)
        again = await join(text, tmp_path / "a", "a", clock)  # the parent is gone: it needs no network
        assert not again.fresh and again.identity.uid == first.identity.uid
        async with root(tmp_path / "root", clock) as parent:
            with pytest.raises(AlreadyExists, match="already belongs to cluster a"):
                await join(await parent.token(), tmp_path / "a", "b", clock)
            assert load(tmp_path / "a" / "identity").name == "a"

    run(main())


def test_a_lost_answer_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent has consumed the token, the site never hears of it: the same command completes the join."""

    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()
            real = parent.membership.join

            async def lose(request: Any, address: str) -> JoinReply:
                await real(request, address)
                return JoinReply(refusal=Refusal(code=RefusalCode.BUSY, reason="lost"))

            monkeypatch.setattr(parent.membership, "join", lose)
            monkeypatch.setattr(joining, "BUSY_TRIES", 0)
            with pytest.raises(Exhausted):
                await join(text, tmp_path / "a", "a", clock)
            monkeypatch.undo()
            uid = parent.membership.members()[0].uid
            clock.advance(days=400)  # even when the token is long past
            joined = await join(text, tmp_path / "a", "a", clock)
            assert joined.fresh and joined.identity.uid == uid
            assert not (tmp_path / "a" / "identity" / folder.PENDING_FILE).exists()

    run(main())


def test_a_crash_at_any_write_is_healed_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    async def main() -> None:
        clock = Clock()
        real = folder.write
        async with root(tmp_path / "root", clock) as parent:
            for at in range(2):  # the pending keys, the identity
                text, data, writes = await parent.token(), tmp_path / f"a{at}", iter(range(10))

                def crash(path: Path, content: bytes, at: int = at, writes: Any = writes) -> None:
                    if next(writes) == at:
                        raise Crash
                    real(path, content)

                monkeypatch.setattr(folder, "write", crash)
                with pytest.raises(BaseException) as caught:
                    await join(text, data, f"a{at}", clock)
                assert caught.type is Crash or isinstance(caught.value, JoinError)
                monkeypatch.setattr(folder, "write", real)
                assert (await join(text, data, f"a{at}", clock)).fresh
                assert {path.name for path in (data / "identity").iterdir()} == {folder.IDENTITY_FILE}
            assert len(parent.membership.members()) == 2

    run(main())


def test_an_expired_token_is_refused_by_the_parents_clock(tmp_path: Path) -> None:
    async def main() -> None:
        clock, wrong = Clock(), Clock()
        wrong.advance(days=3650)
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token(expires_after_seconds=60)
            await join(await parent.token(expires_after_seconds=60), tmp_path / "skewed", "skewed", wrong)
            clock.advance(seconds=60)
            with pytest.raises(TokenExpired, match="expired at 2026-03-01T12:01:00Z"):
                await join(text, tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a")

    run(main())


@pytest.mark.parametrize("change", [{"secret": b"x" * 16}, {"id": "another"}], ids=["secret", "id"])
def test_a_token_that_the_parent_does_not_know_is_foreign(tmp_path: Path, change: dict[str, Any]) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()
            with pytest.raises(TokenForeign, match="does not know join token"):
                await join(altered(text, **change), tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a")
            assert (await join(text, tmp_path / "a", "a", clock)).fresh, "a guess consumes nothing"

    run(main())


def test_another_member_of_the_tree_at_the_parents_address_gets_no_secret(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "r", "region-a") as region:
            text = altered(await top.token(), addresses=(f"127.0.0.1:{region.port}",))
            with pytest.raises(TokenForeign, match="region-a answers at its address"):
                await join(text, tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a")

    run(main())


def test_another_tree_at_the_parents_address_is_recognised(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, root(tmp_path / "other", clock, "other") as other:
            text = altered(await top.token(), addresses=(f"127.0.0.1:{other.port}",))
            with pytest.raises(WrongAuthority, match="not of the tree that the token pins"):
                await join(text, tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a") and not other.membership.members()

    run(main())


def test_a_stranger_with_the_right_names_is_recognised(tmp_path: Path) -> None:
    """The whole chain of the parent, shown by somebody who holds another key: TLS does not let it pass."""

    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            stranger = create_root(tmp_path / "x" / "identity", "root", clock())
            shown = token.decode(await top.token())
            chain = (*top.identity().peer.chain, b"")
            with pytest.raises(WrongAuthority):
                joining.verify_parent(shown, chain)
            with pytest.raises(WrongAuthority):
                joining.verify_parent(shown, stranger.peer.chain)
            with pytest.raises(WrongAuthority):
                joining.verify_parent(shown, ())

    run(main())


def test_an_altered_token_costs_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()

            async def no_network(*args: Any, **kwargs: Any) -> None:
                raise AssertionError("a connection was made")

            monkeypatch.setattr(joining, "ask", no_network)
            with pytest.raises(TokenAltered, match="not copied whole"):
                await join(text[:-4], tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a")

    run(main())


@pytest.mark.parametrize("name", ["", "A", "edge_1", "-x", "x" * 64, "a.b", "ü"])
def test_a_name_that_is_none_is_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            with pytest.raises(InvalidInput) as caught:
                await join(await parent.token(), tmp_path / "a", name, clock)
            assert caught.value.field == "name" and nothing_left(tmp_path / "a")

    run(main())


def test_a_taken_name_is_refused_and_the_token_stays_good(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            await join(await parent.token(), tmp_path / "a", "a", clock)
            text = await parent.token()
            for taken in ("a", "root"):
                with pytest.raises(NameTaken, match=f"'{taken}' is taken"):
                    await join(text, tmp_path / "b", taken, clock)
                assert nothing_left(tmp_path / "b")
            assert (await join(text, tmp_path / "b", "b", clock)).fresh

    run(main())


def test_a_name_taken_further_up_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with (
            root(tmp_path / "root", clock) as top,
            member(top, tmp_path / "ra", "region-a") as region_a,
            member(top, tmp_path / "rb", "region-b") as region_b,
        ):
            assert not (await join(await region_a.token(), tmp_path / "e1", "edge-1", clock)).provisional
            text = await region_b.token()
            for taken in ("edge-1", "region-a", "root"):
                with pytest.raises(NameTaken, match="is taken by"):
                    await join(text, tmp_path / "e2", taken, clock)
            assert not (await join(text, tmp_path / "e2", "edge-2", clock)).provisional

    run(main())


def test_nobody_at_the_address(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()
        with pytest.raises(ParentUnreachable, match="cannot be reached"):
            await join(text, tmp_path / "a", "a", clock)
        assert nothing_left(tmp_path / "a")
        async with root(tmp_path / "root", clock, port=parent.port) as parent:
            assert (await join(text, tmp_path / "a", "a", clock)).fresh, "the same command works once the parent is back"

    run(main())


def test_the_next_address_is_tried(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            async with root(tmp_path / "root", clock) as parent:
                where = (f"127.0.0.1:{nobody.getsockname()[1]}", f"127.0.0.1:{parent.port}")
                assert (await join(altered(await parent.token(), addresses=where), tmp_path / "a", "a", clock)).fresh

    run(main())


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_something_else_at_the_address(tmp_path: Path, greeting: bytes) -> None:
    async def main() -> None:
        clock = Clock()

        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(greeting)
            writer.close()

        async with root(tmp_path / "root", clock) as parent, await asyncio.start_server(other, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ParentUnreachable):
                await join(altered(await parent.token(), addresses=(f"127.0.0.1:{port}",)), tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a")

    run(main())


def test_a_person_approves(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token("gate", approve=True)
            with pytest.raises(NotApproved, match="banyan approve a"):
                await join(text, tmp_path / "a", "a", clock)
            assert (tmp_path / "a" / "identity" / folder.PENDING_FILE).exists(), "the keys stay for the same command"
            assert parent.membership.list_tokens()[0].status.phase == "Pending"
            with pytest.raises(TokenUsed):
                await join(text, tmp_path / "b", "b", clock)
            with pytest.raises(NotApproved):
                await join(text, tmp_path / "a", "a", clock)
            await parent.membership.approve("a")
            await parent.membership.approve("a")
            assert (await join(text, tmp_path / "a", "a", clock)).fresh
            assert parent.membership.list_tokens()[0].status.phase == "Used"
            assert not (tmp_path / "a" / "identity" / folder.PENDING_FILE).exists()

    run(main())


def test_a_waiting_site_goes_on_by_itself_once_approved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = Clock()
        monkeypatch.setattr("cluster_controller.tree.admission.APPROVAL_POLL_SECONDS", 0.01)
        async with root(tmp_path / "root", clock) as parent:
            told: list[str] = []

            def waiting(text: str) -> None:
                told.append(text)
                task.append(asyncio.create_task(parent.membership.approve("a")))

            task: list[asyncio.Task[Any]] = []
            request = joining.Request(
                token=await parent.token(approve=True), name="a", folder=tmp_path / "a" / "identity", proxy="", patience=60.0
            )
            joined = await joining.join(request, clock, waiting)
            await task[0]
            assert joined.fresh and len(told) == 1

    run(main())


def test_a_revoked_token_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token("t1")
            await parent.membership.revoke_token("t1")
            with pytest.raises(JoinRevoked, match="t1 was revoked"):
                await join(text, tmp_path / "a", "a", clock)
            waiting = await parent.token("t2", approve=True)
            with pytest.raises(NotApproved):
                await join(waiting, tmp_path / "a", "a", clock)
            await parent.membership.revoke_token("t2")
            with pytest.raises(JoinRevoked):
                await join(waiting, tmp_path / "a", "a", clock)
            assert nothing_left(tmp_path / "a") or not list((tmp_path / "a" / "identity").iterdir())

    run(main())


def test_a_leaf_takes_no_children(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent, member(parent, tmp_path / "l", "leaf", may_have_children=False) as leaf:
            assert not leaf.identity().may_issue
            with pytest.raises(Exception, match="may not take children"):
                await leaf.token()

    run(main())


def test_a_token_may_name_the_cluster(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token(cluster_name="edge-7", labels={"site": "dock"})
            with pytest.raises(InvalidInput, match="--name edge-7"):
                await join(text, tmp_path / "a", "a", clock)
            await join(text, tmp_path / "a", "edge-7", clock, labels={"tier": "edge"})
            assert parent.membership.members()[0].labels == {"site": "dock", "tier": "edge"}

    run(main())


def test_two_joins_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            folder.create(tmp_path / "a" / "identity")
            with joining._alone(tmp_path / "a" / "identity"), pytest.raises(Conflict, match="another `banyan join`"):
                await join(await parent.token(), tmp_path / "a", "a", clock)

    run(main())


def test_two_sites_race_for_one_token(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            text = await parent.token()
            done = await asyncio.gather(
                *(join(text, tmp_path / f"s{number}", f"s{number}", clock) for number in range(8)), return_exceptions=True
            )
            assert sum(isinstance(one, joining.Joined) for one in done) == 1
            assert sum(isinstance(one, TokenUsed) for one in done) == 7
            assert len(parent.membership.members()) == 1

    run(main())


def test_two_sites_race_for_one_name(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent:
            texts = [await parent.token() for _ in range(6)]
            done = await asyncio.gather(
                *(join(text, tmp_path / f"s{number}", "same", clock) for number, text in enumerate(texts)), return_exceptions=True
            )
            assert sum(isinstance(one, joining.Joined) for one in done) == 1
            assert sum(isinstance(one, NameTaken) for one in done) == 5

    run(main())
