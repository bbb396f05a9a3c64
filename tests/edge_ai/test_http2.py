"""HTTP/2 as an independent peer (h2) speaks it, in any pieces, under any windows; and what a hostile one may not do."""

import struct
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ai.serve import http2
from edge_ai.serve.http2 import Connection, Limits, Stream, frame, literal

HEAD = b"\x88" + literal("content-type", "application/grpc")
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/service/Method"), (":authority", "x"), ("te", "trailers")]
SMALL = Limits(streams=3, headers=2000, stream_window=1000, window=70_000, resets=5)


class Echo:
    """Answers each call with what it was sent, once it has ended; or as soon as told."""

    def __init__(self) -> None:
        self.connection: Connection
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: list[Stream] = []
        self.lost: list[int] = []
        self.hold = False

    def begin(self, stream: Stream, headers: dict[str, str]) -> None:
        self.headers[stream.number], self.bodies[stream.number] = headers, b""

    def data(self, stream: Stream, data: bytes, ended: bool) -> None:
        self.bodies[stream.number] += data
        self.connection.consumed(stream, len(data))
        if ended:
            self.ended.append(stream)
            if not self.hold:
                self.answer(stream)

    def answer(self, stream: Stream) -> None:
        self.connection.answer(stream, HEAD, self.bodies[stream.number], literal("grpc-status", "0"))

    def gone(self, stream: Stream) -> None:
        self.lost.append(stream.number)


def server(limits: Limits = Limits()) -> tuple[Connection, Echo]:  # noqa: B008
    echo = Echo()
    echo.connection = Connection(echo, limits)
    return echo.connection, echo


class Client:
    """h2 at the other end; what each stream answered."""

    def __init__(self, connection: Connection, window: int = 65535) -> None:
        self.server = connection
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.resets: dict[int, int] = {}
        self.gone: tuple[int, bytes] | None = None

    def turn(self, cut: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        """Until neither has anything to say."""
        for _ in range(10_000):
            said = self.h2.data_to_send()
            for piece in cut(said):
                self.server.feed(piece)
            answered = self.server.take()
            if not said and not answered:
                return
            if answered:
                self.see(self.h2.receive_data(answered))
        raise AssertionError("they never come to an end")

    def see(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case h2.events.ResponseReceived():
                    self.heads[event.stream_id] = dict(event.headers)
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.TrailersReceived():
                    self.trailers[event.stream_id] = dict(event.headers)
                case h2.events.StreamReset():
                    self.resets[event.stream_id] = int(event.error_code)
                case h2.events.ConnectionTerminated():
                    self.gone = int(event.error_code), event.additional_data or b""

    def ask(self, number: int, body: bytes) -> None:
        self.h2.send_headers(number, REQUEST)
        self.send(number, body)

    def send(self, number: int, body: bytes) -> None:
        """As the windows allow; the server opens them as it takes what comes."""
        while True:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(body))
            self.h2.send_data(number, body[:room], end_stream=room == len(body))
            body = body[room:]
            if not body:
                return
            self.server.feed(self.h2.data_to_send())
            self.see(self.h2.receive_data(self.server.take()))
            assert self.h2.local_flow_control_window(number) > 0, "the server does not open its window"


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=300) | st.integers(0, 200_000).map(bytes), min_size=1, max_size=6),
    st.sampled_from([100, 65535, 1 << 20]),
    st.integers(1, 5000),
    st.booleans(),
)
def test_what_is_asked_comes_back_in_any_pieces_and_windows(bodies: list[bytes], window: int, size: int, small: bool) -> None:
    connection, echo = server(SMALL if small else Limits())
    client = Client(connection, window)
    client.turn()
    for position, body in enumerate(bodies):
        number = 2 * position + 1
        client.ask(number, body)
        client.turn(lambda said: [said[start : start + size] for start in range(0, len(said), size)] or [b""])
        assert client.bodies.get(number, b"") == body == echo.bodies[number]
        assert client.heads[number][b":status"] == b"200" and client.trailers[number] == {b"grpc-status": b"0"}
        assert echo.headers[number][":path"] == "/service/Method"
    assert not connection.streams and not connection.failed and not echo.lost


