"""What a request asks for, read once: options of lists, watches and writes from the query, the answer's form from Accept.

Everything is bounded and everything unreadable is refused by name (400); parameters that Kubernetes has and that change nothing
here (`pretty`, `fieldManager`) are taken.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.resources.registry import ResourceType
from cluster_controller.resources.selectors import Fields, Labels, parse_fields, parse_labels
from openapi.errors import ApiError

Form = Literal["object", "table", "partial"]
META = "meta.k8s.io"
LONGEST_WATCH = 24 * 3600
S = TypeVar("S", bound=Struct)


class Continue(Struct, frozen=True):
    """Where the next page of a list begins; opaque to clients."""

    revision: int
    namespace: str
    name: str


class ListOptions(Struct, frozen=True):
    labels: Labels
    fields: Fields
    limit: int = 0
    page: Continue | None = None
    version: int | None = None  # resourceVersion; None: unset
    match: str = ""  # resourceVersionMatch
    watch: bool = False
    bookmarks: bool = False
    initial_events: bool = False
    timeout: int = 0  # seconds; 0: unset


class WriteOptions(Struct, frozen=True):
    dry_run: bool = False


def list_options(query: Mapping[str, str], resource: ResourceType) -> ListOptions:
    options = ListOptions(
        labels=parse_labels(query.get("labelSelector", "")),
        fields=parse_fields(query.get("fieldSelector", ""), resource.fields),
        limit=_integer(query, "limit", 2**62),
        page=_continue(query.get("continue", "")),
        version=_version(query),
        match=query.get("resourceVersionMatch", ""),
        watch=_boolean(query, "watch"),
        bookmarks=_boolean(query, "allowWatchBookmarks"),
        initial_events=_boolean(query, "sendInitialEvents"),
        timeout=_integer(query, "timeoutSeconds", LONGEST_WATCH * 365),
    )
    if options.match not in ("", "Exact", "NotOlderThan"):
        raise InvalidInput(f"resourceVersionMatch is {options.match[:40]!r}; it may be Exact or NotOlderThan", "resourceVersionMatch")
    if options.initial_events and options.match != "NotOlderThan":
        raise ApiError(422, "sendInitialEvents needs resourceVersionMatch=NotOlderThan")
    if options.match and not options.watch and options.version is None:
        raise InvalidInput("resourceVersionMatch needs a resourceVersion", "resourceVersionMatch")
    return options


def write_options(query: Mapping[str, str]) -> WriteOptions:
    dry_run = query.get("dryRun", "")
    if dry_run not in ("", "All"):
        raise InvalidInput(f"dryRun is {dry_run[:40]!r}; it may be All", "dryRun")
    validation = query.get("fieldValidation", "")
    if validation not in ("", "Strict", "Warn", "Ignore"):
        raise InvalidInput(f"fieldValidation is {validation[:40]!r}; it may be Strict, Warn or Ignore", "fieldValidation")
    return WriteOptions(dry_run == "All")


def encode_continue(page: Continue) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(page)).decode().rstrip("=")


def negotiate(accept: str, query: Mapping[str, str]) -> tuple[Form, str]:
    """The form of the answer and, for tables, how much of each object comes with its row (None, Metadata, Object)."""
    include = query.get("includeObject", "") or "Metadata"
    if include not in ("None", "Metadata", "Object"):
        raise InvalidInput(f"includeObject is {include[:40]!r}; it may be None, Metadata or Object", "includeObject")
    for clause in accept.split(",")[:32]:
        media, *parameters = (part.strip() for part in clause.split(";"))
        if media not in ("", "*/*", "application/*", "application/json"):
            continue
        given = dict(part.split("=", 1) for part in parameters if "=" in part)
        wanted = given.get("as", "")
        if wanted == "":
            return "object", include
        if given.get("g") == META and given.get("v") in ("v1", "v1beta1"):
            if wanted == "Table":
                return "table", include
            if wanted in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return "partial", include
    raise ApiError(406, "only application/json can be had here, also as=Table and as=PartialObjectMetadata of meta.k8s.io/v1")


def _continue(token: str) -> Continue | None:
    if not token:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token[:2048] + "=" * (-len(token) % 4)), type=Continue)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise InvalidInput("the continue token is not one that was given out here; list again from the beginning", "continue") from None


def _version(query: Mapping[str, str]) -> int | None:
    text = query.get("resourceVersion", "")
    if text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidInput(f"resourceVersion {text[:40]!r} is not one that was given out here", "resourceVersion")
    return int(text)


def _integer(query: Mapping[str, str], name: str, most: int) -> int:
    text = query.get(name, "")
    if text == "":
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InvalidInput(f"{name} is {text[:40]!r}; it is a whole number, zero or more", name)
    return min(int(text), most)


def _boolean(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "")
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("", "false", "0"):
        return False
    raise InvalidInput(f"{name} is {text[:40]!r}; it may be true or false", name)
