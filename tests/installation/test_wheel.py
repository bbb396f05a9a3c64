"""The built wheel in an empty environment outside the checkout: what an edge gets, how large it is, and that it works.

Needs the package registry, so only `make installation` and `.ci/run` run it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EDGE_MEGABYTES = 60  # of everything installed, without model runtimes
START_SECONDS = 30
UV = Path(sys.executable).with_name("uv")


def run(*arguments: str | Path, folder: Path, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    argv = [str(each) for each in arguments]
    return subprocess.run(argv, cwd=folder, env=clean | (environment or {}), capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, ROOT, folder=target)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the edge's lock and the wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("edge")
    venv = folder / "venv"
    python = venv / "bin" / "python"
    for argv in (
        [UV, "venv", "--quiet", "--python", sys.executable, venv],
        [UV, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", ROOT / "requirements" / "edge.lock"],
        [UV, "pip", "install", "--quiet", "--python", python, "--no-deps", wheel],
    ):
        done = run(*argv, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return venv


def test_the_wheel_holds_every_package_its_generated_modules_and_static_files_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
    wanted = {
        name.removeprefix("proto/")
        for name in tracked
        if name.startswith(("cluster_controller/", "cluster_shim/", "openapi/", "edge_ai/", "banyanctl/", "proto/banyan/"))
    }
    assert wanted <= set(names)
    assert {name.partition("/")[0] for name in names} - {"banyan_edge-0.1.0.dist-info"} == {
        "cluster_controller", "cluster_shim", "openapi", "edge_ai", "banyanctl", "banyan",
    }  # fmt: skip
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".pyc", "conftest.py"))]


def test_everything_that_is_declared_is_in_the_lock(environment: Path, tmp_path: Path) -> None:
    done = run(UV, "pip", "check", "--python", environment / "bin" / "python", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_edge_takes_little_room(environment: Path) -> None:
    """Sizes of files, as wheels bring them. Compiled bytecode comes on top where it is wanted, about 24 MB."""
    installed = environment / "lib"
    total = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file() and path.suffix != ".pyc")
    print(f"installed edge: {total / 1e6:.1f} MB")
    assert total <= EDGE_MEGABYTES * 1_000_000
    present = {path.name.partition("-")[0] for path in installed.rglob("*.dist-info")}
    assert not present & {"grpcio", "numpy", "onnxruntime", "rich", "kubernetes", "alembic"}


def test_it_speaks_from_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    banyan = environment / "bin" / "banyan"
    where = run(environment / "bin" / "python", "-c", "import cluster_controller; print(cluster_controller.__file__)", folder=tmp_path)
    assert str(environment) in where.stdout
    assert "banyan 0.1.0" in run(banyan, "version", folder=tmp_path, environment={"HOME": str(tmp_path)}).stdout
    for command in ("--help", "run --help", "join --help", "get --help"):
        done = run(banyan, *command.split(), folder=tmp_path)
        assert done.returncode == 0, done.stderr


def ended(environment: Path, folder: Path) -> Iterator[Path]:
    yield folder
    if (folder / "process").exists():
        code = "import sys, pathlib; from cluster_shim.process import client; client.end(pathlib.Path(sys.argv[1]), 0)"
        run(environment / "bin" / "python", "-c", code, folder / "process", folder=folder.parent)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def data(environment: Path, tmp_path: Path) -> Iterator[Path]:
    yield from ended(environment, tmp_path / "root")


@pytest.fixture
def edge(environment: Path, tmp_path: Path) -> Iterator[Path]:
    yield from ended(environment, tmp_path / "edge-1")


HELLO = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello from " + os.environ["BANYAN_APPLICATION"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Hello).serve_forever()
"""


def a_leaf_joins_and_serves(environment: Path, root: Path, edge: Path) -> None:
    """One command application, asked through the tree; whoever joined is ended again."""
    banyan, folder = environment / "bin" / "banyan", root.parent
    token = run(banyan, "--data", root, "token", "create", "-o", "json", folder=folder)
    argv = [banyan, "--data", edge, "join", json.loads(token.stdout)["status"]["token"], "--name", "edge-1"]
    argv += ["--api-listen", "127.0.0.1:0", "--tunnel-listen", ""]
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    component = {"name": "web", "command": [str(environment / "bin" / "python"), "-c", HELLO], "takesSocket": False}
    document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "metadata": {"name": "hello"}}
    document["spec"] = {"components": [component | {"expose": {"port": 18999}}], "placement": {"clusterName": "edge-1"}}
    manifest = folder / "hello.json"
    manifest.write_text(json.dumps(document))
    with (folder / "edge-1.log").open("wb") as log, subprocess.Popen(argv, cwd=folder, env=clean, stdout=log, stderr=log) as process:
        try:
            applied = run(banyan, "--data", root, "apply", "-f", manifest, folder=folder)
            assert applied.returncode == 0, applied.stderr
            deadline = time.monotonic() + START_SECONDS
            answer = run(banyan, "--data", root, "invoke", "hello", "/", folder=folder)
            while answer.stdout != "hello from hello" and time.monotonic() < deadline:
                assert process.poll() is None, (folder / "edge-1.log").read_text()
                answer = run(banyan, "--data", root, "invoke", "hello", "/", folder=folder)
            assert answer.stdout == "hello from hello", answer.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(START_SECONDS) == 0
        finally:
            process.kill()


def test_a_tree_starts_serves_and_stops(environment: Path, tmp_path: Path, data: Path, edge: Path) -> None:
    banyan = environment / "bin" / "banyan"
    made = run(banyan, "init", "root", "--data", data, "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    with subprocess.Popen([banyan, "run", "--data", data], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "root serves https://" in line:
                    break
            else:
                pytest.fail("".join(said))
            tree = run(banyan, "--data", data, "tree", folder=tmp_path)
            assert "root" in tree.stdout, tree.stderr
            namespaces = run(banyan, "--data", data, "get", "namespaces", "-o", "name", folder=tmp_path)
            assert namespaces.stdout == "namespace/default\n", namespaces.stderr
            a_leaf_joins_and_serves(environment, data, edge)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
