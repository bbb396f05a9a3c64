"""A stranger who gets as far as the WebSocket and then breaks RFC 6455, against a running root: raw frames over TLS, made by hand.

Each is told why, by the close code that the RFC wants where one can be told, and costs nobody else anything.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from e2e.support import Site, until
from e2e.test_tunnel_door import PATIENCE, door, root, tls, upgrade

__all__ = ["root"]  # the fixture

MASK = bytes(4)  # a mask of zeroes is a mask
PROTOCOL, INVALID_TEXT, TOO_BIG = 1002, 1007, 1009
FIN, BINARY, TEXT, CONTINUATION, CLOSE, PING = 0x80, 2, 1, 0, 8, 9


def frame(first: int, payload: bytes = b"", *, masked: bool = True, claim: int | None = None) -> bytes:
    """``claim``: the length that the header says, whatever the payload's is."""
    size = len(payload) if claim is None else claim
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes([first, bit | size])
    elif size < 1 << 16:
        head = bytes([first, bit | 126]) + struct.pack("!H", size)
    else:
        head = bytes([first, bit | 127]) + struct.pack("!Q", size)
    return head + (MASK if masked else b"") + payload


def speaking(root: Site) -> ssl.SSLSocket:
    """Through TLS and upgrade."""
    connection = tls(root)
    connection.sendall(upgrade("banyan.tunnel.v1"))
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(1)
        assert data, head
        head += data
    assert head.startswith(b"HTTP/1.1 101 "), head
    return connection


def farewell(connection: socket.socket) -> tuple[int, str]:
    """Code and reason of the close frame that came; (0, "") when the connection just ended."""
    said = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := connection.recv(65536):
            said += data
    connection.close()
    while said:
        size = said[1]
        body, said = said[2 : 2 + size], said[2 + size :] if size < 126 else b""
        if len(body) >= 2:
            return int.from_bytes(body[:2]), body[2:].decode()
    return 0, ""


@pytest.fixture(autouse=True)
def goes_on(root: Site) -> Iterator[None]:
    yield
    assert root.ask("GET", "/readyz")[0] == 200
    assert "Traceback" not in root.log(100_000)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(FIN | BINARY, b"hello", masked=False), PROTOCOL),
        (frame(FIN | PING, bytes(126)), PROTOCOL),
        (frame(PING, b"x"), PROTOCOL),
        (frame(FIN | 0x40 | BINARY, b"x"), PROTOCOL),
        (frame(FIN | 0x20 | BINARY, b"x"), PROTOCOL),
        (frame(FIN | 0x03, b"x"), PROTOCOL),
        (frame(FIN | 0x0B, b"x"), PROTOCOL),
        (frame(FIN | CONTINUATION, b"x"), PROTOCOL),
        (frame(BINARY, b"x") + frame(FIN | BINARY, b"y"), PROTOCOL),
        (frame(FIN | CLOSE, b"x"), PROTOCOL),
        (frame(FIN | CLOSE, struct.pack("!H", 1005)), PROTOCOL),
        (frame(FIN | CLOSE, struct.pack("!H", 1000) + b"\xff"), INVALID_TEXT),
        (frame(FIN | TEXT, b"hello"), PROTOCOL),
        (frame(FIN | BINARY, b"x", claim=1 << 63), TOO_BIG),
        (frame(FIN | BINARY, b"x", claim=1 << 40), TOO_BIG),
        (frame(BINARY, bytes(40_000)) + frame(CONTINUATION, bytes(40_000)), TOO_BIG),
        (frame(FIN | BINARY, b"x" * 11), PROTOCOL),
        (frame(FIN | BINARY, b"\xff" * 4096), TOO_BIG),
    ],
    ids=[
        "unmasked", "long ping", "ping in pieces", "RSV1", "RSV2", "reserved data", "reserved control", "continuation of nothing",
        "message inside a message", "close of one byte", "close with a code that is none", "close with a reason that is no text",
        "text", "2^63 bytes", "a terabyte", "too large in pieces", "no whole header", "a frame larger than its message",
    ],
)  # fmt: skip
def test_a_broken_frame_ends_the_connection_with_the_code_for_it(root: Site, sent: bytes, code: int) -> None:
    connection = speaking(root)
    connection.sendall(sent)
    told, reason = farewell(connection)
    assert (told, bool(reason)) == (code, True), reason


