"""The example does what its README says: golden values from the photograph to the answer, and a converter that is right."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "emotion"
GOLDEN: dict[str, Any] = json.loads((Path(__file__).with_name("golden.json")).read_text())


@pytest.fixture(scope="module")
def example() -> dict[str, ModuleType]:
    """The example's modules; they import each other by plain names, as scripts in one folder do."""
    import importlib

    sys.path.insert(0, str(EXAMPLE))
    try:
        return {name: importlib.import_module(name) for name in ("device", "keras_graph", "reference", "convert", "faces", "quantize")}
    finally:
        sys.path.remove(str(EXAMPLE))


def answers(model: Path | bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(found)


def photograph() -> np.ndarray:
    from skimage.io import imread

    return np.ascontiguousarray(imread(EXAMPLE / "astronaut.png")[..., :3])


def test_the_committed_files_are_what_their_papers_say() -> None:
    for version in ("model-1", "model-2"):
        digest = hashlib.sha256((EXAMPLE / version / "model.onnx").read_bytes()).hexdigest()
        assert digest in (EXAMPLE / version / "SOURCE.md").read_text()
        assert "MIT License" in (EXAMPLE / version / "LICENSE").read_text()
    assert hashlib.sha256((EXAMPLE / "astronaut.png").read_bytes()).hexdigest() == GOLDEN["photograph_sha256"]
    assert hashlib.sha256(photograph().tobytes()).hexdigest() == GOLDEN["pixels_sha256"]


def test_the_photograph_is_the_part_of_the_public_one_that_it_claims_to_be() -> None:
    from skimage.data import astronaut

    assert (photograph() == astronaut()[0:256, 96:352]).all()


def test_the_face_and_its_tensor_are_the_golden_ones_to_the_bit(example: dict[str, ModuleType]) -> None:
    device = example["device"]
    box = device.find_face(photograph())
    assert vars(box) == GOLDEN["box"]
    tensor = device.preprocess(photograph(), box)
    assert tensor.shape == (1, 64, 64, 1) and tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, :4, :4, 0], GOLDEN["tensor_corner"], atol=1e-7)
    assert hashlib.sha256(tensor.astype("<f4").tobytes()).hexdigest() == GOLDEN["tensor_sha256"]


def test_version_one_answers_what_the_original_weights_say(example: dict[str, ModuleType]) -> None:
    """The golden probabilities come from the numpy forward pass over the Keras file, not from this ONNX file."""
    device = example["device"]
    tensor = device.preprocess(photograph(), device.find_face(photograph()))
    (found,) = answers(EXAMPLE / "model-1" / "model.onnx", tensor)
    np.testing.assert_allclose(found, GOLDEN["probabilities"], atol=2e-5)
    assert device.LABELS[int(found.argmax())] == "happy" and found.max() > 0.98


def test_version_two_is_another_model_that_nearly_agrees(example: dict[str, ModuleType]) -> None:
    difference = example["quantize"].measure(EXAMPLE / "model-1" / "model.onnx", EXAMPLE / "model-2" / "model.onnx")
    assert difference.faces == 117 and difference.same_label >= 0.95
    assert 0.001 < difference.mean_probability < 0.02
    assert difference.happy_after > 0.9 and abs(difference.happy_before - difference.happy_after) > 1e-4
    assert difference.bytes_after < difference.bytes_before / 2


@pytest.mark.parametrize("size", [(64, 64), (93, 93), (25, 25), (1, 1), (2, 3), (200, 40)])
def test_resizing_keeps_flat_pictures_flat_and_bounds_bounds(example: dict[str, ModuleType], size: tuple[int, int]) -> None:
    device = example["device"]
    flat = np.full((*size, 3), 77, np.uint8)
    box = device.Box(0, 0, *size)
    np.testing.assert_allclose(device.preprocess(flat, box), (77 / 255 - 0.5) * 2, atol=1e-6)
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    tensor = device.preprocess(noise, box)
    assert tensor.min() >= -1 and tensor.max() <= 1
    if size == (64, 64):
        grey = np.rint(noise[..., 0] * 0.299 + noise[..., 1] * 0.587 + noise[..., 2] * 0.114)
        np.testing.assert_allclose(tensor[0, :, :, 0], (grey / 255 - 0.5) * 2, atol=1e-6)


