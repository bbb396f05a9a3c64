"""Say whether a document is one that its kind can hold, and name everything that is wrong with it.

Two steps: the shape (unknown and unserved fields, types, bounds) by the kind's struct, then the meaning (names, selectors,
quantities, exactly-one-of) by the functions below. All problems of a step are reported together, each by its dotted path.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds
from cluster_controller.resources.names import label_problem, subdomain_problem
from cluster_controller.resources.registry import REGISTRY
from cluster_controller.resources.rules import RULES, Report
from cluster_controller.resources.selectors import check_key, check_value
from cluster_controller.resources.shape import Problem, depth_problem, dotted, unknown_fields, unserved_fields, without_nulls

LARGEST_DOCUMENT = 1024 * 1024  # bytes of JSON
ANNOTATION_BYTES = 256 * 1024

MISSING = object()
_PART = re.compile(r"[^.\[\]]+")

Kind = TypeVar("Kind", bound=kinds.Resource)


class InvalidDocument(InvalidInput):
    """A document that was understood but cannot be accepted; ``problems`` has one entry per cause."""

    def __init__(self, kind: str, name: str, problems: Iterable[Problem]) -> None:
        self.kind = kind
        self.name = name
        self.problems = tuple(problems)
        what = "; ".join(f"{each.field}: {each.message}" if each.field else each.message for each in self.problems)
        super().__init__(f"{kind} {name!r} is invalid: {what}", self.problems[0].field if self.problems else "")


def parse(document: bytes) -> dict[str, Any]:
    """The JSON object in ``document``, nulls removed; InvalidInput for bad UTF-8, bad JSON, depth and size."""
    if len(document) > LARGEST_DOCUMENT:
        raise InvalidInput(f"the document has {len(document)} bytes; at most {LARGEST_DOCUMENT}")
    value = parse_json(document)
    if not isinstance(value, dict):
        raise InvalidInput("the document is no JSON object")
    return without_nulls(value)  # type: ignore[no-any-return]


def parse_json(document: bytes) -> Any:
    """Any JSON value of bounded depth. InvalidInput says where the text stops being JSON."""
    try:
        value = msgspec.json.decode(document)
    except UnicodeDecodeError:
        raise InvalidInput(f"the document is not UTF-8: byte {_first_unreadable(document)} cannot be read") from None
    except RecursionError:
        raise InvalidInput("the document is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the document is not JSON: {error}") from None
    problem = depth_problem(value)
    if problem:
        raise InvalidInput(problem)
    return value


def _first_unreadable(document: bytes) -> int:
    """Counted from the document's beginning; the JSON reader counts from that of a string in it."""
    try:
        document.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def decode(kind: str, document: bytes) -> kinds.Resource:
    """The document as its kind's struct. For what people write: unknown, unserved and meaningless fields are refused."""
    return check(kind, parse(document))


def read(struct: type[Kind], document: bytes) -> Kind:
    """A stored document as its struct; fields that this version does not know are skipped. InvalidInput if it cannot be read."""
    try:
        return msgspec.json.decode(document, type=struct)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the stored {struct.__name__} cannot be read: {error}") from None


def check(kind: str, document: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> kinds.Resource:
    """InvalidDocument with every problem of the first step that has any. ``previous`` is what an update would replace."""
    resource = REGISTRY[kind]
    name = _name(document)
    problems = unknown_fields(document, resource.struct) + unserved_fields(document, kind)
    if problems and previous is not None:  # what a newer program wrote stays, and a change of something else is none of it (law 10)
        problems = [problem for problem in problems if not _unchanged(problem.field, document, previous)]
    if problems:
        raise InvalidDocument(kind, name, problems)
    try:
        struct: kinds.Resource = msgspec.convert(document, resource.struct)
    except msgspec.ValidationError as error:
        path, what = dotted(str(error))
        raise InvalidDocument(kind, name, [Problem(path, what, _shape_reason(what))]) from None
    report = Report()
    _metadata(struct.metadata, kind, resource.namespaced, report)
    rule: Callable[[Any, Any, Report], None] | None = RULES.get(kind)
    if rule is not None:
        rule(struct, _previous(previous, resource.struct), report)
    if report.problems:
        raise InvalidDocument(kind, name, report.problems)
    return struct


def _unchanged(field: str, document: Mapping[str, Any], previous: Mapping[str, Any]) -> bool:
    """Whether both have the same at this dotted path."""
    found = _at(document, field)
    return found is not MISSING and found == _at(previous, field)


def _at(document: Any, field: str) -> Any:
    for part in _PART.findall(field):
        if isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        elif isinstance(document, Mapping) and part in document:
            document = document[part]
        else:
            return MISSING
    return document


def _previous(document: Mapping[str, Any] | None, struct: type[kinds.Resource]) -> kinds.Resource | None:
    """What is stored was written by some version of this program: unreadable means nothing to compare with."""
    if document is None:
        return None
    try:
        return msgspec.convert(document, struct)
    except msgspec.ValidationError:
        return None


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, Mapping) else None
    return name[:80] if isinstance(name, str) else ""


def _shape_reason(what: str) -> str:
    if "missing required" in what:
        return "FieldValueRequired"
    return "FieldValueTypeInvalid" if ", got " in what else "FieldValueInvalid"


def _metadata(metadata: kinds.Metadata, kind: str, namespaced: bool, report: Report) -> None:
    name = metadata.name
    if not name:
        report("metadata.name", "a name is required (or generateName)", "FieldValueRequired")
    else:
        # The system's own objects, and events, which clients name after what they are about, have dots.
        problem = subdomain_problem(name) if kind in ("Event", "SubtreeApplication") else label_problem(name)
        if problem:
            report("metadata.name", problem)
    if namespaced:
        problem = label_problem(metadata.namespace)
        if problem:
            report("metadata.namespace", problem)
    for key, value in metadata.labels.items():
        report.run(f"metadata.labels.{key[:80]}", check_key, key)
        report.run(f"metadata.labels.{key[:80]}", check_value, value)
    size = 0
    for key, value in metadata.annotations.items():
        report.run(f"metadata.annotations.{key[:80]}", check_key, key.lower())
        size += len(key) + len(value.encode())
    if size > ANNOTATION_BYTES:
        report("metadata.annotations", f"all annotations together have {size} bytes; at most {ANNOTATION_BYTES}", "FieldValueTooLong")
    for index, finalizer in enumerate(metadata.finalizers):
        if finalizer not in ("foregroundDeletion", "orphan"):
            where = f"metadata.finalizers[{index}]"
            report.run(where, check_key, finalizer)
            if "/" not in finalizer:
                report(where, f"{finalizer[:80]!r} needs a DNS prefix, as in example.com/cleanup")
