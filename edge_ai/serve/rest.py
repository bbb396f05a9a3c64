"""The REST side of the Open Inference Protocol: a request's method and path lead to an answer.

    GET  /v2                                     server metadata
    GET  /v2/health/live · /v2/health/ready
    GET  /v2/models/N[/versions/V]               model metadata
    GET  /v2/models/N[/versions/V]/ready
    POST /v2/models/N[/versions/V]/infer         JSON, with or without binary tensor data
    GET  /metrics

and, on the control socket alone:

    POST /v2/repository/index                    what is served
    POST /v2/repository/models/N/load            {"parameters": {"version": V, "folder": F, "digests": {PATH: SHA256}}}

Errors are ``{"error": "…"}`` with the status of `edge_ai.serve.errors`.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct, field

from edge_ai.serve import events, rest_codec
from edge_ai.serve.engine import LoadedModel
from edge_ai.serve.errors import BadRequest, Busy, LoadFailed, RequestError
from edge_ai.serve.http import JSON, Request, Response
from edge_ai.serve.inference import Inference
from edge_ai.serve.metrics import CONTENT_TYPE
from edge_ai.serve.tensors import brief

OCTETS = b"application/octet-stream"
EXTENSIONS = ("binary_tensor_data",)
SERVER_NAME = "banyan"


class _LoadParameters(Struct, forbid_unknown_fields=True):
    version: str
    folder: str
    digests: dict[str, str] = field(default_factory=dict)


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

    def __call__(self, request: Request) -> "Response | asyncio.Future[Response]":
        path = request.target.partition(b"?")[0]
        try:
            parts = [unquote(part, errors="strict") for part in path.decode("ascii").split("/")[1:]]
            return self.route(request, parts)
        except UnicodeDecodeError:
            return self.refuse(400, "the path is not percent-encoded UTF-8")
        except RequestError as error:
            return self.failed(error)

    def refuse(self, status: int, message: str, headers: bytes = b"") -> Response:
        return _json({"error": message}, status, headers)

    def failed(self, error: RequestError) -> Response:
        headers = b"Retry-After: %d\r\n" % error.retry_after_seconds if isinstance(error, Busy) else b""
        return self.refuse(error.status, str(error), headers)

    def crashed(self, error: BaseException) -> Response:
        events.error("request.crashed", error=repr(error))
        return self.refuse(500, "the worker failed on this request; its log says why")

    def route(self, request: Request, parts: list[str]) -> "Response | asyncio.Future[Response]":
        match parts:
            case ["v2", "models", name, "infer"]:
                return self._post(request, lambda: self._infer(request, name, ""))
            case ["v2", "models", name, "versions", version, "infer"]:
                return self._post(request, lambda: self._infer(request, name, version))
            case ["v2", "health", "ready"]:
                return self._get(request, self._ready)
            case ["v2", "health", "live"]:
                return self._get(request, lambda: _json({"live": True}))
            case ["v2"] | ["v2", ""]:
                return self._get(request, self._server_metadata)
            case ["v2", "models", name]:
                return self._get(request, lambda: self._model_metadata(name, ""))
            case ["v2", "models", name, "versions", version]:
                return self._get(request, lambda: self._model_metadata(name, version))
            case ["v2", "models", name, "ready"]:
                return self._get(request, lambda: self._model_ready(name, ""))
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._get(request, lambda: self._model_ready(name, version))
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
        return _json({"ready": self._repository.ready}, 200 if self._repository.ready else 503)

    def _server_metadata(self) -> Response:
        return _json({"name": SERVER_NAME, "version": self._version, "extensions": EXTENSIONS})

    def _model_ready(self, name: str, version: str) -> Response:
        self._repository.find(name, version)
        return _json({"name": name, "ready": self._repository.ready}, 200 if self._repository.ready else 503)

    def _model_metadata(self, name: str, version: str) -> Response:
        model = self._repository.find(name, version)
        tensors = [
            [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs.values()]
            for specs in (model.inputs, model.outputs)
        ]
        return _json(
            {"name": model.name, "versions": [model.version], "platform": model.platform, "inputs": tensors[0], "outputs": tensors[1]}
        )

    def _infer(self, request: Request, name: str, version: str) -> "asyncio.Future[Response]":
        started = time.perf_counter()
        model = self._repository.find(name, version)
        length = _header_length(request)
        future = self._inference.submit(lambda: self._run(model, request.body, length))
        future.add_done_callback(lambda done: self._count(done, started))
        return future

    def _run(self, model: LoadedModel, body: bytes | bytearray, header_length: int | None) -> Response:
        """On one of the runner's threads."""
        try:
            asked = rest_codec.decode_request(body, header_length, model.inputs, model.outputs, self._inference.max_batch)
            values = self._inference.run(model, asked)
            document, binary = rest_codec.encode_response(model.name, model.version, asked, values, model.outputs)
        except RequestError as error:
            return self.failed(error)
        if not binary:
            return Response(200, [document])
        return Response(200, [document, *binary], OCTETS, b"Inference-Header-Content-Length: %d\r\n" % len(document))

    def _count(self, done: "asyncio.Future[Response]", started: float) -> None:
        code = "cancelled"
        if not done.cancelled():
            code = str(done.result().status) if done.exception() is None else "500"
        self._inference.count("rest", code, started)


class ControlApp(RestApp):
    """The `http.Application` of the control socket: all of the public one, and the model repository."""

    def route(self, request: Request, parts: list[str]) -> "Response | asyncio.Future[Response]":
        match parts:
            case ["v2", "repository", "index"]:
                return self._post(request, self._index)
            case ["v2", "repository", "models", name, "load"]:
                return self._post(request, lambda: self._load(request, name))
        return super().route(request, parts)

    def _index(self) -> Response:
        model = self._repository.current
        state = "READY" if self._repository.ready else "UNAVAILABLE"
        return _json([{"name": self._repository.name, "version": model.version if model else "", "state": state, "reason": ""}])

    def _load(self, request: Request, name: str) -> "asyncio.Future[Response]":
        if self._repository.current is not None:
            self._repository.find(name)
        try:
            wanted = msgspec.json.decode(request.body, type=_Load).parameters
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BadRequest(f"the body is not a load request: {error}") from None
        return asyncio.ensure_future(self._swap(wanted))

    async def _swap(self, wanted: _LoadParameters) -> Response:
        # Shielded: a controller that goes away in the middle neither stops the load nor leaves it half done.
        try:
            await asyncio.shield(self._repository.load(wanted.version, Path(wanted.folder), wanted.digests))
        except LoadFailed as error:
            self._inference.metrics.loads.labels("refused").inc()
            return self.refuse(422, str(error))
        self._inference.metrics.loads.labels("loaded").inc()
        return _json({"name": self._repository.name, "version": wanted.version})


def _header_length(request: Request) -> int | None:
    value = request.headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise BadRequest("Inference-Header-Content-Length is not a number of bytes")
    return int(value)
