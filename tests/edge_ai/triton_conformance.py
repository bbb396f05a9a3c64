"""Asks a worker with Triton's own client, in a process of its own. Not a test module: test_worker.py runs it.

triton_conformance.py http|grpc ADDRESS         everything that the protocol has, against the identity model
triton_conformance.py grpc-loop ADDRESS         asks until a line comes on stdin; a tally per second on stdout
"""

import json
import queue
import sys
import threading
import time
from typing import Any

import numpy as np

SHAPE = [3, 2]
VALUES: dict[str, Any] = {
    "BOOL": [True, False, True, True, False, False],
    "UINT8": [0, 1, 255, 3, 4, 5],
    "UINT16": [0, 1, 65535, 3, 4, 5],
    "UINT32": [0, 1, 2**32 - 1, 3, 4, 5],
    "UINT64": [0, 1, 2**64 - 1, 3, 4, 5],
    "INT8": [0, -128, 127, 3, 4, 5],
    "INT16": [0, -32768, 32767, 3, 4, 5],
    "INT32": [0, -(2**31), 2**31 - 1, 3, 4, 5],
    "INT64": [0, -(2**63), 2**63 - 1, 3, 4, 5],
    "FP16": [0, -1.5, 65504, 3, 4, 5],
    "FP32": [0, -1.5, 3e38, 3, 4, 5],
    "FP64": [0, -1.5, 1e308, 3, 4, 5],
    "BYTES": ["", "ä", "three", "4", "5", "6"],
}


def check(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"not as the protocol says: {what}")


def arrays(module: Any) -> dict[str, Any]:
    from tritonclient.utils import triton_to_np_dtype

    made = {}
    for name, values in VALUES.items():
        dtype = object if name == "BYTES" else triton_to_np_dtype(name)
        made[name] = np.array([value.encode() if name == "BYTES" else value for value in values], dtype=dtype).reshape(SHAPE)
    return made


def infer(client: Any, module: Any, given: dict[str, Any], binary: bool, **more: Any) -> Any:
    inputs, outputs = [], []
    for name, array in given.items():
        item = module.InferInput(name, list(array.shape), name)
        if module.__name__.endswith("http"):
            item.set_data_from_numpy(array, binary_data=binary or name == "FP16")
            outputs.append(module.InferRequestedOutput(f"{name}_out", binary_data=binary))
        else:
            item.set_data_from_numpy(array)
            outputs.append(module.InferRequestedOutput(f"{name}_out"))
        inputs.append(item)
    return client.infer("identity", inputs, outputs=outputs, **more)


def fails(what: str, work: Any, *statuses: str) -> None:
    from tritonclient.utils import InferenceServerException

    try:
        work()
    except InferenceServerException as error:
        check(any(status in str(error.status()) for status in statuses), f"{what}: {error.status()}")
        check(bool(error.message()), f"{what}: no message")
        return
    raise SystemExit(f"{what}: was not refused")


def metadata(client: Any, is_http: bool) -> None:
    check(client.is_server_live() and client.is_server_ready(), "health")
    check(client.is_model_ready("identity") and client.is_model_ready("identity", "1"), "model ready")
    server, model = client.get_server_metadata(), client.get_model_metadata("identity", "1")
    if is_http:
        check(server["name"] == "banyan" and "binary_tensor_data" in server["extensions"], "server metadata")
        found = {item["name"]: (item["datatype"], item["shape"]) for item in model["inputs"]}
        check(model["versions"] == ["1"], "versions")
    else:
        check(server.name == "banyan", "server metadata")
        found = {item.name: (item.datatype, list(item.shape)) for item in model.inputs}
        check(list(model.versions) == ["1"], "versions")
    check(found == {name: (name, [-1, -1]) for name in VALUES}, f"model metadata: {found}")


