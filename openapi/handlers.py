"""One request to a resource: find what it is about, let the gate judge it, answer.

Paths are `[namespaces/NS/]PLURAL[/NAME[/SUBRESOURCE…]]` below a group and version. Every branch asks `access.require` before it
reads or writes anything.
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import validate
from cluster_controller.resources.names import shown
from cluster_controller.resources.registry import BY_PLURAL, ResourceType, Subresource
from cluster_controller.resources.shape import without_nulls
from cluster_controller.resources.tables import Context
from cluster_controller.store import Key, Stored
from openapi import access, blobs, errors, lists, logs, remedies, watch
from openapi.bodies import LARGEST_BODY, parse_document, read_body, read_document, read_patch
from openapi.errors import ApiError, encode, method_not_allowed, not_found
from openapi.present import Printer, document_of
from openapi.query import ListOptions, list_options, negotiate, write_options
from openapi.scale import rescaled, scale_of
from openapi.services import ApiServices, Ask, User
from openapi.writes import DeleteOptions, Target, Writer, Written, delete_options

ITEM_VERBS = {"GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "POST": "create"}
MOST_DELETED = 10_000
ROWS_PER_PAGE = 500


class Path(Struct, frozen=True):
    resource: ResourceType
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: tuple[str, ...] = ()


def parse_path(group: str, version: str, path: str) -> Path | None:
    """None when nothing is served there."""
    parts = path.strip("/").split("/")
    namespace = ""
    if parts[0] == "namespaces" and len(parts) >= 3 and (group or (group, version, parts[2]) in BY_PLURAL):
        namespace, parts = parts[1], parts[2:]
    resource = BY_PLURAL.get((group, version, parts[0]))
    if resource is None or (namespace and not resource.namespaced):
        return None
    name, sub, *rest = (*parts[1:3], *[""] * (2 - len(parts[1:3])), *parts[3:])
    if (name and resource.namespaced and not namespace) or (len(parts) > 1 and not name):
        return None
    return Path(resource, namespace, name, sub, tuple(rest))


class Handlers:
    def __init__(self, services: ApiServices, hub: watch.Hub, writer: Writer) -> None:
        self._services = services
        self._hub = hub
        self._writer = writer

    async def respond(self, request: Request, group: str, version: str, path: str) -> Response | ASGIApp:
        found = parse_path(group, version, path)
        if found is None:
            raise ApiError(404, "the server could not find the requested resource; kubectl api-resources lists what is served")
        user: User = request.scope["banyan.user"]
        if found.subresource:
            return await self._subresource(request, found, user)
        if found.name:
            return await self._item(request, found, user)
        return await self._collection(request, found, user)

    # --- collections

    async def _collection(self, request: Request, path: Path, user: User) -> Response | ASGIApp:
        resource, query = path.resource, request.query_params
        if request.method in ("GET", "HEAD"):
            watching = query.get("watch", "").lower() in ("true", "1")
            access.require(user, "watch" if watching else "list", resource, path.namespace)
            options = list_options(query, resource)
            printer = self._printer(request, resource)
            return self._watch(path, options, printer) if options.watch else self._list(path, options, printer)
        if request.method == "POST" and "create" in resource.verbs and (path.namespace or not resource.namespaced):
            access.require(user, "create", resource, path.namespace)
            dry_run = write_options(query).dry_run
            target = Target(resource, path.namespace, "", user, dry_run)
            return _written(await self._writer.create(target, await read_document(request)))
        if request.method == "DELETE" and "deletecollection" in resource.verbs and (path.namespace or not resource.namespaced):
            access.require(user, "deletecollection", resource, path.namespace)
            return await self._delete_many(request, path, user)
        remedy = remedies.of_method(resource.kind, request.method)
        raise method_not_allowed(request.method, request.url.path, _collection_methods(path), remedy)

    def _list(self, path: Path, options: ListOptions, printer: Printer) -> Response:
        page = lists.page_of(self._services.store, path.resource, path.namespace, options)
        return StreamingResponse(lists.encode_page(page, printer), media_type="application/json")

    def _watch(self, path: Path, options: ListOptions, printer: Printer) -> ASGIApp:
        store = self._services.store
        watcher = watch.Watcher(path.resource, path.namespace, options, printer, store.revision)
        return watch.start(self._hub, store, watcher, options)

    async def _delete_many(self, request: Request, path: Path, user: User) -> Response:
        resource = path.resource
        options = list_options(request.query_params, resource)
        how, dry_run = await self._delete_options(request)
        page = lists.page_of(self._services.store, resource, path.namespace, options)
        if len(page.items) > MOST_DELETED:
            raise ApiError(422, f"{len(page.items)} objects match; at most {MOST_DELETED} are deleted at once: use limit or a selector")
        gone = []
        for stored in page.items:
            try:
                written = await self._writer.delete(Target(resource, stored.key.namespace, stored.key.name, user, dry_run), how)
            except ApiError as error:
                if error.code != 404:
                    raise
            else:
                gone.append(written.document)
        document = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": {"resourceVersion": str(page.revision)}}
        return _json({**document, "items": gone})

    # --- single objects

    async def _item(self, request: Request, path: Path, user: User) -> Response:
        resource, method = path.resource, request.method
        verb = ITEM_VERBS.get(method, "")
        if verb not in resource.verbs or method == "POST":
            raise method_not_allowed(method, request.url.path, _item_methods(resource), remedies.of_method(resource.kind, method))
        access.require(user, verb, resource, path.namespace, name=path.name)
        if verb == "get":
            printer = self._printer(request, resource)
            return Response(printer.one(self._stored(path)), media_type="application/json")
        if verb == "delete":
            how, dry_run = await self._delete_options(request)
            target = Target(resource, path.namespace, path.name, user, dry_run)
            return _deleted(resource, path.name, await self._writer.delete(target, how))
        return await self._change(request, path, user)

    async def _change(self, request: Request, path: Path, user: User, subresource: str = "") -> Response:
        resource = path.resource
        target = Target(resource, path.namespace, path.name, user, write_options(request.query_params).dry_run)
        change = await _read_change(request, resource)
        if subresource == "scale":
            written = await self._writer.update(target, rescaled(change))
            return _json(scale_of(written.document))
        return _written(await self._writer.update(target, change, subresource=subresource))

    async def _delete_options(self, request: Request) -> tuple[DeleteOptions, bool]:
        body = await read_body(request, 64 * 1024)
        options = delete_options(parse_document(request, body) if body.strip() else {}, request.query_params)
        dry_run = write_options(request.query_params).dry_run
        if options.dry_run not in (None, [], ["All"]):
            raise InvalidInput("dryRun may be [All]", "dryRun")
        return options, dry_run or bool(options.dry_run)

    # --- subresources

    async def _subresource(self, request: Request, path: Path, user: User) -> Response:
        resource, method = path.resource, request.method
        sub = resource.subresource(path.subresource)
        if sub is None or (path.rest and not sub.raw and sub.name != "blobs"):
            raise _no_subresource(path)
        if method not in sub.methods and not (method == "HEAD" and "GET" in sub.methods):
            raise method_not_allowed(method, request.url.path, sub.methods)
        access.require(user, ITEM_VERBS[method], resource, path.namespace, name=path.name, subresource=sub.name)
        if sub.raw:
            raise ApiError(501, f"{resource.plural}/{sub.name} needs a connection of its own; this one does not lead to it")
        if sub.name in ("status", "scale") and method in ("PUT", "PATCH"):
            return await self._change(request, path, user, sub.name)
        document = document_of(resource, self._stored(path))
        match sub.name:
            case "status":
                return _json(document)
            case "scale":
                return _json(scale_of(document))
            case "log":
                ending = request.scope.get("banyan.draining")
                return await logs.respond(self._services, document, request.query_params, ending)
            case "blobs":
                return await blobs.respond(self._services, request, document, list(path.rest))
            case _:
                return await self._ask(request, path, sub, user)

    async def _ask(self, request: Request, path: Path, sub: Subresource, user: User) -> Response:
        query = request.query_params
        body: dict[str, Any] = {}
        if request.method == "POST" and (content := await read_body(request, LARGEST_BODY)).strip():
            body = validate.parse(content)
        dry_run = write_options(query).dry_run
        answer = await self._services.kinds.subresource(
            Ask(
                resource=path.resource, namespace=path.namespace, name=path.name, subresource=sub.name, method=request.method,
                query=dict(query), body=without_nulls(body), user=user, dry_run=dry_run,
            )
        )  # fmt: skip
        return _json(_paged(answer, query) if "items" in answer else answer)

    # --- shared

    def _stored(self, path: Path) -> Stored:
        resource = path.resource
        stored = self._services.store.get(Key(resource.space, resource.kind, path.namespace, path.name))
        if stored is None:
            raise not_found(resource.group_resource, path.name)
        return stored

    def _printer(self, request: Request, resource: ResourceType) -> Printer:
        form, include = negotiate(request.headers.get("accept", ""), request.query_params)
        return Printer(resource, form, include, Context(self._services.now(), self._services.heard))


def _no_subresource(path: Path) -> ApiError:
    asked = shown("/".join((path.subresource, *path.rest)))
    if path.resource.kind == "Namespace":
        return ApiError(404, f"{asked} is not served here; kubectl api-resources lists what is")
    remedy = remedies.of_subresource(path.resource.kind, path.subresource)
    return ApiError(404, f"{path.resource.plural} have no {asked}{f': {remedy}' if remedy else ''}")


async def _read_change(request: Request, resource: ResourceType) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A PATCH changes what is there; a PUT puts something else in its place."""
    if request.method == "PATCH":
        return (await read_patch(request, resource)).apply
    document = await read_document(request)
    return lambda current: document


