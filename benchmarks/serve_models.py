"""Three ONNX models for the serving benchmark, made on the spot: of about 8 µs, 0.7 ms and 5 ms a run on one core.

The small one is arithmetic on four numbers: what is measured is everything around it. The other two are convolutions, whose time a batch
does not shorten; `dense` is two large matrix products, whose weights are read once for a whole batch, so there batching pays.
"""

from pathlib import Path
from typing import Any

import numpy as np

CHANNELS = 32
SIDE = 64
WIDTH = 1024


def make(name: str, folder: Path) -> Path:
    """``folder``/model.onnx. Raises KeyError for a name that is none of `SHAPES`."""
    import onnx  # what only asks needs none of it
    from onnx import TensorProto, helper

    nodes, weights = {"small": _small, "medium": lambda: _convolutions(6), "large": lambda: _convolutions(44), "dense": _dense}[name]()
    shape = SHAPES[name]
    info = helper.make_tensor_value_info
    free: list[Any] = ["batch", *shape[1:]]
    last: list[Any] = ["batch", *(shape[1:] if len(shape) == 2 else [CHANNELS, 1, 1])]
    inputs, outputs = [info("x", TensorProto.FLOAT, free)], [info("y", TensorProto.FLOAT, last)]
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "model.onnx"))
    return folder


SHAPES = {"small": [1, 4], "medium": [1, 1, SIDE, SIDE], "large": [1, 1, SIDE, SIDE], "dense": [1, WIDTH]}
"""Of one request's only input, x, FP32."""


def request(name: str, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).random(SHAPES[name], np.float32)


def _small() -> tuple[list[Any], list[Any]]:
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(np.float32(3), "a"), numpy_helper.from_array(np.float32(1), "b")]
    return [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])], weights


def _convolutions(count: int) -> tuple[list[Any], list[Any]]:
    """A grey picture, halved in size by the first of ``count`` convolutions; the mean of each channel comes out."""
    from onnx import helper, numpy_helper

    chooser = np.random.default_rng(7)
    nodes, weights = [], []
    for step in range(count):
        kernel = (chooser.random((CHANNELS, CHANNELS if step else 1, 3, 3), np.float32) - 0.5) / 16
        weights.append(numpy_helper.from_array(kernel, f"w{step}"))
        strides = [1, 1] if step else [2, 2]
        source = f"t{step - 1}" if step else "x"
        nodes.append(helper.make_node("Conv", [source, f"w{step}"], [f"c{step}"], pads=[1, 1, 1, 1], strides=strides))
        nodes.append(helper.make_node("Relu", [f"c{step}"], [f"t{step}"]))
    return [*nodes, helper.make_node("GlobalAveragePool", [f"t{count - 1}"], ["y"])], weights


def _dense() -> tuple[list[Any], list[Any]]:
    from onnx import helper, numpy_helper

    chooser = np.random.default_rng(7)
    weights = [numpy_helper.from_array((chooser.random((WIDTH, WIDTH), np.float32) - 0.5) / 16, f"w{step}") for step in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["t"]), helper.make_node("MatMul", ["t", "w1"], ["y"])]
    return nodes, weights
