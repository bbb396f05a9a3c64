"""What may knock at a real root's tunnel port: none of it costs much, none of it keeps a child out."""

import contextlib
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import Site, Tree, until

SILENT = 2000
PATIENCE = 40.0  # seconds; the door's own patience is less


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from e2e.support import growing

    with growing(tmp_path_factory.mktemp("door")) as grown:
        grown.root()
        yield grown.sites["root"]


def door(root: Site) -> tuple[str, int]:
    line = next(line for line in root.log(200).splitlines() if "children join at port" in line)
    return "127.0.0.1", int(line.split("children join at port ")[1].split(";")[0])


def tls(root: Site) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(door(root), timeout=PATIENCE))


def drain(connection: socket.socket) -> bytes:
    """All until the other side ends it; a timeout of the socket is a failure of the test."""
    said = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := connection.recv(65536):
            said += data
    connection.close()
    return said


def upgrade(protocol: str) -> bytes:
    return (
        f"GET /tunnel HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    ).encode()


def rss(root: Site) -> int:
    assert root.process is not None
    return int(Path(f"/proc/{root.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("sent", [b"\x00" * 4096, b"\xff" * 4096, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_what_speaks_no_tls_is_sent_away(root: Site, sent: bytes) -> None:
    with socket.create_connection(door(root), timeout=PATIENCE) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        drain(connection)
    assert root.ask("GET", "/readyz")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [upgrade("chat"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 70_000, b"GET /tunnel HTTP/1.1\r\n" + b"X: y\r\n" * 20_000],
    ids=["wrong subprotocol", "no upgrade", "garbage", "endless head"],
)
def test_what_speaks_another_protocol_inside_tls_is_sent_away(root: Site, sent: bytes) -> None:
    connection = tls(root)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(sent)
    said = drain(connection)
    assert b" 101 " not in said.split(b"\r\n")[0] or b"banyan" not in said
    assert root.ask("GET", "/readyz")[0] == 200


def test_one_byte_a_second_does_not_keep_a_place(root: Site) -> None:
    connection = tls(root)
    connection.settimeout(1.0)
    ended = False
    for number in range(int(PATIENCE)):
        try:
            connection.sendall(upgrade("banyan.tunnel.v1")[number : number + 1])
            ended = connection.recv(1024) == b""
        except TimeoutError:
            continue
        except (ConnectionError, ssl.SSLError):
            ended = True
        if ended:
            break
    assert ended
    connection.close()


def test_thousands_who_say_nothing_keep_no_child_out(root: Site) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    before = rss(root)
    silent = []
    try:
        for _ in range(SILENT):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(door(root))
            silent.append(connection)
        tree = Tree(root.folder.parent)
        child = tree.site("child", BANYAN_SHIM="none")
        try:
            child.join(root.token(), "--tunnel-listen", "")
            child.wait()
            until("the child is in", lambda: root.clusters().get("child", {}).get("phase") == "Ready", 90)
        finally:
            child.destroy()
        assert root.ask("GET", "/readyz")[0] == 200
        assert rss(root) - before < 200 << 20
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Traceback" not in root.log(5000)
