"""YAML and JSON as people write them: read strictly, written plainly.

Invariants: a manifest means what kubectl would read in it (a date stays text, a doubled key is an error, not a surprise), every
error names file, document and line, and no file can make more than `NODE_LIMIT` values out of a few aliases.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster_controller.errors import InvalidInput, NotFound

FILE_LIMIT_BYTES = 16 * 1024 * 1024
NODE_LIMIT = 1_000_000
DEPTH_LIMIT = 100
FILES_LIMIT = 1000
SUFFIXES = (".yaml", ".yml", ".json")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with the types of JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def loads(text: str, where: str = "input") -> list[Any]:
    """Every document of a YAML (or JSON) text; empty ones are left out. InvalidInput names the place."""
    try:
        found = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidInput(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InvalidInput(f"{where} is nested too deeply") from error
    budget = NODE_LIMIT
    for document in found:
        budget = _count(document, budget, where)
    return found


def _count(document: Any, budget: int, where: str) -> int:
    """What is left of the budget once every value, followed through aliases, is counted."""
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        budget -= 1
        if budget < 0:
            raise InvalidInput(f"{where} expands to more than {NODE_LIMIT} values; it cannot be a manifest")
        if depth > DEPTH_LIMIT:
            raise InvalidInput(f"{where} is nested too deeply (more than {DEPTH_LIMIT} levels)")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting.extend((each, depth + 1) for each in inner)
    return budget


def dumps(document: Any) -> str:
    """YAML in the order given."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """No anchors: what is printed can be cut and pasted in pieces."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in files, folders and standard input (`-`), each with the place where it stands; Lists are unfolded."""
    for name in names:
        for where, text in _texts(name):
            for number, document in enumerate(loads(text, where), start=1):
                yield from _objects(document, f"{where}, document {number}")


def _objects(document: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str) or not isinstance(document.get("apiVersion"), str):
        raise InvalidInput(f"{where} is not an object: it needs apiVersion, kind and metadata")
    if document["kind"] == "List":
        for item in document.get("items") or []:
            yield from _objects(item, where)
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name", metadata.get("generateName")), str):
        raise InvalidInput(f"{where}: metadata.name is missing", "metadata.name")
    yield where, document


def _texts(name: str) -> Iterator[tuple[str, str]]:
    if name == "-":
        yield "standard input", sys.stdin.read(FILE_LIMIT_BYTES)
        return
    path = Path(name)
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
        if not files:
            raise NotFound(f"{path} holds no {', '.join(SUFFIXES)} file")
        if len(files) > FILES_LIMIT:
            raise InvalidInput(f"{path} holds more than {FILES_LIMIT} manifests; apply them in parts")
    else:
        files = [path]
    for file in files:
        yield str(file), _text(file)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > FILE_LIMIT_BYTES:
            raise InvalidInput(f"{file} is larger than {FILE_LIMIT_BYTES // 2**20} MiB; that is no manifest")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"{file} does not exist") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
