"""What Triton's HTTP and gRPC clients are asked alike: they have the same methods, and answer with dictionaries or with messages."""

from typing import Any

import numpy as np
from probes import SHAPE, VALUES, Wrong, check, given, probe, same
from tritonclient.utils import InferenceServerException


class Asked:
    """``bad``, ``unknown``, ``absent``: the statuses of what does not fit, of a name that nobody has, of a method that is not offered."""

    def __init__(self, module: Any, address: str, bad: str, unknown: str, absent: str) -> None:
        self.module, self.address = module, address
        self.bad, self.unknown, self.absent = bad, unknown, absent
        self.is_http = module.__name__.endswith("http")
        self.client = module.InferenceServerClient(address)

    def infer(self, arrays: dict[str, Any], binary: bool = True, model: str = "identity", **more: Any) -> Any:
        inputs, outputs = self.tensors(arrays, binary)
        return self.client.infer(model, inputs, outputs=outputs, **more)

    def tensors(self, arrays: dict[str, Any], binary: bool = True) -> tuple[list[Any], list[Any]]:
        inputs, outputs = [], []
        for name, array in arrays.items():
            item = self.module.InferInput(name, list(array.shape), name)
            if self.is_http:
                item.set_data_from_numpy(array, binary_data=binary or name == "FP16")  # the client sends no FP16 as JSON
                outputs.append(self.module.InferRequestedOutput(f"{name}_out", binary_data=binary))
            else:
                item.set_data_from_numpy(array)
                outputs.append(self.module.InferRequestedOutput(f"{name}_out"))
            inputs.append(item)
        return inputs, outputs

    def fails(self, status: str, work: Any, *words: str) -> None:
        try:
            work()
        except InferenceServerException as error:
            check(status in str(error.status()), f"{error.status()} instead of {status}: {error.message()}")
            check(error.message() and all(word in error.message() for word in words), f"says {error.message()!r}, not {words}")
            return
        raise Wrong("was not refused")


def field(answer: Any, name: str) -> Any:
    return answer[name] if isinstance(answer, dict) else getattr(answer, name)


@probe
def the_server_is_live_and_ready(asked: Asked) -> None:
    check(asked.client.is_server_live() and asked.client.is_server_ready(), "it says that it is not")


@probe
def a_model_is_ready_and_so_is_each_version(asked: Asked) -> None:
    check(asked.client.is_model_ready("identity"), "the model")
    check(asked.client.is_model_ready("identity", "1") and asked.client.is_model_ready("identity", "2"), "its versions")


@probe
def a_model_or_version_that_is_not_there_is_not_ready(asked: Asked) -> None:
    for name, version in (("nobody", ""), ("identity", "9")):
        if asked.is_http:
            check(not asked.client.is_model_ready(name, version), "it is")
        else:
            asked.fails(asked.unknown, lambda name=name, version=version: asked.client.is_model_ready(name, version))


@probe
def the_server_says_its_name_version_and_extensions(asked: Asked) -> None:
    server = asked.client.get_server_metadata()
    check(field(server, "name") == "banyan" and field(server, "version"), server)
    check({"binary_tensor_data", "statistics"} <= set(field(server, "extensions")), server)


@probe
def a_model_says_its_tensors_and_versions(asked: Asked) -> None:
    model = asked.client.get_model_metadata("identity", "1")
    check(field(model, "name") == "identity" and field(model, "platform") == "onnx_onnxv1", model)
    check(list(field(model, "versions")) == ["1", "2"], model)
    for side, ending in (("inputs", ""), ("outputs", "_out")):
        found = {
            field(item, "name"): (field(item, "datatype"), [int(size) for size in field(item, "shape")]) for item in field(model, side)
        }
        check(found == {name + ending: (name, [-1, -1]) for name in VALUES}, found)


@probe
def metadata_of_nobody_is_not_found(asked: Asked) -> None:
    asked.fails(asked.unknown, lambda: asked.client.get_model_metadata("nobody"), "nobody")
    asked.fails(asked.unknown, lambda: asked.client.get_model_metadata("identity", "9"), "9")


