"""The worker as a process: its protocol, its swaps, its end."""

import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.edge_ai import onnx_models
from tests.edge_ai.workers import PATIENCE, Asker, Worker, ask, control, request, worker

EMOTION = Path(__file__).parents[2] / "examples" / "emotion" / "model-1"
INFER = "/v2/models/m/infer"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.constant(folder / "one", 1.0)
    onnx_models.constant(folder / "two", 2.0)
    onnx_models.logarithm(folder / "log")
    onnx_models.slow(folder / "slow", 400)
    (folder / "broken").mkdir()
    (folder / "broken" / "model.onnx").write_bytes(b"this is no model" * 100)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with worker(models / "one", "--max-request-bytes", "100000") as made:
        yield made


def test_rest_metadata_and_health(one: Worker) -> None:
    assert ask(one.address, "GET", "/v2/health/live")[::2] == (200, {"live": True})
    assert ask(one.address, "GET", "/v2/health/ready")[::2] == (200, {"live": True, "ready": True})
    status, _, server = ask(one.address, "GET", "/v2")
    assert status == 200 and server["name"] == "banyan" and server["extensions"] == ["binary_tensor_data", "schedule_policy", "statistics"]
    for path in ("/v2/models/m", "/v2/models/m/versions/1", "/v2/models/%6d"):
        status, _, model = ask(one.address, "GET", path)
        assert status == 200 and model["versions"] == ["1"] and model["platform"] == "onnx_onnxv1"
        assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    for path in ("/v2/models/m/ready", "/v2/models/m/versions/1/ready"):
        assert ask(one.address, "GET", path)[::2] == (200, {"name": "m", "ready": True})


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", b"", {}, 404),
        ("GET", "/v2/models/other", b"", {}, 404),
        ("GET", "/v2/models/m/versions/2", b"", {}, 404),
        ("GET", "/v2/models/m/versions/2/ready", b"", {}, 404),
        ("POST", "/v2/models/other/infer", request(), {}, 404),
        ("POST", "/v2/models/m/versions/2/infer", request(), {}, 404),
        ("POST", "/v2/models/" + "m" * 5000 + "/infer", request(), {}, 404),
        ("GET", "/v2/models/%ff", b"", {}, 400),
        ("GET", INFER, b"", {}, 405),
        ("DELETE", "/v2/models/m", b"", {}, 405),
        ("POST", INFER, b"", {}, 400),
        ("POST", INFER, b"[]", {}, 400),
        ("POST", INFER, request(width=5), {}, 400),
        ("POST", INFER, request(batch=65), {}, 400),
        ("POST", INFER, request(name="z"), {}, 400),
        ("POST", INFER, request(), {"Inference-Header-Content-Length": "many"}, 400),
        ("POST", INFER, request(), {"Inference-Header-Content-Length": "9" * 30}, 400),
        ("POST", INFER, request(), {"Content-Encoding": "gzip"}, 415),
        ("POST", INFER, b"x" * 200_000, {}, 413),
        ("POST", "/v2/repository/index", b"", {}, 404),  # the control socket's alone
        ("POST", "/v2/repository/models/m/load", b"{}", {}, 404),
    ],
)
def test_what_does_not_fit_gets_a_4xx_with_a_reason(
    one: Worker, method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answered, _, document = ask(one.address, method, path, body, headers)
    assert answered == status and document["error"] and len(document["error"]) < 1000
    assert ask(one.address, "POST", INFER, request())[0] == 200


CLIENT = Path(__file__).with_name("triton_loop.py")


def test_the_emotion_model_answers_the_same_over_rest_and_grpc(tmp_path: Path) -> None:
    golden = json.loads((Path(__file__).parents[1] / "examples" / "golden.json").read_text())
    face = np.frombuffer(bytes.fromhex(golden["grey"]), np.uint8).astype(np.float64).reshape(1, 64, 64, 1)
    item = {"name": "input", "shape": [1, 64, 64, 1], "datatype": "FP32", "data": ((face / 255 - 0.5) * 2).ravel().tolist()}
    with worker(EMOTION, name="emotion") as made:
        status, _, document = ask(made.address, "POST", "/v2/models/emotion/infer", json.dumps({"inputs": [item]}).encode())
        assert status == 200
        np.testing.assert_allclose(document["outputs"][0]["data"], golden["rounded_face_probabilities"], atol=1e-3)


@pytest.mark.parametrize(
    ("folder", "digest", "says"),
    [
        ("one", "model.onnx=" + "0" * 64, "sha256"),
        ("one", "other.onnx=" + "0" * 64, "other.onnx"),
        ("one", "../two/model.onnx=" + "0" * 64, "leads out"),
        ("broken", None, "not a model"),
        ("empty", None, "0 .onnx files"),
        ("missing", None, "does not exist"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_clear_end(models: Path, folder: str, digest: str | None, says: str) -> None:
    made = Worker(models / folder, *(("--digest", digest) if digest else ()))
    assert made.wait() == 3
    refused = next(event for event in made.events if event["event"] == "model.refused")
    assert says in refused["error"] and not made.odd_lines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "nowhere"],
        ["--listen", "127.0.0.1:99999"],
        ["--listen", "127.0.0.1:0", "--control", "/no/scheme"],
        ["--listen", "127.0.0.1:0", "--control", "unix:/" + "x" * 200],
        ["--listen", "127.0.0.1:0", "--digest", "model.onnx=short"],
        ["--listen", "127.0.0.1:0", "--queue", "0"],
        [],  # no address, and none inherited
    ],
)
def test_wrong_usage_says_so(models: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "edge_ai.serve", "--name", "m", "--version", "1", "--model-folder", str(models / "one"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr


def test_an_address_that_is_taken_says_so(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "edge_ai.serve", "--name", "m", "--version", "1", "--model-folder", str(models / "one")]
        command += ["--listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 4 and "worker.cannot_listen" in done.stderr and "Traceback" not in done.stderr


def test_a_full_queue_is_told_at_once(models: Path) -> None:
    with worker(models / "slow", "--runs", "1", "--queue", "2") as made:
        statuses: list[tuple[int, str | None]] = []

        def one_request() -> None:
            status, headers, _ = ask(made.address, "POST", INFER, request())
            statuses.append((status, headers.get("Retry-After")))

        threads = [threading.Thread(target=one_request) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        accepted = [header for status, header in statuses if status == 200]
        refused = [int(header or 0) for status, header in statuses if status == 429]
        assert len(accepted) >= 3 and len(accepted) + len(refused) == len(statuses) == 10
        assert not any(accepted) and refused and all(1 <= seconds <= 60 for seconds in refused)
        assert ask(made.address, "GET", "/v2/health/ready")[0] == 200
        metrics = ask(made.address, "GET", "/metrics")[2].decode()
        assert 'banyan_serve_requests_total{code="429",model="m",protocol="rest"}' in metrics


def test_metrics_count_what_happened(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "control"
    with worker(models / "one", "--control", f"unix:{path}") as made:
        for batch in (1, 1, 8):
            ask(made.address, "POST", INFER, request(batch))
        ask(made.address, "POST", INFER, b"nonsense")
        for text in (ask(made.address, "GET", "/metrics")[2].decode(), control(path, "GET", "/metrics")[1]):
            for line in (
                'banyan_serve_requests_total{code="200",model="m",protocol="rest"} 3.0',
                'banyan_serve_requests_total{code="400",model="m",protocol="rest"} 1.0',
                'banyan_serve_request_seconds_count{model="m",protocol="rest"} 3.0',
                'banyan_serve_run_seconds_count{model="m"} 3.0',
                'banyan_serve_queue_seconds_count{model="m"} 3.0',
                'banyan_serve_batch_size_bucket{le="1.0",model="m"} 2.0',
                'banyan_serve_batch_size_bucket{le="8.0",model="m"} 3.0',
                'banyan_serve_model_ready{model="m",version="1"} 1.0',
                'banyan_serve_loads_total{result="loaded"} 1.0',
            ):
                assert line in text.splitlines()


def test_an_answer_that_json_cannot_carry_goes_as_binary(models: Path) -> None:
    item = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [0, -1]}
    with worker(models / "log") as made:
        status, _, document = ask(made.address, "POST", INFER, json.dumps({"inputs": [item]}).encode())
        assert status == 400 and "binary_data" in document["error"]
        binary = {"inputs": [item], "parameters": {"binary_data_output": True}}
        status, headers, content = ask(made.address, "POST", INFER, json.dumps(binary).encode())
        values = np.frombuffer(content[int(headers["Inference-Header-Content-Length"]) :], "<f4")
        assert status == 200 and values[0] == -np.inf and np.isnan(values[1])


def load(path: Path, folder: Path, version: str, **digests: str) -> tuple[int, Any]:
    parameters = {"version": version, "folder": str(folder), "digests": digests}
    return control(path, "POST", "/v2/repository/models/m/load", {"parameters": parameters})


def test_versions_are_swapped_under_load_and_nothing_broken_ever_replaces_what_serves(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "control"
    digest = hashlib.sha256((models / "two" / "model.onnx").read_bytes()).hexdigest()
    with worker(models / "one", "--control", f"unix:{path}") as made:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        askers = [Asker(made.address, keep_alive) for keep_alive in (True, False)]
        for asker in askers:
            asker.start()
        askers[0].wait_answers(50)
        for folder, named, says in (
            ("broken", {}, "not a model"),
            ("missing", {}, "does not exist"),
            ("two", {"model.onnx": "0" * 64}, "sha256"),
            ("identity", {"nothing.onnx": digest}, "nothing.onnx"),
        ):
            status, document = load(path, models / folder, "2", **named)
            assert status == 422 and says in document["error"]
        assert control(path, "POST", "/v2/repository/index")[1][0] == {"name": "m", "version": "1", "state": "READY", "reason": ""}
        askers[0].wait_answers(50)
        assert {answer for asker in askers for answer in asker.answers} == {("1", 1.0)}

        assert load(path, models / "two", "2", **{"model.onnx": digest}) == (200, {"name": "m", "version": "2"})
        for asker in askers:
            asker.wait_answers(50)
        for number in range(3, 8):  # and again and again, in both directions
            assert load(path, models / ("one" if number % 2 else "two"), str(number))[0] == 200
            askers[0].wait_answers(10)
        for asker in askers:
            asker.finish()
            assert not asker.failures
            assert all(value == (1.0 if int(version) % 2 else 2.0) for version, value in asker.answers)
            versions = [int(version) for version, _ in asker.answers]
            assert versions == sorted(versions) and versions[0] == 1 and versions[-1] == 7
        assert ask(made.address, "POST", "/v2/models/m/versions/1/infer", request())[0] == 404
        assert ask(made.address, "POST", "/v2/models/m/versions/7/infer", request())[0] == 200


@pytest.mark.parametrize(
    ("target", "document", "status"),
    [
        ("/v2/repository/models/m/load", None, 400),
        ("/v2/repository/models/m/load", {"parameters": {"version": "2"}}, 400),
        ("/v2/repository/models/m/load", {"parameters": {"version": "2", "folder": "/x", "wrong": 1}}, 400),
        ("/v2/repository/models/other/load", {"parameters": {"version": "2", "folder": "/x"}}, 422),
        ("/v2/repository/models/other/unload", {"parameters": {"version": "2"}}, 404),
        ("/v2/repository/models/m/unload", None, 409),
        ("/v2/repository/models/m/unload", {"parameters": {"version": "1"}}, 409),
        ("/v2/repository/models/m/unload", {"parameters": {"wrong": "1"}}, 400),
    ],
)
def test_a_malformed_load_is_refused(models: Path, tmp_path: Path, target: str, document: Any, status: int) -> None:
    path = tmp_path / "control"
    with worker(models / "one", "--control", f"unix:{path}"):
        assert control(path, "POST", target, document)[0] == status
        assert control(path, "GET", target)[0] == 405


def test_the_control_socket_is_there_before_the_model_and_gone_at_the_end(models: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "control", tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "model.onnx")  # loading waits until somebody writes
    path.touch()  # left by a worker that was killed
    made = Worker(folder, "--control", f"unix:{path}", "--digest", "model.onnx=" + "0" * 64)
    try:
        while True:
            try:
                assert control(path, "GET", "/v2/health/ready") == (503, {"live": True, "ready": False})
                break
            except (ConnectionRefusedError, FileNotFoundError):
                assert made.process.poll() is None
        assert control(path, "GET", "/v2/health/live")[0] == 200
        assert control(path, "GET", "/v2/models/m")[0] == 503
        assert not any(event["event"] == "worker.ready" for event in made.events)
        (folder / "model.onnx").write_bytes(b"nothing of use")
        assert made.wait() == 3 and not path.exists()
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.wait()


def listening_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def test_replicas_come_and_go_on_one_socket_and_no_request_fails(models: Path) -> None:
    """Rolling from version 1 to 2 to 1 with one or two replicas: what a supervisor that holds the socket does."""
    with listening_socket() as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        running = [Worker(models / "one", listening=listening).ready() for _ in range(2)]
        askers = [Asker(address, keep_alive, pause=pause) for keep_alive in (True, False) for pause in (0.0, 0.05)]
        for asker in askers:
            asker.start()
        try:
            for number in range(2, 8):
                askers[0].wait_answers(20)
                running.append(Worker(models / ("two" if number % 2 == 0 else "one"), listening=listening, version=str(number)).ready())
                assert running.pop(0).terminate() == 0
            for asker in askers:
                asker.wait_answers(5)
        finally:
            for asker in askers:
                asker.finish()
            codes = [left.terminate() for left in running]
        assert [asker.failures for asker in askers] == [[], [], [], []] and codes == [0, 0]
        assert all(value == (2.0 if int(version) % 2 == 0 else 1.0) for asker in askers for version, value in asker.answers)
        assert {"1", "2", "7"} <= {version for asker in askers for version, _ in asker.answers}
        assert sum(asker.closes for asker in askers if asker.keep_alive) >= 1  # kept connections were told to go, not cut


def test_one_replica_is_replaced_with_a_gap_and_those_who_come_in_between_are_served_by_the_next(models: Path) -> None:
    with listening_socket() as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        first = Worker(models / "one", listening=listening).ready()
        askers = [Asker(address, keep_alive) for keep_alive in (True, False)]
        for asker in askers:
            asker.start()
            asker.wait_answers(10)
        assert first.terminate() == 0
        second = Worker(models / "two", listening=listening, version="2").ready()
        try:
            for asker in askers:
                asker.wait_answers(10)
        finally:
            for asker in askers:
                asker.finish()
            code = second.terminate()
        assert [asker.failures for asker in askers] == [[], []] and code == 0
        assert {version for asker in askers for version, _ in asker.answers} == {"1", "2"}


def test_an_own_socket_serves_who_was_in_its_queue_and_then_refuses(models: Path) -> None:
    made = Worker(models / "slow", "--runs", "1").ready()
    results: list[int] = []

    def one_request() -> None:
        results.append(ask(made.address, "POST", INFER, request())[0])

    threads = [threading.Thread(target=one_request) for _ in range(6)]
    for thread in threads:
        thread.start()
    while float(_line(made, "banyan_serve_requests_open").split()[1]) + len(results) < len(threads):
        assert len(results) < len(threads), "all were answered before the end could come in between"
    assert made.terminate() == 0
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [200] * 6 and not made.odd_lines()
    with pytest.raises(ConnectionRefusedError):
        ask(made.address, "GET", "/v2/health/live")


def _line(made: Worker, name: str) -> str:
    lines = ask(made.address, "GET", "/metrics")[2].decode().splitlines()
    return next(line for line in lines if line.startswith(name))


def test_grpc_clients_do_not_notice_that_replicas_come_and_go(models: Path) -> None:
    with listening_socket() as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        running = [Worker(models / "one", listening=listening).ready()]
        client = subprocess.Popen([sys.executable, str(CLIENT), address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        try:
            assert client.stdout.readline().strip() == "asking"
            for number in range(2, 5):
                running.append(Worker(models / "one", listening=listening, version=str(number)).ready())
                assert running.pop(0).terminate() == 0
                assert json.loads(client.stdout.readline())  # a second's tally
            assert client.stdin is not None
            client.stdin.write("stop\n")
            client.stdin.flush()
            tally = json.loads(client.stdout.read().strip().splitlines()[-1])
            client.wait(PATIENCE)
            assert tally["failures"] == [] and tally["answers"] > 10 and "4" in tally["versions"]
            assert client.returncode == 0
        finally:
            if client.poll() is None:
                client.kill()
            client.communicate(timeout=PATIENCE)
            codes = [left.terminate() for left in running]
        assert codes == [0]


def test_a_worker_knows_nothing_of_the_controller_and_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys, edge_ai.serve.__main__\n"
        "heavy = {'cluster_controller', 'cluster_shim', 'openapi', 'banyanctl', 'grpc', 'rich', 'structlog', 'sqlalchemy', 'onnx'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
