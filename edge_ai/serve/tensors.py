"""What the protocol says about tensors: datatypes, shapes, and whether a request fits a model.

Pure. Both codecs (REST and gRPC) call the same checks, so that a malformed request gets the same sentence at both doors. The
checks come before any memory is taken for a tensor: a shape is only believed when the bytes that came match it.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edge_ai.serve.errors import BadRequest

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 16
MAX_NAME = 256  # characters of a name that an error repeats
MAX_ID = 1024  # characters of a request's id, which is sent back
MAX_PRIORITY = 1000
NO_SHARED_MEMORY = "shared memory is not supported; send the data in the request"


class DataType(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    size: int  # bytes of one element; 0 for BYTES, whose elements differ
    contents: str  # the field of InferTensorContents; "" when the protocol allows raw bytes only


_LITTLE_ENDIAN = {
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "INT8": ("i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "FP16": ("<f2", ""),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
}

DATATYPES: dict[str, DataType] = {
    name: DataType(name, np.dtype(code), np.dtype(code).itemsize, contents) for name, (code, contents) in _LITTLE_ENDIAN.items()
}
DATATYPES["BYTES"] = DataType("BYTES", np.dtype(object), 0, "bytes_contents")


class TensorSpec(Struct, frozen=True):
    """One input or output of a model. -1: any size. ``symbols`` names free dimensions; equal names mean equal sizes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str, ...] = ()  # as long as shape; "" where the size is fixed or the dimension has no name


class WantedOutput(NamedTuple):
    name: str
    binary: bool


class InferRequest(Struct):
    """A request that was checked against the model: it can be run as it is."""

    id: str
    inputs: dict[str, Array]
    outputs: tuple[WantedOutput, ...]  # in the order in which they were asked for; never empty
    priority: int = 0  # 1 is the most urgent; 0 comes after all that have one (as in Triton's scheduling policy)
    timeout: float | None = None  # seconds in which it must have begun; None: any time