def keras_file(path: Path, seed: int, side: int) -> None:
    """A random network of every layer that the converter knows, in Keras' file format."""
    random = np.random.default_rng(seed)
    layers: list[dict[str, Any]] = []
    weights: dict[str, dict[str, np.ndarray]] = {}

    def layer(kind: str, name: str, inputs: list[str], given: dict[str, np.ndarray] | None = None, **config: Any) -> str:
        nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
        layers.append({"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes})
        weights[name] = given or {}
        return name

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    def conv(name: str, source: str, given: dict[str, np.ndarray], kind: str = "Conv2D", **config: Any) -> str:
        kernel = given.get("kernel", given.get("depthwise_kernel"))
        assert kernel is not None
        usual = {"strides": [1, 1], "padding": "same", "activation": "linear", "dilation_rate": [1, 1], "data_format": "channels_last"}
        return layer(kind, name, [source], given, **(usual | {"kernel_size": list(kernel.shape[:2])} | config))

    def batch(name: str, source: str, channels: int) -> str:
        given = {part: normal(channels) for part in ("gamma", "beta", "moving_mean")}
        given["moving_variance"] = np.abs(normal(channels)) + np.float32(0.1)
        return layer("BatchNormalization", name, [source], given, epsilon=0.001, axis=-1)

    x = layer("InputLayer", "input_1", [], batch_input_shape=[None, side, side, 2])
    x = conv("first", x, {"kernel": normal(3, 3, 2, 4)}, padding="valid")
    x = layer("Activation", "relu", [batch("norm", x, 4)], activation="relu")
    kernels = {"depthwise_kernel": normal(3, 3, 4, 1), "pointwise_kernel": normal(1, 1, 4, 6)}
    y = conv("depth", x, kernels, "SeparableConv2D", depth_multiplier=1)
    y = layer("MaxPooling2D", "pool", [y], pool_size=[3, 3], strides=[2, 2], padding="same", data_format="channels_last")
    z = conv("side", x, {"kernel": normal(1, 1, 4, 6), "bias": normal(6)}, strides=[2, 2])
    x = layer("Add", "add", [y, z])
    x = conv("last", x, {"kernel": normal(3, 3, 6, 7), "bias": normal(7)})
    x = layer("GlobalAveragePooling2D", "mean", [x], data_format="channels_last")
    x = layer("Activation", "softmax", [x], activation="softmax")
    document = {"class_name": "Model", "config": {"layers": layers, "input_layers": [["input_1", 0, 0]], "output_layers": [[x, 0, 0]]}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(document)
        group = file.create_group("model_weights")
        for name, given in weights.items():
            inner = group.create_group(name).create_group(f"{name}_1")
            for part, value in given.items():
                inner.create_dataset(f"{part}:0", data=value)


@pytest.mark.parametrize("side", [16, 17, 23])
def test_the_converter_and_the_reference_agree_on_random_networks(tmp_path: Path, example: dict[str, ModuleType], side: int) -> None:
    """Odd and even sizes: TensorFlow's padding is uneven, and that is what converters get wrong."""
    for seed in range(3):
        keras_file(tmp_path / "model.hdf5", seed, side)
        graph = example["keras_graph"].read(tmp_path / "model.hdf5")
        images = np.random.default_rng(seed).uniform(-1, 1, (3, side, side, 2)).astype(np.float32)
        model = example["convert"].convert(graph)
        assert example["convert"].difference(model, graph, images) < 1e-5
        assert example["reference"].forward(graph, images).std() > 1e-3  # not all the same, which would prove nothing


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class_name": "LSTM"}, "LSTM"),
        ({"config": {"activation": "relu"}}, "fused activation"),
        ({"config": {"dilation_rate": [2, 2]}}, "dilation"),
        ({"config": {"data_format": "channels_first"}}, "channels_first"),
    ],
)
def test_what_the_converter_does_not_know_is_refused_by_name(
    tmp_path: Path, example: dict[str, ModuleType], change: dict[str, Any], says: str
) -> None:
    keras_file(tmp_path / "model.hdf5", 1, 16)
    with h5py.File(tmp_path / "model.hdf5", "r+") as file:
        document = json.loads(file.attrs["model_config"])
        target = next(layer for layer in document["config"]["layers"] if layer["name"] == "last")
        target["config"] |= change.get("config", {})
        target["class_name"] = change.get("class_name", target["class_name"])
        file.attrs["model_config"] = json.dumps(document)
    with pytest.raises(example["keras_graph"].UnsupportedModelError, match=says):
        example["keras_graph"].read(tmp_path / "model.hdf5")


def test_another_file_than_the_known_one_is_not_converted_in_silence(tmp_path: Path) -> None:
    keras_file(tmp_path / "model.hdf5", 1, 16)
    command = [sys.executable, str(EXAMPLE / "convert.py"), str(tmp_path / "model.hdf5"), str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "sha256" in done.stderr and not (tmp_path / "model.onnx").exists()
    assert subprocess.run([*command, "--any-source"], check=False, timeout=60, capture_output=True).returncode == 0
    assert (tmp_path / "model.onnx").exists()
