"""The gRPC side of the Open Inference Protocol. The only importer of grpc; itself imported when the first HTTP/2 client comes.

grpc.aio cannot be given an accepted connection, so it listens on a Unix socket in a folder that only this user can enter, and
`pump` carries each HTTP/2 connection there. A worker that no gRPC client ever asks pays neither the memory nor the threads.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc import aio

from edge_ai.serve import events, grpc_codec, rest
from edge_ai.serve.errors import LoadFailed, NotReady, RequestError
from edge_ai.serve.inference import Inference
from edge_ai.serve.model import LoadedModel
from edge_ai.serve.proto import open_inference_pb2 as pb
from edge_ai.serve.repository import Asleep
from edge_ai.serve.tensors import Array, InferRequest

SERVICE = "inference.GRPCInferenceService"
# Calls at once on one connection. Far above what the queue takes: a client that comes with a burst gets RESOURCE_EXHAUSTED with a
# sentence, and not the REFUSED_STREAM that HTTP/2 has for those who could not know the limit yet.
MAX_STREAMS = 4096
STREAMED = 16  # requests of one stream that are under way, and answers to one of them that the client has not taken
clock = time.monotonic
Context = aio.ServicerContext[Any, Any]
Q = TypeVar("Q")
A = TypeVar("A")


async def serve(path: str, inference: Inference, version: str, body_limit: int) -> "aio.Server":
    """A started server on the Unix socket ``path``."""
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", body_limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            ("grpc.so_reuseport", 0),
        ],
    )
    server.add_generic_rpc_handlers((_handlers(Servicer(inference, version)),))
    if server.add_insecure_port(f"unix:{path}") == 0:
        raise OSError(f"gRPC cannot listen on {path}")
    await server.start()
    return server


class Servicer:
    def __init__(self, inference: Inference, version: str) -> None:
        self._inference = inference
        self._repository = inference.repository
        self._version = version

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._repository.ready)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        self._repository.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=not self._repository.draining)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=rest.SERVER_NAME, version=self._version, extensions=rest.EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        model = self._repository.find(request.name, request.version)
        versions = list(self._repository.served(request.name).sources)
        return grpc_codec.encode_metadata(model.name, versions, model.platform, model.inputs, model.outputs)

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        model = await self._find(request)
        asked = self._decode(model, request)
        if self._inference.quick(model, asked):
            made: pb.ModelInferResponse = self._inference.at_once("grpc", model, asked, _encoder(model), clock())
            return made
        answer: pb.ModelInferResponse = await self._submit(model, asked, context)
        return answer

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answers in the order of the requests, each as soon as it is made, while more of them come. One that fails ends nothing."""
        begun: asyncio.Queue[asyncio.Queue[pb.ModelStreamInferResponse | None] | None] = asyncio.Queue(STREAMED)
        reader = asyncio.create_task(self._read(requests, begun, context), name="grpc/stream")
        try:
            while (answers := await begun.get()) is not None:
                while (answer := await answers.get()) is not None:
                    yield answer
            await reader
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest], begun: "asyncio.Queue[Any]", context: Context) -> None:
        """Begins each request as it comes; at most `STREAMED` are under way, then the client is not read any more."""
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                answers: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(STREAMED)
                await begun.put(answers)
                group.create_task(self._answer(request, answers, context), name="grpc/streamed")
            await begun.put(None)

    async def _answer(self, request: pb.ModelInferRequest, answers: "asyncio.Queue[Any]", context: Context) -> None:
        try:
            model = await self._find(request)
            asked = self._decode(model, request)
            if model.streams:
                await self._submit(
                    model, asked, context, emit=lambda answer: answers.put(pb.ModelStreamInferResponse(infer_response=answer))
                )
            else:
                answer = await self._submit(model, asked, context)
                await answers.put(pb.ModelStreamInferResponse(infer_response=answer))
        except RequestError as error:
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            await answers.put(pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed))
        await answers.put(None)

    async def _find(self, request: pb.ModelInferRequest) -> LoadedModel:
        try:
            return self._repository.find(request.model_name, request.model_version)
        except Asleep:
            try:
                await asyncio.shield(self._repository.wake(request.model_name))
            except LoadFailed as error:
                raise NotReady(str(error)) from None
            return self._repository.find(request.model_name, request.model_version)

    def _decode(self, model: LoadedModel, request: pb.ModelInferRequest) -> InferRequest:
        try:
            return grpc_codec.decode_request(request, model.inputs, model.outputs, model.max_batch)
        except RequestError as error:
            self._inference.refused(model, "grpc", error)
            raise

    def _submit(self, model: LoadedModel, asked: InferRequest, context: Context, emit: Any = None) -> "asyncio.Future[Any]":
        left = context.time_remaining()
        deadline = None if left is None else clock() + left
        return self._inference.submit(
            "grpc", model, lambda: asked, _encoder(model), priority=asked.priority, deadline=deadline, emit=emit
        )  # fmt: skip


def _encoder(model: LoadedModel) -> Callable[[InferRequest, list[Array]], pb.ModelInferResponse]:
    return lambda asked, values: grpc_codec.encode_response(model.name, model.version, asked, values, model.outputs)


def _handlers(servicer: Servicer) -> "grpc.GenericRpcHandler[Any, Any]":
    methods: dict[str, tuple[Callable[[Any, Context], Awaitable[Any]], Any]] = {
        "ServerLive": (servicer.server_live, pb.ServerLiveRequest),
        "ServerReady": (servicer.server_ready, pb.ServerReadyRequest),
        "ModelReady": (servicer.model_ready, pb.ModelReadyRequest),
        "ServerMetadata": (servicer.server_metadata, pb.ServerMetadataRequest),
        "ModelMetadata": (servicer.model_metadata, pb.ModelMetadataRequest),
        "ModelInfer": (servicer.model_infer, pb.ModelInferRequest),
    }
    stream = grpc.stream_stream_rpc_method_handler(
        servicer.model_stream_infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "ModelStreamInfer": stream,
        }
        | {
            name: grpc.unary_unary_rpc_method_handler(
                _mapped(method), request_deserializer=message.FromString, response_serializer=lambda answer: answer.SerializeToString()
            )
            for name, (method, message) in methods.items()
        },
    )


def _mapped(method: Callable[[Q, Context], Awaitable[A]]) -> Callable[[Q, Context], Awaitable[A]]:
    """Our errors as gRPC statuses; anything else is a defect, which grpc reports as UNKNOWN and we log."""

    async def call(request: Q, context: Context) -> A:
        try:
            return await method(request, context)
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.grpc_code], str(error))
            raise AssertionError("abort raises") from None
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            events.error("request.crashed", error=repr(error))
            raise

    return call