@probe
def every_datatype_comes_back_as_it_went(asked: Asked) -> None:
    arrays = given()
    result = asked.infer(arrays)
    for name, array in arrays.items():
        same(name, result.as_numpy(f"{name}_out"), array)


@probe
def the_id_comes_back_and_the_default_version_answers(asked: Asked) -> None:
    response = asked.infer(given(), request_id="the id").get_response()
    check(field(response, "id") == "the id", response)
    check(field(response, "model_name") == "identity" and field(response, "model_version") == "2", response)


@probe
def a_version_that_is_named_answers(asked: Asked) -> None:
    check(field(asked.infer(given(), model_version="1").get_response(), "model_version") == "1", "another did")


@probe
def without_outputs_in_the_request_all_come(asked: Asked) -> None:
    inputs, _ = asked.tensors(given())
    result = asked.client.infer("identity", inputs)
    check(all(result.as_numpy(f"{name}_out") is not None for name in VALUES), "some are missing")


@probe
def only_the_outputs_that_are_asked_for_come(asked: Asked) -> None:
    inputs, outputs = asked.tensors(given())
    response = asked.client.infer("identity", inputs, outputs=outputs[3:5]).get_response()
    check([field(item, "name") for item in field(response, "outputs")] == [f"{name}_out" for name in list(VALUES)[3:5]], response)


@probe
def bytes_of_no_and_of_much_length_come_back(asked: Asked) -> None:
    texts = np.array([b"", b"x" * 70_000, "日本".encode(), b"\n\x00,"], object).reshape(2, 2)
    arrays = {name: np.resize(array, (2, 2)) for name, array in given().items()} | {"BYTES": texts}
    same("BYTES", asked.infer(arrays).as_numpy("BYTES_out"), texts)


@probe
def inference_by_nobody_is_not_found(asked: Asked) -> None:
    asked.fails(asked.unknown, lambda: asked.infer(given(), model="nobody"), "nobody")
    asked.fails(asked.unknown, lambda: asked.infer(given(), model_version="9"), "9")


@probe
def missing_inputs_are_a_bad_request(asked: Asked) -> None:
    arrays = given()
    asked.fails(asked.bad, lambda: asked.infer({name: arrays[name] for name in ("FP32", "INT8")}), "missing")


@probe
def an_unknown_input_is_a_bad_request(asked: Asked) -> None:
    extra = asked.module.InferInput("another", SHAPE, "FP32")
    extra.set_data_from_numpy(given()["FP32"])
    asked.fails(asked.bad, lambda: asked.client.infer("identity", [*asked.tensors(given())[0], extra]), "another")


@probe
def an_unknown_output_is_a_bad_request(asked: Asked) -> None:
    output = asked.module.InferRequestedOutput("another")
    asked.fails(asked.bad, lambda: asked.client.infer("identity", asked.tensors(given())[0], outputs=[output]), "another")


@probe
def a_wrong_datatype_is_a_bad_request(asked: Asked) -> None:
    inputs, _ = asked.tensors(given())
    wrong = asked.module.InferInput("FP32", SHAPE, "FP64")
    wrong.set_data_from_numpy(given()["FP64"])
    inputs[list(VALUES).index("FP32")] = wrong
    asked.fails(asked.bad, lambda: asked.client.infer("identity", inputs), "FP32")


@probe
def wrong_shapes_are_a_bad_request(asked: Asked) -> None:
    asked.fails(asked.bad, lambda: asked.infer(given() | {"INT8": np.zeros((1, 2), np.int8)}), "INT8")
    asked.fails(asked.bad, lambda: asked.infer(given() | {"INT8": np.zeros((3, 2, 1), np.int8)}), "INT8")


@probe
def priority_and_timeout_are_taken(asked: Asked) -> None:
    check(asked.infer(given(), priority=1, timeout=60_000_000).as_numpy("FP32_out") is not None, "no answer")


