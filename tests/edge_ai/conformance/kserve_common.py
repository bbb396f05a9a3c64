"""What KServe's REST and gRPC clients are asked alike."""

from typing import Any, Protocol

import numpy as np
from kserve import InferInput, InferRequest
from probes import DTYPES, SHAPE, VALUES, check, given, probe, same


class Asked(Protocol):
    async def infer(self, request: InferRequest, model: str = "identity") -> Any: ...

    async def bad(self, request: InferRequest, word: str, unknown: bool = False) -> None:
        """It must be refused, with that word."""
        ...


def made(arrays: dict[str, Any] | None = None, binary: bool = True, model: str = "identity", **more: Any) -> InferRequest:
    inputs = []
    for name, array in (given() if arrays is None else arrays).items():
        item = InferInput(name, list(array.shape), name)
        item.set_data_from_numpy(array, binary_data=binary or name == "FP16")  # the client sends no FP16 as JSON
        inputs.append(item)
    return InferRequest(model, inputs, **more)


def outputs(response: Any) -> dict[str, Any]:
    return {item.name.removesuffix("_out"): item.as_numpy() for item in response.outputs}


@probe
async def every_datatype_comes_back_as_it_went(asked: Asked) -> None:
    found = outputs(await asked.infer(made(request_id="1", parameters={"binary_data_output": True})))
    for name, array in given().items():
        same(name, found[name], array)


@probe
async def the_id_comes_back(asked: Asked) -> None:
    response = await asked.infer(made(request_id="the id", parameters={"binary_data_output": True}))
    check((response.id, response.model_name) == ("the id", "identity"), response)


@probe
async def a_request_without_an_id_is_answered(asked: Asked) -> None:
    response = await asked.infer(made(parameters={"binary_data_output": True}))
    check(set(outputs(response)) == set(VALUES), response)


@probe
async def typed_elements_are_taken(asked: Asked) -> None:
    arrays = {name: array for name, array in given().items() if DTYPES[name] is np.float32}
    await asked.bad(made(arrays, binary=False, request_id="1"), "missing")


@probe
async def a_wrong_shape_is_refused(asked: Asked) -> None:
    await asked.bad(made(given() | {"INT8": np.zeros((1, 2), np.int8)}, request_id="1"), "INT8")


@probe
async def a_wrong_name_is_refused(asked: Asked) -> None:
    arrays = given()
    inputs = made(arrays).inputs
    wrong = InferInput("another", SHAPE, "FP32")
    wrong.set_data_from_numpy(arrays["FP32"])
    await asked.bad(InferRequest("identity", [*inputs, wrong], request_id="1"), "another")


@probe
async def nobody_is_not_found(asked: Asked) -> None:
    await asked.bad(made(model="nobody", request_id="1"), "nobody", unknown=True)
