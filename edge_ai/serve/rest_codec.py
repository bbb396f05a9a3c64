"""The Open Inference Protocol's JSON, and its binary tensor data extension, to and from arrays.

Pure. Typed decoding is one pass in C: a flat list of the right type is what nearly all clients send; a nested list (which the
protocol allows) takes a second, slower pass whose depth is bounded by the input's shape.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Raw, Struct, field

from edge_ai.serve import tensors
from edge_ai.serve.errors import BadRequest
from edge_ai.serve.tensors import Array, Checker, DataType, InferRequest, TensorSpec, WantedOutput


class _Input(Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Raw = field(default_factory=lambda: Raw(b""))


class _Output(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(Struct):
    """Libraries that write out all that they know of send ``null`` for what was not given."""

    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


NONE: dict[str, Any] = {}
_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode

# By numpy's kind of the datatype. msgspec's float takes JSON integers too; the others take nothing but themselves.
_LIST_TYPES: dict[str, Any] = {"b": list[bool], "u": list[int], "i": list[int], "f": list[float], "O": list[str]}
_FLAT = {kind: msgspec.json.Decoder(list_type).decode for kind, list_type in _LIST_TYPES.items()}


class _Slot(NamedTuple):
    """Where a binary input lies behind the JSON."""

    name: str
    kind: DataType
    elements: int
    shape: tuple[int, ...]
    start: int
    end: int


class _Plan(NamedTuple):
    """What a JSON head alone says of a request whose inputs are all binary: the same bytes say the same again."""

    slots: tuple[_Slot, ...]
    size: int  # of all inputs together
    id: str
    outputs: tuple[WantedOutput, ...]
    priority: int
    timeout: float | None

    def request(self, tail: memoryview) -> InferRequest:
        if len(tail) != self.size:
            raise BadRequest(f"{len(tail)} bytes of binary data came; the inputs' binary_data_size add up to {self.size}")
        arrays = {
            slot.name: tensors.from_raw(slot.name, slot.kind, slot.elements, slot.shape, tail[slot.start : slot.end]) for slot in self.slots
        }
        return InferRequest(self.id, arrays, self.outputs, self.priority, self.timeout)


class Reader:
    """Decodes the requests to one model. Clients send the same head with every request, so what it says is kept."""

    KEPT = 64  # heads; with as many, all are forgotten
    LONGEST = 2048  # bytes of a head that is kept

    def __init__(self, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], max_batch: int) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._max_batch = max_batch
        self._plans: dict[bytes, _Plan] = {}

    def decode(self, body: bytes | bytearray, header_length: int | None) -> InferRequest:
        """``header_length``: the size of the JSON when binary tensors follow it (Inference-Header-Content-Length). Raises `BadRequest`."""
        view = memoryview(body)
        if header_length is None:
            return self._read(view, view[:0])
        if header_length > len(view):
            raise BadRequest(f"Inference-Header-Content-Length is {header_length}, the body has {len(view)} bytes")
        if header_length > self.LONGEST:
            return self._read(view[:header_length], view[header_length:])
        head = bytes(view[:header_length])
        if (plan := self._plans.get(head)) is None:
            request = self._read(view[:header_length], view[header_length:])
            if (plan := self._plan(head, request)) is not None:
                if len(self._plans) >= self.KEPT:
                    self._plans.clear()
                self._plans[head] = plan
            return request
        return plan.request(view[header_length:])

    def _plan(self, head: bytes, request: InferRequest) -> _Plan | None:
        """Of a request that was read from ``head``; None when its data is in there too. An id differs each time: not worth it."""
        items = _decode(head).inputs
        if request.id or any("binary_data_size" not in (item.parameters or NONE) for item in items):
            return None
        slots, at = [], 0
        for item in items:
            assert item.parameters is not None
            kind, size = tensors.data_type(item.datatype, item.name), item.parameters["binary_data_size"]
            slots.append(_Slot(item.name, kind, math.prod(item.shape), tuple(item.shape), at, at + size))
            at += size
        return _Plan(tuple(slots), at, request.id, request.outputs, request.priority, request.timeout)

    def _read(self, head: memoryview, tail: memoryview) -> InferRequest:
        try:
            request = _decode(head)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BadRequest(f"the body is not an inference request: {error}") from None
        own, parameters = request.id or "", request.parameters or NONE
        if len(own) > tensors.MAX_ID:
            raise BadRequest(f"the id has {len(own)} characters; at most {tensors.MAX_ID} are sent back")
        binary = _flag(parameters, "binary_data_output", False)
        priority, timeout = tensors.urgency(parameters.get("priority", 0), parameters.get("timeout", 0))
        asked = request.outputs or ()
        wanted = [WantedOutput(output.name, _flag(output.parameters or NONE, "binary_data", binary)) for output in asked]
        checker = Checker(self._inputs, self._max_batch)
        arrays: dict[str, Array] = {}
        for item in request.inputs:
            arrays[item.name], tail = _decode_input(item, tail, checker)
        checker.finish()
        if len(tail):
            raise BadRequest(f"{len(tail)} bytes of binary data are left over; the inputs' binary_data_size do not add up")
        return InferRequest(own, arrays, tensors.wanted_outputs(wanted, self._outputs, binary), priority, timeout)


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter '{name}' must be true or false")
    if "shared_memory_region" in parameters:
        raise BadRequest(tensors.NO_SHARED_MEMORY)
    return value


def _decode_input(item: _Input, tail: memoryview, checker: Checker) -> tuple[Array, memoryview]:
    kind, elements = checker.input(item.name, item.datatype, item.shape)
    parameters = item.parameters or NONE
    if "shared_memory_region" in parameters:
        raise BadRequest(f"input '{item.name}': {tensors.NO_SHARED_MEMORY}")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(item, kind, elements), tail
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadRequest(f"input '{item.name}': binary_data_size must be a number of bytes")
    if item.data:
        raise BadRequest(f"input '{item.name}': has both data and binary_data_size")
    if size > len(tail):
        raise BadRequest(f"input '{item.name}': binary_data_size is {size}, only {len(tail)} bytes of binary data are left")
    return tensors.from_raw(item.name, kind, elements, item.shape, tail[:size]), tail[size:]


def _from_json(item: _Input, kind: DataType, elements: int) -> Array:
    if not item.data:
        raise BadRequest(f"input '{item.name}': has neither data nor binary_data_size")
    try:
        values: list[Any] = _FLAT[kind.dtype.kind](item.data)
    except (msgspec.DecodeError, RecursionError) as error:
        values = _nested(item, kind, error)
    return tensors.from_elements(item.name, kind, elements, item.shape, values)


def _nested(item: _Input, kind: DataType, flat_error: Exception) -> list[Any]:
    """The elements of a list nested as the shape says. A ragged one fails here: each level's length is checked."""
    try:
        level: Any = msgspec.json.decode(item.data)
    except (msgspec.DecodeError, RecursionError):
        level = None
    level = [level]
    for size in (*item.shape,) if item.shape else ():
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise BadRequest(f"input '{item.name}': data does not hold {kind.name} elements of shape {item.shape}: {flat_error}")
        level = [element for part in level for element in part]
    try:
        elements: list[Any] = msgspec.convert(level, _LIST_TYPES[kind.dtype.kind])
    except msgspec.ValidationError as error:
        raise BadRequest(f"input '{item.name}': data is not {kind.name}: {error}") from None
    return elements


