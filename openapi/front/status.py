"""Errors as Kubernetes Status documents, so that kubectl and client libraries show the message and know the reason."""

import math

import msgspec

from cluster_controller.errors import BanyanError
from openapi import codes


class BadGateway(BanyanError):
    """What stands behind the front did not answer, or not in HTTP."""

    exit_code = 8


class GatewayTimeout(BadGateway):
    """What stands behind the front did not answer in time."""


class NotImplementedHere(BanyanError):
    """The path exists, but nothing here serves it."""


_SPECIAL = ((GatewayTimeout, 504), (BadGateway, 502), (NotImplementedHere, 501))


def code_of(error: BanyanError) -> int:
    """The HTTP status that says what ``error`` says."""
    return codes.code_of(error, *_SPECIAL)


def document(code: int, message: str, retry_after: float | None = None) -> bytes:
    """A Status document (JSON). ``retry_after`` in seconds."""
    status: dict[str, object] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": codes.reason_of(code),
        "code": code,
    }
    if retry_after is not None:
        status["details"] = {"retryAfterSeconds": math.ceil(retry_after)}
    return msgspec.json.encode(status)
