"""Fields that a later version wrote survive a controller of this one that passes a document on in its own words (ARCHITECTURE law 10).

A document that is only forwarded keeps its bytes. One that is divided (a Work) or retold (a report) is written anew from what this
version knows; here the rest is put back, at the place where it stood. Pure. List items are matched by their names, or by their places
where they have none. A document without unknown fields, which is the usual one, costs one look.
"""

from collections import OrderedDict
from typing import Any

import msgspec

from cluster_controller.resources.shape import Shape, shape_of

CACHED = 1024


class Carrier:
    """Remembers of the newest documents whether there is anything to carry."""

    def __init__(self, struct: type[msgspec.Struct], parts: tuple[str, ...] = ()) -> None:
        """``struct`` is that of the original; ``parts``: fields of its spec that alone are carried, of all when empty."""
        self._shape = shape_of(struct)
        self._parts = parts
        self._cache: OrderedDict[bytes, Any] = OrderedDict()  # original → it, decoded; None when it holds nothing unknown

    def __call__(self, encoded: bytes, original: bytes) -> bytes:
        """``encoded``, with what ``original`` has beyond the struct."""
        known = self._known(original)
        if known is None:
            return encoded
        fresh = msgspec.json.decode(encoded)
        carry(fresh, known, self._shape)
        return msgspec.json.encode(fresh, order="deterministic")

    def _known(self, original: bytes) -> Any:
        if original in self._cache:
            self._cache.move_to_end(original)
            return self._cache[original]
        document = msgspec.json.decode(original)
        if self._parts:
            spec = document.get("spec") or {}
            document = {"spec": {part: spec[part] for part in self._parts if part in spec}}
        self._cache[original] = found = document if has_unknown(document, self._shape) else None
        if len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return found


def has_unknown(document: Any, shape: Shape) -> bool:
    """Whether there is a field anywhere that the shape does not have."""
    if shape.fields is not None and isinstance(document, dict):
        return any(key not in shape.fields or has_unknown(value, shape.fields[key]) for key, value in document.items())
    if shape.items is not None and isinstance(document, list):
        return any(has_unknown(item, shape.items) for item in document)
    if shape.values is not None and isinstance(document, dict):
        return any(has_unknown(value, shape.values) for value in document.values())
    return False


def carry(fresh: Any, original: Any, shape: Shape) -> None:
    """Put what ``original`` has beyond ``shape`` into ``fresh``; what this version wrote itself is never replaced."""
    if shape.fields is not None and isinstance(fresh, dict) and isinstance(original, dict):
        for key, value in original.items():
            if key not in shape.fields:
                fresh.setdefault(key, value)
            elif key in fresh:
                carry(fresh[key], value, shape.fields[key])
    elif shape.items is not None and isinstance(fresh, list) and isinstance(original, list):
        for item, before in _pairs(fresh, original):
            carry(item, before, shape.items)
    elif shape.values is not None and isinstance(fresh, dict) and isinstance(original, dict):
        for key in fresh.keys() & original.keys():
            carry(fresh[key], original[key], shape.values)


def _pairs(fresh: list[Any], original: list[Any]) -> list[tuple[Any, Any]]:
    named = {item["name"]: item for item in original if isinstance(item, dict) and isinstance(item.get("name"), str)}
    if len(named) == len(original):
        return [(item, named[item["name"]]) for item in fresh if isinstance(item, dict) and item.get("name") in named]
    return list(zip(fresh, original, strict=True)) if len(fresh) == len(original) else []
