"""The device client against a real worker, and against servers that fail."""

import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.edge_ai.workers import PATIENCE, Worker, worker

EXAMPLE = Path(__file__).parents[2] / "examples" / "emotion"
DEVICE = [sys.executable, str(EXAMPLE / "device.py")]


@pytest.fixture(scope="module")
def emotion() -> Iterator[Worker]:
    with worker(EXAMPLE / "model-1", name="emotion") as made:
        yield made


def url(made: Worker) -> str:
    return f"http://{made.address}/v2/models/emotion/infer"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*DEVICE, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_it_tells_label_confidence_route_and_time(emotion: Worker) -> None:
    done = run("--url", url(emotion))
    assert done.returncode == 0, done.stderr
    assert "face     96×96 at row 68, column 77" in done.stdout
    assert "happy, confidence 0.99" in done.stdout and "route    direct" in done.stdout and " ms" in done.stdout


@pytest.mark.parametrize("connections", ["keep-alive", "new"])
def test_json_and_repeat(emotion: Worker, connections: str) -> None:
    done = run("--url", url(emotion), "--json", "--repeat", "5", "--connections", connections)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(answers) == 5
    for answer in answers:
        assert answer["label"] == "happy" and answer["confidence"] > 0.98 and answer["version"] == "1" and answer["milliseconds"] > 0


def test_the_loop_counts_until_it_is_told_to_stop(emotion: Worker) -> None:
    process = subprocess.Popen(
        [*DEVICE, "--url", url(emotion), "--loop", "--json", "--connections", "both", "--interval", "0", "--report", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["requests"] < 20:
            pass
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    tally = json.loads(output.splitlines()[-1])
    assert process.returncode == 0 and tally["failures"] == 0 and tally["requests"] >= 20
    assert tally["versions"] == {"1": tally["requests"]} and tally["errors"] == []


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers as the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        values = {"/unsure": [0.5, 0, 0, 0.5, 0, 0, 0], "/routed": [0, 0, 0, 1.0, 0, 0, 0]}.get(self.path)
        document: Any = {"model_version": "9", "outputs": [{"data": values}]} if values else {"nothing": 1}
        body = b"no json" if self.path == "/garbage" else json.dumps(document).encode()
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/routed":
            self.send_header("Banyan-Route", "root region-a edge-1")
            assert self.headers["Authorization"] == "Bearer secret"
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/unsure", "/garbage", "/busy", "/nothing"])
def test_what_is_no_good_answer_is_a_failure(odd: str, path: str) -> None:
    assert run("--url", odd + path).returncode == 1
    done = run("--url", odd + path, "--loop", "--seconds", "0.3", "--interval", "0.05", "--json")
    tally = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and tally["failures"] == tally["requests"] > 0 and 0 < len(tally["errors"]) <= 10


def test_the_route_is_told_and_the_token_is_sent(odd: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    done = run("--url", odd + "/routed", "--json", "--token-file", str(tmp_path / "token"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["route"] == "root region-a edge-1"


def test_nobody_there_no_face_no_photograph(tmp_path: Path) -> None:
    from skimage.io import imsave

    done = run("--url", "http://127.0.0.1:9/v2/models/emotion/infer")
    assert done.returncode == 1 and "refused" in done.stderr and "Traceback" not in done.stderr
    imsave(tmp_path / "grey.png", np.full((128, 128, 3), 90, np.uint8), check_contrast=False)
    done = run("--url", "http://127.0.0.1:9/", "--photo", str(tmp_path / "grey.png"))
    assert done.returncode == 3 and "no face" in done.stderr
    done = run("--url", "http://127.0.0.1:9/", "--photo", str(tmp_path / "missing.png"))
    assert done.returncode == 2 and "missing.png" in done.stderr and "Traceback" not in done.stderr


def test_a_question_leaves_in_one_piece() -> None:
    """Each piece costs a small device a system call, and wakes whoever answers."""
    from benchmarks import device_client

    sent: list[bytes] = []

    class Wire:
        def sendall(self, data: bytes) -> None:
            sent.append(data)

    connection = device_client.device()._InOnePiece("x")
    connection.sock = Wire()
    connection.request("POST", "/infer", b"body", {"A": "b"})
    assert len(sent) == 1 and sent[0].startswith(b"POST /infer HTTP/1.1\r\n") and sent[0].endswith(b"\r\n\r\nbody")
