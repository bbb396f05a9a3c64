"""The OpenAPI v3 documents, one per group and version, made from the registry: kubectl validates and explains by them.

Every answer that an operation can give is listed, so a client made from the document is never surprised.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from msgspec import json

from cluster_controller.resources.registry import REGISTRY, ResourceType, Subresource
from openapi import discovery
from openapi.front.invoke import MAX_BODY, MAX_SECONDS
from openapi.schemas import Schema, Schemas, reference

Operation = dict[str, Any]
STATUS = "dev.banyan.meta.v1.Status"
SCALE = "dev.banyan.autoscaling.v1.Scale"
CALL = "dev.banyan.v1alpha1.Invoke"
CALLED = "dev.banyan.v1alpha1.InvokeResult"
GROUP = "banyan.dev"

_QUERY: dict[str, Schema] = {
    "labelSelector": {"type": "string", "description": "Only objects whose labels match, as in `tier in (edge,hub),!draining`."},
    "fieldSelector": {"type": "string", "description": "Only objects whose fields match, as in `metadata.name=emotion`."},
    "limit": {"type": "integer", "minimum": 0, "description": "At most so many objects in one answer."},
    "continue": {"type": "string", "description": "The token of the page before."},
    "resourceVersion": {"type": "string", "description": "The revision to list or to watch from."},
    "resourceVersionMatch": {"type": "string", "enum": ["Exact", "NotOlderThan"], "description": "How resourceVersion is meant."},
    "watch": {"type": "boolean", "description": "Answer with changes, one JSON object per line, instead of a list."},
    "allowWatchBookmarks": {"type": "boolean", "description": "Send BOOKMARK events, from which a watch can be taken up again."},
    "sendInitialEvents": {"type": "boolean", "description": "Begin a watch with all objects and a BOOKMARK after them."},
    "timeoutSeconds": {"type": "integer", "minimum": 0, "description": "End a watch after this time."},
    "dryRun": {"type": "string", "enum": ["All"], "description": "Do everything but store it."},
    "fieldValidation": {
        "type": "string", "enum": ["Ignore", "Warn", "Strict"], "description": "Unknown fields are refused, whatever is asked here.",
    },
    "fieldManager": {"type": "string", "description": "Taken and not used: server-side apply is not served."},
    "propagationPolicy": {"type": "string", "enum": ["Background", "Foreground", "Orphan"], "description": "What becomes of dependents."},
    "follow": {"type": "boolean", "description": "Go on as more is written."},
    "previous": {"type": "boolean", "description": "Of the instance before the last restart."},
    "timestamps": {"type": "boolean", "description": "Begin each line with its time."},
    "tailLines": {"type": "integer", "minimum": 0, "description": "Only the last lines."},
    "sinceSeconds": {"type": "integer", "minimum": 0, "description": "Only what is younger."},
    "sinceTime": {"type": "string", "format": "date-time", "description": "Only what is younger; this or sinceSeconds."},
    "limitBytes": {"type": "integer", "minimum": 0, "description": "At most so many bytes."},
    "container": {"type": "string", "description": "The pod's one container."},
}  # fmt: skip
_LIST = ("labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "resourceVersionMatch", "watch", "allowWatchBookmarks",
         "sendInitialEvents", "timeoutSeconds")  # fmt: skip
_SELECT = ("labelSelector", "fieldSelector", "limit", "dryRun", "propagationPolicy")
_WRITE = ("dryRun", "fieldValidation", "fieldManager")
_LOG = ("follow", "previous", "timestamps", "tailLines", "sinceSeconds", "sinceTime", "limitBytes", "container")

_ERRORS = {
    "400": "The request cannot be understood.", "401": "Not known: no credential, or one that is not valid.", "403": "Not allowed.",
    "404": "There is no such thing.", "405": "Not offered here.", "406": "Cannot be had in the form that Accept asks for.",
    "409": "Somebody else changed it first, or the name is taken.", "410": "The revision is past the journal: list again.",
    "413": "Larger than is taken.", "415": "Not in a form that is taken.", "416": "Past the end.",
    "422": "Understood, but it cannot be accepted; every cause is named.", "429": "A bound is reached; says when to try again.",
    "500": "A fault of the server.", "501": "Not on this connection.", "503": "The disk or a cluster on the way does not answer.",
}  # fmt: skip
_ALWAYS = ("400", "401", "403", "404", "405", "429", "500", "503")


class Documents:
    """Made when first asked for, kept as bytes."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._made: dict[str, bytes] = {}

    def paths(self) -> list[str]:
        served = dict.fromkeys((each.group, each.version) for each in REGISTRY.values())
        served |= dict.fromkeys((group, version) for group, version, _, _ in discovery.REVIEWS)
        return [f"apis/{group}/{version}" if group else f"api/{version}" for group, version in served]

    def index(self) -> dict[str, Any]:
        found = {}
        for path in self.paths():
            digest = hashlib.sha256(self.of(path) or b"").hexdigest()
            found[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest[:32]}"}
        return {"paths": found}

    def of(self, path: str) -> bytes | None:
        path = path.strip("/")
        if path not in self._made:
            if path not in self.paths():
                return None
            self._made[path] = json.encode(self._make(path))
        return self._made[path]

    def _make(self, path: str) -> dict[str, Any]:
        group = "" if path.startswith("api/") else path.split("/")[1]
        schemas = Schemas()
        _common(schemas)
        paths: dict[str, Any] = {}
        for resource in REGISTRY.values():
            if resource.group == group:
                paths |= _resource_paths(resource, schemas)
        for review_group, version, plural, kind in discovery.REVIEWS:
            if review_group == group:
                paths[f"/apis/{group}/{version}/{plural}"] = _review(group, version, kind, schemas)
        if group == GROUP:
            paths[f"/{path}/invoke"] = _invoke(schemas)
        info = {"title": f"Banyan {path}", "version": self._version, "description": "The resource API of a Banyan cluster controller."}
        return {
            "openapi": "3.0.0", "info": info, "paths": paths,
            "components": {"schemas": schemas.components, "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token, or a client certificate instead."}
            }},
            "security": [{"bearer": []}],
        }  # fmt: skip


