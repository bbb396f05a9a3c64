"""The gRPC door against h2, an HTTP/2 library of others, and against frames that no library would send."""

import contextlib

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, RequestReceived, TrailersReceived
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from openapi.front import http2
from openapi.front.http2 import ClientFrames, Dropped, Event, Http2Error, Pass, Request, ServerFrames

names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda name: ("x-" + name).encode())
fields = st.lists(st.tuples(names, st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60).map(str.encode)), max_size=8)
BASE = [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/a.B/C"), (b":authority", b"x")]
DROP = frozenset({b"authorization"})


def client() -> H2Connection:
    connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    connection.initiate_connection()
    return connection


def server() -> H2Connection:
    connection = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    connection.initiate_connection()
    return connection


def events_of(frames: ClientFrames, data: bytes) -> list[Event]:
    frames.receive(data)
    events = []
    while (event := frames.next_event()) is not None:
        events.append(event)
    return events


def through(frames: ClientFrames, data: bytes) -> bytes:
    out = b""
    for event in events_of(frames, data):
        out += event.data if isinstance(event, Pass) else frames.encode(event, DROP)
    return out


@given(st.lists(st.tuples(fields, st.binary(max_size=5000)), min_size=1, max_size=4), st.lists(st.integers(1, 500), max_size=30))
def test_an_independent_server_reads_what_passes(requests: list[tuple[list[tuple[bytes, bytes]], bytes]], cuts: list[int]) -> None:
    sender = client()
    sender.receive_data(http2.SETTINGS)  # ours, so that the first acknowledgement answers it
    for number, (extra, body) in enumerate(requests):
        stream = 1 + 2 * number
        sender.send_headers(stream, [*BASE, (b"authorization", b"Bearer secret"), *extra])
        sender.send_data(stream, body)
        sender.send_headers(stream, [(b"x-end", b"1")], end_stream=True)
    wire = sender.data_to_send()
    frames, passed, position = ClientFrames(), b"", 0
    for cut in [*cuts, len(wire)]:
        passed += through(frames, wire[position : position + cut])
        position += cut
    assert b"secret" not in passed
    receiver = server()
    events = receiver.receive_data(passed)
    heads = [event for event in events if isinstance(event, RequestReceived)]
    assert [[tuple(pair) for pair in head.headers] for head in heads] == [BASE + extra for extra, _ in requests]
    bodies = {event.stream_id: b"" for event in heads}
    for event in events:
        if isinstance(event, DataReceived):
            bodies[event.stream_id] += event.data
    assert list(bodies.values()) == [body for _, body in requests]
    assert sum(isinstance(event, TrailersReceived) for event in events) == len(requests)
    assert any(isinstance(event, RemoteSettingsChanged) for event in events)


@given(st.binary(max_size=300))
def test_any_bytes_pass_or_are_an_error(data: bytes) -> None:
    for start in (b"", http2.PREFACE, http2.PREFACE + http2.SETTINGS):
        with contextlib.suppress(Http2Error):
            events_of(ClientFrames(), start + data)


def headers(stream: int, block: bytes, flags: int = http2.END_HEADERS) -> bytes:
    return http2.frame(http2.Kind.HEADERS, flags, stream, block)


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n",
        http2.PREFACE + headers(0, b""),
        http2.PREFACE + headers(2, b""),
        http2.PREFACE + headers(1, b"\x05abc", http2.END_HEADERS | http2.PADDED),
        http2.PREFACE + headers(1, b"", http2.END_HEADERS | http2.PADDED),
        http2.PREFACE + headers(1, b"abc", http2.END_HEADERS | http2.PRIORITY),
        http2.PREFACE + headers(1, b"\xff\xff\xff\xff\xff\xff\xff"),
        http2.PREFACE + headers(1, b"", 0) + http2.SETTINGS,
        http2.PREFACE + headers(1, b"", 0) + http2.frame(http2.Kind.CONTINUATION, 0, 3, b"x"),
        http2.PREFACE + headers(1, b"", 0) + http2.frame(http2.Kind.CONTINUATION, 0, 1, b""),
        http2.PREFACE + http2.frame(http2.Kind.CONTINUATION, 0, 1, b"x"),
        http2.PREFACE + http2.frame(http2.Kind.HEADERS, 0, 1, b"x" * 20000),
        http2.PREFACE + headers(1, b"", 0) + http2.frame(http2.Kind.CONTINUATION, 0, 1, b"x" * 16000) * 5,
        http2.PREFACE + headers(1, Encoder().encode([(b"a", b"b" * 9)] * 2000)),
    ],
)
def test_hostile_frames(wire: bytes) -> None:
    with pytest.raises(Http2Error):
        events_of(ClientFrames(), wire)