@probe
def many_requests_at_once_are_all_answered(asked: Asked) -> None:
    arrays = given()
    inputs, _ = asked.tensors(arrays)
    if asked.is_http:
        with asked.module.InferenceServerClient(asked.address, concurrency=8) as client:
            waiting = [client.async_infer("identity", inputs, request_id=str(number)) for number in range(40)]
            found = [item.get_result().get_response()["id"] for item in waiting]
    else:
        results: list[Any] = []
        for number in range(40):
            asked.client.async_infer("identity", inputs, lambda result, error: results.append(error or result), request_id=str(number))
        asked.client.is_server_live()
        for _ in range(3000):
            if len(results) == 40:
                break
            asked.client.is_server_live()
        check(all(not isinstance(item, Exception) for item in results), results)
        found = [item.get_response().id for item in results]
    check(sorted(found, key=int) == [str(number) for number in range(40)], found)


@probe
def statistics_count_what_was_asked(asked: Asked) -> None:
    def counted(version: str) -> tuple[int, int, int, int]:
        (found,) = field(asked.client.get_inference_statistics("identity", version), "model_stats")
        check(field(found, "name") == "identity" and field(found, "version") == version, found)
        stats = field(found, "inference_stats")
        ran, good = field(stats, "compute_infer"), field(stats, "success")
        check(int(field(good, "ns")) >= int(field(ran, "ns")) > 0, stats)
        return tuple(int(item) for item in (field(good, "count"), field(found, "inference_count"), field(found, "execution_count"),
                                            field(field(stats, "fail"), "count")))  # fmt: skip

    asked.infer(given(), model_version="1")
    before, other = counted("1"), counted("2")
    asked.infer(given(), model_version="1")
    asked.fails(asked.bad, lambda: asked.infer({"FP32": given()["FP32"]}, model_version="1"))
    after = counted("1")
    check([new - old for new, old in zip(after, before, strict=True)] == [1, SHAPE[0], 1, 1], (before, after))
    check(counted("2") == other, "another version's changed")


@probe
def statistics_of_all_models_and_of_nobody(asked: Asked) -> None:
    found = field(asked.client.get_inference_statistics(), "model_stats")
    check(
        {(field(item, "name"), field(item, "version")) for item in found} == {("identity", "1"), ("identity", "2"), ("count", "1")}, found
    )
    asked.fails(asked.unknown, lambda: asked.client.get_inference_statistics("nobody"), "nobody")


@probe
def shared_memory_is_refused_with_what_to_do_instead(asked: Asked) -> None:
    asked.fails(asked.absent, asked.client.get_system_shared_memory_status, "send the data in the request")
    asked.fails(asked.absent, lambda: asked.client.register_system_shared_memory("r", "/key", 64), "send the data in the request")
    asked.fails(asked.absent, lambda: asked.client.register_cuda_shared_memory("r", b"eA==", 0, 64), "send the data in the request")


@probe
def an_input_or_output_in_shared_memory_is_a_bad_request(asked: Asked) -> None:
    inputs, _ = asked.tensors(given())
    shared = asked.module.InferInput("FP32", SHAPE, "FP32")
    shared.set_shared_memory("r", 24)
    index = list(VALUES).index("FP32")
    asked.fails(asked.bad, lambda: asked.client.infer("identity", [*inputs[:index], shared, *inputs[index + 1 :]]), "shared memory")
    output = asked.module.InferRequestedOutput("FP32_out")
    output.set_shared_memory("r", 24)
    asked.fails(asked.bad, lambda: asked.client.infer("identity", inputs, outputs=[output]), "shared memory")


@probe
def the_repository_is_not_for_everybody(asked: Asked) -> None:
    asked.fails(asked.absent, asked.client.get_model_repository_index, "control socket")
    asked.fails(asked.absent, lambda: asked.client.load_model("identity"), "control socket")
    asked.fails(asked.absent, lambda: asked.client.unload_model("identity"), "control socket")
