"""Which HTTP code and Kubernetes reason an error of the program has, for every door of the API.

Pure. A door adds its own errors before it asks here.
"""

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
    406: "NotAcceptable",
    408: "Timeout",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    414: "BadRequest",
    415: "UnsupportedMediaType",
    416: "BadRequest",
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
    507: "InsufficientStorage",
}

_CODES: tuple[tuple[type[BanyanError], int], ...] = (
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


def reason_of(code: int) -> str:
    """The word that client libraries know for an HTTP code."""
    return REASONS.get(code, "Unknown")


def code_of(error: BanyanError, *special: tuple[type[BanyanError], int]) -> int:
    """The HTTP status that says what ``error`` says; ``special`` kinds are looked at first."""
    return next((code for kind, code in (*special, *_CODES) if isinstance(error, kind)), 500)
