"""A controller whose disk, port or settings are not what it needs: a clear error with the remedy, and nothing acknowledged is lost."""

import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import Site, Tree, until

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
STORE = 10  # exit code of what is wrong with the disk


@pytest.fixture
def stopped(tree: Tree) -> Site:
    root = tree.root()
    assert root.ask("POST", CONFIGMAPS, document("kept"))[0] == 201
    assert root.stop() == 0
    return root


def document(name: str, size: int = 1) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "x" * size}}


def refuses(site: Site, code: int, *words: str) -> None:
    """Starting it ends with this exit code and an error of one line that says these words."""
    done = site.banyan("run", check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_corrupt_store_is_named_with_what_to_do(stopped: Site) -> None:
    store = stopped.folder / "store.db"
    good = store.read_bytes()
    store.write_bytes(b"this was a database once" * 400)
    refuses(stopped, STORE, str(stopped.folder), "restore")
    store.write_bytes(good)
    stopped.run()
    assert stopped.get(f"{CONFIGMAPS}/kept")["data"] == {"k": "x"}


def test_a_folder_that_a_running_controller_owns(stopped: Site) -> None:
    stopped.run()
    refuses(stopped, STORE, str(stopped.folder), "running")
    assert stopped.ask("GET", "/readyz")[0] == 200


def test_a_store_of_a_newer_banyan(stopped: Site) -> None:
    with sqlite3.connect(stopped.folder / "store.db") as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master")}
        assert "meta" in tables
        database.execute("pragma user_version = 9999")
        database.execute("update meta set value = '9999' where name = 'schema'")
        assert database.total_changes == 1, list(database.execute("select * from meta"))
    database.close()
    refuses(stopped, STORE, "newer")


@pytest.mark.needs("root")
def test_a_folder_that_cannot_be_written(stopped: Site, tmp_path: Path) -> None:
    """A read-only mount in a mount namespace of its own, for root may write anything else."""
    folder = stopped.folder
    script = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec {sys.executable} -m banyanctl --data {folder} run"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == STORE, done.stderr
    assert "Traceback" not in done.stderr
    assert str(stopped.folder) in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.needs("root")
def test_a_full_disk_refuses_writes_and_goes_on_serving(small_disk: Path) -> None:
    tree = Tree(small_disk)
    try:
        root = tree.root()
        acknowledged = []
        for number in range(40):
            code, answer = root.ask("POST", CONFIGMAPS, document(f"c{number}", 200_000))
            if code != 201:
                break
            acknowledged.append(f"c{number}")
        assert code in (503, 507), answer
        assert "full" in answer["message"] or "space" in answer["message"], answer
        assert acknowledged
        assert root.get(f"{CONFIGMAPS}/{acknowledged[-1]}")["data"]["k"][:1] == "x"  # it goes on reading
        code, answer = root.ask("GET", "/readyz")
        assert code == 503 and "store failed: no space left for" in str(answer), answer
        subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
        until("it has noticed the room by itself", lambda: root.ask("GET", "/readyz")[0] == 200)
        assert root.ask("POST", CONFIGMAPS, document("room"))[0] == 201
        acknowledged.append("room")
        root.kill()
        root.run()
        names = {item["metadata"]["name"] for item in root.get(CONFIGMAPS)["items"]}
        assert names == set(acknowledged)
        assert root.ask("POST", CONFIGMAPS, document("room-again"))[0] == 201
    finally:
        tree.destroy()


def test_a_port_that_is_in_use(stopped: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for field in ("api_listen", "tunnel_listen"):
            stopped.environment = {f"BANYAN_{field.upper()}": f"127.0.0.1:{port}"}
            done = stopped.banyan("run", check=False)
            assert done.returncode not in (0, 1), done.stderr
            assert "Traceback" not in done.stderr
            assert str(port) in done.stderr
            assert field in done.stderr or "in use" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = [", "not valid TOML"),
        ("name = 'root'\nnonsense = 1\n", "nonsense"),
        ("name = 'root'\napi_listen = 'nowhere'\n", "api_listen"),
        ("name = 'root'\nshim = 'docker'\n", "shim"),
        ("name = 'root'\nshim = '127.0.0.1:1'\n", "ca.pem"),
        ("name = 'root'\nheartbeat_seconds = 'often'\n", "heartbeat_seconds"),
        ("name = 'root'\nblob_budget = '-1'\n", "blob_budget"),
        ("name = 'root'\nlog_level = 'loud'\n", "log_level"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    root = Site(tmp_path / "root", {})
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "", "--shim", "none")
    (root.folder / "banyan.toml").write_text(text)
    refuses(root, 2, said)


def test_it_ends_at_once_and_with_zero_when_it_is_told_to(tree: Tree) -> None:
    root = tree.root()
    edge = tree.edge("edge-1", root)
    until("it is in", lambda: root.clusters().get("edge-1", {}).get("phase") == "Ready")
    assert edge.stop() == 0  # within the 20 s of `Site.stop`, or this fails
    assert root.stop() == 0
    shutil.rmtree(edge.folder / "blobs")
