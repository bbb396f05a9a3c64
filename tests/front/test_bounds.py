"""What happens at each bound of the front: caps, slow and silent peers, clients that stall or leave, shutdown, rotation."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openapi.front.auth import decode_user, encode_user
from openapi.front.limits import FrontLimits
from openapi.front.streams import pair
from tests.front.support import AUTH, TOKENS, VIEWER, Pki, RunningFront, pki, raw_exchange, read_all
from tests.front.test_server import HEADERS, echo

GET = b"GET / HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n"


class Gate:
    """An application that waits inside a request until told, and notes what it was told of its client."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.disconnected = threading.Event()
        self.failed = threading.Event()
        self.sent = 0
        self.draining = threading.Event()

    async def __call__(self, scope, receive, send):
        kind = scope["path"]
        self.entered.set()
        if kind == "/wait":
            while not self.open.is_set():
                await asyncio.sleep(0.005)
            await self.answer(send)
        elif kind == "/listen":
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            self.disconnected.set()
        elif kind == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                for _ in range(1000):
                    await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
                    self.sent += 50_000
            except OSError:
                self.failed.set()
                raise
            await send({"type": "http.response.body", "body": b""})
        elif kind == "/watch":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
            await scope["banyan.draining"].wait()
            self.draining.set()
            await send({"type": "http.response.body", "body": b"last\n"})
        else:
            await self.answer(send)

    async def answer(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + AUTH + b"\r\n"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_application_hears_at_once_that_its_client_left(loop: str) -> None:
    gate = Gate()
    with RunningFront(gate, loop=loop) as front:
        connection = front.connect()
        connection.sendall(get("/listen"))
        assert gate.entered.wait(10)
        connection.close()
        assert gate.disconnected.wait(10)
        front.eventually(lambda: front.front.metrics.in_flight == 0 and front.front.metrics.connections == 0)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_stalled_client_stops_the_application(loop: str) -> None:
    """50 MB for a client that reads nothing: the application waits in send; when the client leaves, send raises OSError."""
    gate = Gate()
    with RunningFront(gate, loop=loop) as front:
        connection = front.connect()
        connection.sendall(get("/stream"))
        assert gate.entered.wait(10)
        seen = -1
        deadline = time.monotonic() + 20
        while seen != gate.sent and time.monotonic() < deadline:
            seen = gate.sent
            time.sleep(0.3)
        assert seen < 20_000_000
        connection.close()
        assert gate.failed.wait(10)


def test_client_that_takes_nothing_is_broken_off() -> None:
    gate = Gate()
    with RunningFront(gate, limits=FrontLimits(write_stall_seconds=0.2)) as front:
        connection = front.connect()
        connection.sendall(get("/stream"))
        assert gate.failed.wait(10)
        front.eventually(lambda: front.front.metrics.connections == 0)
        connection.close()


def test_client_that_reads_slowly_gets_everything() -> None:
    with RunningFront(Gate()) as front:
        connection = front.connect()
        connection.sendall(get("/stream").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert len(read_all(connection)) > 50_000_000
        connection.close()


def test_body_that_nobody_reads_stays_with_the_client() -> None:
    gate = Gate()
    with RunningFront(gate) as front:
        connection = front.connect()
        connection.sendall(b"POST /wait HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Content-Length: 50000000\r\n\r\n")
        assert gate.entered.wait(10)
        connection.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 50_000_000:
                sent += connection.send(b"x" * 100_000)
        assert sent < 25_000_000
        peer = next(iter(front.front._peers))
        assert peer.stream is not None
        assert peer.stream.bytes_in < 2_000_000, "held back by not reading the socket"
        gate.open.set()
        connection.close()


def test_slow_body_is_given_up() -> None:
    with RunningFront(echo, limits=FrontLimits(body_idle_seconds=0.2)) as front:
        connection = front.connect()
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Content-Length: 10\r\n\r\nabc")
        answer = read_all(connection)
        connection.close()
        assert b"200" not in answer
        front.eventually(lambda: front.front.metrics.in_flight == 0)


def test_cap_on_connections_closes_the_one_idle_for_longest() -> None:
    gate = Gate()
    with RunningFront(gate, limits=FrontLimits(connections=3)) as front:
        idle = [front.connect() for _ in range(2)]
        for connection in idle:
            connection.sendall(get("/"))
            assert connection.recv(65536).endswith(b"ok")
        idle[0].sendall(get("/"))  # now the second is idle for longer
        assert idle[0].recv(65536).endswith(b"ok")
        busy = front.connect()
        busy.sendall(get("/wait"))
        assert gate.entered.wait(10)
        front.eventually(lambda: sum(peer.idle for peer in front.front._peers) == 2)
        newcomer = front.connect()
        newcomer.sendall(get("/"))
        assert newcomer.recv(65536).endswith(b"ok")
        assert read_all(idle[1]) == b""
        assert front.front.metrics.evicted == 1
        gate.open.set()
        assert busy.recv(65536).endswith(b"ok"), "a request in flight is never given up for another"
        for connection in (*idle, busy, newcomer):
            connection.close()


def test_cap_reached_by_busy_connections_refuses_the_new_one() -> None:
    gate = Gate()
    with RunningFront(gate, limits=FrontLimits(connections=1)) as front:
        busy = front.connect()
        busy.sendall(get("/wait"))
        assert gate.entered.wait(10)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            front.connect()
        assert front.front.metrics.refused == 1
        gate.open.set()
        assert busy.recv(65536).endswith(b"ok")
        busy.close()


def test_connections_that_never_say_hello_do_not_keep_others_out() -> None:
    """The oldest handshakes go; who really speaks gets in."""
    with RunningFront(echo, limits=FrontLimits(handshakes=20)) as front:
        silent = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(200)]
        client = front.client()
        client.request("GET", "/", headers=HEADERS)
        assert client.getresponse().read()
        client.close()
        assert front.thread.call(lambda: len(front.front._handshakes)) <= 20
        for connection in silent:
            connection.close()
        front.eventually(lambda: front.front.metrics.connections == 0)


def test_handshake_that_does_not_end() -> None:
    with RunningFront(echo, limits=FrontLimits(handshake_seconds=0.2)) as front:
        connection = socket.create_connection(("127.0.0.1", front.port))
        connection.sendall(b"\x16\x03\x01")
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()
        front.eventually(lambda: front.front.metrics.handshake_failures == 1)


def test_plain_http_on_the_tls_port() -> None:
    with RunningFront(echo) as front:
        connection = socket.create_connection(("127.0.0.1", front.port))
        connection.sendall(GET)
        connection.settimeout(10)
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        connection.close()
        front.eventually(lambda: front.front.metrics.handshake_failures == 1 and front.front.metrics.connections == 0)


def test_foreign_client_certificate_is_refused(tmp_path: Path) -> None:
    with RunningFront(echo) as front:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(Pki(tmp_path).user("admin"))
        raw = socket.create_connection(("127.0.0.1", front.port), timeout=10)
        with pytest.raises((ssl.SSLError, ConnectionError)), context.wrap_socket(raw) as connection:
            connection.sendall(GET)
            if not connection.recv(100):
                raise ConnectionResetError
        front.eventually(lambda: front.front.metrics.handshake_failures == 1)


def test_shutdown_lets_requests_finish() -> None:
    gate = Gate()
    front = RunningFront(gate)
    busy, idle, watch = front.connect(), front.connect(), front.connect()
    idle.sendall(get("/"))
    assert idle.recv(65536).endswith(b"ok")
    watch.sendall(get("/watch"))
    seen = b""
    while b"first" not in seen:
        seen += watch.recv(65536)
    gate.entered.clear()
    busy.sendall(get("/wait"))
    assert gate.entered.wait(10)
    closing = asyncio.run_coroutine_threadsafe(front.front.close(10.0), front.thread.loop)
    assert read_all(idle) == b"", "idle ones are closed at once"
    with pytest.raises((ConnectionError, ssl.SSLError)):
        front.connect()
    assert gate.draining.wait(10)
    assert b"last" in read_all(watch), "endless answers are told to end"
    assert not closing.done()
    gate.open.set()
    answer = read_all(busy)
    assert answer.endswith(b"ok")
    assert b"connection: close" in answer
    closing.result(10)
    for connection in (busy, idle, watch):
        connection.close()
    front.thread.close()


def test_shutdown_breaks_off_what_does_not_end() -> None:
    gate = Gate()
    front = RunningFront(gate)
    busy = front.connect()
    busy.sendall(get("/wait"))
    assert gate.entered.wait(10)
    front.thread.run(front.front.close(0.1))
    assert read_all(busy) == b""
    busy.close()
    front.thread.close()


def test_certificate_rotates_without_touching_open_connections() -> None:
    def serial(connection: ssl.SSLSocket) -> object:
        certificate = connection.getpeercert()
        assert certificate is not None
        return certificate["serialNumber"]

    with RunningFront(Gate()) as front:
        old = front.connect()
        front.thread.call(lambda: front.front.replace_context(pki().server_context("rotated")))
        new = front.connect()
        assert serial(old) != serial(new)
        for connection in (old, new):
            connection.sendall(get("/"))
            assert connection.recv(65536).endswith(b"ok")
            connection.close()


def test_a_resumed_session_still_shows_the_whole_chain() -> None:
    with RunningFront(echo) as front:
        context = pki().client_context("viewer")
        session = None
        for _ in range(2):
            raw = socket.create_connection(("127.0.0.1", front.port), timeout=10)
            connection = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b'"viewer"' in read_all(connection)
            session = connection.session
            connection.close()
        assert [len(chain) >= 2 for chain in front.accounts.chains] == [True, True]


@pytest.fixture(scope="module")
def shared_front():
    with RunningFront(echo, limits=FrontLimits(head_seconds=0.1, body_idle_seconds=0.1, drain_seconds=0.1)) as front:
        yield front


FRAGMENTS = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"Host: x\r\n", AUTH, b"\r\n", b"Connection: close\r\n", b"Upgrade: x\r\n"),
        *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
        *(b"3\r\nabc\r\n", b"0\r\n\r\n", b"\n", b"\r", b"\x00"),
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(FRAGMENTS, st.binary(max_size=30)), max_size=12))
def test_any_bytes_over_tls_leave_the_front_well(shared_front: RunningFront, parts: list[bytes]) -> None:
    """Whatever comes is answered in HTTP or the connection closes; the next client is served."""
    connection = shared_front.connect()
    connection.settimeout(10)
    connection.sendall(b"".join(parts))
    connection.sendall(b"\r\n\r\n")
    answer = read_all(connection)
    connection.close()
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in answer
    follower = shared_front.connect()
    assert raw_exchange(follower, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    follower.close()
    shared_front.eventually(lambda: shared_front.front.metrics.in_flight == 0)


def test_adopted_stream_has_the_parents_user() -> None:
    with RunningFront(echo) as front:

        async def ask() -> bytes:
            ours, theirs = pair()
            serving = asyncio.get_running_loop().create_task(front.front.adopt(theirs, decode_user(encode_user(VIEWER))))
            await ours.write(b"GET /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t-admin\r\n\r\n")
            await ours.write(b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := await ours.read():
                answer += data
            await ours.close_write()
            await serving
            return answer

        answer = front.thread.run(ask())
        assert answer.count(b'"user": "viewer"') == 2
        assert b"admin" not in answer


def test_users_travel_whole() -> None:
    for user in TOKENS.values():
        assert decode_user(encode_user(user)) == user
    assert json.loads(encode_user(VIEWER))["grants"] == [{"role": "view", "namespace": "default"}]


def test_revoked_users_open_connections_are_broken_off() -> None:
    gate = Gate()
    with RunningFront(gate) as front:
        watch, other = front.connect("viewer"), front.connect("editor")
        for connection in (watch, other):
            connection.sendall(b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536)

        async def adopted() -> bytes:
            ours, theirs = pair()
            serving = asyncio.get_running_loop().create_task(front.front.adopt(theirs, VIEWER))
            await ours.write(b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await ours.read()
            assert front.front.disconnect("viewer") == 2
            with pytest.raises(OSError, match="may no longer"):
                while await ours.read():
                    pass
            serving.cancel()
            await asyncio.wait({serving})
            return b""

        front.thread.run(adopted())
        assert b"last" not in read_all(watch)
        other.settimeout(0.2)
        with pytest.raises(TimeoutError):
            while other.recv(65536):
                pass
        watch.close()
        other.close()
