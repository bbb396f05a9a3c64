"""The REST side of the Open Inference Protocol: a request's method and path lead to an answer.

    GET  /v2                                     server metadata
    GET  /v2/health/live · /v2/health/ready
    GET  /v2/models/N[/versions/V]               model metadata
    GET  /v2/models/N[/versions/V]/ready
    POST /v2/models/N[/versions/V]/infer         JSON, with or without binary tensor data
    POST /v2/models/N[/versions/V]/infer_stream  lines of JSON, answered while they come: `rest_stream`
    GET  /v2/models[/N[/versions/V]]/stats       what was asked of it, as Triton's statistics extension has it
    GET  /metrics

and, on the control socket alone:

    POST /v2/repository/index                    what is served
    POST /v2/repository/models/N/load            {"parameters": {"version": V, "folder": F, "digests": {PATH: SHA256}, "beside": BOOL}}
    POST /v2/repository/models/N/unload          {"parameters": {"version": V}}; without a version all of them

Errors are ``{"error": "…"}`` with the status of `edge_ai.serve.errors`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Struct, field

from edge_ai.serve import events, rest_codec, rest_stream
from edge_ai.serve.errors import BadRequest, Busy, LoadFailed, RequestError
from edge_ai.serve.http_parts import JSON, Request, Response
from edge_ai.serve.http_stream import Answering
from edge_ai.serve.inference import Inference
from edge_ai.serve.metrics import CONTENT_TYPE
from edge_ai.serve.model import QUICK_BYTES, LoadedModel
from edge_ai.serve.repository import CONTROL_ALONE, Asleep, Source
from edge_ai.serve.rest_stream import DECODED_AT_ONCE
from edge_ai.serve.tensors import NO_SHARED_MEMORY, Array, InferRequest, brief

OCTETS = b"application/octet-stream"
EXTENSIONS = ("binary_tensor_data", "schedule_policy", "statistics")
SERVER_NAME = "banyan"
D = TypeVar("D")
MOST_PATHS = 256  # that are remembered


class _LoadParameters(Struct, forbid_unknown_fields=True):
    version: str
    folder: str
    digests: dict[str, str] = field(default_factory=dict)
    beside: bool = False


class _UnloadParameters(Struct, forbid_unknown_fields=True):
    version: str = ""


class _Unload(Struct, forbid_unknown_fields=True):
    parameters: _UnloadParameters = field(default_factory=_UnloadParameters)


class _Load(Struct, forbid_unknown_fields=True):
    parameters: _LoadParameters


def _json(document: Any, status: int = 200, headers: bytes = b"") -> Response:
    return Response(status, [rest_codec.encode(document)], JSON, headers)


class RestApp:
    """The `http.Application` of the public port."""

    def __init__(self, inference: Inference, version: str, expose: Callable[[], bytes]) -> None:
        self._inference = inference
        self._repository = inference.repository
        self._version = version
        self._expose = expose
        self._infers: dict[bytes, tuple[str, str]] = {}  # by the target as it was sent: the model and version that it names

    def __call__(self, request: Request) -> "Response | asyncio.Future[Response]":
        if request.method == b"POST" and b"content-encoding" not in request.headers and (known := self._infers.get(request.target)):
            try:
                return self._infer(request, *known)
            except RequestError as error:
                return self.failed(error)
        path = request.target.partition(b"?")[0]
        try:
            parts = [unquote(part, errors="strict") for part in path.decode("ascii").split("/")[1:]]
            return self.route(request, parts)
        except UnicodeDecodeError:
            return self.refuse(400, "the path is not percent-encoded UTF-8")
        except RequestError as error:
            return self.failed(error)

    def stream(self, method: bytes, target: bytes) -> "Answering | Response | None":
        if method != b"POST" or not target.endswith(rest_stream.ENDING):
            return None
        try:
            match [unquote(part, errors="strict") for part in target.decode("ascii").split("/")[1:]]:
                case ["v2", "models", name, "infer_stream"]:
                    return self._streamed(name, "")
                case ["v2", "models", name, "versions", version, "infer_stream"]:
                    return self._streamed(name, version)
        except (UnicodeDecodeError, RequestError) as error:
            return self.failed(error) if isinstance(error, RequestError) else None
        return None

    def _streamed(self, name: str, version: str) -> Answering:
        """Raises `UnknownModel`, `NotReady`: one that sleeps is woken by the first request."""
        with contextlib.suppress(Asleep):
            self._repository.find(name, version)
        return rest_stream.Streamed(self._inference, name, version)

    def refuse(self, status: int, message: str, headers: bytes = b"") -> Response:
        return _json({"error": message}, status, headers)

    def failed(self, error: RequestError) -> Response:
        headers = b"Retry-After: %d\r\n" % error.retry_after_seconds if isinstance(error, Busy) else b""
        return self.refuse(error.status, str(error), headers)

    def crashed(self, error: BaseException) -> Response:
        if isinstance(error, RequestError):
            return self.failed(error)
        events.error("request.crashed", error=repr(error))
        return self.refuse(500, "the worker failed on this request; its log says why")

    def route(self, request: Request, parts: list[str]) -> "Response | asyncio.Future[Response]":
        match parts:
            case ["v2", "models", name, "infer"]:
                return self._post(request, lambda: self._infer_first(request, name, ""))
            case ["v2", "models", name, "versions", version, "infer"]:
                return self._post(request, lambda: self._infer_first(request, name, version))
            case ["v2", "health", "ready"]:
                return self._get(request, self._ready)
            case ["v2", "health", "live"]:
                return self._get(request, lambda: _json({"live": True}))
            case ["v2"] | ["v2", ""]:
                return self._get(request, self._server_metadata)
            case ["v2", "models", "stats"] if "stats" not in self._repository.models:
                return self._get(request, lambda: self._statistics("", ""))
            case ["v2", "models", name]:
                return self._get(request, lambda: self._model_metadata(name, ""))
            case ["v2", "models", name, "versions", version]:
                return self._get(request, lambda: self._model_metadata(name, version))
            case ["v2", "models", name, "ready"]:
                return self._get(request, lambda: self._model_ready(name, ""))
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._get(request, lambda: self._model_ready(name, version))
            case ["v2", "models", name, "stats"]:
                return self._get(request, lambda: self._statistics(name, ""))
            case ["v2", "models", name, "versions", version, "stats"]:
                return self._get(request, lambda: self._statistics(name, version))
            case ["v2", "models", _, "infer_stream"] | ["v2", "models", _, "versions", _, "infer_stream"]:
                return self._post(request, lambda: self.refuse(400, "a stream needs HTTP/1.1"))
            case ["v2", "systemsharedmemory" | "cudasharedmemory", *_]:
                return self.refuse(404, NO_SHARED_MEMORY)
            case ["v2", "repository", *_]:
                return self.refuse(404, CONTROL_ALONE)
            case ["metrics"]:
                return self._get(request, lambda: Response(200, [self._expose()], CONTENT_TYPE))
        return self.refuse(404, f"no such path: /{brief('/'.join(parts))}")

    def _get(self, request: Request, answer: Callable[[], Response]) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return self.refuse(405, "this path takes GET", b"Allow: GET, HEAD\r\n")
        return answer()

    def _post(self, request: Request, answer: "Callable[[], Response | asyncio.Future[Response]]") -> "Response | asyncio.Future[Response]":
        if request.method != b"POST":
            return self.refuse(405, "this path takes POST", b"Allow: POST\r\n")
        encoding = request.headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            return self.refuse(415, "compressed bodies are not supported; send the body as it is", b"Accept-Encoding: identity\r\n")
        return answer()

    def _ready(self) -> Response:
        return _json({"live": True, "ready": self._repository.ready}, 200 if self._repository.ready else 503)

    def _server_metadata(self) -> Response:
        return _json({"name": SERVER_NAME, "version": self._version, "extensions": EXTENSIONS})

    def _model_ready(self, name: str, version: str) -> Response:
        self._repository.find(name, version)
        ready = not self._repository.draining
        return _json({"name": name, "ready": ready}, 200 if ready else 503)

    def _model_metadata(self, name: str, version: str) -> Response:
        model = self._repository.find(name, version)
        versions = list(self._repository.served(name).sources)
        tensors = [
            [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs.values()]
            for specs in (model.inputs, model.outputs)
        ]
        return _json({"name": model.name, "versions": versions, "platform": model.platform, "inputs": tensors[0], "outputs": tensors[1]})

    def _statistics(self, name: str, version: str) -> Response:
        models = self._repository.loaded(name, version)
        return _json({"model_stats": [model.statistics.document(model.name, model.version) for model in models]})

    def _infer_first(self, request: Request, name: str, version: str) -> "Response | asyncio.Future[Response]":
        """The model is there: from now on its path is known."""
        answer = self._infer(request, name, version)
        if len(self._infers) >= MOST_PATHS:
            self._infers.clear()
        self._infers[request.target] = name, version
        return answer

    def _infer(self, request: Request, name: str, version: str) -> "Response | asyncio.Future[Response]":
        began = time.monotonic()
        try:
            model = self._repository.find(name, version)
        except Asleep:
            return asyncio.ensure_future(self._infer_woken(request, name, version))
        body, length = request.body, _header_length(request)
        head = len(body) if length is None else length
        if head > DECODED_AT_ONCE:
            return self._inference.submit("rest", model, lambda: _unhurried(model, body, length), lambda *answer: _response(model, *answer))
        try:
            asked = model.reader.decode(body, length)
            if len(body) <= QUICK_BYTES and self._inference.quick(model, asked):
                made: Response = self._inference.at_once("rest", model, asked, lambda *answer: _response(model, *answer), began)
                return made
        except RequestError as error:
            self._inference.refused(model, "rest", error)
            raise
        return self._inference.submit("rest", model, lambda: asked, lambda *answer: _response(model, *answer), priority=asked.priority)

    async def _infer_woken(self, request: Request, name: str, version: str) -> Response:
        """Shielded, as every load: who goes away does not stop it for the others."""
        try:
            await asyncio.shield(self._repository.wake(name))
        except LoadFailed as error:
            return self.refuse(503, str(error), b"Retry-After: 5\r\n")
        answer = self._infer(request, name, version)
        return answer if isinstance(answer, Response) else await answer


def _unhurried(model: LoadedModel, body: bytes | bytearray, length: int | None) -> InferRequest:
    """On a thread of the lane: it has stood in line already, so a priority in so much JSON comes too late."""
    asked = model.reader.decode(body, length)
    if asked.priority:
        raise BadRequest(f"priority in more than {DECODED_AT_ONCE} bytes of JSON; send the tensors as binary data, or no priority")
    return asked


def _response(model: LoadedModel, asked: InferRequest, values: list[Array]) -> Response:
    document, binary = model.writer.encode(asked, values)
    if not binary:
        return Response(200, [document])
    return Response(200, [document, *binary], OCTETS, b"Inference-Header-Content-Length: %d\r\n" % len(document))


class ControlApp(RestApp):
    """The `http.Application` of the control socket: all of the public one, and the model repository."""

    def route(self, request: Request, parts: list[str]) -> "Response | asyncio.Future[Response]":
        match parts:
            case ["v2", "repository", "index"]:
                return self._post(request, self._index)
            case ["v2", "repository", "models", name, "load"]:
                return self._post(request, lambda: self._load(request, name))
            case ["v2", "repository", "models", name, "unload"]:
                return self._post(request, lambda: self._unload(request, name))
        return super().route(request, parts)

    def _index(self) -> Response:
        return _json(list(self._repository.index()))

    def _load(self, request: Request, name: str) -> "asyncio.Future[Response]":
        wanted = _asked_for(request, _Load).parameters
        return asyncio.ensure_future(self._swap(name, wanted))

    async def _swap(self, name: str, wanted: _LoadParameters) -> Response:
        # Shielded: a controller that goes away in the middle neither stops the load nor leaves it half done.
        source = Source(Path(wanted.folder), wanted.digests)
        try:
            await asyncio.shield(self._repository.load(name, wanted.version, source, wanted.beside))
        except LoadFailed as error:
            self._inference.metrics.loads["refused"] += 1
            return self.refuse(422, str(error))
        self._inference.metrics.loads["loaded"] += 1
        return _json({"name": name, "version": wanted.version})

    def _unload(self, request: Request, name: str) -> "asyncio.Future[Response]":
        version = _asked_for(request, _Unload).parameters.version if request.body else ""
        return asyncio.ensure_future(self._forget(name, version))

    async def _forget(self, name: str, version: str) -> Response:
        try:
            await self._repository.unload(name, version)
        except LoadFailed as error:
            return self.refuse(409, str(error))
        except RequestError as error:
            return self.failed(error)
        return _json({"name": name, "version": version})


def _asked_for(request: Request, document: type[D]) -> D:
    try:
        return msgspec.json.decode(request.body, type=document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is no such request: {error}") from None


def _header_length(request: Request) -> int | None:
    value = request.headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise BadRequest("Inference-Header-Content-Length is not a number of bytes")
    return int(value)
