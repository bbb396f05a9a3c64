"""One ONNX model in memory. The only importer of onnxruntime.

Sessions are made for small machines and shared cores: one thread per run, no spinning, no arena and no memory patterns (both
keep the largest request's memory for ever, and patterns one entry for each shape that a caller ever sent).
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from edge_ai.serve.errors import BadRequest, LoadFailed, ModelFailed
from edge_ai.serve.tensors import DATATYPES, Array, TensorSpec

PLATFORM = "onnx_onnxv1"
WARM_UP_RUNS = 2

_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

# onnxruntime's exceptions share no base but Exception: all that its module defines, and what its Python layer adds.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(item for item in vars(ort).values() if isinstance(item, type) and issubclass(item, Exception)),
    RuntimeError,
    ValueError,
)


class LoadedModel:
    """A model that was verified and warmed up: it can be served. Immutable; safe to run from several threads at once."""

    def __init__(self, name: str, version: str, session: onnxruntime.InferenceSession) -> None:
        self.name = name
        self.version = version
        self.platform = PLATFORM
        self.inputs = {item.name: _spec(item) for item in session.get_inputs()}
        self.outputs = {item.name: _spec(item) for item in session.get_outputs()}
        self._session = session

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        try:
            values: list[Array] = self._session.run(list(outputs), inputs)
        except ort.InvalidArgument as error:
            raise BadRequest(f"the model refuses the request: {_first_line(error)}") from None
        except _ORT_ERRORS as error:
            raise ModelFailed(f"model '{self.name}' version '{self.version}' failed on this request: {_first_line(error)}") from None
        return [np.asarray(value) for value in values]

    def warm_up(self) -> float:
        """Run on zeros with every free dimension 1; returns the last run's seconds.

        A model whose only free dimension is the batch must pass. Where other dimensions are free, 1 may be a size that the model
        does not take: that says nothing about real requests, so the failure is not held against it.
        """
        inputs = {spec.name: _zeros(spec) for spec in self.inputs.values()}
        seconds = 0.0
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            try:
                self.run(inputs, list(self.outputs))
            except (BadRequest, ModelFailed) as error:
                if any(-1 in spec.shape[1:] for spec in self.inputs.values()):
                    return 0.0
                raise LoadFailed(f"model '{self.name}' version '{self.version}' fails its warm-up: {error}") from None
            seconds = time.perf_counter() - started
        return seconds


def load(name: str, version: str, folder: Path, digests: Mapping[str, str], threads: int) -> LoadedModel:
    """Verify ``digests`` (file below ``folder`` → sha256 hex), load and warm up. Blocks: call it from a thread.

    Raises `LoadFailed`; whatever is being served is not touched.
    """
    for path, digest in digests.items():
        _verify(folder, path, digest)
    file = model_file(folder)
    try:
        session = onnxruntime.InferenceSession(str(file), _options(threads), providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise LoadFailed(f"{file} is not a model that onnxruntime {onnxruntime.__version__} can load: {_first_line(error)}") from None
    model = LoadedModel(name, version, session)
    model.warm_up()
    return model


def model_file(folder: Path) -> Path:
    """``model.onnx``, or the only file with that ending."""
    if not folder.is_dir():
        raise LoadFailed(f"the model folder {folder} does not exist")
    if (usual := folder / "model.onnx").is_file():
        return usual
    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        raise LoadFailed(f"the model folder {folder} holds {len(found)} .onnx files; expected model.onnx, or just one")
    return found[0]


def _verify(folder: Path, path: str, digest: str) -> None:
    file = folder / path
    if not file.resolve().is_relative_to(folder.resolve()):
        raise LoadFailed(f"{path} leads out of the model folder {folder}")
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise LoadFailed(f"{file}: {error.strerror}") from None
    if found != digest.lower():
        raise LoadFailed(f"{file} has sha256 {found}, expected {digest}: fetch it again")


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what goes wrong is raised; onnxruntime's own lines would only repeat it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(item: Any) -> TensorSpec:
    datatype = _ONNX_TYPES.get(item.type)
    if datatype is None:
        raise LoadFailed(f"tensor '{item.name}' has type {item.type}, which the protocol has no name for")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape)
    return TensorSpec(item.name, datatype, shape, tuple(size if isinstance(size, str) else "" for size in item.shape))


def _zeros(spec: TensorSpec) -> Array:
    shape = [1 if size == -1 else size for size in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, DATATYPES[spec.datatype].dtype)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
