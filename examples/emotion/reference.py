"""The forward pass of a Keras graph in plain numpy: slow, written from the layers' definitions, sharing nothing with ONNX.

What the converter's output is judged against: two independent readings of the same weights that agree to float precision.
"""

from typing import Any

import keras_graph
import numpy as np
import numpy.typing as npt
from keras_graph import Array, Graph, Layer

Values = npt.NDArray[np.float64]


def forward(graph: Graph, images: Array) -> Array:
    """``images``: N, height, width, channels. Returns the output layer's values, computed in float64, as float32."""
    values: dict[str, Values] = {}
    for layer in graph.layers:
        inputs = [values[name] for name in layer.inputs]
        values[layer.name] = (
            images.astype(np.float64) if layer.kind == "InputLayer" else np.asarray(_apply(layer, inputs), dtype=np.float64)
        )
    return values[graph.output].astype(np.float32)


def _apply(layer: Layer, inputs: list[Values]) -> Any:
    x, weights = inputs[0], layer.weights
    match layer.kind:
        case "Conv2D":
            return _convolve(layer, x, weights["kernel"]) + weights.get("bias", np.float32(0))
        case "SeparableConv2D":
            y = _depthwise(layer, x, weights["depthwise_kernel"])
            return y @ weights["pointwise_kernel"][0, 0] + weights.get("bias", np.float32(0))
        case "BatchNormalization":
            scale = weights["gamma"] / np.sqrt(weights["moving_variance"].astype(np.float64) + layer.config["epsilon"])
            return (x - weights["moving_mean"]) * scale + weights["beta"]
        case "MaxPooling2D":
            return np.max(_windows(layer, x, layer.config["pool_size"], -np.inf), axis=(3, 4))
        case "Add":
            return np.sum(inputs, axis=0)
        case "GlobalAveragePooling2D":
            return x.mean(axis=(1, 2))
        case "Activation" if layer.config["activation"] == "relu":
            return np.maximum(x, 0)
        case "Activation":
            e = np.exp(x - x.max(axis=-1, keepdims=True))
            return e / e.sum(axis=-1, keepdims=True)
    raise keras_graph.UnsupportedModelError(layer.kind)


def _windows(layer: Layer, x: Values, kernel: list[int], fill: float) -> Any:
    """N, out height, out width, kernel height, kernel width, channels."""
    strides = layer.config["strides"]
    if layer.same_padding():
        pads = [keras_graph.same_pads(x.shape[1 + axis], kernel[axis], strides[axis]) for axis in (0, 1)]
        x = np.pad(x, ((0, 0), pads[0], pads[1], (0, 0)), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(x, tuple(kernel), axis=(1, 2))
    return np.moveaxis(views[:, :: strides[0], :: strides[1]], 3, -1)


def _convolve(layer: Layer, x: Values, kernel: Array) -> Any:
    return np.einsum("nhwijc,ijco->nhwo", _windows(layer, x, layer.config["kernel_size"], 0.0), kernel, optimize=True)


def _depthwise(layer: Layer, x: Values, kernel: Array) -> Any:
    return np.einsum("nhwijc,ijc->nhwc", _windows(layer, x, layer.config["kernel_size"], 0.0), kernel[..., 0], optimize=True)
