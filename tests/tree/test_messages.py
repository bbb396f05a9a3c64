"""What links, questions and control messages do to membership, with a link that only remembers what it was told."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.errors import BanyanError, Forbidden, InvalidInput, ProtocolError, Unreachable
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.tree import questions, records, wire
from cluster_controller.tree.links import Links
from cluster_controller.tree.names import Reserve, Reserved
from cluster_controller.tree.questions import Leave
from cluster_controller.tunnel.messages import (
    CloseCode,
    ControlMessage,
    Held,
    Hello,
    Refusal,
    RefusalCode,
    RenewReply,
    RenewRequest,
    Revocation,
    Revoked,
    Routes,
    Welcome,
)
from cluster_controller.tunnel.messages import Path as PathMessage
from tests.identity.family import below, edge, region
from tests.identity.family import root as tree_root
from tests.tree.site import SECONDS, Clock, join, member, root, run, running, until


class Recorder:
    """A link of membership's protocol."""

    def __init__(self, peer_uid: str, *, is_parent: bool = False, hello: Hello | None = None, welcome: Welcome | None = None) -> None:
        self.peer_uid, self.peer_name, self.is_parent = peer_uid, peer_uid[:4], is_parent
        self.peer: PeerCertificate | None = None
        self.hello, self.welcome = hello, welcome
        self.sent: list[ControlMessage] = []
        self.closed: tuple[int, str] | None = None

    def send_control(self, message: ControlMessage) -> None:
        self.sent.append(message)

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    async def probe(self, timeout: float) -> bool:
        return True


def hello_of(child: Any, parent_uid: str, number: int) -> Hello:
    from cluster_controller.identity import attach

    record = attach.sign(child.uid, parent_uid, number, child.spki, child.sign)
    return Hello(uid=child.uid, attach=wire.attach_message(record, child.name))


def links() -> Links:
    return Links(region().uid, lambda: (region().path, ("root", "region-a")))


# --- links ---


def test_what_changes_below_is_told_above() -> None:
    table, parent = links(), Recorder(tree_root().uid, is_parent=True)
    table.up(parent)
    assert parent.sent == [Routes(full=True)]
    child = Recorder(edge().uid, hello=hello_of(edge(), region().uid, 1))
    table.up(child)
    assert isinstance(parent.sent[-1], Routes) and parent.sent[-1].announce[0].uid == edge().uid
    assert table.router.next_hop(edge().uid) == edge().uid and table.connected() == {edge().uid}
    table.down(child)
    assert isinstance(parent.sent[-1], Routes) and parent.sent[-1].withdraw[0].uid == edge().uid
    assert table.router.next_hop(edge().uid) is None
    table.down(child)
    table.down(Recorder("another", is_parent=True))
    assert table.parent is parent
    table.down(parent)
    assert table.parent is None and not table.ask_renewal(RenewRequest())


def test_a_superseded_link_takes_no_routes_along() -> None:
    table = links()
    old = Recorder(edge().uid, hello=hello_of(edge(), region().uid, 1))
    table.up(old)
    table.supersede(edge().uid, "anew")
    table.supersede("nobody", "anew")
    assert old.closed == (CloseCode.SUPERSEDED, "anew")
    table.down(old)
    assert table.router.next_hop(edge().uid) == edge().uid


def test_a_child_with_a_bad_attach_record_loses_its_link() -> None:
    table = links()
    child = Recorder(edge().uid, hello=hello_of(edge(), tree_root().uid, 1))
    table.up(child)
    assert child.closed is not None and child.closed[0] == CloseCode.FORBIDDEN
    silent = Recorder("x")
    table.up(silent)
    assert silent.closed is None


def test_a_child_that_announces_us_is_a_loop() -> None:
    table = links()
    table.up(Recorder(edge().uid, hello=hello_of(edge(), region().uid, 1)))
    ours = hello_of(region(), edge().uid, 5).attach
    assert ours is not None
    with pytest.raises(ProtocolError):
        table.routes(Recorder(edge().uid), Routes(announce=(ours,)))


# --- control messages ---