def test_a_ping_of_the_longest_kind_is_answered(root: Site) -> None:
    connection = speaking(root)
    connection.sendall(frame(FIN | PING, b"p" * 125))
    assert connection.recv(127) == bytes([FIN | 0x0A, 125]) + b"p" * 125
    connection.close()


@pytest.mark.parametrize(
    "beside",
    [frame(FIN | PING, b"x"), frame(FIN | BINARY, b"x"), upgrade("banyan.tunnel.v1"), b"GET / HTT"],
    ids=["ping", "message", "request", "part of a request"],
)
def test_who_goes_on_before_the_request_is_answered_gets_no_answer(root: Site, beside: bytes) -> None:
    connection = tls(root)
    connection.sendall(upgrade("banyan.tunnel.v1") + beside)
    said = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := connection.recv(4096):
            said += data
    connection.close()
    assert said == b""


@pytest.mark.parametrize("how", ["TLS", "TCP", "reset"])
def test_a_half_close_inside_a_frame_ends_the_connection(root: Site, how: str) -> None:
    connection = speaking(root)
    own = connection.getsockname()[1]
    assert held(root, own)
    connection.sendall(frame(FIN | BINARY, bytes(100), claim=60_000))
    if how == "TLS":
        connection.settimeout(PATIENCE)
        below = connection.unwrap()  # the root says goodbye too
        assert below.recv(1) == b""  # and ends what is below
        below.close()
    elif how == "TCP":
        connection.shutdown(socket.SHUT_WR)
        assert farewell(connection)[0] in (0, PROTOCOL)
    else:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    until("the root holds nothing of it any more", lambda: not held(root, own))


def held(site: Site, peer_port: int) -> bool:
    """Whether the controller has a socket whose other end has this port."""
    assert site.process is not None
    rows = [line.split() for line in Path(f"/proc/{site.process.pid}/net/tcp").read_text().splitlines()[1:]]
    nodes = {f"socket:[{row[9]}]" for row in rows if int(row[2].partition(":")[2], 16) == peer_port}
    return bool(nodes & {str(path.readlink()) for path in Path(f"/proc/{site.process.pid}/fd").iterdir()})


def test_a_flood_of_pings_that_nobody_reads_the_answers_of_is_bounded(root: Site) -> None:
    assert root.process is not None
    status = Path(f"/proc/{root.process.pid}/status")
    before = resident(status)
    connection = speaking(root)
    connection.settimeout(5.0)
    flood = frame(FIN | PING, bytes(125)) * 500
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
        for _ in range(2000):  # 125 MB of answers
            connection.sendall(flood)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.settimeout(PATIENCE)
        while connection.recv(1 << 20):
            pass
    connection.close()
    assert resident(status) - before < 16 << 20


def resident(status: Path) -> int:
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1])


def test_compression_is_offered_in_vain_and_the_library_is_told_the_code(root: Site) -> None:
    """Another implementation of the client side, with its own defaults: the independent `websockets` library."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, port = door(root)
    dial = partial(connect, f"wss://{host}:{port}/tunnel", ssl=context, compression="deflate", proxy=None, close_timeout=5)
    with dial(subprotocols=[Subprotocol("banyan.tunnel.v1")]) as websocket:
        assert websocket.subprotocol == "banyan.tunnel.v1"
        assert websocket.protocol.extensions == []
        websocket.ping().wait(5)
        websocket.send([b"a message ", b"in ", b"pieces"])
        with contextlib.suppress(Exception):
            websocket.recv(timeout=PATIENCE)
        assert websocket.close_code == TOO_BIG  # put together they are a header that claims what no message holds
