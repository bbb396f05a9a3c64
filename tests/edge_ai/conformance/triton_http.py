"""Triton's HTTP client (tritonclient.http)."""

import sys

import numpy as np
import tritonclient.http as module
from probes import SHAPE, check, given, main, probe, same
from triton_common import Asked


@probe
def every_datatype_comes_back_through_json(asked: Asked) -> None:
    arrays = given()
    result = asked.infer(arrays, binary=False)
    for name, array in arrays.items():
        same(name, result.as_numpy(f"{name}_out"), array)


@probe
def json_and_binary_are_mixed_in_one_request(asked: Asked) -> None:
    inputs, outputs = asked.tensors(given())
    json_inputs, json_outputs = asked.tensors(given(), binary=False)
    mixed = [json_inputs[index] if index % 2 else item for index, item in enumerate(inputs)]
    result = asked.client.infer(
        "identity", mixed, outputs=[json_outputs[index] if index % 3 else item for index, item in enumerate(outputs)]
    )
    for name, array in given().items():
        same(name, result.as_numpy(f"{name}_out"), array)


@probe
def a_batch_over_the_cap_is_a_bad_request(asked: Asked) -> None:
    arrays = {name: np.resize(array, (65, 2)) for name, array in given().items()}
    asked.fails("400", lambda: asked.infer(arrays), "64")


@probe
def a_packed_body_is_refused_with_what_to_do(asked: Asked) -> None:
    inputs, _ = asked.tensors(given())
    asked.fails("415", lambda: asked.client.infer("identity", inputs, request_compression_algorithm="gzip"), "send the body as it is")


@probe
def an_answer_may_be_asked_for_packed_and_comes_as_it_is(asked: Asked) -> None:
    inputs, _ = asked.tensors(given())
    result = asked.client.infer("identity", inputs, response_compression_algorithm="gzip")
    check(list(result.as_numpy("FP32_out").shape) == SHAPE, "no answer")


if __name__ == "__main__":
    asked = Asked(module, sys.argv[1], bad="400", unknown="404", absent="404")
    main(asked)
    asked.client.close()
