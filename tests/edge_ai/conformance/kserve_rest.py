"""KServe's REST client (kserve.InferenceRESTClient)."""

import asyncio
import sys
from typing import Any

import httpx
from kserve import InferenceRESTClient, InferRequest, RESTConfig
from kserve_common import made, outputs
from probes import Wrong, check, given, main_async, probe, same


class Rest:
    def __init__(self, client: InferenceRESTClient, url: str) -> None:
        self.client, self.url = client, url

    async def infer(self, request: InferRequest | dict[str, Any], model: str = "identity", **more: Any) -> Any:
        name = request.model_name if isinstance(request, InferRequest) else model
        return await self.client.infer(self.url, request, model_name=name, **more)

    async def bad(self, request: InferRequest, word: str, unknown: bool = False) -> None:
        try:
            await self.infer(request)
        except httpx.HTTPStatusError as error:
            check(error.response.status_code == (404 if unknown else 400) and word in str(error), error)
            return
        raise Wrong("was not refused")


@probe
async def the_server_is_live(asked: Rest) -> None:
    check(await asked.client.is_server_live(asked.url) is True, "its body says otherwise")


@probe
async def the_server_is_ready(asked: Rest) -> None:
    check(await asked.client.is_server_ready(asked.url) is True, "its body says otherwise")


@probe
async def models_are_ready_or_not(asked: Rest) -> None:
    check(await asked.client.is_model_ready(asked.url, "identity") is True, "identity")
    check(await asked.client.is_model_ready(asked.url, "identity/versions/1") is True, "version 1")
    check(await asked.client.is_model_ready(asked.url, "nobody") is False, "nobody")


@probe
async def every_datatype_comes_back_through_json(asked: Rest) -> None:
    found = outputs(await asked.infer(made(binary=False, request_id="1")))
    for name, array in given().items():
        same(name, found[name], array)


@probe
async def json_in_and_binary_out(asked: Rest) -> None:
    found = outputs(await asked.infer(made(binary=False, request_id="1", parameters={"binary_data_output": True})))
    same("INT64", found["INT64"], given()["INT64"])


@probe
async def a_dictionary_of_ones_own_is_taken(asked: Rest) -> None:
    document = {"id": "7", "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [[3]]}]}
    response = await asked.infer(document, model="count")
    check(response.id == "7" and response.outputs[0].as_numpy().tolist() == [2], response)  # of a stream, the last answer


async def run(address: str) -> None:
    url = f"http://{address}"
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        await main_async(Rest(client, url))


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