def _paged(answer: Mapping[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of ``items`` by limit and a numeric continue."""
    items = list(answer["items"])
    limit, start = query.get("limit", ""), query.get("continue", "")
    for name, text in (("limit", limit), ("continue", start)):
        if text and not (text.isascii() and text.isdigit() and len(text) < 10):
            raise InvalidInput(f"{name} is {text[:40]!r}; it is a whole number", name)
    first = int(start or 0)
    end = first + min(int(limit or ROWS_PER_PAGE) or ROWS_PER_PAGE, ROWS_PER_PAGE)
    metadata = {"continue": str(end), "remainingItemCount": len(items) - end} if end < len(items) else {}
    return {**answer, "metadata": metadata, "items": items[first:end]}


def _json(document: object, code: int = 200) -> Response:
    return Response(encode(document), code, media_type="application/json")


def _written(written: Written) -> Response:
    return _json(written.document, 201 if written.created else 200)


def _deleted(resource: ResourceType, name: str, written: Written) -> Response:
    """The object while something still holds it, a Success once it is gone; as Kubernetes does, so clients know whether to wait."""
    if not written.gone:
        return _json(written.document)
    return _json(errors.success(resource.group, resource.plural, name, written.uid))


def _collection_methods(path: Path) -> tuple[str, ...]:
    verbs, here = path.resource.verbs, path.namespace or not path.resource.namespaced
    found = ["GET"]
    if here and "create" in verbs:
        found.append("POST")
    if here and "deletecollection" in verbs:
        found.append("DELETE")
    return tuple(found)


def _item_methods(resource: ResourceType) -> tuple[str, ...]:
    return tuple(method for method in ("GET", "PUT", "PATCH", "DELETE") if ITEM_VERBS[method] in resource.verbs)
