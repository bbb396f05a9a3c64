"""Triton's gRPC client (tritonclient.grpc), and its stubs for what the client does not do."""

import queue
import sys
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as module
from probes import SHAPE, VALUES, Wrong, check, given, main, probe, same
from triton_common import Asked
from tritonclient.grpc import service_pb2, service_pb2_grpc


def stub(asked: Asked) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(asked.address, [("grpc.max_send_message_length", -1)]))


def refused(work: Any, code: grpc.StatusCode, word: str) -> None:
    try:
        work()
    except grpc.RpcError as error:
        check(error.code() is code and word in error.details(), f"{error.code()}: {error.details()}")
        return
    raise Wrong("was not refused")


def typed(leave_out: str = "") -> Any:
    """A request whose data are in their typed fields."""
    request = service_pb2.ModelInferRequest(model_name="identity")
    for name, values in VALUES.items():
        item = request.inputs.add(name=name, datatype=name, shape=SHAPE)
        if name == leave_out:
            continue
        if name == "FP16":  # the protocol has no field for it
            item.contents.fp32_contents.extend(values)
            continue
        elements = [value.encode() for value in values] if name == "BYTES" else values
        kind = {"BOOL": "bool", "UINT64": "uint64", "INT64": "int64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}.get(name)
        kind = kind or ("uint" if name.startswith("U") else "int")
        getattr(item.contents, f"{kind}_contents").extend(elements)
    return request


@probe
def fp16_needs_raw_contents_and_says_so(asked: Asked) -> None:
    refused(lambda: stub(asked).ModelInfer(typed()), grpc.StatusCode.INVALID_ARGUMENT, "FP16")


@probe
def typed_contents_that_are_missing_are_invalid(asked: Asked) -> None:
    refused(lambda: stub(asked).ModelInfer(typed(leave_out="BOOL")), grpc.StatusCode.INVALID_ARGUMENT, "BOOL")


@probe
def raw_contents_that_do_not_fit_are_invalid(asked: Asked) -> None:
    request = service_pb2.ModelInferRequest(model_name="identity", raw_input_contents=[b"1"])
    refused(lambda: stub(asked).ModelInfer(request), grpc.StatusCode.INVALID_ARGUMENT, "raw_input_contents")


@probe
def a_message_over_the_cap_is_refused_and_ends_nothing(asked: Asked) -> None:
    request = service_pb2.ModelInferRequest(model_name="identity", raw_input_contents=[b"x" * (17 << 20)])
    refused(lambda: stub(asked).ModelInfer(request), grpc.StatusCode.RESOURCE_EXHAUSTED, "bytes")
    check(asked.client.is_server_live(), "it is not live any more")


@probe
def a_method_that_is_not_there_is_unimplemented(asked: Asked) -> None:
    refused(lambda: stub(asked).TraceSetting(service_pb2.TraceSettingRequest()), grpc.StatusCode.UNIMPLEMENTED, "TraceSetting")


@probe
def five_hundred_calls_at_once_on_one_connection(asked: Asked) -> None:
    made = stub(asked)
    futures = [made.ServerLive.future(service_pb2.ServerLiveRequest()) for _ in range(500)]
    check(all(future.result().live for future in futures), "some were not answered")


@probe
def a_packed_message_is_understood(asked: Asked) -> None:
    arrays = given()
    inputs, _ = asked.tensors(arrays)
    result = asked.client.infer("identity", inputs, compression_algorithm="gzip")
    same("FP32", result.as_numpy("FP32_out"), arrays["FP32"])


@probe
def a_stream_answers_in_order_and_a_bad_request_in_its_place(asked: Asked) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client = module.InferenceServerClient(asked.address)
    client.start_stream(lambda result, error: answers.put((result, error)))
    inputs, _ = asked.tensors(given())
    for number in range(20):
        name = "nobody" if number == 7 else "identity"
        client.async_stream_infer(name, inputs, request_id=str(number), priority=number % 3, timeout=10**9)
    for number in range(20):
        result, error = answers.get(timeout=30)
        if number == 7:
            check(result is None and "nobody" in error.message(), error)
        else:
            check(error is None and result.get_response().id == str(number), f"{number}: {error}")
    client.stop_stream()
    client.close()


@probe
def one_request_of_a_stream_has_several_answers(asked: Asked) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client = module.InferenceServerClient(asked.address)
    client.start_stream(lambda result, error: answers.put((result, error)))
    item = module.InferInput("x", [1, 1], "FP32")
    item.set_data_from_numpy(np.array([[5]], np.float32))
    client.async_stream_infer("count", [item])
    for number in range(5):
        result, error = answers.get(timeout=30)
        check(error is None and result.as_numpy("y").tolist() == [number], f"{number}: {error}")
    client.stop_stream()
    client.close()


@probe
def health_is_answered_as_kubernetes_asks(asked: Asked) -> None:
    channel = grpc.insecure_channel(asked.address)
    check(channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01", "it does not say SERVING")
    channel.close()


@probe
def a_deadline_that_has_passed_ends_the_call(asked: Asked) -> None:
    request = service_pb2.ModelInferRequest(model_name="count")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(-1)  # it takes a second
    refused(lambda: stub(asked).ModelInfer(request, timeout=0.1), grpc.StatusCode.DEADLINE_EXCEEDED, "")


if __name__ == "__main__":
    asked = Asked(module, sys.argv[1], bad="INVALID_ARGUMENT", unknown="NOT_FOUND", absent="UNIMPLEMENTED")
    main(asked)
    asked.client.close()
