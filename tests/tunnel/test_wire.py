"""TLS and WebSocket around messages: any split of the bytes, loss at any byte, messages in fragments."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.errors import ProtocolError
from cluster_controller.tunnel import CloseCode, Limits
from cluster_controller.tunnel.proxy import Address, Connect, Proxy
from cluster_controller.tunnel.wire import Wire, Wires
from tests.tunnel.support import identity, root


class Owner:
    """Keeps what a wire tells."""

    def __init__(self) -> None:
        self.ready = 0
        self.messages: list[bytes] = []
        self.lost: list[tuple[int, str]] = []

    def wire_ready(self) -> None:
        self.ready += 1

    def wire_received(self) -> None: ...

    def wire_message(self, message: bytes) -> None:
        self.messages.append(message)

    def wire_writable(self) -> None: ...

    def wire_lost(self, code: int, reason: str) -> None:
        self.lost.append((code, reason))


class Transport(asyncio.Transport):
    """Keeps what is written; closing is immediate and tells the wire, as a loop does."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.wire = wire
        self.written = bytearray()
        self.total = 0
        self.gone = False

    def write(self, data: Any) -> None:
        self.written += data
        self.total += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.gone

    def close(self) -> None:
        if not self.gone:
            self.gone = True
            self.wire.connection_lost(None)

    abort = close


class Cord:
    """A child's and a parent's wire with the bytes between them."""

    def __init__(self, connect: Connect | None = None) -> None:
        limits = Limits()
        self.child, self.parent = Owner(), Owner()
        self.up = Wire(self.child, identity("honest").client_context(), Wires(limits), name="x", connect=connect)
        self.down = Wire(self.parent, root().server_context(), Wires(limits), name=None)
        self.up_transport, self.down_transport = Transport(self.up), Transport(self.down)
        self.down.connection_made(self.down_transport)
        self.up.connection_made(self.up_transport)

    def move(self, upward: bool, size: int) -> int:
        """At most ``size`` bytes from one side to the other; how many."""
        source, target, there = (self.up_transport, self.down, self.down_transport) if upward else (
            self.down_transport, self.up, self.up_transport,
        )  # fmt: skip
        piece = bytes(source.written[:size])
        del source.written[: len(piece)]
        if piece and not there.gone:
            target.get_buffer(-1)[: len(piece)] = piece
            target.buffer_updated(len(piece))
        return len(piece)

    def settle(self) -> None:
        while self.move(True, 65536) + self.move(False, 65536):
            pass


def inside_a_loop(test: Any) -> None:
    async def main() -> None:
        test()

    asyncio.run(main())


MESSAGES = st.lists(st.binary(min_size=1, max_size=300) | st.integers(10_000, 65_000).map(lambda size: b"L" * size), max_size=6)
SPLITS = st.lists(st.tuples(st.booleans(), st.integers(1, 700) | st.just(1)), max_size=150)


@settings(max_examples=40, deadline=None)
@given(MESSAGES, MESSAGES, SPLITS)
def test_messages_arrive_whole_however_the_bytes_are_split(up: list[bytes], down: list[bytes], splits: list[tuple[bool, int]]) -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        assert (cord.child.ready, cord.parent.ready) == (1, 1)
        for message in up:
            cord.up.send(message)
        for message in down:
            cord.down.send(message)
        for upward, size in splits:
            cord.move(upward, size)
        cord.settle()
        assert (cord.parent.messages, cord.child.messages) == (up, down)
        assert cord.down.tls.verified_chain()
        assert (cord.child.lost, cord.parent.lost) == ([], [])

    inside_a_loop(test)


def test_the_handshake_works_byte_by_byte() -> None:
    def test() -> None:
        cord = Cord()
        while cord.move(True, 1) + cord.move(False, 1):
            pass
        assert (cord.child.ready, cord.parent.ready) == (1, 1)

    inside_a_loop(test)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12_000), st.booleans())
def test_a_connection_that_breaks_at_any_byte_is_reported_once_and_nothing_half_arrives(at: int, upward: bool) -> None:
    def test() -> None:
        cord = Cord()
        moved = 0
        while moved < at and (step := cord.move(upward, min(97, at - moved)) + cord.move(not upward, 97)):
            moved += step
        if cord.child.ready and cord.parent.ready:
            cord.up.send(b"m" * 5000)
            cord.move(True, 2500)
        cord.down_transport.close()
        cord.up_transport.close()
        assert len(cord.child.lost) == len(cord.parent.lost) == 1
        assert cord.parent.messages in ([], [b"m" * 5000])

    inside_a_loop(test)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 255))
