"""Make version 2 of the emotion model: 8-bit weights and activations by onnxruntime's tools, and measure what that costs.

    python examples/emotion/quantize.py examples/emotion/model-1/model.onnx examples/emotion/model-2/model.onnx

The first two convolutions stay in float: they see the raw grey values and lose most by rounding. Weights have 7 bits, so that
processors without VNNI instructions, which saturate their 16-bit sums, give the same answers. Calibrated on one half of `faces`, measured
on the other half, which it has never seen; the measure is agreement with version 1, not accuracy: the faces carry no labels.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import faces
import numpy as np
import onnx
import onnxruntime
from convert import INPUT, LABELS, OUTPUT
from device import Tensor
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

FLOAT_CONVOLUTIONS = 2
LEAST_AGREEMENT = 0.95


class _Faces(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor) -> None:
        self._images: Iterator[Tensor] = iter(images[:, None])

    def get_next(self) -> dict[str, Tensor] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image}


@dataclass(frozen=True)
class Difference:
    """Version 2 against version 1, on faces that did not calibrate."""

    faces: int
    same_label: float  # share of the faces
    mean_probability: float  # absolute difference, over all labels
    p99_probability: float
    largest_probability: float
    happy_before: float  # the photograph itself
    happy_after: float
    bytes_before: int
    bytes_after: int


def quantize(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # batch normalisations are folded here
        convolutions = [node.name for node in onnx.load(str(prepared)).graph.node if node.op_type == "Conv"]
        quantize_static(
            str(prepared),
            str(target),
            _Faces(faces.calibration()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=convolutions[:FLOAT_CONVOLUTIONS],
        )


def measure(before: Path, after: Path) -> Difference:
    images, photograph = faces.measurement(), faces.photograph()
    old, new = _answers(before, images), _answers(after, images)
    apart = np.abs(old - new)
    happy = LABELS.index("happy")
    return Difference(
        faces=len(images),
        same_label=float(np.mean(old.argmax(axis=1) == new.argmax(axis=1))),
        mean_probability=float(apart.mean()),
        p99_probability=float(np.quantile(apart, 0.99)),
        largest_probability=float(apart.max()),
        happy_before=float(_answers(before, photograph)[0, happy]),
        happy_after=float(_answers(after, photograph)[0, happy]),
        bytes_before=before.stat().st_size,
        bytes_after=after.stat().st_size,
    )


def _answers(model: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (answers,) = session.run([OUTPUT], {INPUT: images})
    return np.asarray(answers, np.float32)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Quantise the emotion model to 8 bits and measure the difference.")
    parser.add_argument("source", type=Path, help="version 1, as convert.py wrote it")
    parser.add_argument("target", type=Path, help="the ONNX file to write, unless --measure")
    parser.add_argument("--measure", action="store_true", help="write nothing, compare what is there")
    options = parser.parse_args(arguments)
    if not options.measure:
        options.target.parent.mkdir(parents=True, exist_ok=True)
        quantize(options.source, options.target)
    difference = measure(options.source, options.target)
    digest = hashlib.sha256(options.target.read_bytes()).hexdigest()
    print(json.dumps({"sha256": digest, **{name: round(value, 4) for name, value in asdict(difference).items()}}, indent=1))
    if difference.same_label < LEAST_AGREEMENT:
        print(f"error: version 2 agrees on {difference.same_label:.1%} of the faces only", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