def _common(schemas: Schemas) -> None:
    schemas.components[STATUS] = {
        "type": "object", "description": "What happened, where the answer is no object.",
        "required": ["kind", "apiVersion", "status"],
        "properties": {
            "kind": {"type": "string", "enum": ["Status"]}, "apiVersion": {"type": "string", "enum": ["v1"]},
            "metadata": {"type": "object"}, "status": {"type": "string", "enum": ["Success", "Failure"]},
            "message": {"type": "string"}, "reason": {"type": "string"}, "code": {"type": "integer"},
            "details": {"type": "object", "properties": {
                "name": {"type": "string"}, "group": {"type": "string"}, "kind": {"type": "string"}, "uid": {"type": "string"},
                "retryAfterSeconds": {"type": "integer"}, "causes": {"type": "array", "items": {"type": "object", "properties": {
                    "reason": {"type": "string"}, "message": {"type": "string"}, "field": {"type": "string"},
                }}},
            }},
        },
        "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Status"}],
    }  # fmt: skip


def _resource_paths(resource: ResourceType, schemas: Schemas) -> dict[str, Any]:
    name = schemas.kind(resource)
    prefix = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
    base = f"{prefix}/namespaces/{{namespace}}/{resource.plural}" if resource.namespaced else f"{prefix}/{resource.plural}"
    item, many = reference(name), reference(f"{name}List")
    found: dict[str, Any] = {}
    collection = {
        "get": _operation(resource, "list", f"List or watch {resource.plural}.", _ok(many, _WATCHED), ("406", "410", "422"), _LIST)
    }
    if resource.namespaced:
        across = _operation(
            resource, "list", f"List or watch {resource.plural} of all namespaces.", _ok(many, _WATCHED), ("406", "410", "422"), _LIST
        )
        across["operationId"] += "ForAllNamespaces"
        found[f"{prefix}/{resource.plural}"] = {"get": across}
    if "create" in resource.verbs:
        answers = {"201": _json(item, "Created.")}
        collection["post"] = _operation(
            resource, "create", f"Create a {resource.kind}.", answers, ("409", "413", "415", "422"), _WRITE, _body(item)
        )
    if "deletecollection" in resource.verbs:
        collection["delete"] = _operation(
            resource,
            "deletecollection",
            f"Delete all {resource.plural} that match.",
            _ok(many),
            ("409", "410", "413", "422"),
            _SELECT,
            _delete_body(),
        )
    found[base] = _with_path(collection, resource.namespaced)
    found[f"{base}/{{name}}"] = _with_path(_item_operations(resource, item), resource.namespaced, "name")
    for sub in resource.subresources:
        if not sub.raw:
            tail = f"{base}/{{name}}/{sub.name}" + ("/sha256/{digest}" if sub.name == "blobs" else "")
            names = ("name", "digest") if sub.name == "blobs" else ("name",)
            found[tail] = _with_path(_sub_operations(resource, sub, item, schemas), resource.namespaced, *names)
    return found


