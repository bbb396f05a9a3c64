"""Small ONNX models for the tests, made on the spot."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def _save(folder: Path, nodes: list, inputs: list, outputs: list, weights: list | None = None) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


def identity(folder: Path) -> Path:
    """One input and output for each datatype of the protocol, named by it, any shape of two dimensions; all sizes alike."""
    info = helper.make_tensor_value_info
    return _save(
        folder,
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in TYPES],
        [info(name, kind, ["rows", "columns"]) for name, kind in TYPES.items()],
        [info(f"{name}_out", kind, ["rows", "columns"]) for name, kind in TYPES.items()],
    )


def constant(folder: Path, value: float) -> Path:
    """x: N,4 → y: N,4, all ``value``: which version answered is seen in the answer."""
    info = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(np.float32(value), "value"), numpy_helper.from_array(np.float32(0), "zero")]
    return _save(
        folder,
        [helper.make_node("Mul", ["x", "zero"], ["nothing"]), helper.make_node("Add", ["nothing", "value"], ["y"])],
        [info("x", TensorProto.FLOAT, ["batch", 4])],
        [info("y", TensorProto.FLOAT, ["batch", 4])],
        weights,
    )


def logarithm(folder: Path) -> Path:
    """x: N,1 → log x: a zero gives minus infinity, a negative number NaN."""
    info = helper.make_tensor_value_info
    return _save(
        folder,
        [helper.make_node("Log", ["x"], ["y"])],
        [info("x", TensorProto.FLOAT, ["batch", 1])],
        [info("y", TensorProto.FLOAT, ["batch", 1])],
    )


def slow(folder: Path, loops: int) -> Path:
    """x: N,4 → y: N,4 after ``loops`` products of matrices, some milliseconds each."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("MatMul", ["m", "w"], ["m_out"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("m", TensorProto.FLOAT, [256, 256])],
        [info("go_out", TensorProto.BOOL, []), info("m_out", TensorProto.FLOAT, [256, 256])],
    )
    weights = [
        numpy_helper.from_array(np.int64(loops), "loops"),
        numpy_helper.from_array(np.bool_(True), "true"),
        numpy_helper.from_array(np.eye(256, dtype=np.float32), "w"),
        numpy_helper.from_array(np.eye(256, dtype=np.float32), "start"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    return _save(
        folder,
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["null"]),
            helper.make_node("Add", ["start", "null"], ["begin"]),
            helper.make_node("Loop", ["loops", "true", "begin"], ["end"], body=body),
            helper.make_node("ReduceMax", ["end"], ["one"], keepdims=0),
            helper.make_node("Mul", ["x", "one"], ["y"]),
        ],
        [info("x", TensorProto.FLOAT, ["batch", 4])],
        [info("y", TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