def conformance(protocol: str, address: str) -> None:
    if protocol == "http":
        import tritonclient.http as module
    else:
        import tritonclient.grpc as module
    is_http = protocol == "http"
    refused = {"bad": "400" if is_http else "INVALID_ARGUMENT", "unknown": "404" if is_http else "NOT_FOUND"}
    client = module.InferenceServerClient(address)
    metadata(client, is_http)
    given = arrays(module)
    for binary in (True, False) if is_http else (True,):
        result = infer(client, module, given, binary, request_id="the id", model_version="1")
        response = result.get_response()
        check((response["id"] if is_http else response.id) == "the id", "id")
        for name, array in given.items():
            back = result.as_numpy(f"{name}_out")
            expected = array
            if name == "BYTES" and is_http and not binary:
                back = np.array([item if isinstance(item, bytes) else item.encode() for item in back.ravel()], object).reshape(back.shape)
            check(back is not None and list(back.shape) == SHAPE and (back == expected).all(), f"{name}, binary {binary}: {back}")
    fails("unknown model", lambda: client.get_model_metadata("nobody"), refused["unknown"])
    fails("unknown version", lambda: client.get_model_metadata("identity", "9"), refused["unknown"])
    some = {name: given[name] for name in ("FP32", "INT8")}
    fails("missing inputs", lambda: infer(client, module, some, True), refused["bad"])
    fails("unequal sizes", lambda: infer(client, module, given | {"INT8": np.zeros((1, 2), np.int8)}, True), refused["bad"])
    fails("dimensions", lambda: infer(client, module, given | {"INT8": np.zeros((3, 2, 1), np.int8)}, True), refused["bad"])
    fails("unknown version to infer", lambda: infer(client, module, given, True, model_version="9"), refused["unknown"])
    if not is_http:
        conformance_grpc_only(client, module, given, refused["bad"], address)
    client.close()


def conformance_grpc_only(client: Any, module: Any, given: dict[str, Any], bad: str, address: str) -> None:
    """Contents in their typed fields, many calls at once, and a message over the cap."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]))
    request = service_pb2.ModelInferRequest(model_name="identity")
    for name, given_values in VALUES.items():
        item = request.inputs.add(name=name, datatype=name, shape=SHAPE)
        if name != "FP16":
            values = [value.encode() for value in given_values] if name == "BYTES" else given_values
            kind = {"BOOL": "bool", "UINT64": "uint64", "INT64": "int64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}.get(name)
            kind = kind or ("uint" if name.startswith("U") else "int")
            getattr(item.contents, f"{kind}_contents").extend(values)
    try:
        stub.ModelInfer(request)
        raise SystemExit("FP16 without raw contents was not refused")
    except grpc.RpcError as error:
        check(error.code() is grpc.StatusCode.INVALID_ARGUMENT and "FP16" in error.details(), f"typed contents: {error}")
    stream(module, given, address)
    futures = [stub.ServerLive.future(service_pb2.ServerLiveRequest()) for _ in range(500)]
    check(all(future.result().live for future in futures), "500 calls at once")
    request = service_pb2.ModelInferRequest(model_name="identity", raw_input_contents=[b"x" * (17 << 20)])
    try:
        stub.ModelInfer(request)
        raise SystemExit("17 MiB were not refused")
    except grpc.RpcError as error:
        check(error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, f"17 MiB: {error}")
    check(stub.ServerLive(service_pb2.ServerLiveRequest()).live, "alive afterwards")


def stream(module: Any, given: dict[str, Any], address: str) -> None:
    """Many requests on one stream, by Triton's own streaming client: answers come in their order, a bad one in its place."""
    answers: queue.Queue[Any] = queue.Queue()
    client = module.InferenceServerClient(address)
    client.start_stream(lambda result, error: answers.put((result, error)))
    inputs = []
    for name, array in given.items():
        inputs.append(module.InferInput(name, list(array.shape), name))
        inputs[-1].set_data_from_numpy(array)
    for number in range(20):
        client.async_stream_infer(
            "nobody" if number == 7 else "identity", inputs, request_id=str(number), priority=number % 3, timeout=10**9
        )
    for number in range(20):
        result, error = answers.get(timeout=30)
        if number == 7:
            check(result is None and "nobody" in error.message(), f"a bad request in a stream: {error}")
        else:
            check(error is None and result.get_response().id == str(number), f"the stream's answer {number}: {error}")
    client.stop_stream()
    client.close()


def loop(address: str) -> None:
    import tritonclient.grpc as module

    client = module.InferenceServerClient(address)
    item = module.InferInput("x", [1, 4], "FP32")
    item.set_data_from_numpy(np.ones((1, 4), np.float32))
    tally: dict[str, Any] = {"answers": 0, "failures": [], "versions": []}
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("asking", flush=True)
    told = time.monotonic()
    while not stop.is_set():
        try:
            version = client.infer("m", [item]).get_response().model_version
        except module.InferenceServerException as error:
            tally["failures"].append(str(error))
        else:
            tally["answers"] += 1
            if version not in tally["versions"]:
                tally["versions"].append(version)
        if time.monotonic() > told + 1:
            told = time.monotonic()
            print(json.dumps(tally), flush=True)
    print(json.dumps(tally), flush=True)
    client.close()


if __name__ == "__main__":
    if sys.argv[1] == "grpc-loop":
        loop(sys.argv[2])
    else:
        conformance(sys.argv[1], sys.argv[2])
