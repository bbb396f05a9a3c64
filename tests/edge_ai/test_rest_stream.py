"""Inference as lines over HTTP/1.1, by a real worker: answered before the input ends, in order, and ended with its client."""

import http.client
import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge_ai.serve import pipeline
from tests.edge_ai import onnx_models
from tests.edge_ai.workers import PATIENCE, Worker, ask, control, request, worker

COUNT = """
import numpy as np
def count(x):
    if x[0, 0] < 0:
        raise ValueError("no such number")
    for step in range(int(x[0, 0])):
        yield {"y": np.array([step], np.int64)}
"""
DOCUMENT = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    "steps": [{"python": "steps.py", "function": "count", "inputs": {"x": "x"}, "outputs": {"y": "y"}}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.constant(folder / "one", 1.0)
    (folder / "count").mkdir()
    (folder / "count" / "steps.py").write_text(COUNT)
    (folder / "count" / pipeline.FILE).write_text(json.dumps(DOCUMENT))
    path = folder / "control"
    with worker(folder / "one", "--control", f"unix:{path}", "--python-steps", "--runs", "1") as made:
        parameters = {"version": "1", "folder": str(folder / "count")}
        assert control(path, "POST", "/v2/repository/models/count/load", {"parameters": parameters})[0] == 200
        yield made


class Stream:
    """The standard library's client: a thread sends what is put, the test reads."""

    def __init__(self, address: str, path: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._connection.putrequest("POST", path)
        self._connection.putheader("Transfer-Encoding", "chunked")
        self._connection.endheaders()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        self.answer: Any = None

    def _send(self) -> None:
        while (line := self._lines.get()) is not None:
            self._connection.send(b"%x\r\n%b\r\n" % (len(line), line))
        self._connection.send(b"0\r\n\r\n")

    def put(self, document: Any) -> None:
        self._lines.put((document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n")

    def end(self) -> None:
        self._lines.put(None)

    def read(self) -> Any:
        """The next line; None at the end."""
        if self.answer is None:
            self.answer = self._connection.getresponse()
            assert self.answer.status == 200 and self.answer.headers["Content-Type"] == "application/x-ndjson"
        line = self.answer.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        if self.answer is not None:
            self.answer.close()
        self._connection.close()


def count(number: float, own: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [number]}]}
    return made | ({"id": own} if own else {})


def value(answer: Any) -> Any:
    return answer["outputs"][0]["data"][0]


def test_answers_come_before_the_input_ends_in_order_and_a_failure_ends_nothing(made: Worker) -> None:
    stream = Stream(made.address, "/v2/models/count/infer_stream")
    stream.put(count(3, "a"))
    first = [stream.read() for _ in range(3)]  # and the client has not ended
    assert [value(answer) for answer in first] == [0, 1, 2] and {answer["id"] for answer in first} == {"a"}
    assert first[0]["model_name"] == "count" and first[0]["model_version"] == "1"
    for bad, says in ((count(-1, "b"), "no such number"), (b"{", "not an inference request"), ({"id": "c", "inputs": []}, "x missing")):
        stream.put(bad)
        failed = stream.read()
        assert says in failed["error"] and failed.get("id", "") == (bad.get("id", "") if isinstance(bad, dict) else "")
    stream.put(count(1) | {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    assert "binary data cannot go in lines" in stream.read()["error"]
    stream.put(count(2, "d"))
    stream.put(count(1, "e"))
    stream.end()
    rest = []
    while (answer := stream.read()) is not None:
        rest.append((answer["id"], value(answer)))
    assert rest == [("d", 0), ("d", 1), ("e", 0)]
    stream.close()


@pytest.mark.parametrize("path", ["/v2/models/m/infer_stream", "/v2/models/m/versions/1/infer_stream"])
def test_a_model_that_does_not_stream_answers_each_line_once(made: Worker, path: str) -> None:
    stream = Stream(made.address, path)
    big = json.loads(request(64)) | {"id": "big", "inputs": [json.loads(request(64))["inputs"][0] | {"data": [1.000000000001] * 256}]}
    long = json.dumps(big).encode().replace(b"[1.0", b"[" + b" " * 20_000 + b"1.0", 1)  # decoded on a thread
    for number in range(50):
        stream.put(json.loads(request()) | {"id": str(number)})
    stream.put(long)
    stream.end()
    found = []
    while (answer := stream.read()) is not None:
        found.append((answer["id"], value(answer)))
    assert found == [(str(number), 1.0) for number in range(50)] + [("big", 1.0)]
    stream.close()


def test_a_client_that_goes_away_ends_its_stream(made: Worker) -> None:
    stream = Stream(made.address, "/v2/models/count/infer_stream")
    stream.put(count(1e9))
    stream.end()
    assert value(stream.read()) == 0
    stream.close()
    body = json.dumps(count(2)).encode()
    assert ask(made.address, "POST", "/v2/models/count/infer", body)[0] == 200  # its one thread is free again


def test_what_is_not_there_is_refused_at_once(made: Worker) -> None:
    for path, status in (("/v2/models/nobody/infer_stream", 404), ("/v2/models/m/versions/9/infer_stream", 404)):
        connection = http.client.HTTPConnection(made.address, timeout=PATIENCE)
        connection.putrequest("POST", path)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()  # and no body yet
        answer = connection.getresponse()
        assert answer.status == status and json.loads(answer.read())["error"]
        connection.close()
    assert ask(made.address, "GET", "/v2/models/m/infer_stream")[0] == 405


def test_an_old_client_is_told(made: Worker) -> None:
    with socket.create_connection(("127.0.0.1", made.port), PATIENCE) as client:
        client.sendall(b"POST /v2/models/m/infer_stream HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        said = b""
        while piece := client.recv(65536):
            said += piece
    assert b" 400 " in said and b"HTTP/1.1" in said
