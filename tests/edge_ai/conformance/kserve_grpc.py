"""KServe's gRPC client (kserve.InferenceGRPCClient)."""

import asyncio
import sys
from typing import Any

import grpc
import kserve_common  # its probes run here too
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from probes import Wrong, check, main_async, probe


class Grpc:
    def __init__(self, client: InferenceGRPCClient) -> None:
        self.client = client

    async def infer(self, request: InferRequest, model: str = "identity") -> Any:
        return await self.client.infer(request)

    async def bad(self, request: InferRequest, word: str, unknown: bool = False) -> None:
        wanted = grpc.StatusCode.NOT_FOUND if unknown else grpc.StatusCode.INVALID_ARGUMENT
        try:
            await self.infer(request)
        except grpc.RpcError as error:
            check(error.code() is wanted and word in error.details(), error)
            return
        raise Wrong("was not refused")


@probe
async def the_server_is_live_and_ready(asked: Grpc) -> None:
    check(await asked.client.is_server_live() is True and await asked.client.is_server_ready() is True, "it says otherwise")


@probe
async def the_version_that_answers_is_named(asked: Grpc) -> None:
    check((await asked.infer(kserve_common.made())).model_version == "2", "another one, or none")  # its REST client drops what says it


@probe
async def a_model_is_ready(asked: Grpc) -> None:
    check(await asked.client.is_model_ready("identity") is True, "it says otherwise")


@probe
async def the_readiness_of_nobody_is_not_found(asked: Grpc) -> None:
    try:
        await asked.client.is_model_ready("nobody")
    except grpc.RpcError as error:
        check(error.code() is grpc.StatusCode.NOT_FOUND, error)
        return
    raise Wrong("was not refused")


@probe
async def typed_contents_come_back(asked: Grpc) -> None:
    item = InferInput("x", [1, 1], "FP32")
    item.set_data_from_numpy(np.array([[4]], np.float32), binary_data=False)
    response = await asked.infer(InferRequest("count", [item]))
    check(response.outputs[0].as_numpy().tolist() == [3], response)  # of a stream, the last answer


@probe
async def a_timeout_ends_the_call(asked: Grpc) -> None:
    item = InferInput("x", [1, 1], "FP32")
    item.set_data_from_numpy(np.array([[-1]], np.float32))  # it takes a second
    try:
        await asked.client.infer(InferRequest("count", [item]), timeout=0.1)
    except grpc.RpcError as error:
        check(error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error)
        return
    raise Wrong("was not ended")


async def run(address: str) -> None:
    async with InferenceGRPCClient(address, retries=0) as client:
        await main_async(Grpc(client))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
