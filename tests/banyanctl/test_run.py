"""`banyan run` as a process of its own: what it loads, how it starts and stops, what it says when it cannot."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from banyanctl import run, systemd
from banyanctl.endpoint import read
from cluster_controller.config import Config
from cluster_controller.errors import InvalidInput
from cluster_shim.process import client as supervisor
from tools import needs

FORBIDDEN = {"kubernetes", "grpc", "numpy", "onnxruntime", "alembic", "rich", "typer", "click", "yaml"}
START_SECONDS = 30


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "root"
    banyan("init", "root", "--data", str(folder), "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0").check_returncode()
    yield folder
    if (folder / "process").exists():
        supervisor.end(folder / "process", 0)


def banyan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "banyanctl", *arguments], capture_output=True, text=True, timeout=60, check=False)


def lines_until(process: "subprocess.Popen[str]", wanted: str) -> list[str]:
    """Standard error up to the line that says ``wanted``; the whole of it, as a failure, when that never comes."""
    seen = []
    assert process.stderr is not None
    for line in process.stderr:
        seen.append(line)
        if wanted in line:
            return seen
    pytest.fail("".join(seen))


def test_the_real_process_loads_nothing_that_an_edge_has_no_use_for(data: Path) -> None:
    argv = [sys.executable, "-X", "importtime", "-m", "banyanctl", "run", "--data", str(data)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = lines_until(process, "root serves https://")
            endpoint = read(data / "admin.kubeconfig")
            assert (data / "admin.kubeconfig").stat().st_mode & 0o777 == 0o600
            assert endpoint.address[0] == "127.0.0.1"
            assert banyan("--data", str(data), "get", "namespaces", "-o", "name").stdout == "namespace/default\n"
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()
        code = process.returncode
    assert code == 0
    loaded = {found[1].partition(".")[0] for found in re.finditer(r"^import time:.*\|\s*([\w.]+)$", "".join(said) + rest, re.MULTILINE)}
    assert {"cluster_controller", "openapi", "uvloop"} <= loaded
    assert not loaded & (FORBIDDEN - {"rich"})
    assert "rich.console" not in "".join(said)


def test_what_a_start_loaded_is_left_alone_by_the_garbage_collector(data: Path) -> None:
    """A full collection walks through all that is not frozen, and the requests of that moment wait for it."""
    program = (
        "import atexit, gc, sys\n"
        "from banyanctl import run, service\n"
        "service.SETTLED_SECONDS = 0\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count(), file=sys.stderr))\n"
        f"sys.exit(run.main(['--data', {str(data)!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        try:
            lines_until(process, "root serves https://")
            assert banyan("--data", str(data), "get", "namespaces", "-o", "name").returncode == 0  # a turn of the loop after ready
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()
    frozen = int(re.search(r"^frozen (\d+)$", rest, re.MULTILINE)[1])  # type: ignore[index]
    assert frozen > 50_000


def test_logs_are_one_line_each_as_json_or_for_people(data: Path) -> None:
    """Of a whole life, from the first line to the last; JSON is the default where no terminal is."""
    for form in ("json", "auto", "human"):
        argv = [sys.executable, "-m", "banyanctl", "run", "--data", str(data), "--log-format", form]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            try:
                said = lines_until(process, "root serves https://")
                process.send_signal(signal.SIGTERM)
                _, rest = process.communicate(timeout=START_SECONDS)
            finally:
                process.kill()
        lines = [*said, *rest.splitlines()]
        if form == "human":
            assert any(line.startswith("root serves https://") for line in lines)
            assert all(re.match(r"root serves|\d{4}-\d\d-\d\dT\S+ \[\w+ *\] \S+\.\S+", line) for line in lines), lines
        else:
            events = [json.loads(line) for line in lines]
            assert {"controller.started", "controller.serving", "controller.stopped"} <= {event["event"] for event in events}
            assert all({"level", "timestamp"} <= set(event) for event in events)


def test_it_tells_the_service_manager_when_it_serves_and_when_it_stops(tmp_path: Path, data: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(START_SECONDS)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        argv = [sys.executable, "-m", "banyanctl", "run", "--data", str(data)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL, env=environment) as process:
            try:
                assert manager.recv(64) == b"READY=1"
                assert banyan("--data", str(data), "get", "namespaces", "-o", "name").stdout == "namespace/default\n"  # and so it is
                process.send_signal(signal.SIGTERM)
                assert manager.recv(64) == b"STOPPING=1"
                assert process.wait(START_SECONDS) == 0
            finally:
                process.kill()


def test_it_says_what_keeps_it_from_starting(tmp_path: Path, data: Path) -> None:
    nobody = banyan("run", "--data", str(tmp_path / "nothing"))
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert "no cluster lives in" in nobody.stderr
    assert "banyan init" in nobody.stderr
    wrong = banyan("run", "--data", str(data), "--api-listen", "nonsense")
    assert wrong.returncode == 2
    assert "HOST:PORT" in wrong.stderr
    assert "Traceback" not in nobody.stderr + wrong.stderr


def test_help_documents_every_field_of_the_configuration() -> None:
    text = run.help_text(columns=100)
    documented = run.documented()
    for name in Config.__struct_fields__:
        assert f"--{name.replace('_', '-')} " in text
        assert documented[name]


def test_flags_become_fields() -> None:
    assert run.parse(["--log-level", "debug", "--labels=a=b,c=d", "--api-advertise", "one, two"]) == {
        "log_level": "debug",
        "labels": {"a": "b", "c": "d"},
        "api_advertise": ["one", "two"],
    }


@pytest.mark.parametrize("arguments", [["--nothing", "1"], ["--log-level"], ["word"], ["-x", "1"], ["--labels", "a"]])
def test_a_wrong_flag_is_named(arguments: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        run.parse(arguments)
    assert arguments[0] in str(refused.value)


def test_rich_is_kept_out_even_where_it_is_installed() -> None:
    code = "import sys; from banyanctl import run; run.keep_out(); import structlog; print(sys.modules['rich'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ))
    assert done.stdout == "None\n"


def test_a_join_that_cannot_be_leaves_nothing_behind(tmp_path: Path) -> None:
    altered = banyan("join", "banyan1nonsense", "--name", "edge-1", "--data", str(tmp_path / "edge"))
    assert altered.returncode == 23
    assert "banyan token create" in altered.stderr
    empty = banyan("join", " ", "--name", "edge-1", "--data", str(tmp_path / "edge"))
    assert empty.returncode == 2
    misnamed = banyan("join", "banyan1nonsense", "--name", "Edge_1", "--data", str(tmp_path / "edge"))
    assert misnamed.returncode == 2
    assert not (tmp_path / "edge").exists()


def test_init_twice_and_in_wrong_places_is_refused_by_name(tmp_path: Path, data: Path) -> None:
    before = sorted(path.name for path in data.rglob("*"))
    again = banyan("init", "other", "--data", str(data))
    assert again.returncode == 4
    assert "root lives in" in again.stderr
    assert sorted(path.name for path in data.rglob("*")) == before
    (tmp_path / "file").touch()
    assert "is no folder" in banyan("init", "root", "--data", str(tmp_path / "file" / "x")).stderr


def test_a_root_has_nobody_to_leave(data: Path) -> None:
    done = banyan("leave", "--data", str(data))
    assert done.returncode == 6
    assert "nobody to leave" in done.stderr
    assert (data / "identity" / "identity.json").exists()


def test_the_unit_ends_the_controller_alone(tmp_path: Path) -> None:
    """KillMode=process is what lets applications outlive the unit."""
    text = systemd.unit_text("edge-1", tmp_path, ["/usr/bin/banyan"])
    assert "\nKillMode=process\n" in text
    assert f"\nExecStart=/usr/bin/banyan run --data {tmp_path}" in text


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "banyan-edge-1.service"
    unit.write_text(systemd.unit_text("edge-1", tmp_path, [sys.executable]))
    checker = str(needs.TOOLS["systemd-analyze"]())
    done = subprocess.run([checker, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr
