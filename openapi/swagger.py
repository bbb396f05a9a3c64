"""The older OpenAPI document (`/openapi/v2`), which kubectl still asks for before it applies a `kind: List`.

It describes no kind: kubectl leaves to the server what is not described, and the server refuses unknown fields always. What kinds
look like is told by `/openapi/v3` (`document`). In protobuf the field numbers are those of gnostic's openapiv2/OpenAPIv2.proto.
"""

from typing import Any

PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_ASKED = ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTOBUF)
_TITLE = "Banyan"


def as_json(version: str) -> dict[str, Any]:
    return {"swagger": "2.0", "info": {"title": _TITLE, "version": version}, "paths": {}, "definitions": {}}


def as_protobuf(version: str) -> bytes:
    info = _field(1, _TITLE.encode()) + _field(2, version.encode())
    return _field(1, b"2.0") + _field(2, info) + _field(8, b"") + _field(9, b"")


def wants_protobuf(accept: str) -> bool:
    return any(media in accept for media in _ASKED)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field; both its tag and its length fit in one byte here."""
    assert number < 16 and len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value
