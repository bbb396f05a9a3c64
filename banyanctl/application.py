"""`banyan explain`, `history` and `undo`: why an application is where it is, and what it was before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from banyanctl import kinds, manifests, objects, output
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


@examples(
    "banyan explain application/emotion",
    "banyan explain emotion --nodes",
    "banyan explain emotion --without edge-1",
    "banyan explain emotion --dry-run changed.yaml -o json",
)
def explain(
    which: Which,
    namespace: objects.Namespace = "",
    nodes: Annotated[bool, typer.Option("--nodes", help="Say it of every node, too.")] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="CLUSTER", help="What if this cluster were gone? May be repeated.")
    ] = None,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="FILE", help="What if the application were as in this file? Nothing is changed.")
    ] = None,
) -> None:
    """Say, per cluster, how many replicas it got and how it was judged, or which filter refused it and why."""
    supposed: dict[str, Any] = {"without": list(without)} if without else {}
    name = name_of(which)
    if dry_run is not None:
        supposed["spec"] = _spec(dry_run, name)
    with settings().client() as client:
        path = kinds.path(KIND, namespace or client.endpoint.namespace, name, "explain")
        answer = client.json("POST", path, None, supposed) if supposed else client.json("GET", path)
    output.emit(answer, settings().output, lambda: _explained(answer, nodes))


def _spec(path: Path, name: str) -> Any:
    """The spec of the one Application of that name in a file."""
    found = [
        document
        for _, document in manifests.read([str(path)])
        if document.get("kind") == "Application" and (document.get("metadata") or {}).get("name") == name
    ]
    if len(found) != 1:
        raise InvalidInput(f"{path} has {len(found)} manifests of application {name}; it should have one")
    return found[0].get("spec")


def _explained(answer: Mapping[str, Any], nodes: bool) -> None:
    decision = answer.get("decision") or {}
    if decision:
        words = "supposed, nothing is changed" if decision.get("supposed") else "decided"
        division = f", divided by {decision['division']}" if decision.get("division") else ""
        reach = f"{decision.get('reachable')} of {decision.get('clusters')} clusters in reach"
        print(f"{words} at {decision.get('time')}, generation {decision.get('generation')}, {reach}{division}")
        if decision.get("balance"):
            print(f"balance: {decision['balance']}")
    for component in answer.get("components") or []:
        line = f"{component['name']}: {component['replicas']} wanted"
        line += f", {component['unplaced']} that no cluster takes" if component.get("unplaced") else ""
        line += f", {component['waiting']} on the move" if component.get("waiting") else ""
        print(line)
        for text in component.get("notes") or []:
            print(f"  {text}")
    for row in answer.get("clusters") or []:
        if row.get("overrides"):
            print(f"{row['cluster']}: overrides: {', '.join(row['overrides'])}")
    for missing in answer.get("missing") or []:
        print(f"missing: {missing}")
    parts = [(row["cluster"], part) for row in answer.get("clusters") or [] for part in row.get("components") or []]
    rows = [
        (name, part["component"], part.get("replicas", 0), part.get("planned", ""), _judged(part.get("score") or {}),
         part.get("reason", ""), part.get("remedy", ""))
        for name, part in parts
    ]  # fmt: skip
    heads = ("cluster", "component", "replicas", "planned", "judged", "why", "what would help")
    kept = [index for index, head in enumerate(heads) if head != "judged" or any(row[index] for row in rows)]
    print()
    output.table(
        [heads[index] for index in kept], [[row[index] for index in kept] for row in rows], empty="there is no cluster to place on"
    )
    if nodes:
        each = [(name, part["component"], node) for name, part in parts for node in part.get("nodes") or []]
        print()
        output.table(
            ("cluster", "node", "component", "fit more", "why not"),
            [(name, node["node"], component, node.get("room", 0), node.get("reason", "")) for name, component, node in each],
            empty="no node is known",
        )


def _judged(score: Mapping[str, Any]) -> str:
    """What told it from the others, in a few words."""
    words = []
    if score.get("preference"):
        words.append(f"wish {score['preference']}")
    if score.get("hourlyCost"):
        words.append(f"{score['hourlyCost']:g}/h")
    if score.get("latencyMillis") is not None:
        words.append(f"{score['latencyMillis']:g} ms")
    if score.get("modelPresent"):
        words.append("has the model")
    return ", ".join(words)


@examples("banyan history emotion", "banyan history application/emotion -o yaml")
def history(which: Which, namespace: objects.Namespace = "") -> None:
    """Earlier versions of an application: who changed it, and when."""
    with settings().client() as client:
        answer = client.json("GET", kinds.path(KIND, namespace or client.endpoint.namespace, name_of(which), "history"))
    rows = [
        (
            row.get("revision", ""),
            row.get("generation", ""),
            row.get("time", ""),
            row.get("user", ""),
            "yes" if row.get("healthy") else "",
            row.get("cause", ""),
        )
        for row in answer.get("items") or []
    ]
    columns = ("revision", "generation", "time", "by", "was well", "cause")
    output.emit(answer, settings().output, lambda: output.table(columns, rows, empty="no earlier version"))


@examples("banyan undo emotion", "banyan undo emotion --to 3", "banyan undo emotion --dry-run -o yaml")
def undo(
    which: Which,
    namespace: objects.Namespace = "",
    to: Annotated[
        int, typer.Option("--to", metavar="REVISION", help="The version to go back to.", show_default="the last that was well")
    ] = 0,
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
        lambda: print(f"application/{name} is as in revision {_went_to(answer, to)} again{' (dry run)' if dry_run else ''}"),
    )


def _went_to(answer: Mapping[str, Any], to: int) -> str:
    """By the number that was asked for, or by what the history says of the change."""
    history = (answer.get("status") or {}).get("history") or []
    cause = str(history[-1].get("cause", "")) if history else ""
    return str(to) if to else cause.removeprefix("undo to ") or "before"