def _item_operations(resource: ResourceType, item: Schema) -> dict[str, Operation]:
    found = {"get": _operation(resource, "get", f"Read one {resource.kind}.", _ok(item), ("406",))}
    changed = ("409", "413", "415", "422")
    if "update" in resource.verbs:
        found["put"] = _operation(resource, "put", f"Replace one {resource.kind}.", _ok(item), changed, _WRITE, _body(item))
    if "patch" in resource.verbs:
        found["patch"] = _operation(
            resource, "patch", f"Change some of one {resource.kind}.", _ok(item), changed, _WRITE, _patch_body(resource)
        )
    if "delete" in resource.verbs:
        gone = {"200": _json({"anyOf": [reference(STATUS), item]}, "Gone; or, as the object, going as soon as its finalizers are.")}
        found["delete"] = _operation(
            resource, "delete", f"Delete one {resource.kind}.", gone, ("409", "413", "422"), ("dryRun", "propagationPolicy"), _delete_body()
        )
    return found


def _sub_operations(resource: ResourceType, sub: Subresource, item: Schema, schemas: Schemas) -> dict[str, Operation]:
    if sub.kind == "Scale":
        item = _scale(schemas)
    about = f"{sub.name} of one {resource.kind}"
    if sub.name == "log":
        text = {"200": {"description": "The log.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
        return {"get": _operation(resource, "get", f"Read the {about}.", text, ("422",), _LOG, sub=sub.name)}
    if sub.name == "blobs":
        return _blob_operations(resource)
    known = sub.name in ("status", "scale")
    answer = _ok(item if known else {"type": "object"})
    changed = ("409", "413", "415", "422")
    found = {}
    for method in sub.methods:
        verb = method.lower()
        if method == "GET":
            query = () if known else ("limit", "continue")
            found[verb] = _operation(resource, "get", f"Read the {about}.", answer, ("409", "422"), query, sub=sub.name)
        elif method == "PATCH":
            found[verb] = _operation(resource, verb, f"Change the {about}.", answer, changed, _WRITE, _patch_body(resource), sub=sub.name)
        else:
            body = _body(item) if known else _body({"type": "object"}, required=False)
            found[verb] = _operation(resource, verb, f"Change: {about}.", answer, changed, _WRITE, body, sub=sub.name)
    return found


def _blob_operations(resource: ResourceType) -> dict[str, Operation]:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    bytes_ = {
        "200": {"description": "The bytes.", "content": binary},
        "206": {"description": "The bytes from an offset on.", "content": binary},
    }
    put = {"201": _json({"type": "object", "properties": {"digest": {"type": "string"}, "size": {"type": "integer"}}}, "Kept.")}
    return {
        "get": _operation(resource, "get", "Read a file of a Model.", bytes_, ("416",), sub="blobs"),
        "put": _operation(resource, "put", "Send a file that the Model lists.", put, ("413", "422"), body={"content": binary}, sub="blobs"),
    }


def _review(group: str, version: str, kind: str, schemas: Schemas) -> dict[str, Any]:
    name = f"dev.banyan.{group}.{version}.{kind}"
    gvk = {"group": group, "version": version, "kind": kind}
    schemas.components[name] = {
        "type": "object", "description": "A question about oneself.", "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {"type": "object"}, "status": {"type": "object"},
        }, "x-kubernetes-group-version-kind": [gvk],
    }  # fmt: skip
    answers = {"201": _json(reference(name), "The answer.")} | _failures((*_ALWAYS, "413", "415", "422"))
    return {
        "post": {
            "operationId": f"create{kind}", "tags": [group], "description": "Ask.", "requestBody": _body(reference(name)),
            "responses": answers, "x-kubernetes-group-version-kind": gvk, "x-kubernetes-action": "post",
        }
    }  # fmt: skip


def _invoke(schemas: Schemas) -> dict[str, Any]:
    """One request to many clusters: what `openapi/front/invoke.py` takes and answers."""
    text, number = {"type": "string"}, {"type": "number", "minimum": 0}
    schemas.components[CALL] = {
        "type": "object", "description": "A request, and which clusters get it: all, where neither names nor a selector are given.",
        "required": ["path"], "additionalProperties": False, "properties": {
            "labelSelector": text | {"description": "Clusters whose labels match, as in `tier=edge`.", "default": ""},
            "clusters": {"type": "array", "items": text, "description": "Clusters by name or uid."},
            "method": text | {"enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], "default": "GET"},
            "path": text | {"pattern": "^/[!-~]*$", "description": "Of each controller's API, percent-encoded.", "example": "/healthz"},
            "headers": {"type": "object", "additionalProperties": text, "description": "All but those of the connection and of the user."},
            "body": text | {"description": "As text; this or bodyBase64."}, "bodyBase64": text | {"format": "byte"},
            "timeoutSeconds": number | {"exclusiveMinimum": True, "maximum": MAX_SECONDS, "default": 10, "description": "For each answer."},
            "maxBodyBytes": {"type": "integer", "minimum": 0, "maximum": MAX_BODY, "default": 65536, "description": "Of each answer."},
        },
    }  # fmt: skip
    row = {
        "type": "object", "required": ["cluster", "uid", "code", "age", "milliseconds"], "additionalProperties": False, "properties": {
            "cluster": text, "uid": text, "code": {"type": "integer"}, "contentType": text, "body": text,
            "bodyBase64": text | {"format": "byte", "description": "Instead of body, where that is no UTF-8."},
            "truncated": {"type": "boolean", "description": "Whether there was more than maxBodyBytes."},
            "message": text | {"description": "Why there is no answer."},
            "age": number | {"nullable": True, "description": "Seconds: 0 for an answer, else since the cluster was last heard of."},
            "ageAtLeast": {"type": "boolean", "description": "Whether it may be older still."},
            "brokenHop": text | {"description": "Between which two clusters the way is cut."},
            "milliseconds": number,
        },
    }  # fmt: skip
    schemas.components[CALLED] = {
        "type": "object", "description": "One row for each cluster, in the order in which they came.",
        "required": ["kind", "apiVersion", "items"], "properties": {
            "kind": text | {"enum": ["InvokeResult"]}, "apiVersion": text, "items": {"type": "array", "items": row},
        },
    }  # fmt: skip
    return {
        "post": {
            "operationId": "invoke", "tags": ["invoke"], "requestBody": _body(reference(CALL)),
            "description": "Send one request to many clusters, as the same user; one that fails is a row and spoils no other.",
            "responses": _ok(reference(CALLED)) | _failures(_ALWAYS),
        }
    }  # fmt: skip


def _scale(schemas: Schemas) -> Schema:
    replicas = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 100000}
    schemas.components[SCALE] = {
        "type": "object", "description": "How many replicas are wanted.", "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": {"replicas": replicas}},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
        }, "x-kubernetes-group-version-kind": [{"group": "autoscaling", "version": "v1", "kind": "Scale"}],
    }  # fmt: skip
    return reference(SCALE)


