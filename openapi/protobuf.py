"""Reading the protobuf bodies that kubectl and client-go send for the kinds of Kubernetes' own (`create secret`, `auth can-i`).

They ask with protobuf and take JSON for an answer, so only reading is needed, and only of few messages: they are described below
by field number, after the `generated.proto` files of k8s.io/api and k8s.io/apimachinery. Bounded by the body's own length;
what is not described is refused unless it is empty, so nothing is accepted and ignored.
"""

import base64
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from openapi.errors import ApiError

MEDIA = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
DEEPEST = 16

# A field: (name, type). Types: str, int, bool, bytes (base64 in JSON), time, skip, a message (a dict of fields);
# "[]" before it: repeated; "map:" before it: a map from strings.
Field = tuple[str, "str | Mapping[int, Field]"]
Message = Mapping[int, Field]

_META: Message = {
    1: ("name", "str"), 2: ("generateName", "str"), 3: ("namespace", "str"), 4: ("selfLink", "str"), 5: ("uid", "str"),
    6: ("resourceVersion", "str"), 7: ("generation", "int"), 8: ("creationTimestamp", "time"), 9: ("deletionTimestamp", "time"),
    10: ("deletionGracePeriodSeconds", "int"), 11: ("labels", "map:str"), 12: ("annotations", "map:str"),
    13: ("[]ownerReferences", {
        1: ("kind", "str"), 3: ("name", "str"), 4: ("uid", "str"), 5: ("apiVersion", "str"), 6: ("controller", "bool"),
        7: ("blockOwnerDeletion", "bool"),
    }),
    14: ("[]finalizers", "str"), 17: ("[]managedFields", "skip"),
}  # fmt: skip
_REFERENCE: Message = {
    1: ("kind", "str"), 2: ("namespace", "str"), 3: ("name", "str"), 4: ("uid", "str"), 5: ("apiVersion", "str"),
    6: ("resourceVersion", "str"), 7: ("fieldPath", "str"),
}  # fmt: skip
_MESSAGES: Mapping[tuple[str, str], Message] = {
    ("v1", "Namespace"): {1: ("metadata", _META), 2: ("spec", {1: ("[]finalizers", "str")}), 3: ("status", {1: ("phase", "str")})},
    ("v1", "ConfigMap"): {1: ("metadata", _META), 2: ("data", "map:str"), 3: ("binaryData", "map:bytes"), 4: ("immutable", "bool")},
    ("v1", "Secret"): {
        1: ("metadata", _META), 2: ("data", "map:bytes"), 3: ("type", "str"), 4: ("stringData", "map:str"), 5: ("immutable", "bool"),
    },
    ("v1", "Event"): {
        1: ("metadata", _META), 2: ("involvedObject", _REFERENCE), 3: ("reason", "str"), 4: ("message", "str"),
        5: ("source", {1: ("component", "str"), 2: ("host", "str")}), 6: ("firstTimestamp", "time"), 7: ("lastTimestamp", "time"),
        8: ("count", "int"), 9: ("type", "str"), 10: ("eventTime", "time"),
        11: ("series", {1: ("count", "int"), 2: ("lastObservedTime", "time")}),
        12: ("action", "str"), 13: ("related", _REFERENCE), 14: ("reportingComponent", "str"), 15: ("reportingInstance", "str"),
    },
    ("authentication.k8s.io/v1", "SelfSubjectReview"): {1: ("metadata", _META), 2: ("status", "skip")},
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): {
        1: ("metadata", _META), 3: ("status", "skip"), 2: ("spec", {
            1: ("resourceAttributes", {
                1: ("namespace", "str"), 2: ("verb", "str"), 3: ("group", "str"), 4: ("version", "str"), 5: ("resource", "str"),
                6: ("subresource", "str"), 7: ("name", "str"),
            }),
            2: ("nonResourceAttributes", {1: ("path", "str"), 2: ("verb", "str")}),
        }),
    },
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview"): {
        1: ("metadata", _META), 2: ("spec", {1: ("namespace", "str")}), 3: ("status", "skip"),
    },
}  # fmt: skip
_DELETE_OPTIONS: Message = {
    1: ("gracePeriodSeconds", "int"), 2: ("preconditions", {1: ("uid", "str"), 2: ("resourceVersion", "str")}),
    3: ("orphanDependents", "bool"), 4: ("propagationPolicy", "str"), 5: ("[]dryRun", "str"),
}  # fmt: skip
_UNKNOWN: Message = {
    1: ("type", {1: ("apiVersion", "str"), 2: ("kind", "str")}),
    2: ("raw", "bytes"),
    3: ("encoding", "str"),
    4: ("media", "str"),
}


