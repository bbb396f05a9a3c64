"""Inference as a stream over HTTP/1.1: requests go in as lines of JSON, answers come out as lines of JSON, while more requests come.

    POST /v2/models/N[/versions/V]/infer_stream      application/x-ndjson both ways

A line is an inference request, as `infer` takes it in JSON; what answers it is a line too, several where the model streams. They go in the
order of the requests, and ``id`` says to which one they belong. A request that fails is answered in its place by
``{"error": …, "id": …}`` and ends nothing. gRPC's `ModelStreamInfer` is the same thing for those who speak that.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial

import msgspec
from msgspec import Struct

from edge_ai.serve import rest_codec, streams
from edge_ai.serve.errors import BadRequest, LoadFailed, NotReady, RequestError
from edge_ai.serve.http_stream import InputEnded
from edge_ai.serve.inference import Inference
from edge_ai.serve.model import LoadedModel
from edge_ai.serve.repository import Asleep
from edge_ai.serve.tensors import MAX_ID, Array, InferRequest

ENDING = b"/infer_stream"
DECODED_AT_ONCE = 16 * 1024  # bytes of JSON that are read on the event loop: they may say how urgent the request is


class _Named(Struct):
    id: str | None = None


class Streamed:
    """One stream's application: `http_stream.Answering`."""

    def __init__(self, inference: Inference, name: str, version: str) -> None:
        self._inference = inference
        self._name = name
        self._version = version

    async def __call__(self, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async with contextlib.aclosing(streams.in_order(lines, self._answer)) as answers:
                async for answer in answers:
                    yield answer
        except InputEnded as ended:
            yield rest_codec.encode({"error": str(ended)})

    async def _answer(self, line: bytes, put: streams.Put) -> None:
        try:
            await self._infer(line, put)
        except RequestError as error:
            await put(rest_codec.encode({"error": str(error)} | _named(line)))

    async def _infer(self, line: bytes, put: streams.Put) -> None:
        began, model = time.monotonic(), await self._find()
        emit, priority = put if model.streams else None, 0
        decode: Callable[[], InferRequest] = partial(_decoded, model, line)
        if len(line) <= DECODED_AT_ONCE:  # else on a thread
            try:
                asked = decode()
                made = self._inference.at_once("rest", model, asked, _encoder(model), began) if self._inference.quick(model, asked) else b""
            except RequestError as error:
                self._inference.refused(model, "rest", error)
                raise
            if made:
                await put(made)
                return
            priority, decode = asked.priority, lambda: asked
        answer = await self._inference.submit("rest", model, decode, _encoder(model), priority=priority, emit=emit)
        if emit is None:
            await put(answer)

    async def _find(self) -> LoadedModel:
        """Each time: versions are swapped while a stream is open. Waking is shielded: who goes away does not stop it for the others."""
        repository = self._inference.repository
        try:
            return repository.find(self._name, self._version)
        except Asleep:
            try:
                await asyncio.shield(repository.wake(self._name))
            except LoadFailed as error:
                raise NotReady(str(error)) from None
            return repository.find(self._name, self._version)


def _decoded(model: LoadedModel, line: bytes) -> InferRequest:
    asked = model.reader.decode(line, None)
    if any(output.binary for output in asked.outputs):
        raise BadRequest("binary data cannot go in lines; ask for JSON, or use infer")
    return asked


def _named(line: bytes) -> dict[str, str]:
    try:
        found = msgspec.json.decode(line, type=_Named).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {"id": found[:MAX_ID]} if found else {}


def _encoder(model: LoadedModel) -> Callable[[InferRequest, list[Array]], bytes]:
    return lambda asked, values: model.writer.encode(asked, values)[0]
