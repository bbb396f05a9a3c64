"""What an API server's refusal of one object means, in a word for programs and the server's own words for people. Pure.

The words to look for are those of Kubernetes' own validation, quota, webhook and storage code; where none fits, the server's own
`reason` stands.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

CONFLICT = "Conflict"
IMMUTABLE = "Immutable"
UNKNOWN_KIND = "UnknownKind"
UNAVAILABLE = "ApiUnavailable"
TOO_LARGE = "ObjectTooLarge"
QUOTA = "QuotaExceeded"
ADMISSION = "AdmissionRefused"
ADMISSION_AWAY = "AdmissionUnavailable"
TERMINATING = "NamespaceTerminating"
NO_NAMESPACE = "NamespaceMissing"
INVALID = "Invalid"
FORBIDDEN = "Forbidden"
MAX_WORDS = 500

_WORDS = (
    (UNKNOWN_KIND, re.compile(r"while custom resource definition is terminating")),
    (ADMISSION_AWAY, re.compile(r"failed calling webhook")),
    (ADMISSION, re.compile(r"admission webhook .* denied the request|ValidatingAdmissionPolicy .* denied request")),
    (QUOTA, re.compile(r"exceeded quota|must specify (limits|requests)")),
    (TERMINATING, re.compile(r"is being terminated")),
    (
        TOO_LARGE,
        re.compile(
            r"request is too large|Request entity too large|may not be more than \d+ bytes|Too long: .*byte|trying to send message larger"
        ),
    ),
)
_IMMUTABLE = re.compile(
    r"immutable|may not change once set|cannot change|can not be changed|cannot be changed|may not be updated|updates to .* are forbidden"
    r"|field can not be modified|may not be changed"
)
_NAMESPACE = re.compile(r'namespaces "[^"]*" not found')


class Refusal(Struct, frozen=True):
    reason: str
    message: str


def judge(status: int, reason: str, message: str, causes: Sequence[Mapping[str, Any]] = ()) -> Refusal:
    """``status`` 0: no answer."""
    words = _words(message, causes)
    if status == 0:
        return Refusal(UNAVAILABLE, words)
    for name, pattern in _WORDS:
        if pattern.search(message):
            return Refusal(name, words)
    if status == 413:
        return Refusal(TOO_LARGE, words)
    if status == 429 or status >= 500:
        return Refusal(UNAVAILABLE, words)
    if status == 404:
        return Refusal(NO_NAMESPACE if _NAMESPACE.search(message) else UNKNOWN_KIND, words)
    if status == 409:
        return Refusal(CONFLICT, words)
    if status == 422 and _IMMUTABLE.search(message):
        return Refusal(IMMUTABLE, words)
    if status in (400, 422):
        return Refusal(INVALID, words)
    if status in (401, 403):
        return Refusal(FORBIDDEN, words)
    return Refusal(reason or f"Http{status}", words)


def _words(message: str, causes: Sequence[Mapping[str, Any]]) -> str:
    """The server's sentence, cut; a Status that has causes repeats them all in its message."""
    text = " ".join(message.split()) or "; ".join(str(cause.get("message", "")) for cause in causes)
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 1] + "…"