def brief(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"


def data_type(name: str, tensor: str) -> DataType:
    try:
        return DATATYPES[name]
    except KeyError:
        raise BadRequest(f"input '{brief(tensor)}': datatype '{brief(name)}' is not one of {', '.join(DATATYPES)}") from None


class Checker:
    """Checks the inputs of one request, one by one; `finish` finds what is missing."""

    def __init__(self, specs: dict[str, TensorSpec], max_batch: int) -> None:
        self._specs = specs
        self._max_batch = max_batch
        self._seen: set[str] = set()
        self._sizes: dict[str, int] = {}

    def input(self, name: str, datatype: str, shape: Sequence[int]) -> tuple[DataType, int]:
        """The datatype and the number of elements; `BadRequest` when the model has no such input or it does not fit."""
        spec = self._specs.get(name)
        if spec is None:
            raise BadRequest(f"input '{brief(name)}' is not an input of this model; it has: {', '.join(self._specs)}")
        if name in self._seen:
            raise BadRequest(f"input '{name}' is given twice")
        self._seen.add(name)
        kind = data_type(datatype, name)
        if datatype != spec.datatype:
            raise BadRequest(f"input '{name}': datatype is {datatype}, the model expects {spec.datatype}")
        self._check_shape(spec, shape)
        return kind, math.prod(shape)

    def finish(self) -> None:
        if missing := [name for name in self._specs if name not in self._seen]:
            raise BadRequest(f"input{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing")

    def _check_shape(self, spec: TensorSpec, shape: Sequence[int]) -> None:
        wanted = f"the model expects {list(spec.shape)}" + (" (-1: any size)" if -1 in spec.shape else "")
        if len(shape) != len(spec.shape):
            raise BadRequest(f"input '{spec.name}': shape {list(shape[:MAX_DIMENSIONS])} has {len(shape)} dimensions; {wanted}")
        for axis, (given, expected) in enumerate(zip(shape, spec.shape, strict=True)):
            if given < 1 or (expected not in (-1, given)):
                raise BadRequest(f"input '{spec.name}': shape {list(shape)} does not fit; {wanted}")
            if axis == 0 and expected == -1 and given > self._max_batch:
                raise BadRequest(f"input '{spec.name}': a batch of {given} is over this worker's cap of {self._max_batch}")
            symbol = spec.symbols[axis] if spec.symbols else ""
            if symbol and self._sizes.setdefault(symbol, given) != given:
                raise BadRequest(f"input '{spec.name}': dimension {axis} ('{symbol}') is {given}, another input says {self._sizes[symbol]}")


def wanted_outputs(asked: Iterable[WantedOutput], specs: dict[str, TensorSpec], binary: bool = False) -> tuple[WantedOutput, ...]:
    """What was asked for; all of the model's outputs when nothing was."""
    found: dict[str, WantedOutput] = {}
    for output in asked:
        if output.name not in specs:
            raise BadRequest(f"output '{brief(output.name)}' is not an output of this model; it has: {', '.join(specs)}")
        if output.name in found:
            raise BadRequest(f"output '{output.name}' is asked for twice")
        found[output.name] = output
    return tuple(found.values()) or tuple(WantedOutput(name, binary) for name in specs)


def from_raw(name: str, kind: DataType, elements: int, shape: Sequence[int], raw: memoryview | bytes) -> Array:
    """A tensor from the protocol's binary form: little-endian, row-major; BYTES elements each after their u32 length."""
    if kind.name == "BYTES":
        return _strings(name, _split_bytes(name, elements, bytes(raw)), shape)
    if len(raw) != elements * kind.size:
        raise BadRequest(f"input '{name}': {len(raw)} bytes for shape {list(shape)} of {kind.name}, which takes {elements * kind.size}")
    if kind.name == "BOOL":  # any non-zero byte is true; onnxruntime must not see a bool that is 2
        return np.frombuffer(raw, np.uint8).astype(bool).reshape(shape)
    return np.frombuffer(raw, kind.dtype).reshape(shape)


def from_elements(name: str, kind: DataType, elements: int, shape: Sequence[int], values: Sequence[Any]) -> Array:
    """A tensor from a flat list of Python values whose types were already checked."""
    if len(values) != elements:
        raise BadRequest(f"input '{name}': {len(values)} elements for shape {list(shape)}, which takes {elements}")
    if kind.name == "BYTES":
        return _strings(name, values, shape)
    try:
        with np.errstate(over="raise"):
            return np.array(values, dtype=kind.dtype).reshape(shape)
    except (OverflowError, FloatingPointError):
        raise BadRequest(f"input '{name}': a value is out of the range of {kind.name}") from None


def to_raw(value: Array) -> bytes:
    """The protocol's binary form of an output."""
    if value.dtype == object:
        encoded = [element.encode() if isinstance(element, str) else bytes(element) for element in value.ravel()]
        return b"".join(part for element in encoded for part in (struct.pack("<I", len(element)), element))
    return value.tobytes()


def _split_bytes(name: str, elements: int, raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    position = 0
    while position + 4 <= len(raw) and len(found) < elements:
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4
        if position + length > len(raw):
            break
        found.append(raw[position : position + length])
        position += length
    if position != len(raw) or len(found) != elements:
        raise BadRequest(f"input '{name}': the {len(raw)} bytes do not hold {elements} length-prefixed elements")
    return found


def _strings(name: str, values: Sequence[Any], shape: Sequence[int]) -> Array:
    try:
        texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError:
        raise BadRequest(f"input '{name}': an element is not UTF-8, which onnxruntime's strings must be") from None
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


def urgency(priority: object, timeout: object) -> tuple[int, float | None]:
    """The request's parameters ``priority`` and ``timeout`` (microseconds), as `InferRequest` has them."""
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= MAX_PRIORITY:
        raise BadRequest(f"parameter 'priority' must be a whole number from 0 to {MAX_PRIORITY}")
    if not isinstance(timeout, int) or isinstance(timeout, bool) or not 0 <= timeout < 1 << 63:
        raise BadRequest("parameter 'timeout' must be a whole number of microseconds")
    return priority, timeout / 1e6 if timeout else None
