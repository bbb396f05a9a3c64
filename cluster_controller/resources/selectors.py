"""Label and field selectors, as Kubernetes writes them in a query: `tier in (edge,hub),!draining`, `status.phase!=Running`.

A selector is parsed once and then asked many times; a parsed one never fails. Parsing is bounded and says where it stopped.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.resources.meta import LabelSelector

LONGEST = 8_192
MOST_REQUIREMENTS = 256

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_DNS = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
LABEL_KEY = re.compile(rf"(?:(?P<prefix>{_DNS})/)?(?P<name>{_NAME})")
LABEL_VALUE = re.compile(rf"(?:{_NAME})?")

_TOKEN = re.compile(r"\s*(?:(?P<sign>==|!=|=|!|\(|\)|,)|(?P<word>[A-Za-z0-9._/-]+))")

Operator = Literal["in", "notin", "exists", "absent"]


class Requirement(Struct, frozen=True):
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None


class Labels(Struct, frozen=True):
    """Requirements that all have to hold; none: everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(each.holds(labels) for each in self.requirements)

    def __bool__(self) -> bool:
        return bool(self.requirements)


class FieldRequirement(Struct, frozen=True):
    path: tuple[str, ...]
    value: str
    equal: bool


class Fields(Struct, frozen=True):
    requirements: tuple[FieldRequirement, ...] = ()

    def matches(self, document: Mapping[str, Any]) -> bool:
        return all((_text(document, each.path) == each.value) is each.equal for each in self.requirements)

    def exactly(self, path: str) -> str | None:
        """The one value that ``path`` must have, if the selector says so."""
        wanted = tuple(path.split("."))
        return next((each.value for each in self.requirements if each.path == wanted and each.equal), None)

    def __bool__(self) -> bool:
        return bool(self.requirements)


def parse_labels(text: str) -> Labels:
    """InvalidInput says what could not be read and where."""
    return _Parser(text).all()


def from_struct(selector: LabelSelector | None, field: str = "") -> Labels:
    """The selector of a document; None and an empty one match everything."""
    if selector is None:
        return Labels()
    requirements = [_in(key, [value], field) for key, value in selector.match_labels.items()]
    for index, each in enumerate(selector.match_expressions):
        where = f"{field}.matchExpressions[{index}]" if field else f"matchExpressions[{index}]"
        if each.operator in ("In", "NotIn"):
            if not each.values:
                raise InvalidInput(f"operator {each.operator} needs values", f"{where}.values")
            found = _in(each.key, each.values, where)
            requirements.append(found if each.operator == "In" else Requirement(each.key, "notin", found.values))
        else:
            if each.values:
                raise InvalidInput(f"operator {each.operator} takes no values", f"{where}.values")
            requirements.append(Requirement(check_key(each.key, where), "exists" if each.operator == "Exists" else "absent"))
    return Labels(tuple(requirements))


def parse_fields(text: str, supported: Sequence[str]) -> Fields:
    """`a.b=c,d.e!=f`. Values may escape `,` `=` and the backslash by a backslash. Unsupported fields are refused by name."""
    _bounded(text)
    requirements = []
    for term in _split_escaped(text):
        if not term:
            continue
        match = re.fullmatch(r"\s*([A-Za-z0-9.]+)\s*(==|!=|=)((?:[^\\=]|\\[\\,=])*)", term)
        if match is None:
            raise InvalidInput(f"field selector {_shown(term)} is not FIELD=VALUE or FIELD!=VALUE", "fieldSelector")
        path, sign, value = match.groups()
        if path not in supported:
            raise InvalidInput(f"field label not supported: {path}; this kind has {', '.join(sorted(supported))}", "fieldSelector")
        requirements.append(FieldRequirement(tuple(path.split(".")), re.sub(r"\\(.)", r"\1", value.strip()), sign != "!="))
    if len(requirements) > MOST_REQUIREMENTS:
        raise InvalidInput(f"the field selector has {len(requirements)} terms; at most {MOST_REQUIREMENTS}", "fieldSelector")
    return Fields(tuple(requirements))


