"""Read a Keras 2 functional model from HDF5 without Keras: its layers in order, each with its inputs and weights.

Knows just the layer classes of the mini-Xception family. Anything else is refused by name, because a layer that is skipped
or guessed gives a model that answers, wrongly.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

KNOWN = {
    "InputLayer",
    "Conv2D",
    "SeparableConv2D",
    "BatchNormalization",
    "Activation",
    "MaxPooling2D",
    "Add",
    "GlobalAveragePooling2D",
}


class UnsupportedModelError(Exception):
    """The file holds something that the converter does not know; the message names the layer and the setting."""


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    weights: dict[str, Array] = field(default_factory=dict)  # "kernel", "gamma", … without Keras' scopes and ":0"

    def same_padding(self) -> bool:
        return str(self.config["padding"]) == "same"


@dataclass(frozen=True)
class Graph:
    """A model with one input and one output, layers in an order in which every input is ready."""

    layers: tuple[Layer, ...]
    input_shape: tuple[int, int, int]  # height, width, channels
    output: str


def read(path: Path) -> Graph:
    with h5py.File(path, "r") as file:
        config = json.loads(file.attrs["model_config"])
        if config["class_name"] not in ("Model", "Functional"):
            raise UnsupportedModelError(f"{path}: a {config['class_name']} is not a functional model")
        layers = tuple(_layers(config["config"]["layers"], file["model_weights"]))
    inputs, outputs = config["config"]["input_layers"], config["config"]["output_layers"]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UnsupportedModelError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs; one of each is supported")
    _, height, width, channels = layers[0].config["batch_input_shape"]
    return Graph(layers, (height, width, channels), outputs[0][0])


def _layers(documents: list[dict[str, Any]], weights: h5py.Group) -> Iterator[Layer]:
    seen: set[str] = set()
    for document in documents:
        name, kind, config = document["name"], document["class_name"], document["config"]
        inputs = tuple(node[0] for node in document["inbound_nodes"][0]) if document["inbound_nodes"] else ()
        layer = Layer(name, kind, config, inputs, _weights(weights.get(name)))
        _check(layer, seen)
        seen.add(name)
        yield layer


def _weights(group: h5py.Group | None) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def collect(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[path.rsplit("/", 1)[-1].removesuffix(":0")] = np.asarray(item, dtype=np.float32)

    if group is not None:
        group.visititems(collect)
    return found


def _check(layer: Layer, seen: set[str]) -> None:
    if layer.kind not in KNOWN:
        raise UnsupportedModelError(f"layer {layer.name}: class {layer.kind} is not supported")
    if missing := set(layer.inputs) - seen:
        raise UnsupportedModelError(f"layer {layer.name} reads {sorted(missing)} before they are computed")
    config = layer.config
    if config.get("data_format", "channels_last") != "channels_last":
        raise UnsupportedModelError(f"layer {layer.name}: data_format {config['data_format']} is not supported")
    if list(config.get("dilation_rate", [1, 1])) != [1, 1] or config.get("depth_multiplier", 1) != 1:
        raise UnsupportedModelError(f"layer {layer.name}: dilation and depth_multiplier other than 1 are not supported")
    if layer.kind in ("Conv2D", "SeparableConv2D") and config["activation"] != "linear":
        raise UnsupportedModelError(f"layer {layer.name}: a fused activation {config['activation']} is not supported")
    if layer.kind == "Activation" and config["activation"] not in ("relu", "softmax"):
        raise UnsupportedModelError(f"layer {layer.name}: activation {config['activation']} is not supported")


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis (before, after): the odd cell goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
