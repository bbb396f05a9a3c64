"""The gRPC side of the Open Inference Protocol. The only importer of grpc; itself imported when the first HTTP/2 client comes.

grpc.aio cannot be given an accepted connection, so it listens on a Unix socket in a folder that only this user can enter, and
`pump` carries each HTTP/2 connection there. A worker that no gRPC client ever asks pays neither the memory nor the threads.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc import aio

from edge_ai.serve import events, grpc_codec, rest
from edge_ai.serve.engine import LoadedModel
from edge_ai.serve.errors import RequestError
from edge_ai.serve.inference import Inference
from edge_ai.serve.proto import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
# Calls at once on one connection. Far above what the queue takes: a client that comes with a burst gets RESOURCE_EXHAUSTED with a
# sentence, and not the REFUSED_STREAM that HTTP/2 has for those who could not know the limit yet.
MAX_STREAMS = 4096
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
        return pb.ModelReadyResponse(ready=self._repository.ready)

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=rest.SERVER_NAME, version=self._version)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        model = self._repository.find(request.name, request.version)
        return grpc_codec.encode_metadata(model.name, model.version, model.platform, model.inputs, model.outputs)

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        started, code = time.perf_counter(), "INTERNAL"
        try:
            model = self._repository.find(request.model_name, request.model_version)
            response = await self._inference.submit(lambda: self._run(model, request))
            code = "OK"
        except RequestError as error:
            code = error.grpc_code
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            self._inference.count("grpc", code, started)
        return response

    def _run(self, model: LoadedModel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """On one of the runner's threads."""
        asked = grpc_codec.decode_request(request, model.inputs, model.outputs, self._inference.max_batch)
        values = self._inference.run(model, asked)
        return grpc_codec.encode_response(model.name, model.version, asked, values, model.outputs)


def _handlers(servicer: Servicer) -> "grpc.GenericRpcHandler[Any, Any]":
    methods: dict[str, tuple[Callable[[Any, Context], Awaitable[Any]], Any]] = {
        "ServerLive": (servicer.server_live, pb.ServerLiveRequest),
        "ServerReady": (servicer.server_ready, pb.ServerReadyRequest),
        "ModelReady": (servicer.model_ready, pb.ModelReadyRequest),
        "ServerMetadata": (servicer.server_metadata, pb.ServerMetadataRequest),
        "ModelMetadata": (servicer.model_metadata, pb.ModelMetadataRequest),
        "ModelInfer": (servicer.model_infer, pb.ModelInferRequest),
    }
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
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