class Writer:
    """Encodes the answers of one model. The JSON of an answer that is all binary depends on its shapes alone, so it is kept."""

    KEPT = 64

    def __init__(self, model: str, version: str, specs: Mapping[str, TensorSpec]) -> None:
        self._model = model
        self._version = version
        self._specs = specs
        self._heads: dict[tuple[Any, ...], bytes] = {}

    def encode(self, request: InferRequest, values: Sequence[Array]) -> tuple[bytes, list[bytes]]:
        """The JSON and, after it, the binary tensors (none when all outputs were wanted as JSON)."""
        if request.id or any(not wanted.binary or value.dtype == object for wanted, value in zip(request.outputs, values, strict=True)):
            return self._encode(request, values)
        key = (request.outputs, *(value.shape for value in values))
        if (head := self._heads.get(key)) is None:
            head, binary = self._encode(request, values)
            if len(self._heads) >= self.KEPT:
                self._heads.clear()
            self._heads[key] = head
            return head, binary
        return head, [value.tobytes() for value in values]

    def _encode(self, request: InferRequest, values: Sequence[Array]) -> tuple[bytes, list[bytes]]:
        outputs: list[dict[str, Any]] = []
        binary: list[bytes] = []
        for wanted, value in zip(request.outputs, values, strict=True):
            output: dict[str, Any] = {"name": wanted.name, "datatype": self._specs[wanted.name].datatype, "shape": list(value.shape)}
            if wanted.binary:
                binary.append(tensors.to_raw(value))
                output["parameters"] = {"binary_data_size": len(binary[-1])}
            else:
                output["data"] = _to_json(value)
            outputs.append(output)
        document: dict[str, Any] = {"model_name": self._model, "model_version": self._version, "outputs": outputs}
        if request.id:
            document["id"] = request.id
        return _encode(document), binary


def _to_json(value: Array) -> list[Any]:
    if value.dtype == object:
        return [element if isinstance(element, str) else bytes(element).decode(errors="replace") for element in value.ravel()]
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise BadRequest("the answer holds NaN or infinity, which JSON cannot carry; ask for binary_data")
    elements: list[Any] = value.ravel().tolist()
    return elements


def encode(document: Any) -> bytes:
    return _encode(document)
