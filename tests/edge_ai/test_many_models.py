"""One worker with several models: versions side by side, sleep and waking within a budget, streams, deadlines; real processes."""

import concurrent.futures
import json
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edge_ai.serve import pipeline
from edge_ai.serve.proto import open_inference_pb2 as pb
from tests.edge_ai import onnx_models
from tests.edge_ai.workers import PATIENCE, Worker, ask, control, request, worker

STREAM = """
import numpy as np, time
def count(x):
    for step in range(int(x[0, 0])):
        yield {"y": np.array([step], np.int64)}
"""
MODEL_MIB = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for value, name in ((1.0, "one"), (2.0, "two"), (3.0, "three")):
        onnx_models.constant(folder / name, value)
        (folder / name / "ballast").write_bytes(bytes(MODEL_MIB << 20))  # what a budget counts at least
    onnx_models.slow(folder / "slow", 40)
    spec = {"datatype": "FP32", "shape": [-1, 4]}
    steps = [{"python": "steps.py", "function": "count", "inputs": {"x": "x"}, "outputs": {"y": "y"}}]
    (folder / "stream").mkdir()
    (folder / "stream" / "steps.py").write_text(STREAM)
    outputs = [{"name": "y", "datatype": "INT64", "shape": [-1]}]
    (folder / "stream" / pipeline.FILE).write_text(json.dumps({"inputs": [{"name": "x"} | spec], "outputs": outputs, "steps": steps}))
    return folder


class Site:
    def __init__(self, made: Worker, path: Path, models: Path) -> None:
        self.made, self.path, self.models = made, path, models

    def load(self, name: str, version: str, folder: str, **more: Any) -> tuple[int, Any]:
        parameters = {"version": version, "folder": str(self.models / folder)} | more
        return control(self.path, "POST", f"/v2/repository/models/{name}/load", {"parameters": parameters})

    def unload(self, name: str, version: str = "") -> int:
        return control(self.path, "POST", f"/v2/repository/models/{name}/unload", {"parameters": {"version": version}})[0]

    def value(self, path: str) -> Any:
        status, _, document = ask(self.made.address, "POST", f"/v2/models/{path}/infer", request())
        return document["outputs"][0]["data"][0] if status == 200 else status

    def index(self) -> dict[tuple[str, str], str]:
        listed = control(self.path, "POST", "/v2/repository/index")[1]
        return {(item["name"], item["version"]): item["reason"] or item["state"] for item in listed}


@pytest.fixture
def site(models: Path, tmp_path: Path) -> Iterator[Site]:
    path = tmp_path / "control"
    budget = ("--memory-budget", str(2 * MODEL_MIB + 6), "--python-steps", "--runs", "1")
    with worker(models / "one", "--control", f"unix:{path}", *budget) as made:
        yield Site(made, path, models)


