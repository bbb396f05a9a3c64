"""What a stranger may do to the tunnel's port: each ends with a clear reason and bounded cost, and members go on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from cluster_controller.clock import boottime
from cluster_controller.errors import ProtocolError, Unreachable
from cluster_controller.identity import Identity
from cluster_controller.identity.contexts import join_client
from cluster_controller.tunnel import (
    CloseCode,
    Hello,
    JoinReply,
    JoinRequest,
    Limits,
    Refusal,
    RefusalCode,
    Refused,
    RenewReply,
    RenewRequest,
    Routes,
    ask,
)
from cluster_controller.tunnel.handshake import VERSIONS
from cluster_controller.tunnel.messages import ControlMessage, Open, Reset
from cluster_controller.tunnel.protocol import codec, frames
from cluster_controller.tunnel.server import TokenBucket
from tests.tunnel.support import QUICK, Member, chain, echo, identity, read_all, record_of, root, run


class Stranger:
    """A peer made by hand: says what the test wants, remembers what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subprotocols: list[str] | None) -> None:
        self.reader, self.writer = reader, writer
        self.websocket = ClientProtocol(parse_uri("wss://x/tunnel"), subprotocols=subprotocols, max_size=None)  # type: ignore[arg-type]
        self.messages: list[bytes] = []
        self.response: Response | None = None

    @classmethod
    async def connect(cls, port: int, who: Identity | None = None, subprotocols: tuple[str, ...] = ("banyan.tunnel.v1",)) -> "Stranger":
        context = who.client_context() if who is not None else join_client()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="x")
        made = cls(reader, writer, list(subprotocols) or None)
        made.websocket.send_request(made.websocket.connect())
        made.flush()
        while made.response is None and await made.step():
            pass
        return made

    def flush(self) -> None:
        for chunk in self.websocket.data_to_send():
            if chunk:
                self.writer.write(chunk)

    async def step(self) -> bool:
        data = await self.reader.read(65536)
        if data:
            self.websocket.receive_data(data)
        else:
            self.websocket.receive_eof()
        for event in self.websocket.events_received():
            if isinstance(event, Response):
                self.response = event
            elif isinstance(event, Frame):
                self.messages.append(bytes(event.data))
        if self.websocket.state is not State.CLOSED:
            self.flush()
        return bool(data)

    def send(self, message: bytes) -> None:
        self.websocket.send_binary(message)
        self.flush()

    def say(self, message: ControlMessage) -> None:
        self.send(frames.frame(frames.CONTROL, 0, codec.encode_control(message)))

    async def answer(self) -> ControlMessage | None:
        while not self.messages:
            if not await self.step():
                return None
        return codec.decode_control(self.messages.pop(0)[12:])

    async def closed(self) -> tuple[int, str]:
        while await self.step():
            pass
        self.writer.close()
        close = self.websocket.close_rcvd
        return (close.code, close.reason) if close is not None else (0, "")

    async def drop(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def parent(limits: Limits = QUICK) -> AsyncIterator[tuple[Member, int]]:
    member = Member(root(), limits)
    port = await member.tunnel.serve("127.0.0.1", 0)
    try:
        yield member, port
    finally:
        await member.close()


async def still_admits(member: Member, port: int) -> None:
    child = Member(identity("honest"))
    child.tunnel.handle("echo", echo)
    child.dial(port)
    try:
        await member.until(lambda: child.uid in member.tunnel.links)
        stream = await member.tunnel.open(child.uid, "echo")
        await stream.write(b"hello")
        await stream.close_write()
        assert await read_all(stream) == b"hello"
    finally:
        await child.close()


def hello(who: Identity, attach: int = 1, **changes: object) -> Hello:
    made = Hello(versions=VERSIONS, uid=who.uid, name=who.name, attach=record_of(who, root().uid, attach))
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00", b"\x16\x03\x01\xff\xff" + b"\x00" * 100])
def test_a_peer_that_speaks_no_tls_is_cut_off(first: bytes) -> None:
    async def main() -> None:
        async with parent(Limits(handshake_time=0.3)) as (member, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
            assert member.tunnel.pending == 0
            await still_admits(member, port)

    run(main)


def test_the_wrong_subprotocol_is_refused_with_its_name() -> None:
    async def main() -> None:
        async with parent() as (member, port):
            for offered in (("chat",), ()):
                stranger = await Stranger.connect(port, identity("honest"), offered)
                assert stranger.response is not None
                assert stranger.response.status_code == 400
                assert b"subprotocol" in (stranger.response.body or b"")
                await stranger.drop()
            await still_admits(member, port)

    run(main)


def refused(message: Hello | Routes, who: Identity | None) -> Refusal:
    async def main() -> Refusal:
        async with parent() as (member, port):
            stranger = await Stranger.connect(port, who)
            stranger.say(message)
            answer = await stranger.answer()
            assert isinstance(answer, Refusal)
            code, reason = await stranger.closed()
            assert code == CloseCode.REFUSED
            assert answer.reason.encode()[:100].decode() in reason
            assert not member.tunnel.links
            await still_admits(member, port)
            return answer

    return run(main)


def test_an_unknown_version_is_told_which_ones_there_are() -> None:
    who = identity("honest")
    answer = refused(hello(who, versions=(77, 78)), who)
    assert answer.code is RefusalCode.VERSION
    assert "77, 78" in answer.reason
    assert "upgrade" in answer.reason


def test_a_peer_without_a_certificate_may_only_join() -> None:
    answer = refused(hello(identity("honest")), None)
    assert answer.code is RefusalCode.FORBIDDEN
    assert "banyan join" in answer.reason


def test_a_hello_in_anothers_name_is_refused() -> None:
    assert refused(hello(identity("other")), identity("honest")).code is RefusalCode.FORBIDDEN


def test_a_first_message_that_is_none_is_refused() -> None:
    assert refused(Routes(), identity("honest")).code is RefusalCode.INVALID


def test_a_replayed_hello_is_refused_and_the_running_link_stays() -> None:
    async def main() -> None:
        who = identity("honest")
        async with parent() as (member, port):
            first = await Stranger.connect(port, who)
            first.say(hello(who, 5))
            await first.answer()
            link = member.tunnel.links[who.uid]
            second = await Stranger.connect(port, who)
            second.say(hello(who, 5))
            answer = await second.answer()
            assert isinstance(answer, Refusal)
            assert answer.code is RefusalCode.REPLAYED
            assert member.tunnel.links[who.uid] is link
            assert not link.closed
            await first.drop()
            await second.drop()

    run(main)


def test_a_newer_connection_takes_the_place_of_the_old_one() -> None:
    async def main() -> None:
        who = identity("honest")
        async with parent() as (member, port):
            first = await Stranger.connect(port, who)
            first.say(hello(who, 5))
            await first.answer()
            old = member.tunnel.links[who.uid]
            second = await Stranger.connect(port, who)
            second.say(hello(who, 6))
            await second.answer()
            code, _ = await first.closed()
            assert code == CloseCode.SUPERSEDED
            assert old.closed
            assert member.tunnel.links[who.uid] is not old
            assert member.router.next_hop(who.uid) == who.uid
            await second.drop()

    run(main)


@pytest.mark.parametrize("lie", ["none", "another's", "another parent", "unsigned", "signed by another"])
def test_a_child_that_lies_in_its_attach_record_is_refused_before_anything_is_done(lie: str) -> None:
    """Not welcomed and asked to leave: the membership commits and the parent above is told what was admitted."""
    who, sibling, region = identity("liar", "region"), identity("sibling", "region"), identity("region")
    true = record_of(who, region.uid, 3)
    record = {
        "none": None,
        "another's": record_of(sibling, region.uid, 3),
        "another parent": record_of(who, root().uid, 3),
        "unsigned": msgspec.structs.replace(true, attach=4),
        "signed by another": msgspec.structs.replace(record_of(sibling, region.uid, 3), uid=who.uid),
    }[lie]

    async def main() -> None:
        async with chain("region") as (top, middle):
            port = await middle.tunnel.serve("127.0.0.1", 0)
            told = list(top.controls)
            liar = await Stranger.connect(port, who)
            liar.say(msgspec.structs.replace(hello(who), attach=record))
            answer = await liar.answer()
            assert isinstance(answer, Refusal)
            assert answer.code is RefusalCode.FORBIDDEN
            assert "attach record" in answer.reason
            assert (await liar.closed())[0] == CloseCode.REFUSED
            assert await top.tunnel.links[middle.uid].probe(5)  # whatever middle had said before is here
            assert middle.asked == []
            assert not middle.tunnel.links
            assert len(middle.router) == 0
            assert top.controls == told
            assert top.router.next_hop(who.uid) is None

    run(main)


def test_a_child_that_has_moved_elsewhere_below_is_not_taken_back_by_an_older_record() -> None:
    async def main() -> None:
        async with parent() as (member, port):
            region, moved = identity("region"), identity("honest")
            one = await Stranger.connect(port, region)
            one.say(hello(region, 1))
            await one.answer()
            one.say(Routes(announce=(record_of(moved, region.uid, 7),)))
            await member.until(lambda: member.router.next_hop(moved.uid))
            two = await Stranger.connect(port, moved)
            two.say(hello(moved, 6))
            answer = await two.answer()
            assert isinstance(answer, Refusal)
            assert answer.code is RefusalCode.REPLAYED
            assert [asked.uid for asked in member.asked] == [region.uid]
            assert member.router.next_hop(moved.uid) == region.uid
            await two.closed()
            three = await Stranger.connect(port, moved)
            three.say(hello(moved, 8))
            await member.until(lambda: member.router.next_hop(moved.uid) == moved.uid)
            await one.drop()
            await three.drop()

    run(main)


def test_a_child_cannot_speak_in_a_strangers_name_on_a_stream() -> None:
    async def main() -> None:
        async with parent() as (member, port):
            who = identity("liar")
            liar = await Stranger.connect(port, who)
            liar.say(hello(who, 1))
            await liar.answer()
            member.tunnel.handle("echo", echo)
            forged = codec.encode_payload(Open(destination=(member.uid,), service="echo", source=(identity("sibling").uid,)))
            liar.send(frames.frame(frames.OPEN, 1, forged))
            liar.messages.clear()
            while not liar.messages:
                await liar.step()
            reset = codec.decode_payload(Reset, liar.messages[0][12:])
            assert reset.code.name == "FORBIDDEN"
            await liar.drop()

    run(main)


def test_too_large_a_message_closes_with_its_code() -> None:
    async def main() -> None:
        async with parent() as (member, port):
            stranger = await Stranger.connect(port, identity("honest"))
            stranger.send(b"x" * 70_000)
            code, _ = await stranger.closed()
            assert code == CloseCode.TOO_BIG
            await still_admits(member, port)

    run(main)


def test_one_byte_at_a_time_is_cut_off_when_the_handshake_time_is_over() -> None:
    async def main() -> None:
        async with parent(Limits(handshake_time=0.3)) as (member, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)

            async def trickle() -> None:
                with contextlib.suppress(ConnectionError):
                    for byte in b"\x16\x03\x01\x02\x00" + bytes(10_000):
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0.01)

            task = asyncio.create_task(trickle())
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert member.tunnel.pending == 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            writer.close()

    run(main)


def test_a_crowd_that_never_says_hello_is_bounded_and_keeps_no_child_out() -> None:
    async def main() -> None:
        cap = 50
        async with parent(Limits(max_pending=cap)) as (member, port):
            crowd: list[asyncio.StreamWriter] = []
            try:
                for _ in range(4):
                    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(100)))
                    crowd += [writer for _, writer in opened]
                    assert member.tunnel.pending <= cap
                await still_admits(member, port)
                assert member.tunnel._servers[0].evicted >= 400 - cap
                assert len(member.tunnel._wires.open) <= cap + 2
            finally:
                for writer in crowd:
                    writer.transport.abort()

    run(main)


