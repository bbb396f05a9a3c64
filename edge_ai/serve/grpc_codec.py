"""Protobuf messages of the Open Inference Protocol to and from arrays. The same checks as the JSON codec, in `tensors`."""

from collections.abc import Mapping, Sequence

from edge_ai.serve import tensors
from edge_ai.serve.errors import BadRequest
from edge_ai.serve.proto import open_inference_pb2 as pb
from edge_ai.serve.tensors import Array, Checker, DataType, InferRequest, TensorSpec, WantedOutput

_CONTENTS = ("bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes")


def decode_request(
    request: pb.ModelInferRequest, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], max_batch: int
) -> InferRequest:
    if len(request.id) > tensors.MAX_ID:
        raise BadRequest(f"the id has {len(request.id)} characters; at most {tensors.MAX_ID} are sent back")
    raw = request.raw_input_contents
    for item in request.inputs:
        if "shared_memory_region" in item.parameters:
            raise BadRequest(f"input '{item.name}': {tensors.NO_SHARED_MEMORY}")
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; give one for each, or none")
    checker = Checker(inputs, max_batch)
    arrays: dict[str, Array] = {}
    for position, item in enumerate(request.inputs):
        kind, elements = checker.input(item.name, item.datatype, item.shape)
        if raw:
            if item.HasField("contents"):
                raise BadRequest(f"input '{item.name}': has contents although raw_input_contents is used")
            arrays[item.name] = tensors.from_raw(item.name, kind, elements, item.shape, raw[position])
        else:
            arrays[item.name] = _from_contents(item, kind, elements)
    checker.finish()
    if any("shared_memory_region" in output.parameters for output in request.outputs):
        raise BadRequest(tensors.NO_SHARED_MEMORY)
    wanted = [WantedOutput(output.name, True) for output in request.outputs]
    priority, timeout = tensors.urgency(_number(request, "priority"), _number(request, "timeout"))
    return InferRequest(request.id, arrays, tensors.wanted_outputs(wanted, outputs, True), priority, timeout)


def _number(request: pb.ModelInferRequest, name: str) -> object:
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "int64_param")


def _from_contents(item: pb.ModelInferRequest.InferInputTensor, kind: DataType, elements: int) -> Array:
    if not kind.contents:
        raise BadRequest(f"input '{item.name}': {kind.name} must be sent in raw_input_contents")
    for name in _CONTENTS:
        field = f"{name}_contents"
        if field != kind.contents and len(getattr(item.contents, field)):
            raise BadRequest(f"input '{item.name}': {kind.name} goes into {kind.contents}, not {field}")
    return tensors.from_elements(item.name, kind, elements, item.shape, getattr(item.contents, kind.contents))


def encode_response(
    model: str, version: str, request: InferRequest, values: Sequence[Array], specs: Mapping[str, TensorSpec]
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=model, model_version=version, id=request.id)
    for wanted, value in zip(request.outputs, values, strict=True):
        response.outputs.add(name=wanted.name, datatype=specs[wanted.name].datatype, shape=value.shape)
        response.raw_output_contents.append(tensors.to_raw(value))
    return response


def encode_metadata(
    name: str, versions: Sequence[str], platform: str, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> pb.ModelMetadataResponse:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=platform,
        inputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in inputs.values()],
        outputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in outputs.values()],
    )
