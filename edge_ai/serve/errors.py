"""What a request can end with, other than an answer.

One subclass per outcome that a caller can act on; each knows its HTTP status and its gRPC code, so that both doors say the
same. Messages name the thing, the reason and what to do; they never carry tensor contents.

    RequestError
    ├── BadRequest        malformed, wrong name, type, shape or size        400   INVALID_ARGUMENT
    ├── UnknownModel      this worker does not serve that name or version   404   NOT_FOUND
    ├── TooLarge          over a stated cap                                 413   RESOURCE_EXHAUSTED
    ├── Busy              the queue is full; try again                      429   RESOURCE_EXHAUSTED
    ├── ModelFailed       the model itself failed on a valid request        500   INTERNAL
    ├── NotReady          loading or shutting down                          503   UNAVAILABLE
    └── Expired           its deadline passed before its turn came          504   DEADLINE_EXCEEDED

`LoadFailed` is for loading a model: the folder, a digest or the file is wrong. What serves goes on serving.
"""

from typing import ClassVar


class ServeError(Exception):
    """Root of all errors raised on purpose by the worker."""


class RequestError(ServeError):
    status: ClassVar[int]
    grpc_code: ClassVar[str]  # a name of grpc.StatusCode, which is not imported before a gRPC client comes


class BadRequest(RequestError):
    status = 400
    grpc_code = "INVALID_ARGUMENT"


class UnknownModel(RequestError):
    status = 404
    grpc_code = "NOT_FOUND"


class TooLarge(RequestError):
    status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class Busy(RequestError):
    status = 429
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ModelFailed(RequestError):
    status = 500
    grpc_code = "INTERNAL"


class NotReady(RequestError):
    status = 503
    grpc_code = "UNAVAILABLE"


class Expired(RequestError):
    status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class LoadFailed(ServeError):
    """A model cannot be loaded; nothing was replaced."""
