"""Which fields a kind has, read from its struct: the base of strict validation, of unserved fields and of the OpenAPI document.

msgspec skips unknown fields when it reads (a neighbour may be newer), so refusing what people mistype is done here, by walking
the document beside the struct's types. A shape is made once per struct.
"""

from difflib import get_close_matches
from typing import Any

from msgspec import Struct, inspect

from cluster_controller.resources.kinds import UNSERVED

DEEPEST = 48
PATCHES = frozenset({"merge", "jsonPatch"})  # fields that hold a patch


class Shape(Struct):
    """One position in a document: an object with known fields, a list, a map, or a leaf (all three empty)."""

    fields: "dict[str, Shape] | None" = None
    items: "Shape | None" = None
    values: "Shape | None" = None


class Problem(Struct, frozen=True):
    """One thing that is wrong with a document; becomes a cause in the Status that answers."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"  # as metav1.CauseType names it


_SHAPES: dict[type[Any], Shape] = {}  # one per kind


def shape_of(struct: type[Any]) -> Shape:
    shape = _SHAPES.get(struct)
    if shape is None:
        shape = _SHAPES[struct] = _shape(inspect.type_info(struct))
    return shape


def unknown_fields(document: object, struct: type[Any]) -> list[Problem]:
    """Every field that the kind does not have, by its dotted path; at most 20."""
    found: list[Problem] = []
    _walk(document, shape_of(struct), "", found)
    return found


def unserved_fields(document: object, kind: str) -> list[Problem]:
    """Known fields (or values) that nothing acts on yet: refused, never accepted and ignored."""
    found: list[Problem] = []
    for of_kind, path, values, remedy in UNSERVED:
        if of_kind != kind:
            continue
        for where, value in _find(document, path.split("."), ""):
            if values is None or value in values:
                what = "is not served yet" if values is None else f"{value!r} is not served yet"
                found.append(Problem(where, f"{what}; {remedy}", "FieldValueNotSupported"))
    return found


def depth_problem(document: object) -> str:
    """Why the document is nested too deeply, or ""; no recursion, so that it can judge anything that was parsed."""
    level = [document]
    for _ in range(DEEPEST):
        level = [child for each in level for child in _children(each)]
        if not level:
            return ""
    return f"the document is nested more than {DEEPEST} levels deep"


def without_nulls(value: Any) -> Any:
    """A null field is an absent one, as Kubernetes reads it; but in a patch that is kept it takes something away."""
    if isinstance(value, dict):
        return {key: each if key in PATCHES else without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _walk(value: object, shape: Shape, path: str, found: list[Problem]) -> None:
    if len(found) >= 20:
        return
    if isinstance(value, dict):
        if shape.fields is not None:
            for key, child in value.items():
                inner = shape.fields.get(key)
                where = f"{path}.{key}" if path else key
                if inner is None:
                    found.append(Problem(where[:200], _unknown(key, shape.fields), "FieldValueNotSupported"))
                else:
                    _walk(child, inner, where, found)
        elif shape.values is not None:
            for key, child in value.items():
                _walk(child, shape.values, f"{path}.{key}", found)
    elif isinstance(value, list) and shape.items is not None:
        for index, child in enumerate(value):
            _walk(child, shape.items, f"{path}[{index}]", found)


def _unknown(key: str, fields: dict[str, Shape]) -> str:
    close = get_close_matches(key[:80], fields, 1)
    hint = f"; did you mean {close[0]}?" if close else f"; it may be {', '.join(sorted(fields)[:30])}"
    return f"unknown field{hint}"


def _find(value: object, parts: list[str], path: str) -> list[tuple[str, object]]:
    if not parts:
        return [(path, value)]
    name, rest = parts[0], parts[1:]
    many = name.endswith("[]")
    name = name.removesuffix("[]")
    if not isinstance(value, dict) or name not in value:
        return []
    child = value[name]
    where = f"{path}.{name}" if path else name
    if not many:
        return _find(child, rest, where)
    if not isinstance(child, list):
        return []
    return [each for index, item in enumerate(child) for each in _find(item, rest, f"{where}[{index}]")]


def _shape(info: inspect.Type) -> Shape:
    match info:
        case inspect.Metadata(type=inner):
            return _shape(inner)
        case inspect.StructType(fields=fields):
            return Shape(fields={each.encode_name: _shape(each.type) for each in fields})
        case inspect.ListType(item_type=item):
            return Shape(items=_shape(item))
        case inspect.DictType(value_type=value):
            return Shape(values=_shape(value))
        case inspect.UnionType(types=types):
            shapes = [_shape(each) for each in types]
            return next((each for each in shapes if each.fields or each.items or each.values), Shape())
        case _:
            return Shape()


def dotted(message: str) -> tuple[str, str]:
    """msgspec's "Expected `int`, got `str` - at `$.spec.replicas`" as (path, what is wrong)."""
    what, _, where = message.partition(" - at `")
    return where.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "[]"), what.replace("`", "'")
