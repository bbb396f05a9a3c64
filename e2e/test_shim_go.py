"""A shim in another language (examples/shim-go): built, judged by the contract suite, and managed by a real controller."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import APPS, ROOT, Tree, program, until
from tools.needs import go

SOURCE = ROOT / "examples" / "shim-go"
CHECKS = 12  # of cluster_shim.verify

pytestmark = pytest.mark.needs("go")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("go") / "shim-go"
    environment = os.environ | {"CGO_ENABLED": "0"}
    # -trimpath and no cgo: as the other Go programs of the tests are built, so that one cache serves all of them.
    argv = [go(), "build", "-trimpath", "-o", str(path), "."]
    done = subprocess.run(argv, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return path


@contextlib.contextmanager
def running(built: Path, folder: Path, address: str) -> Iterator["subprocess.Popen[str]"]:
    argv = [str(built), "-listen", address, "-folder", str(folder), "-node", "gopher"]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "serving" in process.stderr.readline()
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def test_it_keeps_the_contract(built: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/shim.sock"
    with running(built, tmp_path / "site", address):
        argv = [sys.executable, "-m", "banyanctl", "shim", "verify", address, "--yes"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") >= CHECKS, done.stdout


def test_a_controller_runs_an_application_through_it(built: Path, tree: Tree, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/shim.sock"
    root = tree.site("root")
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "", "--shim", address)
    with running(built, tmp_path / "site", address) as shim:
        root.run()
        until("its node is known", lambda: [node["metadata"]["name"] for node in root.get("/api/v1/nodes")["items"]] == ["gopher"])
        code, answer = root.ask("POST", APPS, program("far", expose={"port": 18571}, placement={"clusterName": "root"}))
        assert code == 201, answer
        until("it runs", lambda: root.status("far").get("ready") == 1)
        code, answer = root.ask("GET", f"{APPS}/far/proxy/")
        assert code == 200, answer
        assert isinstance(answer, dict)
        pid = answer["pid"]
        assert answer["env"]["BANYAN_NODE"] == "gopher"
        assert "serving" in root.banyan("logs", "far").stdout
        shim.kill()
        shim.wait(60)
    with running(built, tmp_path / "site", address):
        until("another one runs, and what the dead shim left does not", lambda: root.status("far").get("ready") == 1 and not alive(pid))
        root.stop()


def alive(pid: int) -> bool:
    try:
        return b"site_program" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
