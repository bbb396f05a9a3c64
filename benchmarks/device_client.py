"""The device of `examples/emotion`, as a process that is measured: it prepares a picture, and asks a server or computes by itself.

    python -m benchmarks.device_client PICTURE COUNT HOST:PORT       asks
    python -m benchmarks.device_client PICTURE COUNT MODEL.onnx      computes

PICTURE is a photograph as numpy keeps it. Prints a `Tally` as JSON. Each of COUNT frames is prepared anew, as a camera's are.
"""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.records import ROOT

DEVICE = ROOT / "examples" / "emotion" / "device.py"
FACE = (70, 175, 93, 93)  # where the detector finds it in astronaut.png; looking for it costs the same wherever the model runs
WARM_UP = 5


class Tally(Struct, kw_only=True):
    milliseconds: list[float]
    """Of each frame, preparing it included."""
    cpu_milliseconds: float
    """Of the device, for one frame."""
    labels: list[str]


def device() -> ModuleType:
    """The example as it is: a script of its own, which knows nothing of this project."""
    spec = importlib.util.spec_from_file_location("emotion_device", DEVICE)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # its dataclasses look themselves up there
    spec.loader.exec_module(made)
    return made


def main(picture: str, count: int, where: str) -> None:
    example = device()
    photograph, box = np.load(picture), example.Box(*FACE)
    answer = _local(example, where) if Path(where).exists() else _asks(example, where)
    labels: set[str] = set()
    for _ in range(WARM_UP):
        answer(example.preprocess(photograph, box))
    took, began = [], time.process_time()
    for _ in range(count):
        started = time.perf_counter()
        labels.add(answer(example.preprocess(photograph, box)))
        took.append(1000 * (time.perf_counter() - started))
    spent = 1000 * (time.process_time() - began) / count
    sys.stdout.buffer.write(msgspec.json.encode(Tally(milliseconds=took, cpu_milliseconds=spent, labels=sorted(labels))) + b"\n")


def _asks(example: ModuleType, address: str) -> Any:
    server = example.Server(url=f"http://{address}/v2/models/m/infer")
    return lambda tensor: server.ask(tensor).label


def _local(example: ModuleType, file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda tensor: example.LABELS[int(session.run(None, {name: tensor})[0][0].argmax())]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
