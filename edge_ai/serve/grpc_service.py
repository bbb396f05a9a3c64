"""What the gRPC methods of the Open Inference Protocol do, with messages as bytes on either side; how they travel is `grpc_door`'s.

Beside the protocol's own service there is `grpc.health.v1.Health/Check`, which is what Kubernetes' gRPC probes ask.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from edge_ai.serve import grpc_codec, rest, streams
from edge_ai.serve.errors import LoadFailed, NotReady, RequestError, UnknownModel
from edge_ai.serve.inference import Inference
from edge_ai.serve.model import LoadedModel
from edge_ai.serve.proto import open_inference_pb2 as pb
from edge_ai.serve.repository import Asleep
from edge_ai.serve.tensors import Array, InferRequest

SERVICE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # a HealthCheckResponse with its one field
QUICK_BYTES = 32 * 1024

Unary = Callable[[bytes, "Context"], "bytes | asyncio.Future[Any]"]


class Context:
    """``deadline``: on `Service.now`, None when the client set none."""

    __slots__ = ("deadline",)

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline


class Service:
    """``unary``: by path, what takes a message and gives its answer, now or later. Raises `RequestError`, protobuf's `DecodeError`."""

    stream_path = SERVICE + "ModelStreamInfer"
    now = staticmethod(time.monotonic)

    def __init__(self, inference: Inference, version: str) -> None:
        self._inference = inference
        self._repository = inference.repository
        self._version = version
        self.unary: dict[str, Unary] = {
            SERVICE + "ServerLive": self._server_live,
            SERVICE + "ServerReady": self._server_ready,
            SERVICE + "ModelReady": self._model_ready,
            SERVICE + "ServerMetadata": self._server_metadata,
            SERVICE + "ModelMetadata": self._model_metadata,
            SERVICE + "ModelInfer": self._model_infer,
            SERVICE + "ModelStatistics": self._model_statistics,
            HEALTH: self._health,
        }

    def _health(self, message: bytes, context: Context) -> bytes:
        service = message[2:].decode(errors="replace") if message else ""
        if service not in ("", SERVICE.strip("/")):
            raise UnknownModel(f"service '{service[:100]}' is not served here")
        return SERVING if self._repository.ready else NOT_SERVING

    def _server_live(self, message: bytes, context: Context) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, message: bytes, context: Context) -> bytes:
        return pb.ServerReadyResponse(ready=self._repository.ready).SerializeToString()

    def _model_ready(self, message: bytes, context: Context) -> bytes:
        request = pb.ModelReadyRequest.FromString(message)
        self._repository.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=not self._repository.draining).SerializeToString()

    def _server_metadata(self, message: bytes, context: Context) -> bytes:
        return pb.ServerMetadataResponse(name=rest.SERVER_NAME, version=self._version, extensions=rest.EXTENSIONS).SerializeToString()

    def _model_metadata(self, message: bytes, context: Context) -> bytes:
        request = pb.ModelMetadataRequest.FromString(message)
        model = self._repository.find(request.name, request.version)
        versions = list(self._repository.served(request.name).sources)
        return grpc_codec.encode_metadata(model.name, versions, model.platform, model.inputs, model.outputs).SerializeToString()

    def _model_statistics(self, message: bytes, context: Context) -> bytes:
        request = pb.ModelStatisticsRequest.FromString(message)
        models = self._repository.loaded(request.name, request.version)
        found = [pb.ModelStatistics(**model.statistics.document(model.name, model.version)) for model in models]
        return pb.ModelStatisticsResponse(model_stats=found).SerializeToString()

    def _model_infer(self, message: bytes, context: Context) -> "bytes | asyncio.Future[Any]":
        began = self.now()
        request = pb.ModelInferRequest.FromString(message)
        try:
            model = self._repository.find(request.model_name, request.model_version)
        except Asleep:
            return asyncio.ensure_future(self._infer_woken(request, context))
        asked = self._decode(model, request)
        if len(message) <= QUICK_BYTES and self._inference.quick(model, asked):
            made: bytes = self._inference.at_once("grpc", model, asked, _encoder(model), began)
            return made
        return self._submit(model, asked, context, _encoder(model))

    async def _infer_woken(self, request: pb.ModelInferRequest, context: Context) -> bytes:
        model = await self._find(request)
        made: bytes = await self._submit(model, self._decode(model, request), context, _encoder(model))
        return made

    def stream(self, messages: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes]:
        """Answers in the order of the requests, each as soon as it is made, while more of them come. One that fails ends nothing."""
        return streams.in_order(messages, lambda message, put: self._answer(message, put, context))

    async def _answer(self, message: bytes, put: streams.Put, context: Context) -> None:
        request = pb.ModelInferRequest.FromString(message)
        try:
            model = await self._find(request)
            asked = self._decode(model, request)
            encode = _stream_encoder(model)
            if model.streams:
                await self._submit(model, asked, context, encode, emit=put)
            else:
                await put(await self._submit(model, asked, context, encode))
        except RequestError as error:
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            await put(pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed).SerializeToString())

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

    def _submit(
        self, model: LoadedModel, asked: InferRequest, context: Context, encode: Any, emit: Callable[[Any], Awaitable[None]] | None = None
    ) -> "asyncio.Future[Any]":
        return self._inference.submit(
            "grpc", model, lambda: asked, encode, priority=asked.priority, deadline=context.deadline, emit=emit
        )  # fmt: skip


def _encoder(model: LoadedModel) -> Callable[[InferRequest, list[Array]], bytes]:
    def encode(asked: InferRequest, values: list[Array]) -> bytes:
        return grpc_codec.encode_response(model.name, model.version, asked, values, model.outputs).SerializeToString()

    return encode


def _stream_encoder(model: LoadedModel) -> Callable[[InferRequest, list[Array]], bytes]:
    def encode(asked: InferRequest, values: list[Array]) -> bytes:
        answer = grpc_codec.encode_response(model.name, model.version, asked, values, model.outputs)
        return pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()

    return encode
