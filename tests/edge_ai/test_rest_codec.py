"""What goes through the codecs comes out the same; what does not fit is a sentence, never a crash."""

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_ai.serve import grpc_codec, rest_codec, tensors
from edge_ai.serve.errors import BadRequest
from edge_ai.serve.proto import open_inference_pb2 as pb
from edge_ai.serve.tensors import DATATYPES, InferRequest, TensorSpec, WantedOutput

SPEC = {"x": TensorSpec("x", "FP32", (-1, 2), ("batch", ""))}
OUT = {"y": TensorSpec("y", "FP32", (-1, 2))}

ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "BYTES": st.text(st.characters(codec="utf-8"), max_size=10),
} | {
    name: st.integers(int(np.iinfo(kind.dtype).min), int(np.iinfo(kind.dtype).max))
    for name, kind in DATATYPES.items()
    if kind.dtype.kind in "iu"
}


@st.composite
def tensor(draw: st.DrawFn) -> tuple[str, tuple[int, int], list[Any]]:
    name = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return name, shape, draw(st.lists(ELEMENTS[name], min_size=math.prod(shape), max_size=math.prod(shape)))


def array_of(kind: str, shape: tuple[int, ...], values: list[Any]) -> tensors.Array:
    array = np.empty(len(values), DATATYPES[kind].dtype)
    array[:] = values
    return array.reshape(shape)


def decode(document: Any, tail: bytes = b"", length: int | None = None, **specs: dict[str, TensorSpec]) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail and length is None:
        length = len(body)
    return rest_codec.Reader(specs.get("inputs", SPEC), specs.get("outputs", OUT), 64).decode(body + tail, length)


