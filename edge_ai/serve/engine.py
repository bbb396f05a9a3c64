"""One ONNX model in memory. The only importer of onnxruntime.

Sessions are made for small machines and shared cores: one thread per run, no spinning, no arena and no memory patterns (both
keep the largest request's memory for ever, and patterns one entry for each shape that a caller ever sent).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from edge_ai.serve import pipeline
from edge_ai.serve.errors import BadRequest, LoadFailed, ModelFailed
from edge_ai.serve.model import Executor, LoadedModel
from edge_ai.serve.tensors import Array, TensorSpec

PLATFORM = "onnx_onnxv1"

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


class Onnx:
    """A `model.Executor`: one session, shared by all threads, so its weights are in memory once."""

    platform = PLATFORM
    streams = False

    def __init__(self, file: Path, threads: int) -> None:
        """Raises `LoadFailed`."""
        try:
            session = onnxruntime.InferenceSession(str(file), _options(threads), providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            said = f"{file} is not a model that onnxruntime {onnxruntime.__version__} can load: {_first_line(error)}"
            raise LoadFailed(said) from None
        self.inputs = {item.name: _spec(item) for item in session.get_inputs()}
        self.outputs = {item.name: _spec(item) for item in session.get_outputs()}
        self._session = session

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        try:
            values: list[Array] = self._session.run(outputs, inputs)
        except ort.InvalidArgument as error:
            raise BadRequest(f"the model refuses the request: {_first_line(error)}") from None
        except _ORT_ERRORS as error:
            raise ModelFailed(f"the model failed on this request: {_first_line(error)}") from None
        return [value if isinstance(value, np.ndarray) else np.asarray(value) for value in values]

    def stream(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Iterator[list[Array]]:
        yield self.run(inputs, outputs)


class How(NamedTuple):
    """How models are loaded here. ``threads``: inside one run. ``python``: whether steps in Python may be run. ``batching``: whether
    requests that wait may be run as one, where that pays."""

    threads: int = 1
    max_batch: int = 64
    python: bool = False
    batching: bool = True


def load(name: str, version: str, folder: Path, digests: Mapping[str, str], how: How) -> LoadedModel:
    """Verify ``digests`` (file below ``folder`` → sha256 hex), load and warm up. Blocks: call it from a thread.

    Raises `LoadFailed`; whatever is being served is not touched.
    """
    for path, digest in digests.items():
        _verify(folder, path, digest)
    before = _private_bytes()
    executor: Executor
    if (folder / pipeline.FILE).is_file():
        executor = pipeline.Pipeline(folder, lambda file: Onnx(file, how.threads), how.python, digests)
    else:
        executor = Onnx(model_file(folder), how.threads)
    files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model = LoadedModel(name, version, executor, how.max_batch, max(files, _private_bytes() - before))
    model.batching = how.batching
    model.warm_up()
    return model


def _private_bytes() -> int:
    """Resident memory of this process that no file stands behind."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
