"""A real model component: the shipped worker, its private control socket, and a swap of versions under fire."""

import asyncio
import hashlib
import json
import os
import signal
from pathlib import Path

from msgspec.structs import replace

from cluster_shim.contract import Component, ModelFile, ModelRef, ObservedWork, OpenTarget, Serving
from tests.shim.harness import Driver, ask, cluster, free_port, work
from tests.shim.test_outlives import supervisor_pid, until_replaced

MODELS = Path(__file__).parents[2] / "examples/emotion"


def model(version: str, port: int) -> Component:
    folder = MODELS / f"model-{version}"
    content = (folder / "model.onnx").read_bytes()
    file = ModelFile("model.onnx", hashlib.sha256(content).hexdigest(), len(content))
    reference = ModelRef(name="emotion", version=version, uid="uid-m", folder=str(folder), files=(file,))
    return Component(name="serve", replicas=1, revision=f"m{version}", model=reference, port=port, grace_seconds=10.0)


STEPS = """
import numpy as np
def mean(x):
    return {"y": x.mean(axis=1, keepdims=True)}
"""
PIPELINE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    "steps": [{"python": "steps.py", "function": "mean", "inputs": {"x": "x"}, "outputs": {"y": "y"}}],
}


def test_a_pipelines_code_runs_only_where_the_application_said_so(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "steps.py").write_text(STEPS)
    (folder / "pipeline.json").write_text(json.dumps(PIPELINE))
    found = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    files = tuple(ModelFile(name, hashlib.sha256(content).hexdigest(), len(content)) for name, content in found)
    reference = ModelRef(name="mean", version="1", uid="uid-m", folder=str(folder), files=files)
    request = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()

    async def scenario() -> None:
        port = free_port()
        said = Component(name="serve", replicas=1, revision="r1", model=reference, port=port, serving=Serving(python_steps=True))
        async with cluster(tmp_path / "site") as shim, Driver(shim) as driver:
            driver.want(work(said))
            await driver.until_ready()
            code, body = await ask(port, "/v2/models/mean/infer", body=request)
            assert code == 200 and json.loads(body)["outputs"][0]["data"] == [1.5]
            driver.want(work(replace(said, revision="r2", serving=None), version=2))

            def refused(works: dict[str, ObservedWork]) -> bool:
                return any(item.ended is not None and "--python-steps" in item.ended.last_line for item in works["uid-1"].instances)

            await driver.until(refused)
            assert (await ask(port, "/v2/models/mean/infer", body=request))[0] == 200  # the old one serves on

    asyncio.run(scenario())


def test_a_model_is_served_and_swapped_with_no_failed_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        versions: list[str] = []
        failures: list[str] = []

        async def ask_for_ever() -> None:
            while True:
                try:
                    code, body = await ask(port, "/v2/models/emotion")
                except (OSError, EOFError) as error:
                    failures.append(repr(error))
                else:
                    versions.append(json.loads(body)["versions"][0] if code == 200 else str(code))
                await asyncio.sleep(0.005)

        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(model("1", port)))
            await driver.until_ready()
            asking = asyncio.create_task(ask_for_ever())
            old = supervisor_pid(driver)
            os.kill(old, signal.SIGKILL)
            await until_replaced(driver, old)
            driver.want(work(model("2", port), version=2))
            seen = await driver.until_ready(revision="m2")
            await asyncio.sleep(0.1)
            asking.cancel()
            assert failures == []
            assert set(versions) == {"1", "2"}
            assert versions[-1] == "2"
            stream = await shim.open(OpenTarget(kind="application", uid="uid-1", instance=seen.instances[0].id))
            await stream.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await stream.read()).startswith(b"HTTP/1.1 200")
            stream.abort()

    asyncio.run(scenario())
