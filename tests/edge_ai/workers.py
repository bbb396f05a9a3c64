"""Real worker processes, and clients that ask them all the time."""

import contextlib
import http.client
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds; a bound against hanging, never asserted


class Worker:
    """``python -m edge_ai.serve`` with its events read from stderr."""

    def __init__(self, folder: Path, *options: str, listening: socket.socket | None = None, name: str = "m", version: str = "1") -> None:
        self.events: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        command = [sys.executable, "-W", "error", "-m", "edge_ai.serve", "--name", name, "--version", version]
        command += ["--model-folder", str(folder), *options]
        inherit: dict[str, Any] = {}
        if listening is None:
            command += ["--listen", "127.0.0.1:0"]
        else:
            inherit = {
                "env": {**os.environ, "LISTEN_FDS": "1"},
                "pass_fds": (3,),
                "preexec_fn": lambda: os.dup2(listening.fileno(), 3),
            }
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, **inherit)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = {"event": "stderr", "text": line.decode(errors="replace")}
                self.events.append(event)
                self._lines.put(event)
        self._lines.put(None)

    def wait_for(self, name: str) -> dict[str, Any]:
        while (event := self._lines.get(timeout=PATIENCE)) is not None:
            if event["event"] == name:
                return event
        raise AssertionError(f"the worker ended without {name}: {self.events}")

    @property
    def port(self) -> int:
        for event in self.events:
            if event["event"] == "worker.ready":
                return int(event["address"].rpartition(":")[2])
        raise AssertionError("not ready")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ready(self) -> "Worker":
        self.wait_for("worker.ready")
        return self

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def has_loaded(self, library: str) -> bool:
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def odd_lines(self) -> list[str]:
        """What it wrote that is no event: tracebacks and warnings."""
        return [event["text"] for event in self.events if event["event"] == "stderr"]


@contextlib.contextmanager
def worker(folder: Path, *options: str, **more: Any) -> Iterator[Worker]:
    """A ready worker that is gone afterwards, and that wrote nothing but events."""
    made = Worker(folder, *options, **more)
    try:
        yield made.ready()
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.wait()
    assert not made.odd_lines()


def ask(
    address: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, Any]:
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    is_json = response.headers.get("Content-Type") == "application/json"
    return response.status, response.headers, json.loads(content) if is_json else content


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("control", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


def control(path: Path, method: str, target: str, document: Any = None) -> tuple[int, Any]:
    connection = _UnixConnection(path)
    try:
        connection.request(method, target, None if document is None else json.dumps(document))
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers.get("Content-Type") == "application/json"
        return response.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def request(batch: int = 1, width: int = 4, name: str = "x") -> bytes:
    item = {"name": name, "shape": [batch, width], "datatype": "FP32", "data": [1.0] * batch * width}
    return json.dumps({"inputs": [item]}).encode()


class Asker(threading.Thread):
    """Asks all the time; counts. Never tries again: a request that fails once has failed."""

    def __init__(self, address: str, keep_alive: bool, path: str = "/v2/models/m/infer", pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.address, self.keep_alive, self.path, self.pause = address, keep_alive, path, pause
        self.answers: list[tuple[str, float]] = []  # version, first value
        self.failures: list[str] = []
        self.closes = 0
        self._stop_asking = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        while not self._stop_asking.is_set():
            try:
                connection.request("POST", self.path, request())
                response = connection.getresponse()
                document = json.loads(response.read())
                if response.status == 200:
                    self.answers.append((document["model_version"], document["outputs"][0]["data"][0]))
                else:
                    self.failures.append(f"{response.status} {document}")
                self.closes += response.headers.get("Connection") == "close"
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(repr(error))
                connection.close()
            if not self.keep_alive:
                connection.close()
            self._stop_asking.wait(self.pause)
        connection.close()

    def finish(self) -> "Asker":
        self._stop_asking.set()
        self.join(PATIENCE)
        return self

    def wait_answers(self, more: int) -> None:
        """Until so many more answers have come."""
        wanted, end = len(self.answers) + more, time.monotonic() + PATIENCE
        while len(self.answers) < wanted:
            assert time.monotonic() < end and not self.failures, self.failures
            time.sleep(0.002)