def test_a_bit_flipped_on_the_way_never_changes_a_message(at: int, value: int) -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        cord.up.send(b"m" * 5000)
        written = cord.up_transport.written
        changed = written[at % len(written)] != value
        written[at % len(written)] = value
        cord.settle()
        assert cord.parent.messages == ([] if changed else [b"m" * 5000])
        assert bool(cord.parent.lost) <= changed

    inside_a_loop(test)


def test_a_close_carries_code_and_reason_and_a_long_reason_is_cut() -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        cord.down.close(CloseCode.REVOKED, "this certificate was revoked: " + "ü" * 200)
        cord.settle()
        ((code, reason),) = cord.child.lost
        assert code == CloseCode.REVOKED
        assert reason.startswith("this certificate was revoked: ü")
        assert cord.parent.lost[0][0] == CloseCode.REVOKED

    inside_a_loop(test)


@pytest.mark.parametrize(
    ("bad", "code"),
    [(b"\x82\x05hello", CloseCode.PROTOCOL), (b"\x81\x80\x00\x00\x00\x00", CloseCode.PROTOCOL), (b"\xff\xff", CloseCode.PROTOCOL)],
)
def test_what_is_no_websocket_frame_closes_the_link(bad: bytes, code: int) -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        cord.up.tls.write(bad)
        cord.up_transport.write(cord.up.tls.ciphertext())
        cord.settle()
        assert cord.parent.lost[0][0] == code
        assert not cord.parent.messages

    inside_a_loop(test)


def test_a_message_in_websocket_fragments_is_put_together() -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        cord.up._websocket.send_binary(b"one ", fin=False)
        cord.up._websocket.send_continuation(b"two", fin=True)
        cord.up._flush()
        cord.settle()
        assert cord.parent.messages == [b"one two"]

    inside_a_loop(test)


def test_a_ping_of_the_websocket_layer_is_answered() -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        before = cord.down_transport.total
        cord.up._websocket.send_ping(b"are you there")
        cord.up._flush()
        cord.settle()
        assert cord.down_transport.total > before
        assert not cord.parent.lost

    inside_a_loop(test)


def test_a_message_that_is_not_whole_is_noticed_by_the_time_it_takes() -> None:
    def test() -> None:
        cord = Cord()
        cord.settle()
        assert cord.down.stuck_since() is None
        cord.up.send(b"m" * 40_000)
        cord.move(True, 20_000)
        assert cord.down.stuck_since() is not None
        cord.settle()
        assert cord.down.stuck_since() is None

    inside_a_loop(test)


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_a_link_goes_through_a_proxy_whatever_the_split(size: int) -> None:
    def test() -> None:
        proxy = Proxy(Address("proxy.example", 3128), False, "user", "pass word")
        cord = Cord(Connect(proxy, Address("parent.example", 10000)))
        asked = bytes(cord.up_transport.written)
        assert asked.startswith(b"CONNECT parent.example:10000 HTTP/1.1\r\nHost: parent.example:10000\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in asked
        cord.up_transport.written.clear()
        cord.down_transport.written += b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"
        while cord.move(False, size) + cord.move(True, size):
            pass
        assert (cord.child.ready, cord.parent.ready) == (1, 1)

    inside_a_loop(test)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "wants credentials"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refuses to connect to parent.example:10000: HTTP/1.1 403"),
        (b"SSH-2.0\r\n\r\n", "does not speak HTTP"),
        (b"x" * 20_000, "more than 16384 bytes"),
    ],
)
def test_a_proxy_that_does_not_help_is_named_without_its_password(answer: bytes, reason: str) -> None:
    connect = Connect(Proxy(Address("proxy.example", 3128), False, "user", "secret"), Address("parent.example", 10000))
    with pytest.raises(ProtocolError) as caught:
        connect.feed(answer)
    assert reason in str(caught.value)
    assert "proxy.example:3128" in str(caught.value)
    assert caught.value.code == CloseCode.PROXY
    assert "secret" not in str(caught.value)