def decode(body: bytes) -> dict[str, Any]:
    """The object in ``body`` as if it had come as JSON. ApiError 400 when it cannot be read, 415 when its kind is not described."""
    if not body.startswith(MAGIC):
        raise _unreadable("it does not begin as Kubernetes' protobuf does")
    try:
        envelope = _message(body[len(MAGIC) :], _UNKNOWN, 0)
        kind = envelope.get("type") or {}
        raw = base64.b64decode(envelope.get("raw", ""))
        described = _MESSAGES.get((kind.get("apiVersion", ""), kind.get("kind", "")))
        if kind.get("kind") == "DeleteOptions":
            described = _DELETE_OPTIONS
        if described is None:
            shown = f"{kind.get('apiVersion', '')[:80]} {kind.get('kind', '')[:80]}"
            raise ApiError(415, f"{shown} is not read as protobuf here; send application/json")
        return {"apiVersion": kind["apiVersion"], "kind": kind["kind"], **_message(raw, described, 0)}
    except (IndexError, ValueError, OverflowError) as error:
        raise _unreadable(str(error)[:200]) from None


def _message(data: bytes, described: Message, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    found: dict[str, Any] = {}
    for number, value in _fields(data):
        field = described.get(number)
        if field is None:
            if value:
                raise ApiError(422, f"field {number} of the protobuf message is not served; send application/json to see its name")
            continue
        name, kind = field
        if kind == "skip":
            continue
        if name.startswith("[]"):
            found.setdefault(name[2:], []).append(_value(value, kind, depth))
        elif isinstance(kind, str) and kind.startswith("map:"):
            key, inner = _entry(value, kind[4:])
            found.setdefault(name, {})[key] = inner
        elif value:  # an empty one is an absent one
            found[name] = _value(value, kind, depth)
    return found


def _value(value: bytes | int, kind: "str | Message", depth: int) -> Any:
    if kind == "int" and isinstance(value, int):
        return value - (1 << 64) if value >= 1 << 63 else value
    if kind == "bool" and isinstance(value, int):
        return bool(value)
    if isinstance(value, int):
        raise ValueError("a number stands where something else belongs")
    if kind == "str":
        return value.decode()
    if kind == "bytes":
        return base64.b64encode(value).decode()
    if kind == "time":
        return _time(value)
    if isinstance(kind, str):
        raise ValueError("something else stands where a number belongs")
    return _message(value, kind, depth + 1)


def _entry(value: bytes | int, kind: str) -> tuple[str, Any]:
    if isinstance(value, int):
        raise ValueError("a number stands where a map entry belongs")
    fields = dict(_fields(value))
    key, inner = fields.get(1, b""), fields.get(2, b"")
    if isinstance(key, int) or isinstance(inner, int):
        raise ValueError("a map has an entry that is none")
    return key.decode(), _value(inner, kind, 0)


def _time(value: bytes) -> str:
    fields = dict(_fields(value))
    seconds, nanos = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        raise ValueError("a time has no number of seconds")
    signed = seconds - (1 << 64) if seconds >= 1 << 63 else seconds
    moment = datetime.fromtimestamp(signed, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}{f'.{nanos // 1000:06d}' if nanos else ''}Z"


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of each field: the wire format of protocol buffers."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
        elif wire == 2:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError("it ends in the middle of a field")
            yield number, data[position : position + length]
            position += length
        else:
            raise ValueError(f"a field has wire type {wire}, which no Kubernetes message has")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _unreadable(why: str) -> ApiError:
    return ApiError(400, f"the protobuf body cannot be read: {why}; send application/json")