def test_versions_serve_side_by_side_until_they_are_unloaded(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "control"
    with worker(models / "one", "--control", f"unix:{path}") as made:
        site = Site(made, path, models)
        assert site.load("m", "2", "two", beside=True)[0] == 200
        assert (site.value("m"), site.value("m/versions/1"), site.value("m/versions/2")) == (2, 1, 2)
        assert ask(made.address, "GET", "/v2/models/m")[2]["versions"] == ["1", "2"]
        assert site.unload("m", "2") == 409  # it is what serves
        assert site.unload("m", "1") == 200 and site.unload("m", "1") == 404
        assert (site.value("m"), site.value("m/versions/1")) == (2, 404)
        assert site.load("n", "1", "three")[0] == 200
        assert (site.value("n"), site.value("m")) == (3, 2)
        assert site.unload("n") == 200 and site.value("n") == 404
        assert site.unload("m") == 409  # the worker is for it


def test_what_was_not_asked_for_sleeps_when_another_needs_its_memory_and_wakes_when_asked(site: Site) -> None:
    assert site.load("b", "1", "two")[0] == 200
    assert site.load("c", "1", "three")[0] == 200
    assert site.index() == {("m", "1"): "READY", ("b", "1"): "asleep", ("c", "1"): "READY"}
    assert site.value("m") == 1 and site.value("b") == 2  # woken by the request, which was answered
    assert site.index()["c", "1"] == "asleep"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # all of whom want what sleeps
        assert list(pool.map(lambda _: site.value("c"), range(8))) == [3] * 8
    assert site.index() == {("m", "1"): "READY", ("b", "1"): "asleep", ("c", "1"): "READY"}
    assert any(event["event"] == "model.woken" for event in site.made.events)


def test_what_does_not_fit_is_refused_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    onnx_models.constant(tmp_path / "large", 9.0)
    (tmp_path / "large" / "ballast").write_bytes(bytes(3 * MODEL_MIB << 20))
    status, document = site.load("large", "1", str(tmp_path / "large"))
    assert status == 422 and re.search(r"needs 24\.\d MiB, the budget for all models is 22\.0 MiB", document["error"])
    assert site.index() == {("m", "1"): "READY"} and site.value("m") == 1


class Stub:
    """By our own messages: Triton's client registers the same names, so it lives in processes of its own (the folder conformance)."""

    def __init__(self, made: Worker) -> None:
        channel = grpc.insecure_channel(made.address)
        path = "/inference.GRPCInferenceService/"
        encode = pb.ModelInferRequest.SerializeToString
        self.infer = channel.unary_unary(path + "ModelInfer", encode, pb.ModelInferResponse.FromString)
        self.stream = channel.stream_stream(path + "ModelStreamInfer", encode, pb.ModelStreamInferResponse.FromString)


def grpc_request(value: float, name: str = "stream", **parameters: int) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=name, raw_input_contents=[np.full((1, 4), value, np.float32).tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    for key, number in parameters.items():
        made.parameters[key].int64_param = number
    return made


def test_a_stream_answers_before_its_input_ends_in_order_and_a_failure_ends_nothing(site: Site) -> None:
    assert site.load("stream", "1", "stream")[0] == 200
    asked: queue.Queue[Any] = queue.Queue()
    answers = Stub(site.made).stream(iter(asked.get, None), timeout=PATIENCE)

    def numbers(count: int) -> list[int]:
        return [int(np.frombuffer(next(answers).infer_response.raw_output_contents[0], "<i8")[0]) for _ in range(count)]

    asked.put(grpc_request(3))
    assert numbers(3) == [0, 1, 2]  # and the client has not ended
    asked.put(grpc_request(1, "nobody"))
    failed = next(answers)
    assert "nobody" in failed.error_message and failed.infer_response.model_name == "nobody"
    asked.put(grpc_request(2))
    asked.put(grpc_request(1))
    assert numbers(3) == [0, 1, 0]
    asked.put(None)
    assert list(answers) == []


def test_a_stream_whose_client_goes_away_is_ended(site: Site) -> None:
    assert site.load("stream", "1", "stream")[0] == 200
    forever = Stub(site.made).stream(iter([grpc_request(1e9)]), timeout=PATIENCE)
    assert next(forever).infer_response.model_name == "stream"
    forever.cancel()
    assert ask(site.made.address, "POST", "/v2/models/stream/infer", request())[0] == 200  # its one thread is free again


def test_what_comes_too_late_is_not_run_and_says_so(models: Path) -> None:
    with worker(models / "slow", "--runs", "1") as made:
        first = threading.Thread(target=ask, args=(made.address, "POST", "/v2/models/m/infer", request()))
        first.start()
        while not re.search(r'requests_open{model="m"} 1', ask(made.address, "GET", "/metrics")[2].decode()):
            assert first.is_alive()
        document = json.loads(request()) | {"parameters": {"timeout": 1}}
        status, _, answer = ask(made.address, "POST", "/v2/models/m/infer", json.dumps(document).encode())
        assert status == 504 and "longer than its deadline" in answer["error"]
        with pytest.raises(grpc.RpcError) as late:
            Stub(made).infer(grpc_request(1, "m", timeout=1))
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        first.join(PATIENCE)
        counted = ask(made.address, "GET", "/metrics")[2].decode()
        assert 'banyan_serve_requests_total{code="504",model="m",protocol="rest"} 1.0' in counted
        assert 'banyan_serve_run_seconds_count{model="m"} ' in counted


@pytest.mark.parametrize("parameters", [{"priority": -1}, {"priority": 1001}, {"priority": True}, {"timeout": "soon"}, {"timeout": -1}])
def test_an_urgency_that_is_none_is_refused(site: Site, parameters: dict[str, Any]) -> None:
    document = json.loads(request()) | {"parameters": parameters}
    status, _, answer = ask(site.made.address, "POST", "/v2/models/m/infer", json.dumps(document).encode())
    assert status == 400 and next(iter(parameters)) in answer["error"]


def test_a_priority_in_much_json_says_what_to_do(site: Site) -> None:
    document = json.loads(request(64)) | {"parameters": {"priority": 1}, "id": "x" * 1000}
    body = json.dumps(document).encode() + b" " * 16384
    status, _, answer = ask(site.made.address, "POST", "/v2/models/m/infer", body)
    assert status == 400 and "binary data" in answer["error"]


def test_one_of_so_many_requests_is_logged(models: Path) -> None:
    with worker(models / "one", "--log-one-of", "3") as made:
        for _ in range(7):
            ask(made.address, "POST", "/v2/models/m/infer", request())
        made.terminate()
    logged = [event for event in made.events if event["event"] == "request"]
    assert len(logged) == 2
    assert {"model": "m", "version": "1", "protocol": "rest", "code": "200", "rows": 1, "one_of": 3}.items() <= logged[0].items()
    assert logged[0]["ms"] > 0