def test_a_repeated_block_means_the_same_until_the_table_changes() -> None:
    connection, echo = server()
    connection.feed(http2.PREFACE + frame(http2.SETTINGS, 0, 0))
    encoder, number = Encoder(), 1
    for value in ("one", "one", "one", "two", "two", "one", "one"):
        block = encoder.encode([*REQUEST, ("x-value", value)])
        connection.feed(frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, number, block))
        assert echo.headers[number]["x-value"] == value
        number += 2
    encoder.header_table_size = 0  # evicts all, and says so in the next block
    for _ in range(3):
        connection.feed(frame(5 - 4, http2.END_HEADERS | http2.END_STREAM, number, encoder.encode([*REQUEST, ("x-value", "three")])))
        assert echo.headers[number]["x-value"] == "three"
        number += 2
    assert not connection.failed


def test_answers_share_the_connection_and_none_overtakes_its_window() -> None:
    connection, echo = server()
    client = Client(connection, 1 << 20)
    client.turn()
    echo.hold = True
    for number in (1, 3):
        client.ask(number, bytes(60_000))
    client.turn()
    for stream in echo.ended:
        echo.answer(stream)
    sent = len(connection.take())
    assert 65_535 <= sent < 66_500  # the connection's window, and not a byte of data more
    assert len(connection.streams) == 1  # the first is answered whole, the second as far as it goes
    connection.feed(frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 100_000)))
    assert not connection.streams and len(connection.take()) > 54_000


def test_who_resets_or_leaves_is_forgotten() -> None:
    connection, echo = server()
    client = Client(connection)
    echo.hold = True
    for number in (1, 3):
        client.ask(number, b"x")
    client.turn()
    client.h2.reset_stream(1)
    client.turn()
    assert echo.lost == [1]
    echo.answer(echo.ended[0])  # too late: it goes nowhere
    assert connection.take() == b""
    connection.lost()
    assert echo.lost == [1, 3] and not connection.streams


def test_retiring_lets_those_under_way_end_and_asks_for_no_more() -> None:
    connection, echo = server()
    client = Client(connection)
    echo.hold = True
    client.ask(1, b"x")
    client.turn()
    connection.retire()
    said = connection.take()
    assert said[3] == http2.GOAWAY and said[9:13] == http2.EVERY_STREAM  # none of what is on its way is refused
    connection.feed(frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 3, Encoder().encode(REQUEST)))
    assert len(echo.ended) == 2
    connection.end()
    connection.feed(frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 5, Encoder().encode(REQUEST)))
    for stream in echo.ended:
        echo.answer(stream)
    after = connection.take()
    assert len(echo.ended) == 2 and frame(http2.RST_STREAM, 0, 5, struct.pack(">I", http2.REFUSED_STREAM)) in after
    assert not connection.streams and not connection.failed


def test_more_streams_than_allowed_are_refused_and_may_be_tried_again() -> None:
    connection, echo = server(SMALL)
    echo.hold = True
    client = Client(connection)
    client.turn()
    encoder = Encoder()
    for number in (1, 3, 5, 7):
        connection.feed(frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, number, encoder.encode(REQUEST)))
    assert sorted(connection.streams) == [1, 3, 5]
    assert frame(http2.RST_STREAM, 0, 7, struct.pack(">I", http2.REFUSED_STREAM)) in connection.take()