def check_key(key: str, field: str = "") -> str:
    """A label key: an optional DNS prefix and a name of at most 63 characters."""
    match = LABEL_KEY.fullmatch(key) if len(key) <= 317 else None
    if match is None or len(match["prefix"] or "") > 253:
        raise InvalidInput(f"{_shown(key)} is not a label key: write NAME or dns.prefix/NAME, of letters, digits, '-', '_' and '.'", field)
    return key


def check_value(value: str, field: str = "") -> str:
    if LABEL_VALUE.fullmatch(value) is None:
        raise InvalidInput(
            f"{_shown(value)} is not a label value: at most 63 letters, digits, '-', '_', '.', with a letter or digit at both ends",
            field,
        )
    return value


class _Parser:
    def __init__(self, text: str) -> None:
        _bounded(text)
        self.text = text
        self.position = 0

    def all(self) -> Labels:
        found: list[Requirement] = []
        if not self.text.strip():
            return Labels()
        while True:
            found.append(self.requirement())
            if len(found) > MOST_REQUIREMENTS:
                raise self.error(f"more than {MOST_REQUIREMENTS} requirements")
            sign = self.next()
            if sign == "":
                return Labels(tuple(found))
            if sign != ",":
                raise self.error(f"found {_shown(sign)}, expected ',' or the end")

    def requirement(self) -> Requirement:
        word = self.next()
        if word == "!":
            return Requirement(self.key(self.next()), "absent")
        key = self.key(word)
        before = self.position
        sign = self.next()
        if sign in ("=", "==", "!="):
            value = self.value()
            return Requirement(key, "notin" if sign == "!=" else "in", frozenset((value,)))
        if sign in ("in", "notin"):
            return Requirement(key, "in" if sign == "in" else "notin", self.values())
        if sign in ("", ","):
            self.position = before
            return Requirement(key, "exists")
        raise self.error(f"found {_shown(sign)}, expected =, ==, !=, in, notin, ',' or the end")

    def key(self, word: str) -> str:
        try:
            return check_key(word)
        except InvalidInput as error:
            raise self.error(str(error)) from None

    def value(self) -> str:
        before = self.position
        word = self.next()
        if word in ("", ","):
            self.position = before
            return ""
        return self.checked(word)

    def values(self) -> frozenset[str]:
        if self.next() != "(":
            raise self.error("expected '(' after in or notin")
        found: set[str] = set()
        while True:
            word = self.next()
            if word in (",", ")"):
                found.add("")
            else:
                found.add(self.checked(word))
                word = self.next()
            if word == ")":
                return frozenset(found)
            if word != ",":
                raise self.error(f"found {_shown(word)}, expected ',' or ')'")

    def checked(self, word: str) -> str:
        try:
            return check_value(word)
        except InvalidInput as error:
            raise self.error(str(error)) from None

    def next(self) -> str:
        """The next token, or "" at the end."""
        if not self.text[self.position :].strip():
            return ""
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise self.error("found a character that belongs to no selector")
        self.position = match.end()
        return match["sign"] or match["word"]

    def error(self, why: str) -> InvalidInput:
        return InvalidInput(f"unable to parse the selector {_shown(self.text)} at {self.position}: {why}", "labelSelector")


def _in(key: str, values: Sequence[str], field: str) -> Requirement:
    return Requirement(check_key(key, field), "in", frozenset(check_value(value, field) for value in values))


def _text(document: Mapping[str, Any], path: tuple[str, ...]) -> str:
    value: Any = document
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _split_escaped(text: str) -> list[str]:
    return re.split(r"(?<!\\),", text)


def _bounded(text: str) -> None:
    if len(text) > LONGEST:
        raise InvalidInput(f"the selector has {len(text)} characters; at most {LONGEST}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
