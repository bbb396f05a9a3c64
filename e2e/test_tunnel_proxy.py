"""A site whose only way out is a CONNECT proxy that wants credentials: `banyan join`, `banyan run`, ports of anybody's choice."""

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from e2e.support import Site, Tree, until

CREDENTIALS = ("agent", "p%40ss:word", "p@ss:word")  # user, password as in a URL, password


class Proxy:
    """CONNECT for whoever knows the password; remembers who asked for what."""

    def __init__(self) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.targets: list[str] = []
        self.refused = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        user, _, password = CREDENTIALS
        if base64.b64encode(f"{user}:{password}".encode()) not in head:
            self.refused += 1
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
            client.close()
            return
        target = head.split()[1].decode()
        self.targets.append(target)
        host, _, port = target.rpartition(":")
        upstream = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._open += [client, upstream]
        for one, other in ((client, upstream), (upstream, client)):
            threading.Thread(target=copy, args=(one, other), daemon=True).start()

    def cut(self) -> None:
        """End what is open; new connections are served."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.cut()
        for one in self._open:
            one.close()


def copy(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.fixture
def root(tree: Tree) -> Site:
    return tree.root()


@pytest.mark.parametrize("way", ["--proxy", "HTTPS_PROXY"])
def test_a_site_joins_runs_and_reconnects_through_a_proxy_with_credentials(tree: Tree, root: Site, proxy: Proxy, way: str) -> None:
    user, quoted, password = CREDENTIALS
    url = f"http://{user}:{quoted}@127.0.0.1:{proxy.port}"
    site = tree.site("edge-1", BANYAN_SHIM="none", **({"HTTPS_PROXY": url} if way == "HTTPS_PROXY" else {}))
    site.join(root.token(), "--tunnel-listen", "", *(("--proxy", url) if way == "--proxy" else ()))
    site.wait()
    until("it is in", lambda: root.clusters().get("edge-1", {}).get("phase") == "Ready")
    assert len(set(proxy.targets)) == 1  # the join and the link, to the port that the root has chosen
    assert len(proxy.targets) >= 2
    proxy.cut()
    until("it has connected again", lambda: len(proxy.targets) >= 3 and root.clusters()["edge-1"]["phase"] == "Ready")
    before = len(proxy.targets)
    site.kill()
    site.run()
    until("a restart uses it too", lambda: len(proxy.targets) > before and root.clusters()["edge-1"]["phase"] == "Ready")
    said = site.log(10_000) + root.log(10_000)
    assert quoted not in said
    assert password not in said


def test_a_proxy_that_wants_other_credentials_is_the_reason_given_and_nothing_is_left(tree: Tree, root: Site, proxy: Proxy) -> None:
    site = tree.site("edge-1", BANYAN_SHIM="none")
    url = f"http://agent:wrong@127.0.0.1:{proxy.port}"
    done = site.banyan("join", root.token(), "--name", "edge-1", "--no-run", "--proxy", url, check=False)
    assert done.returncode == 29
    assert "wants credentials" in done.stderr
    assert "wrong" not in done.stderr
    assert proxy.refused
    assert proxy.targets == []
    assert not (site.folder / "identity" / "identity.json").exists()
