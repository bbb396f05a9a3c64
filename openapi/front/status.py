"""Errors as Kubernetes Status documents, so that kubectl and client libraries show the message and know the reason."""

import math

import msgspec

from cluster_controller.errors import (
    AlreadyExists,
    BanyanError,
    Conflict,
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    StoreError,
    Unauthenticated,
    Unreachable,
)

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    409: "Conflict",
    413: "RequestEntityTooLarge",
    414: "BadRequest",
    421: "BadRequest",
    422: "Invalid",
    429: "TooManyRequests",
    431: "BadRequest",
    500: "InternalError",
    501: "NotImplemented",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "Timeout",
    505: "BadRequest",
}


class BadGateway(BanyanError):
    """What stands behind the front did not answer, or not in HTTP."""

    exit_code = 8


class GatewayTimeout(BadGateway):
    """What stands behind the front did not answer in time."""


class NotImplementedHere(BanyanError):
    """The path exists, but nothing here serves it."""


_CODES: tuple[tuple[type[BanyanError], int], ...] = (
    (GatewayTimeout, 504),
    (BadGateway, 502),
    (NotImplementedHere, 501),
    (InvalidInput, 400),
    (NotFound, 404),
    (AlreadyExists, 409),
    (Conflict, 409),
    (Forbidden, 403),
    (Unauthenticated, 401),
    (Unreachable, 503),
    (Exhausted, 429),
    (StoreError, 503),
)


def code_of(error: BanyanError) -> int:
    """The HTTP status that says what ``error`` says."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return 500


def document(code: int, message: str, retry_after: float | None = None) -> bytes:
    """A Status document (JSON). ``retry_after`` in seconds."""
    status: dict[str, object] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, "Unknown"),
        "code": code,
    }
    if retry_after is not None:
        status["details"] = {"retryAfterSeconds": math.ceil(retry_after)}
    return msgspec.json.encode(status)
