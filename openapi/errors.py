"""Errors as Kubernetes Status documents: code, reason, details and causes, so that kubectl and client libraries know what to do.

`status_of` is the one place that maps the errors of the program to HTTP. An error names the thing, the reason and the remedy in
its message already; here it gets the shape that clients expect.
"""

import math
from typing import Any

import msgspec

from cluster_controller.errors import AlreadyExists, BanyanError, Exhausted, InvalidInput
from cluster_controller.resources.meta import GROUP
from cluster_controller.resources.shape import Problem
from cluster_controller.resources.validate import InvalidDocument
from cluster_controller.store import Expired
from openapi.codes import code_of, reason_of

_SPECIAL = ((Expired, 410), (InvalidDocument, 422))


class ApiError(BanyanError):
    """An answer with a certain code. ``details`` go into the Status as they are."""

    def __init__(self, code: int, message: str, reason: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or reason_of(code)
        self.details = details or {}
        self.headers: dict[str, str] = {}


def not_found(group_resource: str, name: str) -> ApiError:
    return ApiError(404, f'{group_resource} "{name}" not found', details=_details(group_resource, name))


def conflict(group_resource: str, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {group_resource} "{name}": {why}'
    return ApiError(409, message, details=_details(group_resource, name))


def exists(group_resource: str, name: str) -> ApiError:
    return ApiError(409, f'{group_resource} "{name}" already exists', "AlreadyExists", _details(group_resource, name))


def invalid(kind: str, name: str, problems: list[Problem]) -> InvalidDocument:
    return InvalidDocument(kind, name, problems)


def method_not_allowed(method: str, path: str, allowed: tuple[str, ...], remedy: str = "") -> ApiError:
    takes = f"{method} is not offered at {path}; it takes {', '.join(allowed) or 'nothing'}"
    error = ApiError(405, f"{takes}: {remedy}" if remedy else takes)
    error.headers["Allow"] = ", ".join(allowed)
    return error


def status_of(error: BanyanError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(HTTP code, Status document, headers) for an error."""
    headers: dict[str, str] = {}
    if isinstance(error, ApiError):
        code, reason, details, headers = error.code, error.reason, dict(error.details), dict(error.headers)
    else:
        code = code_of(error, *_SPECIAL)
        reason, details = reason_of(code), {}
    if isinstance(error, AlreadyExists):
        reason = "AlreadyExists"
    if isinstance(error, InvalidDocument):
        details = {"name": error.name, "group": GROUP, "kind": error.kind, "causes": [_cause(each) for each in error.problems]}
    elif isinstance(error, InvalidInput) and error.field:
        details = {"causes": [_cause(Problem(error.field, str(error)))]}
    if isinstance(error, Exhausted) and error.retry_after is not None:
        details["retryAfterSeconds"] = math.ceil(error.retry_after)
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if code == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="banyan"'
    return code, failure(code, str(error), reason, details), headers


def failure(code: int, message: str, reason: str = "", details: dict[str, Any] | None = None) -> dict[str, Any]:
    status: dict[str, Any] = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason or reason_of(code),
    }  # fmt: skip
    if details:
        status["details"] = details
    status["code"] = code
    return status


def success(group: str, plural: str, name: str, uid: str) -> dict[str, Any]:
    details = {"name": name, "group": group, "kind": plural, "uid": uid} if group else {"name": name, "kind": plural, "uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def encode(document: object) -> bytes:
    return msgspec.json.encode(document)


def _cause(problem: Problem) -> dict[str, str]:
    return {"reason": problem.reason, "message": problem.message, "field": problem.field}


def _details(group_resource: str, name: str) -> dict[str, Any]:
    plural, _, group = group_resource.partition(".")
    return {"name": name, "group": group, "kind": plural} if group else {"name": name, "kind": plural}
