"""The resource API as one ASGI application: what stands at which address, and how every error becomes an answer.

The front authenticates; here `scope["banyan.user"]` is the user, None only for whoever is not known, who gets `/healthz` and
nothing else. `create_app` must be called in the running loop; `start` makes what the API itself needs (the namespace default).
"""

import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster_controller.errors import BanyanError, InvalidInput, NotFound, Unauthenticated
from cluster_controller.store import Key, Tx
from openapi import access, discovery, errors, pages, reviews, swagger
from openapi.backup import Backups
from openapi.bodies import read_document
from openapi.document import Documents
from openapi.errors import ApiError, encode, method_not_allowed
from openapi.handlers import Handlers
from openapi.janitor import Janitor
from openapi.present import timestamp
from openapi.services import ApiServices, User
from openapi.watch import Hub
from openapi.writes import Writer

log = structlog.get_logger()

ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
DEFAULT_NAMESPACE = "default"
# The Kubernetes version whose conventions are followed; clients read it to decide what they may ask.
KUBERNETES = ("1", "32")
_SERVICES = re.compile(r"(?:namespaces/[^/]+/)?services")  # none are kept; kubectl cluster-info lists them
Endpoint = Callable[[Request], Awaitable[Response | ASGIApp]]


class Api:
    """An ASGI application. `close` ends its watches and its background task."""

    def __init__(self, services: ApiServices) -> None:
        self._services = services
        self.hub = Hub(services.store)
        self._handlers = Handlers(services, self.hub, Writer(services))
        self._documents = Documents(services.version)
        self._backups = Backups(services)
        self._janitor: Janitor | None = None
        self._app = Starlette(
            routes=self._routes(),
            exception_handlers={BanyanError: _failed, HTTPException: _not_routed},
            lifespan=self._lifespan,
        )

    async def start(self) -> None:
        """Idempotent."""
        if self._janitor is None:
            self._janitor = Janitor(self._services.store)
            now = timestamp(self._services.now())
            await self._services.store.commit(partial(ensure_namespace, name=DEFAULT_NAMESPACE, now=now))

    async def close(self) -> None:
        self.hub.close()
        if self._janitor is not None:
            await self._janitor.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope.get("banyan.user") is None and scope["path"] != "/healthz":
            await _answer(Unauthenticated("no credential was given: use a client certificate or a bearer token (banyan kubeconfig)"))(
                scope, receive, send
            )
            return
        try:
            await self._app(scope, receive, send)
        except BanyanError as error:  # while a body was streaming: nothing can be said any more but that it is not whole
            log.warning("request.broken", path=scope["path"], error=str(error))
            raise ConnectionAbortedError(str(error)) from error

    def _routes(self) -> list[Route]:
        def route(path: str, endpoint: Endpoint, methods: list[str] | None = None) -> Route:
            return Route(path, endpoint, methods=methods or ["GET"])

        return [
            route("/healthz", self._healthz),
            route("/livez", self._healthz),
            route("/readyz", self._readyz),
            route("/version", self._version),
            route("/metrics", self._metrics),
            route("/backup", self._backups.respond, ["POST"]),
            route("/", self._index),
            route("/docs", self._docs),
            route("/openapi/v2", self._swagger),
            route("/openapi/v3", self._openapi_index),
            route("/openapi/v3/{path:path}", self._openapi),
            route("/api", self._core),
            route("/apis", self._groups),
            route("/apis/authentication.k8s.io/v1/{plural}", self._review, ALL_METHODS),
            route("/apis/authorization.k8s.io/v1/{plural}", self._review, ALL_METHODS),
            route("/api/v1", self._resources),
            route("/api/v1/{path:path}", self._resource, ALL_METHODS),
            route("/apis/{group}", self._group),
            route("/apis/{group}/{version}", self._resources),
            route("/apis/{group}/{version}/{path:path}", self._resource, ALL_METHODS),
        ]

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.start()
        yield
        await self.close()

    # --- about the server itself

    async def _healthz(self, request: Request) -> Response:
        return Response(b"ok", media_type="text/plain")

    async def _readyz(self, request: Request) -> Response:
        checks = self._services.ready()
        failing = {name: why for name, why in checks.items() if why}
        lines = [f"[-]{name} failed: {failing[name]}" if name in failing else f"[+]{name} ok" for name in checks]
        if not failing and "verbose" not in request.query_params:
            return Response(b"ok", media_type="text/plain")
        text = "\n".join([*lines, "readyz check failed" if failing else "readyz check passed", ""])
        return Response(text, 503 if failing else 200, media_type="text/plain")

    async def _version(self, request: Request) -> Response:
        major, minor = KUBERNETES
        return _json({
            "major": major, "minor": minor, "gitVersion": f"v{major}.{minor}.0+banyan-{self._services.version}", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "linux",
        })  # fmt: skip

    async def _metrics(self, request: Request) -> Response:
        user: User = request.scope["banyan.user"]
        if not access.has_role(user, "view", ""):  # they name applications of all namespaces
            raise ApiError(403, f'User "{user.name}" cannot read /metrics: that needs the role view in all namespaces')
        return Response(self._services.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _index(self, request: Request) -> Response:
        groups = [f"/apis/{group}" for group in discovery.groups()]
        about = ["/backup", "/docs", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
        paths = ["/api", "/api/v1", "/apis", *groups, *about]
        return _json({"paths": paths})

    async def _docs(self, request: Request) -> Response:
        return Response(pages.DOCS, media_type="text/html", headers={"content-security-policy": pages.POLICY})

    # --- discovery and documents

    async def _swagger(self, request: Request) -> Response:
        version = self._services.version
        if swagger.wants_protobuf(request.headers.get("accept", "")):
            return Response(swagger.as_protobuf(version), media_type=swagger.PROTOBUF)
        return _json(swagger.as_json(version))

    async def _openapi_index(self, request: Request) -> Response:
        return _json(self._documents.index())

    async def _openapi(self, request: Request) -> Response:
        body = self._documents.of(request.path_params["path"])
        if body is None:
            raise NotFound(f"no document is at {request.url.path}; /openapi/v3 lists them")
        return Response(body, media_type="application/json", headers={"cache-control": "private, max-age=3600"})

    async def _core(self, request: Request) -> Response:
        return self._discovery(request, False, discovery.core_versions(request.url.netloc))

    async def _groups(self, request: Request) -> Response:
        return self._discovery(request, True, discovery.group_list())

    def _discovery(self, request: Request, named: bool, plain: dict[str, Any]) -> Response:
        if not discovery.wants_aggregated(request.headers.get("accept", "")):
            return _json(plain)
        media = f"application/json;g={discovery.AGGREGATED};v=v2;as=APIGroupDiscoveryList"
        return Response(encode(discovery.aggregated(named, "v2")), headers={"content-type": media})

    async def _group(self, request: Request) -> Response:
        document = discovery.group_document(request.path_params["group"])
        if document is None:
            raise NotFound(f"no group {request.path_params['group'][:80]!r} is served here; /apis lists them")
        return _json(document)

    async def _resources(self, request: Request) -> Response:
        group, version = request.path_params.get("group", ""), request.path_params.get("version", "v1")
        document = discovery.resource_list(group, version)
        if document is None:
            raise NotFound(f"no {group[:80]}/{version[:80]} is served here; /apis lists what is")
        return _json(document)

    async def _review(self, request: Request) -> Response:
        plural = request.path_params["plural"]
        group = request.url.path.split("/")[2]
        if not any(each[0] == group and each[2] == plural for each in discovery.REVIEWS):
            raise NotFound(f"no {plural[:80]} is served here; /apis/{group}/v1 lists what is")
        if request.method != "POST":
            raise method_not_allowed(request.method, request.url.path, ("POST",))
        user: User = request.scope["banyan.user"]
        return _json(reviews.answer(plural, await read_document(request), user), 201)

    # --- resources

    async def _resource(self, request: Request) -> Response | ASGIApp:
        group, version = request.path_params.get("group", ""), request.path_params.get("version", "v1")
        path = request.path_params["path"]
        if not group and _SERVICES.fullmatch(path) and request.method == "GET":
            return _json({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "0"}, "items": []})
        return await self._handlers.respond(request, group, version, path)


def create_app(services: ApiServices) -> Api:
    return Api(services)


def ensure_namespace(tx: Tx, name: str, now: str) -> None:
    key = Key("own", "Namespace", "", name)
    if tx.get(key) is not None:
        return
    uid = str(uuid.uuid4())
    document = {
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": uid, "creationTimestamp": now},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    }  # fmt: skip
    tx.put(key, msgspec.json.encode(document), uid=uid)


def _json(document: object, code: int = 200) -> Response:
    return Response(encode(document), code, media_type="application/json")


def _answer(error: BanyanError) -> Response:
    code, document, headers = errors.status_of(error)
    return Response(encode(document), code, headers, "application/json")


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, BanyanError)
    return _answer(error)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = tuple((error.headers or {}).get("Allow", "").split(", "))
        return _answer(method_not_allowed(request.method, request.url.path, allowed))
    if error.status_code == 404:
        return _answer(ApiError(404, f"nothing is served at {request.url.path[:200]}; / lists what is"))
    return _answer(InvalidInput(str(error.detail)))
