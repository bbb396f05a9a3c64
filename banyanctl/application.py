"""`banyan explain`, `history` and `undo`: why an application is where it is, and what it was before."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from banyanctl import kinds, objects, output
from banyanctl.cli import examples, settings
from cluster_controller.errors import InvalidInput

KIND = kinds.find("applications")

Which = Annotated[str, typer.Argument(metavar="NAME", help="The application: NAME or application/NAME.")]


def name_of(word: str) -> str:
    """`emotion`, `app/emotion` → emotion; InvalidInput for another kind."""
    kind, separator, name = word.partition("/")
    if not separator:
        return word
    if kinds.find(kind) is not KIND or not name:
        raise InvalidInput(f"{word!r}: wanted is the name of an application, as in application/emotion")
    return name


@examples("banyan explain application/emotion", "banyan explain emotion -n shop -o json")
def explain(which: Which, namespace: objects.Namespace = "") -> None:
    """Say, per cluster, how many replicas it got, or which filter refused it and why."""
    with settings().client() as client:
        answer = client.json("GET", kinds.path(KIND, namespace or client.endpoint.namespace, name_of(which), "explain"))
    output.emit(answer, settings().output, lambda: _explained(answer))


def _explained(answer: Mapping[str, Any]) -> None:
    for component in answer.get("components") or []:
        line = f"{component['name']}: {component['replicas']} wanted"
        line += f", {component['unplaced']} that no cluster takes" if component.get("unplaced") else ""
        line += f", {component['waiting']} on the move" if component.get("waiting") else ""
        print(line)
        for text in component.get("notes") or []:
            print(f"  {text}")
    for missing in answer.get("missing") or []:
        print(f"missing: {missing}")
    rows = [
        (row["cluster"], part["component"], part.get("replicas", 0), part.get("reason", ""), part.get("remedy", ""))
        for row in answer.get("clusters") or []
        for part in row.get("components") or []
    ]
    print()
    output.table(("cluster", "component", "replicas", "why", "what would help"), rows, empty="there is no cluster to place on")


@examples("banyan history emotion", "banyan history application/emotion -o yaml")
def history(which: Which, namespace: objects.Namespace = "") -> None:
    """Earlier versions of an application: who changed it, and when."""
    with settings().client() as client:
        answer = client.json("GET", kinds.path(KIND, namespace or client.endpoint.namespace, name_of(which), "history"))
    rows = [
        (row.get("revision", ""), row.get("generation", ""), row.get("time", ""), row.get("user", ""), row.get("cause", ""))
        for row in answer.get("items") or []
    ]
    output.emit(
        answer, settings().output, lambda: output.table(("revision", "generation", "time", "by", "cause"), rows, empty="no earlier version")
    )


@examples("banyan undo emotion", "banyan undo emotion --to 3", "banyan undo emotion --dry-run -o yaml")
def undo(
    which: Which,
    namespace: objects.Namespace = "",
    to: Annotated[int, typer.Option("--to", metavar="REVISION", help="The version to go back to.", show_default="the one before")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would be, and change nothing.")] = False,
) -> None:
    """Go back to an earlier version. That is a change like any other: it rolls out in waves, and can be undone."""
    name = name_of(which)
    with settings().client() as client:
        path = kinds.path(KIND, namespace or client.endpoint.namespace, name, "undo")
        answer = client.json("POST", path, {"dryRun": "All"} if dry_run else None, {"toRevision": to} if to else {})
    output.emit(
        answer,
        settings().output,
        lambda: print(
            f"application/{name} is as {f'in revision {to}' if to else 'before its last change'} again{' (dry run)' if dry_run else ''}"
        ),
    )
