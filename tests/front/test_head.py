"""Heads: any bytes are one or an error, and none can be read in two ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openapi.front.head import CHUNKED, UNTIL_CLOSE, HeadError, find_head_end, parse_request, parse_response

tokens = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_!#$%&'*+.^`|~", min_size=1, max_size=20)
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_an_error(data: bytes) -> None:
    for parse in (parse_request, lambda raw: parse_response(raw, "GET")):
        try:
            head = parse(data + b"\r\n\r\n")
        except HeadError as error:
            assert 400 <= error.status <= 599
        else:
            assert head.version in ("1.0", "1.1")


@given(st.lists(st.tuples(tokens, values), max_size=20), st.sampled_from(["GET", "POST", "DELETE", "PATCH"]))
def test_headers_come_back(pairs: list[tuple[str, str]], method: str) -> None:
    special = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "proxy-connection"}
    pairs = [pair for pair in pairs if pair[0].lower() not in special]
    raw = f"{method} /a?b=c HTTP/1.1\r\nHost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n"
    head = parse_request(raw.encode())
    assert (head.method, head.path, head.query, head.length, head.keep_alive) == (method, b"/a", b"b=c", 0, True)
    assert head.headers[1:] == tuple((name.lower().encode(), value.encode()) for name, value in pairs)


@given(st.binary(max_size=100), st.binary(max_size=50), st.lists(st.integers(1, 30), max_size=20))
def test_the_end_is_found_however_it_is_split(before: bytes, after: bytes, cuts: list[int]) -> None:
    before = before.replace(b"\n", b"").replace(b"\r", b"")
    whole = before + b"\r\n\r\n" + after
    buffer, scanned, end, rest = bytearray(), 0, -1, whole
    for cut in [*cuts, len(whole)]:
        buffer += rest[:cut]
        rest = rest[cut:]
        end = find_head_end(buffer, scanned)
        if end >= 0:
            break
        scanned = len(buffer)
    assert end == len(before) + 4


@pytest.mark.parametrize("split", range(1, 8))
def test_bare_lf_is_seen_across_pieces(split: int) -> None:
    data = b"GET / H\nX"
    buffer = bytearray(data[:split])
    assert find_head_end(buffer, 0) == -1
    buffer += data[split:]
    with pytest.raises(HeadError, match="LF without CR"):
        find_head_end(buffer, split)


@pytest.mark.parametrize(
    ("lines", "method", "length"),
    [
        (b"200 OK\r\nContent-Length: 5", "GET", 5),
        (b"200 OK\r\nContent-Length: 5", "HEAD", 0),
        (b"200 OK\r\nTransfer-Encoding: chunked", "GET", CHUNKED),
        (b"200 OK", "GET", UNTIL_CLOSE),
        (b"204 No Content", "GET", 0),
        (b"304 Not Modified\r\nContent-Length: 5", "GET", 0),
        (b"101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x", "GET", 0),
    ],
)
def test_length_of_a_response(lines: bytes, method: str, length: int) -> None:
    assert parse_response(b"HTTP/1.1 " + lines + b"\r\n\r\n", method).length == length


@pytest.mark.parametrize(
    "lines",
    [
        b"200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"099 Odd",
        b"700 Odd",
        b"abc",
    ],
)
def test_responses_that_can_be_read_in_two_ways(lines: bytes) -> None:
    with pytest.raises(HeadError):
        parse_response(b"HTTP/1.1 " + lines + b"\r\n\r\n", "GET")


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [("1.1", "", True), ("1.1", "close", False), ("1.1", "x, Close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
def test_keep_alive(version: str, connection: str, kept: bool) -> None:
    raw = f"GET / HTTP/{version}\r\nHost: x\r\n" + (f"Connection: {connection}\r\n" if connection else "") + "\r\n"
    assert parse_request(raw.encode()).keep_alive is kept


def test_absolute_form_and_upgrade() -> None:
    head = parse_request(b"GET http://other:1/a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
    assert (head.path, head.query, head.upgrade, head.target) == (b"/a", b"b", b"websocket", b"/a?b")
    assert parse_request(b"GET http://other HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n").upgrade == b"", "Connection does not say so"