@given(tensor(), st.sampled_from(["flat", "nested", "binary"]))
def test_rest_request_and_answer_carry_every_datatype_both_ways(made: tuple[str, tuple[int, int], list[Any]], form: str) -> None:
    kind, shape, values = made
    spec = {"x": TensorSpec("x", kind, (-1, -1))}
    array = array_of(kind, shape, values)
    item: dict[str, Any] = {"name": "x", "datatype": kind, "shape": shape}
    tail = b""
    if form == "binary":
        tail = tensors.to_raw(array)
        item["parameters"] = {"binary_data_size": len(tail)}
    else:
        item["data"] = values if form == "flat" else [values[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    body = json.dumps({"id": "7", "inputs": [item]}).encode()
    request = rest_codec.Reader(spec, spec, 64).decode(body + tail, len(body) if tail else None)
    assert request.inputs["x"].dtype == array.dtype and request.inputs["x"].tolist() == array.tolist()

    for binary in (False, True):
        request.outputs = (WantedOutput("x", binary),)
        head, parts = rest_codec.Writer("m", "1", spec).encode(request, [array])
        answer = json.loads(head)
        output = answer["outputs"][0]
        assert answer["id"] == "7" and output["shape"] == list(shape) and output["datatype"] == kind
        if binary:
            assert output["parameters"]["binary_data_size"] == len(parts[0])
            back = tensors.from_raw("x", DATATYPES[kind], array.size, shape, parts[0])
        else:
            assert parts == []
            back = tensors.from_elements("x", DATATYPES[kind], array.size, shape, output["data"])
        assert back.tolist() == array.tolist()


@given(tensor(), st.booleans())
def test_grpc_request_and_answer_carry_every_datatype_both_ways(made: tuple[str, tuple[int, int], list[Any]], raw: bool) -> None:
    kind, shape, values = made
    spec = {"x": TensorSpec("x", kind, (-1, -1))}
    array = array_of(kind, shape, values)
    request = pb.ModelInferRequest(model_name="m", id="7")
    item = request.inputs.add(name="x", datatype=kind, shape=shape)
    if raw or not DATATYPES[kind].contents:
        request.raw_input_contents.append(tensors.to_raw(array))
    else:
        contents = [value.encode() for value in values] if kind == "BYTES" else values
        getattr(item.contents, DATATYPES[kind].contents).extend(contents)
    asked = grpc_codec.decode_request(request, spec, spec, 64)
    assert asked.inputs["x"].dtype == array.dtype and asked.inputs["x"].tolist() == array.tolist()
    answer = grpc_codec.encode_response("m", "1", asked, [array], spec)
    assert answer.id == "7" and list(answer.outputs[0].shape) == list(shape)
    back = tensors.from_raw("x", DATATYPES[kind], array.size, shape, answer.raw_output_contents[0])
    assert back.tolist() == array.tolist()


def item(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changes]}


BAD: dict[str, tuple[Any, str]] = {
    "no json": (b"hello", "not an inference request"),
    "no utf-8": (b'{"inputs": [{"name": "\xff"}]}', "not an inference request"),
    "deep nesting": (b'{"inputs": ' + b"[" * 100_000, "not an inference request"),
    "deep data": (json.dumps(item())[:-3].encode() + b"," + b'"data":' + b"[" * 5000 + b"]" * 5000 + b"}]}", ""),
    "an array": ([], "not an inference request"),
    "inputs of the wrong type": ({"inputs": 1}, "inputs"),
    "no inputs": ({"inputs": []}, "missing"),
    "no name": ({"inputs": [{"shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}, "name"),
    "unknown name": (item(name="z"), "'z' is not an input"),
    "an endless name": (item(name="z" * 100_000), "is not an input"),
    "twice": ({"inputs": item()["inputs"] * 2}, "twice"),
    "unknown datatype": (item(datatype="FLOAT"), "not one of"),
    "other datatype": (item(datatype="FP64"), "expects FP32"),
    "dimensions": (item(shape=[2]), "dimensions"),
    "many dimensions": (item(shape=[1] * 10_000), "dimensions"),
    "size": (item(shape=[1, 3], data=[1, 2, 3]), "does not fit"),
    "negative size": (item(shape=[-1, 2]), "does not fit"),
    "empty": (item(shape=[0, 2], data=[]), "does not fit"),
    "fraction": (item(shape=[1.5, 2]), "shape"),
    "huge": (item(shape=[2**62, 2]), "cap"),
    "batch": (item(shape=[65, 2], data=[0] * 130), "cap of 64"),
    "too few": (item(data=[1]), "1 elements"),
    "too many": (item(data=[1, 2, 3]), "3 elements"),
    "strings": (item(data=["a", "b"]), "FP32"),
    "booleans": (item(data=[True, False]), "FP32"),
    "null": (item(data=[None, 1]), "FP32"),
    "a number": (item(data=5), "FP32"),
    "ragged": (item(shape=[2, 2], data=[[1, 2], [3]]), "FP32"),
    "too deep": (item(data=[[[1, 2]]]), "FP32"),
    "out of range": (item(data=[1e39, 0]), "range"),
    "no data": ({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]}, "neither"),
    "both": (item(parameters={"binary_data_size": 8}), "both"),
    "shared memory": (item(parameters={"shared_memory_region": "r"}), "shared memory"),
    "shared output": (item() | {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
    "unknown output": (item() | {"outputs": [{"name": "q"}]}, "'q' is not an output"),
    "output twice": (item() | {"outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
    "flag": (item() | {"parameters": {"binary_data_output": "yes"}}, "true or false"),
    "long id": (item() | {"id": "i" * 2000}, "id"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_json_is_refused_with_the_name_of_the_thing(name: str) -> None:
    document, says = BAD[name]
    with pytest.raises(BadRequest) as caught:
        decode(document)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("size", "tail", "length", "says"),
    [
        (8, b"1234567", None, "only 7 bytes"),
        (7, b"1234567", None, "takes 8"),
        (8, b"123456789", None, "left over"),
        (-8, b"12345678", None, "number of bytes"),
        ("8", b"12345678", None, "number of bytes"),
        (True, b"12345678", None, "number of bytes"),
        (8, b"", 10_000, "Inference-Header-Content-Length"),
        (8, b"12345678", 3, "not an inference request"),
    ],
)
def test_binary_data_that_does_not_add_up_is_refused(size: Any, tail: bytes, length: int | None, says: str) -> None:
    document = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": size}}]}
    with pytest.raises(BadRequest, match=says):
        decode(document, tail, length)


@pytest.mark.parametrize("raw", [b"", b"\x01", b"\x05\0\0\0abc", b"\x01\0\0\0a\x01\0\0\0b", b"\xff\xff\xff\xff"])
def test_bytes_elements_that_do_not_add_up_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        tensors.from_raw("x", DATATYPES["BYTES"], 1, [1], raw)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(BadRequest, match="UTF-8"):
        tensors.from_raw("x", DATATYPES["BYTES"], 1, [1], b"\x01\0\0\0\xff")


def test_sizes_of_one_symbol_must_agree() -> None:
    specs = {name: TensorSpec(name, "FP32", (-1, 1), ("batch", "")) for name in "ab"}
    inputs = [{"name": name, "shape": [size, 1], "datatype": "FP32", "data": [0] * size} for name, size in (("a", 1), ("b", 2))]
    with pytest.raises(BadRequest, match="batch"):
        decode({"inputs": inputs}, inputs=specs)


def test_an_answer_that_json_cannot_carry_says_what_to_do() -> None:
    request = InferRequest("", {}, (WantedOutput("y", False),))
    with pytest.raises(BadRequest, match="binary_data"):
        rest_codec.Writer("m", "1", OUT).encode(request, [np.array([[np.nan, 1]], np.float32)])


def test_a_bool_that_is_neither_is_made_true() -> None:
    array = tensors.from_raw("x", DATATYPES["BOOL"], 3, [3], b"\0\1\2")
    assert array.tolist() == [False, True, True] and array.view(np.uint8).tolist() == [0, 1, 1]


@given(st.binary(max_size=300), st.none() | st.integers(0, 400))
def test_random_bytes_never_crash_the_decoder(body: bytes, length: int | None) -> None:
    with pytest.raises(BadRequest):
        rest_codec.Reader(SPEC, OUT, 64).decode(body, length)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "data", "shape", "parameters"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(field=st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), value=json_values)
@example(field="data", value=[[1, 2]])
def test_any_value_in_any_field_is_answered_or_refused(field: str, value: Any) -> None:
    document = item()
    document["inputs"][0][field] = value
    try:
        request = decode(document)
    except BadRequest:
        return
    assert request.inputs["x"].shape[1] == 2 and request.inputs["x"].dtype == np.float32


def grpc_item(change: Callable[[pb.ModelInferRequest], None]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    change(request)
    return request


def _both(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents.append(b"12345678")


def _wrong_field(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.int_contents.append(1)


def _two_raw(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents.extend([b"12345678", b""])


def _shared(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"


def _short(request: pb.ModelInferRequest) -> None:
    del request.inputs[0].contents.fp32_contents[1:]


@pytest.mark.parametrize(
    ("change", "says"),
    [(_both, "raw_input_contents"), (_wrong_field, "fp32_contents"), (_two_raw, "2 entries"), (_shared, "shared"), (_short, "1 elements")],
)
def test_malformed_messages_are_refused(change: Callable[[pb.ModelInferRequest], None], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        grpc_codec.decode_request(grpc_item(change), SPEC, OUT, 64)


def test_half_floats_go_as_raw_bytes_only() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="x", datatype="FP16", shape=[1]).contents.fp32_contents.append(1)
    with pytest.raises(BadRequest, match="raw_input_contents"):
        grpc_codec.decode_request(request, {"x": TensorSpec("x", "FP16", (-1,))}, OUT, 64)


def test_the_smallest_request_is_understood() -> None:
    assert msgspec.json.decode(rest_codec.encode({"a": 1})) == {"a": 1}
    request = decode(item())
    assert request.outputs == (WantedOutput("y", False),) and request.inputs["x"].tolist() == [[1.0, 2.0]]


def test_null_is_taken_for_what_was_not_given() -> None:
    document = item() | {"id": None, "parameters": None, "outputs": None}
    document["inputs"][0]["parameters"] = None
    request = decode(document | {"outputs": [{"name": "y", "parameters": None}]})
    assert (request.id, request.priority, request.outputs) == ("", 0, (WantedOutput("y", False),))
    assert decode(document).outputs == (WantedOutput("y", False),)
