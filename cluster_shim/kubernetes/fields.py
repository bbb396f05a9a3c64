"""What server-side apply remembers of an object: which of its fields are ours (`managedFields`, FieldsV1). Pure.

When somebody changes a field that we applied, or takes it away, the API server takes it out of our entry. So our entry is the whole
truth about drift: unlike `generation` it is there for every kind, unlike `resourceVersion` it stands still while a status changes,
and what others add beside our fields does not touch it. `missing` says which field went, by walking an object and the entry together.
Format: sigs.k8s.io/structured-merge-diff, `fieldpath.Set` as JSON: `f:NAME` a field, `k:{KEYS}` an item of an associative list,
`v:VALUE` an item of a set, `i:INDEX` an item by place, `.` the thing itself; an empty mapping is a leaf, owned with all below it.
"""

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from cluster_shim.kubernetes import names

Object = dict[str, Any]

# What no one owns: the API server takes it out of every entry.
_UNOWNED = frozenset({("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")})
MAX_DEPTH = 64
_STEPS = re.compile(r"\.([A-Za-z0-9_$-]+)")
_CONFLICT = re.compile(r'conflict with "(?P<manager>(?:[^"\\]|\\.)*)"(?: with subresource "(?P<subresource>[^"]*)")?(?P<update> using )?')


def digest(fields: bytes) -> str:
    """Short, for comparing; "" for no entry."""
    return hashlib.sha256(fields).hexdigest()[:24] if fields else ""


def hash_of(made: Object) -> str:
    """Of a document as it is applied; whatever order its keys come in."""
    return hashlib.sha256(msgspec.json.encode(made, order="sorted")).hexdigest()[:24]


def missing(fields: bytes, made: Object) -> list[str]:
    """The fields of ``made`` that our entry does not have, as paths: `.spec.replicas`. Empty: all are ours, as we applied them."""
    try:
        owned = msgspec.json.decode(fields) if fields else {}
    except msgspec.DecodeError:
        owned = {}
    found: list[str] = []
    _walk(owned, made, (), found)
    return found


def _walk(owned: object, value: object, path: tuple[str, ...], found: list[str]) -> None:
    if not isinstance(owned, dict) or not owned or len(path) > MAX_DEPTH:
        return  # a leaf, or what is atomic: ours with everything in it
    if isinstance(value, Mapping):
        for key, inner in value.items():
            here = (*path, str(key))
            if here in _UNOWNED:
                continue
            step = owned.get(f"f:{key}")
            if step is not None:
                _walk(step, inner, here, found)
            elif inner != {} or path:
                found.extend(_leaves(inner, here))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            entry = _entry(owned, item, number)
            here = (*path, f"[{_name(item, number)}]")
            if entry is None:
                found.append(_text(here))
            else:
                _walk(entry, item, here, found)


def _leaves(value: object, path: tuple[str, ...]) -> list[str]:
    """The field itself; an empty mapping that nobody owns differs from nothing in no way that counts."""
    if isinstance(value, Mapping) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, str(key)))]
    return [_text(path)] if value not in ({}, [], None) else []


def _entry(owned: Mapping[str, object], item: object, number: int) -> object | None:
    """What our entry says of a list's item."""
    for step, inner in owned.items():
        kind, _, rest = step.partition(":")
        if kind == "i" and rest == str(number):
            return inner
        if kind == "v" and _decoded(rest) == item:
            return inner
        if kind == "k" and isinstance(item, Mapping):
            keys = _decoded(rest)
            if isinstance(keys, dict) and all(item.get(key, want) == want for key, want in keys.items()):
                return inner
    return None


def _decoded(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _name(item: object, number: int) -> str:
    return str(item["name"]) if isinstance(item, Mapping) and "name" in item else str(number)


def _text(path: Sequence[str]) -> str:
    return "".join(step if step.startswith("[") else f".{step}" for step in path)


# --- conflicts ---


class Conflict(Struct, frozen=True):
    """Somebody else's field that an apply would change."""

    manager: str
    field: str  # as the API server writes it: .spec.template.spec.containers[name="app"].image
    update: bool  # by an operation Update; otherwise declared by an Apply
    subresource: str = ""

    @property
    def by_hand(self) -> bool:
        """Somebody's change; not another declaration, nor a controller that owns the field as an autoscaler owns `scale`."""
        return self.update and (not self.subresource or self.manager.startswith("kubectl"))

    def __str__(self) -> str:
        return f"{self.field} by {self.manager}{f' (its {self.subresource})' if self.subresource else ''}"


def conflicts(causes: Sequence[Mapping[str, Any]]) -> list[Conflict]:
    """What a 409 lists. The words are those of apimachinery's `managedfields/internal/conflict.go`."""
    found: list[Conflict] = []
    for cause in causes:
        if cause.get("reason") != "FieldManagerConflict":
            continue
        said = _CONFLICT.match(str(cause.get("message", "")))
        manager = said["manager"] if said else "another manager"
        update, subresource = bool(said and said["update"]), (said["subresource"] or "") if said else ""
        found.append(Conflict(manager, str(cause.get("field", "")), update, subresource))
    return found


def without(made: Object, paths: Sequence[str]) -> Object | None:
    """A copy that leaves these fields to others; None where one of them cannot be left out, for it is in a list."""
    slim = copy.deepcopy(made)
    for path in paths:
        steps = _STEPS.findall(path)
        if not steps or "".join(f".{step}" for step in steps) != path or tuple(steps) in _UNOWNED or steps[0] == "metadata":
            return None
        place: Any = slim
        for step in steps[:-1]:
            place = place.get(step) if isinstance(place, dict) else None
        if not isinstance(place, dict) or steps[-1] not in place:
            return None
        del place[steps[-1]]
    return slim


def stamped(made: Object, mark: str) -> Object:
    """A copy with ``mark`` as the annotation that says what was applied."""
    meta = dict(made["metadata"])
    meta["annotations"] = {**(meta.get("annotations") or {}), names.APPLIED: mark}
    return {**made, "metadata": meta}
