"""What may knock at a real root's tunnel port: none of it costs much, none of it keeps a child out."""

import contextlib
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_controller.tunnel import Limits
from e2e.support import ROOT, Site, Tree, until

SILENT = 10_000
CROWDS = 4  # processes, for no process may have so many files
CROWD = ROOT / "e2e" / "crowd_program.py"
MAX_PENDING = Limits().max_pending
SLACK = 40  # files of the child's link and of those who ask the API
PATIENCE = 40.0  # seconds; the door's own patience is less


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from e2e.support import growing

    with growing(tmp_path_factory.mktemp("door")) as grown:
        grown.root()
        yield grown.sites["root"]


def door(root: Site) -> tuple[str, int]:
    return "127.0.0.1", int(re.findall(r"children join at port (\d+)", root.log(200))[0])


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


def test_ten_thousand_who_say_nothing_keep_no_child_out(root: Site) -> None:
    """From 10,000 addresses. The door holds `max_pending` of them, no more, and none longer than the time for a Hello."""
    assert root.process is not None
    descriptors = Path(f"/proc/{root.process.pid}/fd")
    host, port = door(root)
    memory, files, held = rss(root), len(list(descriptors.iterdir())), 0
    tree = Tree(root.folder.parent)
    child = tree.site("child", BANYAN_SHIM="none")
    token = root.token()
    crowds = [
        subprocess.Popen(
            [sys.executable, str(CROWD), host, str(port), str(SILENT // CROWDS), f"127.{101 + number}", "1.5"],
            stdout=subprocess.PIPE, text=True,
        )
        for number in range(CROWDS)
    ]  # fmt: skip
    try:
        child.join(token, "--tunnel-listen", "")
        waiting = [crowd.stdout for crowd in crowds if crowd.stdout is not None]
        while any(crowd.poll() is None for crowd in crowds) and not select.select(waiting, [], [], 0.1)[0]:
            held = max(held, len(list(descriptors.iterdir())))
        assert [out.readline() for out in waiting] == [f"standing {SILENT // CROWDS}\n"] * CROWDS
        held = max(held, len(list(descriptors.iterdir())))
        grown = rss(root) - memory
        child.wait()
        until("the child is in", lambda: root.clusters().get("child", {}).get("phase") == "Ready")
        assert root.ask("GET", "/readyz")[0] == 200
        assert [out.readline() for out in waiting] == [f"dropped {SILENT // CROWDS}\n"] * CROWDS
    finally:
        child.destroy()
        for crowd in crowds:
            crowd.kill()
            crowd.wait()
            assert crowd.stdout is not None
            crowd.stdout.close()
    print(f"\n{SILENT} connections: {held - files} held at once, {grown >> 20} MiB")
    assert MAX_PENDING // 2 < held - files <= MAX_PENDING + SLACK
    assert grown < MAX_PENDING * 48 * 1024 + (16 << 20)
    until("the door is empty again", lambda: len(list(descriptors.iterdir())) <= files + SLACK)
    assert "Traceback" not in root.log(100_000)
