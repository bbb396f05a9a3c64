"""`banyan events`: what happened in the tree, oldest first, as the controller that is asked saw it or was told.

A watch outlives its connection: after a restart of the controller, or when it has fallen behind the journal, it lists again and goes on
with what it has not shown. So nothing is shown twice, and what is left out is said.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from msgspec import Struct

from banyanctl import kinds, output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from banyanctl.objects import Namespace
from cluster_controller.errors import InvalidInput, Unreachable
from cluster_controller.resources.reasons import Reason

KIND = kinds.find("events")
LAST = 100
REMEMBERED = 5000  # events that a watch has shown; a controller keeps 1,000
RETRY_SECONDS = (0.5, 10.0)
WARNING = "Warning"


class Filter(Struct, frozen=True):
    """Which events are shown; empty fields let all through."""

    kind: str = ""
    name: str = ""
    reasons: tuple[str, ...] = ()  # lower case
    warnings: bool = False

    def lets(self, event: Mapping[str, Any]) -> bool:
        about = event.get("involvedObject") or {}
        if self.kind and str(about.get("kind", "")) not in (self.kind, f"Subtree{self.kind}"):
            return False
        if self.name and str(about.get("name", "")) != self.name and not str(about.get("name", "")).startswith(f"{self.name}."):
            return False
        if self.reasons and str(event.get("reason", "")).lower() not in self.reasons:
            return False
        return not self.warnings or event.get("type") == WARNING


def reasons(incomplete: str) -> list[str]:
    """What a shell offers after --reason: the product's own words, as many as are wanted, separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{reason.value}" for reason in Reason if reason.value.lower().startswith(last.strip().lower())]


def chosen(about: str, reasons: str, warnings: bool) -> Filter:
    """From the options; InvalidInput for a kind that does not exist."""
    kind, separator, name = about.partition("/")
    if about and not separator:
        raise InvalidInput(f"--for {about}: say KIND/NAME, as in application/emotion or cluster/edge-1", "--for")
    wanted = tuple(part.strip().lower() for part in reasons.split(",") if part.strip())
    return Filter(kinds.find(kind).kind if kind else "", name, wanted, warnings)


@examples(
    "banyan events",
    "banyan events -w --warnings",
    "banyan events --for cluster/edge-1 --last 20",
    "banyan events --for application/emotion --reason Unreachable,Replaced -o json",
)
def events(
    about: Annotated[str, typer.Option("--for", metavar="KIND/NAME", help="Only those about this object.")] = "",
    reason: Annotated[
        str, typer.Option("--reason", metavar="A,B", help="Only those with one of these reasons.", autocompletion=reasons)
    ] = "",
    warnings: Annotated[bool, typer.Option("--warnings", help="Only warnings.")] = False,
    last: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many of the past.")] = LAST,
    namespace: Namespace = "",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on and print what happens.")] = False,
) -> None:
    """What happened, oldest first: losses, returns, adoptions, moves, replacements, vetoes, changes of applications."""
    wanted, form = chosen(about, reason, warnings), settings().output
    with settings().client() as client:
        if watch:
            for event in follow(client, kinds.path(KIND, namespace), wanted, last):
                _print_one(event, form)
            return
        found = recent(client, kinds.path(KIND, namespace), wanted, last)[0]
    data = {"apiVersion": "v1", "kind": "List", "items": found}
    rows = [row(event) for event in found]
    output.emit(data, form, lambda: output.table(("last seen", "type", "reason", "object", "message"), rows, empty="nothing has happened"))


def recent(client: Client, path: str, wanted: Filter, last: int) -> tuple[list[dict[str, Any]], str]:
    """The last so many that are wanted, oldest first, and the revision up to which they are."""
    found: list[dict[str, Any]] = []
    version = ""
    for page in client.pages(path):
        version = version or str((page.get("metadata") or {}).get("resourceVersion", ""))
        found += [{"apiVersion": "v1", "kind": "Event", **item} for item in page.get("items") or [] if wanted.lets(item)]
    found.sort(key=_moment)
    return found[-last:], version


def _moment(event: Mapping[str, Any]) -> tuple[str, str]:
    return str(event.get("lastTimestamp") or event.get("eventTime") or ""), str((event.get("metadata") or {}).get("name", ""))


def follow(client: Client, path: str, wanted: Filter, last: int) -> Iterator[dict[str, Any]]:
    """The past, then what happens, for ever. Unreachable and the like only for the first answer."""
    shown: OrderedDict[tuple[str, int], None] = OrderedDict()
    found, version = recent(client, path, wanted, last)
    pause = RETRY_SECONDS[0]
    while True:
        for event in found:
            yield from _once(event, shown)
        try:
            for event in _changes(client, path, version):
                pause = RETRY_SECONDS[0]
                version = str((event.get("metadata") or {}).get("resourceVersion") or version)
                if wanted.lets(event):
                    yield from _once(event, shown)
        except Unreachable as error:
            output.note(f"{error}; trying again")
        time.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS[1])
        try:
            found, version = recent(client, path, wanted, REMEMBERED)
        except Unreachable:
            found = []


def _once(event: dict[str, Any], shown: OrderedDict[tuple[str, int], None]) -> Iterator[dict[str, Any]]:
    key = (str((event.get("metadata") or {}).get("uid", "")), int(event.get("count") or 1))
    if key in shown:
        return
    shown[key] = None
    if len(shown) > REMEMBERED:
        shown.popitem(last=False)
    yield event


def _changes(client: Client, path: str, version: str) -> Iterator[dict[str, Any]]:
    """Until the watch ends, for whatever reason."""
    for line in client.lines(path, {"watch": "1", "resourceVersion": version}):
        change = json.loads(line)
        if change.get("type") == "ERROR":
            return
        if change.get("type") in ("ADDED", "MODIFIED"):
            yield {"apiVersion": "v1", "kind": "Event", **change["object"]}


def _print_one(event: Mapping[str, Any], form: output.Format) -> None:
    if form == "json":
        print(json.dumps(event, ensure_ascii=False), flush=True)  # a line each, for programs that read them as they come
        return
    output.emit(event, form, lambda: print("  ".join(row(event)), flush=True))


def row(event: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    about = event.get("involvedObject") or {}
    space = str(about.get("namespace") or "")
    name = f"{str(about.get('kind', '')).lower()}/{space + '/' if space else ''}{about.get('name', '')}"
    count = int(event.get("count") or 1)
    message = str(event.get("message", "")) + (f" ({count} times)" if count > 1 else "")
    return _moment(event)[0], str(event.get("type", "")), str(event.get("reason", "")), name, message