BLOCK = Encoder().encode(REQUEST)
OPEN = frame(http2.HEADERS, http2.END_HEADERS, 1, BLOCK)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\nxxxxxxxxxx", http2.PROTOCOL_ERROR),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", http2.FRAME_SIZE_ERROR),
        (frame(http2.DATA, 0, 1, b"x"), http2.PROTOCOL_ERROR),
        (frame(http2.DATA, 0, 0, b"x"), http2.PROTOCOL_ERROR),
        (OPEN + frame(http2.DATA, http2.PADDED, 1, b"\x05abc"), http2.PROTOCOL_ERROR),
        (OPEN + frame(http2.DATA, 0, 1, bytes(1001)), http2.FLOW_CONTROL_ERROR),
        (OPEN + frame(http2.HEADERS, http2.END_HEADERS, 1, BLOCK), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, http2.END_HEADERS, 2, BLOCK), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), http2.COMPRESSION_ERROR),
        (frame(http2.HEADERS, http2.END_HEADERS, 1, literal("a", "b" * 2100)), http2.ENHANCE_YOUR_CALM),
        (frame(http2.HEADERS, 0, 1, BLOCK) + frame(http2.PING, 0, 0, bytes(8)), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, 0, 1, BLOCK) + frame(http2.CONTINUATION, 0, 1, bytes(1000)) * 2, http2.ENHANCE_YOUR_CALM),
        (frame(http2.CONTINUATION, http2.END_HEADERS, 1, BLOCK), http2.PROTOCOL_ERROR),
        (frame(http2.RST_STREAM, 0, 1, bytes(4)), http2.PROTOCOL_ERROR),
        (frame(http2.RST_STREAM, 0, 0, bytes(4)), http2.PROTOCOL_ERROR),
        (frame(http2.SETTINGS, 0, 0, bytes(5)), http2.FRAME_SIZE_ERROR),
        (frame(http2.SETTINGS, 0, 1, b""), http2.FRAME_SIZE_ERROR),
        (frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), http2.FLOW_CONTROL_ERROR),
        (frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 5, 100)), http2.PROTOCOL_ERROR),
        (frame(http2.PING, 0, 0, bytes(7)), http2.FRAME_SIZE_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)), http2.PROTOCOL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1)), http2.FLOW_CONTROL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 9, struct.pack(">I", 1)), http2.PROTOCOL_ERROR),
        (frame(http2.PUSH_PROMISE, 0, 1, BLOCK), http2.PROTOCOL_ERROR),
        (b"".join(frame(1, 4, n, BLOCK) + frame(3, 0, n, bytes(4)) for n in range(1, 15, 2)), http2.ENHANCE_YOUR_CALM),
    ],
)
def test_a_violation_ends_the_connection_with_its_code_and_a_reason(said: bytes, code: int) -> None:
    connection, echo = server(SMALL)
    echo.hold = True
    connection.feed(http2.PREFACE + frame(http2.SETTINGS, 0, 0) if not said.startswith(b"GET") else b"")
    connection.take()
    connection.feed(said)
    left = connection.take()
    assert connection.failed and not connection.streams
    away = left[left.rindex(frame(http2.GOAWAY, 0, 0)[3:9]) - 3 :]
    assert int.from_bytes(away[13:17], "big") == code and len(away) > 20
    connection.feed(OPEN)
    assert not connection.streams and connection.take() == b""


def test_what_comes_for_a_stream_that_has_ended_hurts_nobody() -> None:
    connection, echo = server(SMALL)
    connection.feed(http2.PREFACE + frame(http2.SETTINGS, 0, 0) + frame(http2.HEADERS, 5, 1, BLOCK))
    assert not connection.streams  # answered
    for late in (
        frame(0, 0, 1, b"x"),
        frame(3, 0, 1, bytes(4)),
        frame(8, 0, 1, struct.pack(">I", 1)),
        frame(2, 0, 1, bytes(5)),
        frame(99, 0, 1, b"?"),
    ):
        connection.feed(late)
    assert not connection.failed and len(echo.ended) == 1


def test_a_stream_whose_window_overflows_ends_alone() -> None:
    connection, echo = server()
    echo.hold = True
    connection.feed(http2.PREFACE + frame(http2.SETTINGS, 0, 0) + frame(http2.HEADERS, 5, 1, BLOCK) + frame(http2.HEADERS, 5, 3, BLOCK))
    connection.feed(frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", (1 << 31) - 1)))
    assert echo.lost == [1] and list(connection.streams) == [3] and not connection.failed


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)), max_size=30),
    st.binary(max_size=30),
)
def test_no_bytes_make_it_raise_or_keep_more_than_it_may(frames: list[tuple[int, int, int, bytes]], tail: bytes) -> None:
    connection, echo = server(SMALL)
    echo.hold = True
    connection.feed(http2.PREFACE)
    for kind, flags, number, payload in frames:
        connection.feed(frame(kind, flags, number, payload))
        assert len(connection.streams) <= SMALL.streams
    connection.feed(tail)
    if connection.failed:
        assert not connection.streams


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 5000])
def test_a_literal_of_any_length_is_read_by_others(length: int) -> None:
    from hpack import Decoder

    assert Decoder().decode(literal("name", "v" * length)) == [("name", "v" * length)]
