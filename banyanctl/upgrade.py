"""`banyan upgrade plan`: which version runs where, in which order to go, and what is in the way. It changes nothing.

Neighbouring minor versions work together in one tree, both ways, so any order works. The plan proposes the one that shows trouble while
it is small: one leaf, then the other leaves, then upwards, the root last, so that nothing new is asked of a cluster that does not know it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from msgspec import Struct

from banyanctl import kinds, objects, output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.tree import read_rows
from cluster_controller.errors import InvalidInput

app = application("The versions of a tree: what is where, and how to go on.")


@app.callback()
def group() -> None:
    """The versions of a tree: what is where, and how to go on."""  # a group although it has one command: others may come


_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(.*)")
NAMED = 20


class Step(Struct, frozen=True):
    """Controllers that may be upgraded at the same time. ``why`` is for people."""

    why: str
    clusters: tuple[str, ...]


class Plan(Struct, frozen=True, kw_only=True):
    target: str
    versions: dict[str, tuple[str, ...]]  # version → clusters that run it, by what they reported last
    steps: tuple[Step, ...]
    blocking: tuple[str, ...]  # what must be settled before anything is begun
    notes: tuple[str, ...]  # what to know on the way


def minor(version: str) -> tuple[int, int] | None:
    """The part that compatibility is promised by; None for what is no version."""
    found = _VERSION.fullmatch(version.strip())
    return (int(found[1]), int(found[2])) if found else None


def order(version: str) -> tuple[int, int, int, bool]:
    """Sorts versions; what comes before a release (rc, dev) sorts before it. (0, 0, 0, False) for what is none."""
    found = _VERSION.fullmatch(version.strip())
    return (int(found[1]), int(found[2]), int(found[3] or 0), not found[4] or found[4].startswith("+")) if found else (0, 0, 0, False)


def make(rows: Sequence[Mapping[str, Any]], target: str) -> Plan:
    """``rows`` are those of `tree.read_rows`. Pure. InvalidInput when ``target`` is no version."""
    wanted = minor(target)
    if wanted is None:
        raise InvalidInput(f"--to {target!r} is no version, as in 0.2.0", "--to")
    waiting = [row for row in rows if order(str(row["version"])) < order(target) or not minor(str(row["version"]))]
    return Plan(
        target=target,
        versions=_versions(rows),
        steps=tuple(_steps(waiting)),
        blocking=tuple(_blocking(rows, target, wanted)),
        notes=tuple(_notes(rows, waiting)),
    )


def _versions(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (order(str(row["version"])), row["name"])):
        found.setdefault(str(row["version"]) or "unknown", []).append(str(row["name"]))
    return {version: tuple(names) for version, names in found.items()}


def _steps(waiting: Sequence[Mapping[str, Any]]) -> list[Step]:
    """From the leaves up. A cluster is a leaf when nothing that waits or runs is listed below it; depth decides."""
    reachable = [row for row in waiting if row["status"] == "Ready"]
    depths = sorted({len(row["path"]) for row in reachable}, reverse=True)
    steps: list[Step] = []
    for depth in depths:
        names = sorted(str(row["name"]) for row in reachable if len(row["path"]) == depth)
        if not steps and len(names) > 2:
            steps.append(Step("one first: see that it is Ready again and serves", (names[0],)))
            names = names[1:]
        why = "the root, once all below it are Ready" if depth == 0 else f"level {depth}, a few at a time"
        steps.append(Step(why, tuple(names)))
    return steps


def _blocking(rows: Sequence[Mapping[str, Any]], target: str, wanted: tuple[int, int]) -> list[str]:
    found = []
    far = [row for row in rows if (known := minor(str(row["version"]))) and (known[0] != wanted[0] or wanted[1] - known[1] > 1)]
    if far:
        oldest = min(far, key=lambda row: order(str(row["version"])))
        names = _list([f"{row['name']} ({row['version']})" for row in far])
        at = minor(str(oldest["version"])) or (0, 0)
        found.append(f"more than one minor version behind {target}: {names}; go to {at[0]}.{at[1] + 1} first")
    newer = [row for row in rows if order(str(row["version"])) > order(target)]
    if newer:
        found.append(
            f"newer than {target} already: {_list([str(row['name']) for row in newer])}; an older program does not open a newer store"
        )
    return found


def _notes(rows: Sequence[Mapping[str, Any]], waiting: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    silent = [str(row["name"]) for row in waiting if row["status"] != "Ready"]
    if silent:
        found.append(f"out of reach or not Ready, upgrade them when they are back; the tree goes on with them: {_list(silent)}")
    unknown = [str(row["name"]) for row in rows if not minor(str(row["version"]))]
    if unknown:
        found.append(f"have not said which version they run: {_list(unknown)}")
    conflicts = [str(row["name"]) for row in rows if row.get("conflicts")]
    if conflicts:
        found.append(f"have objects that wait for a decision (`banyan cluster conflicts NAME`): {_list(conflicts)}")
    if waiting:
        found.append("back up the root first: `banyan backup`")
    return found


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


@app.command(cls=Command)
@examples("banyan upgrade plan", "banyan upgrade plan --to 0.2.0", "banyan upgrade plan -o json")
def plan(
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="The version to go to.", show_default="that of this program")] = "",
) -> None:
    """Which version runs where, in which order to upgrade, and what is in the way. It changes nothing."""
    from importlib.metadata import version

    from banyanctl.service import DISTRIBUTION

    with settings().client() as client:
        rows = read_rows(client.pages(kinds.path(kinds.find("clusters"), ""), {"includeObject": "Object"}, objects.AS_TABLE))
    found = make(rows, to or version(DISTRIBUTION))
    output.emit(_plain(found), settings().output, lambda: _say(found))


def _plain(found: Plan) -> dict[str, Any]:
    steps = [{"why": step.why, "clusters": list(step.clusters)} for step in found.steps]
    versions = {version: list(names) for version, names in found.versions.items()}
    return {"target": found.target, "versions": versions, "steps": steps, "blocking": list(found.blocking), "notes": list(found.notes)}


def _say(found: Plan) -> None:
    output.table(("version", "clusters", "which"), [(version, len(names), _list(names)) for version, names in found.versions.items()])
    print()
    for text in found.blocking:
        print(f"in the way: {text}")
    if not found.steps:
        print(f"nothing to do: every cluster in reach runs {found.target}" if not found.blocking else "")
    for number, step in enumerate(found.steps, 1):
        print(f"{number}. {step.why}: {_list(step.clusters)}")
    for text in found.notes:
        print(f"note: {text}")