def test_joins_are_answered_without_a_certificate_and_limited() -> None:
    async def main() -> None:
        async with parent(Limits(joins_per_second=1.0)) as (member, port):
            request = JoinRequest(name="new", token="t")
            shown: list[tuple[bytes, ...]] = []
            addresses = [f"127.0.0.1:{port}"]
            reply = await ask(addresses, join_client(), request, check=shown.append, proxy="")
            assert isinstance(reply, JoinReply)
            assert (reply.name, reply.parent_uid) == ("new", member.uid)
            assert shown[0][-1] == root().tree_ca.public_bytes(Encoding.DER)
            replies = [await ask(addresses, join_client(), request, proxy="") for _ in range(4)]
            busy = [reply.refusal for reply in replies if reply.refusal is not None]
            assert busy
            assert busy[0].code is RefusalCode.BUSY
            assert 0 < busy[0].retry_after <= 1.0

    run(main)


def test_who_asks_may_refuse_the_answerer_before_saying_anything() -> None:
    async def main() -> None:
        async with parent() as (_, port):

            def foreign(shown: tuple[bytes, ...]) -> None:
                raise Unreachable("not the tree of the token")

            with pytest.raises(Unreachable, match="not the tree"):
                await ask([f"127.0.0.1:{port}"], join_client(), JoinRequest(token="secret"), check=foreign, proxy="")

    run(main)