def test_a_changed_path_goes_down_and_a_loop_ends_the_link(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            parent, child = Recorder("newparent", is_parent=True), Recorder("child")
            one.membership.link_up(parent)
            one.membership.link_up(child)
            one.membership.control(parent, PathMessage(uids=("top", "newparent"), names=("t", "n")))
            assert child.sent == [PathMessage(uids=("top", "newparent", one.uid), names=("t", "n", "region-a"), top="top")]
            one.membership.control(parent, PathMessage(uids=("top", one.uid, "newparent")))
            assert parent.closed is not None and parent.closed[0] == CloseCode.LOOP
            assert one.membership.path()[0] == ("top", "newparent", one.uid), "the path that loops is not believed"

    run(main())


def test_a_welcome_from_below_ends_the_link(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            parent = Recorder("p", is_parent=True, welcome=Welcome(uid="p", name="p", path=(one.uid, "p")))
            one.membership.link_up(parent)
            await until(lambda: parent.closed)
            assert parent.closed is not None and parent.closed[0] == CloseCode.LOOP

    run(main())


def test_trouble_is_kept_for_people_to_see(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            parent, child = Recorder(top.uid, is_parent=True), Recorder("child")
            one.membership.control(parent, Held(uid=one.uid, reason="two of you"))
            assert one.membership.child.trouble == "two of you"
            one.membership.control(parent, Revoked(revocations=(Revocation(uid="other", reason="no"),)))
            assert one.membership.child.trouble == "two of you"
            one.membership.control(child, Revoked(revocations=(Revocation(uid=one.uid, reason="a child's word"),)))
            assert one.membership.child.trouble == "two of you", "a child revokes nobody above it"
            one.membership.control(parent, Revoked(revocations=(Revocation(uid=one.uid, reason="stolen"),)))
            assert one.membership.child.trouble == "stolen"

    run(main())


def test_a_renewal_that_is_refused_or_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            before = one.identity()
            child = one.membership.child
            child.renew_request()
            refused = RenewReply(refusal=Refusal(code=RefusalCode.REVOKED, reason="stolen"))
            with pytest.raises(BanyanError, match="stolen"):
                await child.renewed(refused)
            child.renew_request()
            foreign = below(tree_root(), "x").peer.chain
            with pytest.raises(InvalidInput):
                await child.renewed(RenewReply(certificate_chain=wire.pems(foreign)))
            with pytest.raises(InvalidInput):
                await child.renewed(RenewReply(certificate_chain=(b"nonsense",)))
            with pytest.raises(InvalidInput):
                await child.renewed(RenewReply(certificate_chain=(b"x",) * 100))
            assert one.identity() is before

    run(main())


def test_two_renewals_under_way_do_not_mix_their_keys(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            child, peer = one.membership.child, one.identity().peer
            first, second = child.renew_request(), child.renew_request()
            for request in (first, second):
                await child.renewed(await top.membership.renew(request, peer))
                await join(await one.token(), tmp_path / f"below-{id(request)}", f"e{id(request)}", one.clock)

    run(main())


def test_renewal_comes_by_itself_in_time_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop, with its sleeps turned into moves of the wall clock."""

    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", clock, dial=False) as one:
                await one.membership.close()  # its own loop, which would renew too
                until_then = one.identity().not_after
                pauses: list[float] = []
                attempts: list[Any] = []
                real = asyncio.sleep

                async def sleep(seconds: float) -> None:
                    pauses.append(seconds)
                    clock.now += timedelta(seconds=seconds)
                    await real(0)

                def ask(request: RenewRequest) -> bool:
                    attempts.append(clock.now)
                    if len(attempts) < 3:
                        return False  # no link to the parent

                    async def answer() -> None:
                        await one.membership.child.renewed(await top.membership.renew(request, one.identity().peer))

                    tasks.append(asyncio.create_task(answer()))
                    return True

                tasks: list[asyncio.Task[None]] = []
                monkeypatch.setattr(asyncio, "sleep", sleep)
                loop = asyncio.create_task(one.membership.child.keep_renewed(ask, 20.0))
                async with asyncio.timeout(SECONDS):
                    while one.identity().not_after == until_then:
                        await real(0.001)
                monkeypatch.undo()
                loop.cancel()
                await asyncio.gather(loop, *tasks, return_exceptions=True)
                assert max(pauses) <= 3600.0, "a clock that jumps is noticed within the hour"
                assert attempts[0] < until_then and len(attempts) == 3
                assert (attempts[1] - attempts[0], attempts[2] - attempts[1]) == (timedelta(minutes=1), timedelta(minutes=2))

    run(main())


@pytest.mark.parametrize("skew", [timedelta(days=365), timedelta(days=-365)])
def test_a_clock_that_is_a_year_wrong_does_not_renew_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: timedelta) -> None:
    async def main() -> None:
        clock, wrong = Clock(), Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "e", "edge-1", clock)
            async with running(tmp_path / "e", wrong, dial=False) as one:
                await one.membership.close()  # its own loop, which would renew too
                wrong.now = began = clock.now + skew
                asked: list[timedelta] = []
                real = asyncio.sleep

                async def sleep(seconds: float) -> None:
                    wrong.now += timedelta(seconds=seconds)
                    await real(0)

                def ask(request: RenewRequest) -> bool:
                    asked.append(wrong.now - began)

                    async def answer() -> None:
                        await one.membership.child.renewed(await top.membership.renew(request, one.identity().peer))

                    tasks.append(asyncio.create_task(answer()))
                    return True

                tasks: list[asyncio.Task[None]] = []
                monkeypatch.setattr(asyncio, "sleep", sleep)
                loop = asyncio.create_task(one.membership.child.keep_renewed(ask, 20.0))
                async with asyncio.timeout(SECONDS):
                    while len(asked) < 8:
                        await real(0.001)
                monkeypatch.undo()
                loop.cancel()
                await asyncio.gather(loop, *tasks, return_exceptions=True)
                assert [each.total_seconds() / 60 for each in asked[:8]] == [0, 1, 3, 7, 15, 31, 63, 123]

    run(main())


def test_an_unanswered_renewal_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            assert not await one.membership.child.renew_once(lambda request: True, 0.01)

    run(main())


# --- questions ---


@pytest.mark.parametrize("data", [b"", b"{}", b'{"type":"Reserved"}', b'{"type":"Reserve"}', b"\xff", b"[" * 1000])
def test_a_senseless_question_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        questions.decode(data)


def test_questions_travel() -> None:
    assert questions.decode(questions.encode(Reserve("a", "u", 1.5))) == Reserve("a", "u", 1.5)
    assert questions.decode(questions.encode(Leave())) == Leave()


class Answer:
    """A stream that has an answer waiting."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)
        self.aborted = ""

    async def close_write(self) -> None: ...

    async def read(self, limit: int = 65536) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    def abort(self, reason: str = "") -> None:
        self.aborted = reason


def test_an_answer_is_read_whole_and_bounded() -> None:
    async def main() -> None:
        encoded = questions.encode(Reserved(taken_by="x", complete=True))
        answer: Any = Answer(encoded[:5], encoded[5:])
        assert await questions.reply(answer) == Reserved(taken_by="x", complete=True)
        noise: Any = Answer(b"noise")
        with pytest.raises(InvalidInput, match="cannot be read"):
            await questions.reply(noise)
        flood: Any = Answer(*[b"x" * 4096] * 10)
        with pytest.raises(InvalidInput, match="too long"):
            await questions.reply(flood)
        assert flood.aborted and len(flood.parts) > 5

    run(main())


def test_only_a_direct_child_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            root(tmp_path / "root", Clock()) as top,
            member(top, tmp_path / "r", "region-a") as one,
            member(one, tmp_path / "e", "edge-1") as leaf,
        ):
            leaf.tunnel.policy = one.tunnel.policy = lambda source, destination, service: True
            stream = await leaf.tunnel.open(top.uid, questions.SERVICE, questions.encode(Leave()))
            with pytest.raises(BanyanError):
                await questions.reply(stream)
            assert {one.name for one in top.membership.members() if one.state == "member"} == {"region-a"}

    run(main())


def test_without_a_tunnel_nobody_can_be_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            one.membership._tunnel = None
            with pytest.raises(Unreachable):
                await one.membership.leave()

    run(main())


# --- bounds ---


def test_tables_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            await join(await top.token(), tmp_path / "a", "a", clock)
            await join(await top.token(), tmp_path / "b", "b", clock)
            monkeypatch.setattr(records, "MAX_REVOCATIONS", 1)
            await top.membership.revoke_cluster("a")
            with pytest.raises(BanyanError, match="revocations are kept here already"):
                await top.membership.revoke_cluster("b")
            monkeypatch.setattr(records, "MAX_MEMBERS", 2)
            with pytest.raises(BanyanError, match="has 2 members already"):
                await join(await top.token(), tmp_path / "c", "c", clock)
            names = top.membership.names
            monkeypatch.setattr("cluster_controller.tree.names.MAX_HELD", 1)
            assert (await names.reserve(Reserve("x", "u"))).complete
            assert not (await names.reserve(Reserve("y", "u"))).complete, "not held, hence provisional"

    run(main())


def test_a_token_needs_a_place_that_listens(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            with pytest.raises(InvalidInput, match="banyan --at region-a token create") as caught:
                await top.token(parent="region-a")
            assert caught.value.field == "spec.parent"
            with pytest.raises(InvalidInput, match="DNS label"):
                await top.token("Bad_Name")
            with pytest.raises(InvalidInput, match="DNS label"):
                await top.token(replace="Bad_Name")
            monkey: Any = top.membership
            monkey._addresses = tuple
            with pytest.raises(InvalidInput, match="listens for no children"):
                await top.token()

    run(main())


def test_a_request_that_is_none_consumes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        from cluster_controller.tunnel.messages import JoinRequest

        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            text = await top.token()
            for request in (
                JoinRequest(token="nonsense", csr=b"x", name="a"),
                JoinRequest(token=text, csr=b"x", name="a"),
                JoinRequest(token=text, csr=b"", name="a"),
                JoinRequest(token="x" * 1_000_000, csr=b"", name="a"),
            ):
                reply = await top.membership.join(request, "test")
                assert reply.refusal is not None and reply.refusal.code is RefusalCode.INVALID
            assert top.membership.list_tokens()[0].status.phase == "Open"

    run(main())


def test_the_parent_must_be_who_answers_a_late_renewal(tmp_path: Path) -> None:
    async def main() -> None:
        async with root(tmp_path / "root", Clock()) as top, member(top, tmp_path / "r", "region-a") as one:
            with pytest.raises(Forbidden, match="answers where the parent"):
                one.membership._is_parent(edge().peer.chain)
            one.membership._is_parent(top.identity().peer.chain)

    run(main())
