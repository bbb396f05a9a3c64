"""The worker speaks the Open Inference Protocol as others do: clients that we did not write, each in a process of its own.

The probes are in the folder `conformance`: a name each, said by the client's process; this module starts a worker for each client, and
counts. A client's own process, since its generated messages have the protocol's names, as ours do, and one process holds each name once.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge_ai import onnx_models
from tests.edge_ai.workers import PATIENCE, control, worker
from tools import needs

FOLDER = Path(__file__).parent / "conformance"
COUNT = """
import time
import numpy as np
def count(x):
    time.sleep(1 if x[0, 0] < 0 else 0)
    for step in range(int(x[0, 0])):
        yield {"y": np.array([step], np.int64)}
"""
PIPELINE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    "steps": [{"python": "steps.py", "function": "count", "inputs": {"x": "x"}, "outputs": {"y": "y"}}],
}
CLIENTS = {"triton_http": 30, "triton_grpc": 36, "kserve_rest": 13, "kserve_grpc": 13, "by_hand": 13}  # how many probes each has
PROMISED = 33  # probes by clients that are not ours


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.identity(folder / "identity")
    (folder / "count").mkdir()
    (folder / "count" / "steps.py").write_text(COUNT)
    (folder / "count" / "pipeline.json").write_text(json.dumps(PIPELINE))
    return folder


@pytest.mark.parametrize(
    "client", [pytest.param(name, marks=pytest.mark.needs("kserve") if name.startswith("kserve") else ()) for name in CLIENTS]
)
def test_a_client_finds_the_protocol_as_it_is_written(client: str, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "control"
    python = str(needs.kserve()) if client.startswith("kserve") else sys.executable
    with worker(models / "identity", "--control", f"unix:{path}", "--python-steps", name="identity") as made:
        for name, version, more in (("identity", "2", {"beside": True}), ("count", "1", {})):
            parameters = {"version": version, "folder": str(models / name)} | more
            assert control(path, "POST", f"/v2/repository/models/{name}/load", {"parameters": parameters})[0] == 200
        script = str(FOLDER / f"{client}.py")
        done = subprocess.run([python, script, made.address], capture_output=True, text=True, timeout=PATIENCE * 4, check=False)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        wrong = [f"{item['probe']}: {item['wrong']}" for item in found if item["wrong"]]
        assert not wrong, "\n".join(wrong)
        assert done.returncode == 0, done.stderr[-5000:]
        assert len({item["probe"] for item in found}) == len(found) == CLIENTS[client], [item["probe"] for item in found]
        assert made.has_loaded("_upb") is client.endswith("grpc")  # who is never asked over gRPC never loads protobuf
        assert made.terminate() == 0


def test_there_are_as_many_probes_as_promised() -> None:
    assert sum(count for name, count in CLIENTS.items() if name != "by_hand") >= PROMISED