def test_a_renewal_needs_no_link_and_the_certificate() -> None:
    async def main() -> None:
        async with parent() as (_, port):
            reply = await ask([f"127.0.0.1:{port}"], identity("honest").client_context(), RenewRequest(csr=b"x"), proxy="")
            assert isinstance(reply, RenewReply)
            assert reply.certificate_chain == (identity("honest").uid.encode(),)
            with pytest.raises(Refused, match="certificate"):
                await ask([f"127.0.0.1:{port}"], join_client(), RenewRequest(csr=b"x"), proxy="")

    run(main)


def test_the_next_address_is_asked_when_something_else_answers_at_the_first() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")
        writer.close()

    async def main() -> None:
        other = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with other, parent() as (member, port):
            addresses = [f"127.0.0.1:{other.sockets[0].getsockname()[1]}", f"127.0.0.1:{port}"]
            reply = await ask(addresses, join_client(), JoinRequest(name="new"), proxy="")
            assert isinstance(reply, JoinReply)
            assert reply.parent_uid == member.uid

    run(main)


def test_nobody_answers() -> None:
    async def main() -> None:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
            await ask(["127.0.0.1:1"], join_client(), JoinRequest(), proxy="")

    run(main)


def test_the_token_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket = TokenBucket(5.0, 0.0)
    assert [bucket.take(0.0) for _ in range(10)] == [0.0] * 10
    wait = bucket.take(0.0)
    assert wait == pytest.approx(0.2)
    assert bucket.take(0.1) > 0
    assert bucket.take(0.1 + wait) == 0.0


def test_a_parent_of_another_tree_and_a_sibling_are_not_taken_for_the_parent() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            stranger = Member(identity("honest"))
            port = await region.tunnel.serve("127.0.0.1", 0)
            stranger.dial(port)
            while stranger.tunnel.dial_error is None:
                await asyncio.sleep(0.01)
            assert "not the parent" in str(stranger.tunnel.dial_error)
            assert isinstance(stranger.tunnel.dial_error, ProtocolError)
            await stranger.close()
            assert region.uid in top.tunnel.links

    run(main)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=5))
def test_rubbish_from_a_member_ends_its_link_only(pieces: list[bytes]) -> None:
    async def main() -> None:
        who = identity("liar")
        async with parent() as (member, port):
            stranger = await Stranger.connect(port, who)
            stranger.say(hello(who, int(boottime() * 1e6)))
            await stranger.answer()
            for piece in pieces:
                stranger.send(piece)
            stranger.send(b"\x00")  # no header: always a violation
            code, reason = await stranger.closed()
            assert code in set(CloseCode)
            assert reason
            assert not member.tunnel.links
            assert member.downs

    run(main)