def test_padding_and_priority_are_taken_off() -> None:
    block = Encoder().encode(BASE)
    flags = http2.END_HEADERS | http2.END_STREAM | http2.PADDED | http2.PRIORITY
    events = events_of(ClientFrames(), http2.PREFACE + headers(1, b"\x03" + b"\x00" * 5 + block + b"\x00" * 3, flags))
    assert events[1] == Request(1, BASE, True, False)


def test_large_data_frames_pass_without_being_held() -> None:
    frames = ClientFrames()
    events_of(frames, http2.PREFACE)
    head = (1 << 20).to_bytes(3, "big") + b"\x00\x00" + (1).to_bytes(4, "big")
    passed = 0
    for piece in (head[:4], head[4:] + b"x" * 1000, b"x" * 1000):
        passed += sum(len(event.data) for event in events_of(frames, piece) if isinstance(event, Pass))
    assert passed == 2009


def test_only_the_first_acknowledgement_is_ours() -> None:
    frames = ClientFrames()
    assert events_of(frames, http2.PREFACE + http2.SETTINGS_ACK + http2.SETTINGS_ACK) == [Pass(http2.PREFACE), Pass(http2.SETTINGS_ACK)]


@given(st.binary(max_size=400), st.binary(max_size=20000))
def test_literals_are_read_by_hpack(name: bytes, value: bytes) -> None:
    from hpack import Decoder

    block = http2.literal_block([(name, value), (b"b", b"c")])
    decoded = Decoder(max_header_list_size=1 << 20).decode(block, raw=True)
    assert [tuple(pair) for pair in decoded] == [(name, value), (b"b", b"c")]


@given(st.lists(st.integers(1, 60), max_size=40), st.binary(min_size=1, max_size=300))
def test_nothing_of_a_refused_request_passes(cuts: list[int], body: bytes) -> None:
    """The second of three; an independent server sees the first and the third, and windows add up."""
    sender = client()
    sender.receive_data(http2.SETTINGS)
    for stream in (1, 3, 5):
        sender.send_headers(stream, [*BASE, (b"x-number", b"%d" % stream)])
    for stream in (3, 1, 3, 5):
        sender.send_data(stream, body)
    sender.send_headers(3, [(b"x-end", b"3")], end_stream=True)
    sender.end_stream(1)
    sender.end_stream(5)
    wire = sender.data_to_send()
    frames, passed, dropped, position = ClientFrames(), b"", 0, 0
    for cut in [*cuts, len(wire)]:
        frames.receive(wire[position : position + cut])
        position += cut
        while (event := frames.next_event()) is not None:
            if isinstance(event, Dropped):
                dropped += event.length
            elif isinstance(event, Request) and event.stream == 3:
                frames.refuse(3)
            else:
                passed += event.data if isinstance(event, Pass) else frames.encode(event, DROP)
    assert dropped == 2 * len(body)
    events = server().receive_data(passed)
    assert [event.stream_id for event in events if isinstance(event, RequestReceived)] == [1, 5]
    assert {event.stream_id for event in events if isinstance(event, DataReceived)} == {1, 5}


def test_refusals_are_bounded() -> None:
    frames = ClientFrames()
    for stream in range(1, 2 * http2.MAX_REFUSED, 2):
        frames.refuse(stream)
    with pytest.raises(Http2Error):
        frames.refuse(9999)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 9, 4]), st.booleans(), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 30), max_size=30),
)
def test_places_between_frames(made: list[tuple[int, bool, bytes]], cuts: list[int]) -> None:
    wire, places, in_block = b"", {0}, False
    for kind, last, payload in made:
        wire += http2.frame(kind, http2.END_HEADERS if last else 0, 1, payload)
        if kind in (1, 9):
            in_block = not last
        if not in_block:
            places.add(len(wire))
    frames, position, found = ServerFrames(), 0, {0}
    for cut in [*cuts, len(wire)]:
        end = min(position + cut, len(wire))
        while position < end:
            position += frames.advance(wire[position : position + 1])
            if frames.between:
                found.add(position)
    assert found == places
    whole = ServerFrames()
    if len(wire) > 1:
        whole.advance(wire[:1])
        assert 1 + whole.advance(wire[1:], stop=True) == min([place for place in places if place > 1], default=len(wire))


def test_many_small_frames_of_a_refused_request() -> None:
    frames = ClientFrames()
    events_of(frames, http2.PREFACE)
    frames.refuse(3)
    assert events_of(frames, http2.reset(3) * 20_000 + http2.SETTINGS) == [Pass(http2.SETTINGS)]