def _operation(  # noqa: PLR0917 (read as a table, one line each)
    resource: ResourceType, action: str, text: str, answers: dict[str, Any], errors: Iterable[str], query: Iterable[str] = (),
    body: dict[str, Any] | None = None, sub: str = "",
) -> Operation:  # fmt: skip
    operation: Operation = {
        "operationId": f"{action}{resource.kind}{sub.capitalize()}",
        "tags": [resource.plural],
        "description": text,
        "parameters": [_parameter(name) for name in query],
        "responses": answers | _failures(sorted({*_ALWAYS, *errors})),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
    }
    if body is not None:
        operation["requestBody"] = body
    return operation


def _parameter(name: str) -> dict[str, Any]:
    schema = dict(_QUERY[name])
    return {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}


def _with_path(operations: dict[str, Operation], namespaced: bool, *names: str) -> dict[str, Any]:
    every = (("namespace",) if namespaced else ()) + names
    shared = [{"name": each, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for each in every]
    return {**operations, "parameters": shared} if shared else dict(operations)


_WATCHED = "A page; or, where `watch` is asked for, changes as they happen: {type, object} in one line each."


def _ok(schema: Schema, text: str = "Done.") -> dict[str, Any]:
    return {"200": _json(schema, text)}


def _json(schema: Schema, text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _failures(codes: Iterable[str]) -> dict[str, Any]:
    return {code: _json(reference(STATUS), _ERRORS[code]) for code in codes}


def _body(schema: Schema, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _patch_body(resource: ResourceType) -> dict[str, Any]:
    operation = {"type": "object", "required": ["op", "path"], "properties": {
        "op": {"type": "string", "enum": ["add", "remove", "replace", "move", "copy", "test"]}, "path": {"type": "string"},
        "from": {"type": "string"}, "value": {},
    }}  # fmt: skip
    content: dict[str, Any] = {
        "application/merge-patch+json": {"schema": {"type": "object"}},
        "application/json-patch+json": {"schema": {"type": "array", "items": operation}},
    }
    if not resource.group:
        content["application/strategic-merge-patch+json"] = {"schema": {"type": "object"}}
    return {"required": True, "content": content}


def _delete_body() -> dict[str, Any]:
    preconditions = {"type": "object", "properties": {"uid": {"type": "string"}, "resourceVersion": {"type": "string"}}}
    return _body({"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string", "enum": ["DeleteOptions"]}, "preconditions": preconditions,
        "gracePeriodSeconds": {"type": "integer", "minimum": 0},
        "propagationPolicy": {"type": "string", "enum": ["Background", "Foreground", "Orphan"]},
        "dryRun": {"type": "array", "items": {"type": "string", "enum": ["All"]}},
    }}, required=False)  # fmt: skip
