"""WebSocket frames, against the library that the tunnel uses, and against whatever a broken server may send."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.base import Extension
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from cluster_shim.kubernetes import websocket
from cluster_shim.kubernetes.websocket import Messages, ProtocolError

SIZES = st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 70000])
NONE: list[Extension] = []


def parsed(data: bytes) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    generator = Frame.parse(reader.read_exact, mask=True, max_size=1 << 21, extensions=NONE)
    try:
        while True:
            next(generator)
    except StopIteration as end:
        assert isinstance(end.value, Frame)
        return end.value


@given(SIZES, st.binary(min_size=4, max_size=4))
def test_a_server_reads_what_we_send(size: int, mask: bytes) -> None:
    payload = bytes(number % 251 for number in range(size))
    seen = parsed(websocket.frame(websocket.BINARY, payload, mask))
    assert (seen.opcode, bytes(seen.data), seen.fin) == (Opcode.BINARY, payload, True)


@given(st.lists(st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.CLOSE]), st.binary(max_size=125)), max_size=6),
       st.integers(1, 40))  # fmt: skip
def test_we_read_what_a_server_sends_in_any_pieces(sent: list[tuple[Opcode, bytes]], piece: int) -> None:
    wire = b"".join(Frame(opcode, data).serialize(mask=False, extensions=NONE) for opcode, data in sent)
    messages = Messages()
    seen = [found for start in range(0, len(wire), piece) for found in messages.feed(wire[start : start + piece])]
    assert seen == [(int(opcode), data) for opcode, data in sent]


@given(SIZES, SIZES)
def test_a_message_in_parts_with_a_ping_between(first: int, second: int) -> None:
    wire = Frame(Opcode.BINARY, b"a" * first, fin=False).serialize(mask=False, extensions=NONE)
    wire += Frame(Opcode.PING, b"?").serialize(mask=False, extensions=NONE)
    wire += Frame(Opcode.CONT, b"b" * second).serialize(mask=False, extensions=NONE)
    assert list(Messages().feed(wire)) == [(websocket.PING, b"?"), (websocket.BINARY, b"a" * first + b"b" * second)]


@pytest.mark.parametrize(
    "wire",
    [
        b"\x80\x01a",  # goes on, without having begun
        b"\x02\x01a\x82\x01b",  # begins in the midst of another
        b"\x09\x00",  # a ping in parts
        b"\x89\x7e\x00\x7e" + b"x" * 126,  # a ping that is too long
        b"\xc2\x00",  # a reserved bit
        b"\x82\x81\x00\x00\x00\x00a",  # masked
        b"\x82\x7f" + (1 << 40).to_bytes(8),  # nothing anybody should wait for
    ],
)
def test_what_is_no_websocket_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Messages().feed(wire))


def test_a_message_without_end_is_refused() -> None:
    messages = Messages()
    part = Frame(Opcode.CONT, b"x" * 65536, fin=False).serialize(mask=False, extensions=NONE)
    list(messages.feed(Frame(Opcode.BINARY, b"x", fin=False).serialize(mask=False, extensions=NONE)))
    with pytest.raises(ProtocolError, match="more than"):
        for _ in range(17):
            list(messages.feed(part))


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        list(Messages().feed(data))


def test_the_answer_to_a_key_is_the_standards_own_example() -> None:
    assert websocket.accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
