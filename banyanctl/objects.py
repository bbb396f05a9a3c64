"""`banyan get`, `apply` and `delete`: the objects of a controller's API."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from banyanctl import kinds, manifests, merge, output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from cluster_controller.errors import BanyanError, Conflict, InvalidInput, NotFound
from cluster_controller.resources.registry import ResourceType

AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
TRIES = 5  # of a change that somebody else's change overtook
DELETE_POLL_SECONDS = 0.5

Namespace = Annotated[str, typer.Option("-n", "--namespace", help="Namespace.", show_default="that of the kubeconfig, or default")]
Everywhere = Annotated[bool, typer.Option("-A", "--all-namespaces", help="Every namespace.")]
Selector = Annotated[str, typer.Option("-l", "--selector", help="Only objects with these labels, as in tier=edge,zone!=b.")]
Files = Annotated[
    list[str], typer.Option("-f", "--filename", help="Manifest file, folder of manifests, or - for standard input. May be repeated.")
]


@examples(
    "banyan get applications -A", "banyan get app/emotion -o yaml", "banyan get clusters -l tier=edge -w", "banyan --at edge-1 get pods"
)
def get(
    what: Annotated[list[str], typer.Argument(metavar="KIND[/NAME] [NAME...]", help="Kind, by any of its names, and objects of it.")],
    namespace: Namespace = "",
    everywhere: Everywhere = False,
    selector: Selector = "",
    fields: Annotated[str, typer.Option("--field-selector", help="Only objects with these fields, as in metadata.name=emotion.")] = "",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on and print every change.")] = False,
) -> None:
    """Show objects: one kind, or some by name."""
    chosen, common = kinds.split(what), settings()
    with common.client() as client:
        where = "" if everywhere else namespace or client.endpoint.namespace
        query = {"labelSelector": selector, "fieldSelector": fields}
        if watch:
            _watch(client, chosen, where, query)
            return
        if common.output in ("table", "wide"):
            _print_tables(client, chosen, where, query, wide=common.output == "wide", everywhere=everywhere)
            return
        found = _documents(client, chosen, where, query)
        single = len(chosen) == 1 and chosen[0][1]
        data = found[0] if single else {"apiVersion": "v1", "kind": "List", "items": found}
        output.emit(data, common.output, lambda: None)


def _documents(client: Client, chosen: list[tuple[ResourceType, str]], where: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for kind, name in chosen:
        if name:
            found.append(client.json("GET", kinds.path(kind, where, name)))
        else:
            items = client.items(kinds.path(kind, where), query)
            found += [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in items]
    return found


def _print_tables(
    client: Client, chosen: list[tuple[ResourceType, str]], where: str, query: Mapping[str, str], *, wide: bool, everywhere: bool
) -> None:
    for number, (kind, name) in enumerate(chosen):
        pages = (
            [client.json("GET", kinds.path(kind, where, name), accept=AS_TABLE)]
            if name
            else client.pages(kinds.path(kind, where), query, AS_TABLE)
        )
        columns, rows = read_table(pages, wide=wide, namespaces=everywhere and kind.namespaced)
        if number:
            print()
        place = f" in namespace {where}" if kind.namespaced and where else ""
        output.table(columns, rows, empty=f"no {kind.plural}{place}")


def read_table(pages: Iterable[Mapping[str, Any]], *, wide: bool = False, namespaces: bool = False) -> tuple[list[str], list[list[Any]]]:
    """Column names and cells of the tables that the server printed."""
    names: list[str] = []
    shown: list[int] = []
    rows: list[list[Any]] = []
    for page in pages:
        if definitions := page.get("columnDefinitions"):
            shown = [index for index, column in enumerate(definitions) if wide or not column.get("priority")]
            names = (["Namespace"] if namespaces else []) + [definitions[index]["name"] for index in shown]
        for row in page.get("rows") or []:
            lead = [((row.get("object") or {}).get("metadata") or {}).get("namespace", "")] if namespaces else []
            rows.append(lead + [row["cells"][index] for index in shown])
    return names, rows


def _watch(client: Client, chosen: list[tuple[ResourceType, str]], where: str, query: dict[str, str]) -> None:
    """One kind, or one object, until the person has seen enough."""
    if len(chosen) != 1:
        raise InvalidInput("--watch shows one kind or one object at a time")
    (kind, name), form = chosen[0], settings().output
    if name:
        query["fieldSelector"] = ",".join(filter(None, (query["fieldSelector"], f"metadata.name={name}")))
    path, version = kinds.path(kind, where), ""
    for page in client.pages(path, query):
        version = version or page["metadata"]["resourceVersion"]
        for item in page.get("items") or []:
            _print_event({"type": "ADDED", "object": {"apiVersion": kind.api_version, "kind": kind.kind, **item}}, form)
    for line in client.lines(path, {**query, "watch": "1", "resourceVersion": version}):
        event = json.loads(line)
        if event.get("type") == "ERROR":
            raise Conflict(f"the watch has ended: {event['object'].get('message', 'too old')}; run it again")
        _print_event(event, form)


def _print_event(event: Mapping[str, Any], form: output.Format) -> None:
    thing = event["object"]
    if form in ("json", "yaml", "name"):
        output.emit(thing, form, lambda: None)
        return
    metadata, status = thing.get("metadata", {}), thing.get("status") or {}
    words = [f"{status[field]} {field}" for field in ("ready", "desired") if field in status]
    print(f"{event['type'].lower():<9} {metadata.get('name', '')}  {status.get('phase', '')}  {', '.join(words)}".rstrip(), flush=True)


@examples(
    "banyan apply -f emotion.yaml",
    "banyan apply -f manifests/ -n shop",
    "cat emotion.yaml | banyan apply -f -",
    "banyan apply -f emotion.yaml --dry-run",
)
def apply(
    files: Files,
    namespace: Namespace = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the controller check and answer, and change nothing.")] = False,
) -> None:
    """Create or change objects so that they are as the manifests say; what no manifest mentions stays."""
    common = settings()
    results: list[dict[str, Any]] = []
    with common.client() as client, output.progress("applying") as say:
        for where, manifest in manifests.read(files):
            kind = kinds.of_document(manifest, where)
            metadata = manifest["metadata"]
            name, space = str(metadata.get("name", "")), namespace or metadata.get("namespace") or client.endpoint.namespace
            say(f"applying {kind.singular}/{name}")
            try:
                done, document = apply_one(client, kind, space, manifest, dry_run=dry_run)
            except BanyanError as error:
                error.args = (f"{where}: {kind.singular}/{name}: {error}",)
                raise
            results.append(document)
            if common.output in ("table", "wide"):
                print(
                    f"{kind.singular}/{(document.get('metadata') or {}).get('name', name)} {done}{' (dry run)' if dry_run else ''}",
                    flush=True,
                )
    if common.output not in ("table", "wide"):
        data = results[0] if len(results) == 1 else {"apiVersion": "v1", "kind": "List", "items": results}
        output.emit(data, common.output, lambda: None)


def apply_one(
    client: Client, kind: ResourceType, namespace: str, manifest: dict[str, Any], *, dry_run: bool = False
) -> tuple[str, dict[str, Any]]:
    """Bring one object to its manifest; returns created, changed or unchanged, and the object."""
    query = {"dryRun": "All", "fieldManager": "banyan"} if dry_run else {"fieldManager": "banyan"}
    wanted = merge.with_memory(manifest)
    name = manifest["metadata"].get("name")
    if not name:
        return "created", client.json("POST", kinds.path(kind, namespace), query, wanted)
    for _ in range(TRIES):
        try:
            there = client.json("GET", kinds.path(kind, namespace, name))
        except NotFound:
            return "created", client.json("POST", kinds.path(kind, namespace), query, wanted)
        patch = merge.three_way(merge.last_applied(there), wanted, there)
        if not patch:
            return "unchanged", there
        patch.setdefault("metadata", {})["resourceVersion"] = there["metadata"]["resourceVersion"]
        try:
            return "changed", client.json("PATCH", kinds.path(kind, namespace, name), query, patch, content="application/merge-patch+json")
        except Conflict:
            continue  # somebody else changed it between the read and the patch
    raise Conflict(f"{kind.singular}/{name} is changed by somebody else again and again; try later")


@examples(
    "banyan delete app/emotion",
    "banyan delete application emotion --wait",
    "banyan delete -f emotion.yaml",
    "banyan delete configmaps -l app=shop",
)
def delete(
    what: Annotated[list[str] | None, typer.Argument(metavar="[KIND[/NAME] [NAME...]]", help="Objects to delete.")] = None,
    files: Annotated[list[str] | None, typer.Option("-f", "--filename", help="Delete what these manifests name.")] = None,
    namespace: Namespace = "",
    selector: Selector = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they are gone (withdrawn from every cluster in reach).")] = False,
    missing_ok: Annotated[bool, typer.Option("--ignore-not-found", help="What does not exist is no error.")] = False,
) -> None:
    """Delete objects by name, by label, or by the manifests that made them."""
    common = settings()
    with common.client() as client:
        targets = _targets(client, what or [], files or [], namespace, selector)
        gone: list[dict[str, Any]] = []
        for kind, space, name in targets:
            try:
                answer = client.json("DELETE", kinds.path(kind, space, name))
            except NotFound:
                if not missing_ok:
                    raise
                continue
            gone.append(answer)
            if common.output in ("table", "wide"):
                print(f"{kind.singular}/{name} deleted", flush=True)
            if wait:
                _wait_gone(client, kind, space, name, _uid(answer))
    if common.output not in ("table", "wide"):
        output.emit({"apiVersion": "v1", "kind": "List", "items": gone}, common.output, lambda: None)


def _uid(answer: Mapping[str, Any]) -> str:
    """Of what was deleted: the object itself, or a Status that names it."""
    return str((answer.get("details") or {}).get("uid") or (answer.get("metadata") or {}).get("uid") or "")


def _targets(client: Client, what: list[str], files: list[str], namespace: str, selector: str) -> list[tuple[ResourceType, str, str]]:
    found: list[tuple[ResourceType, str, str]] = []
    space = namespace or client.endpoint.namespace
    for where, manifest in manifests.read(files):
        metadata = manifest["metadata"]
        found.append((kinds.of_document(manifest, where), namespace or metadata.get("namespace") or space, str(metadata.get("name", ""))))
    for kind, name in kinds.split(what) if what else []:
        if name:
            found.append((kind, space, name))
        elif selector:
            found += [
                (kind, space, item["metadata"]["name"]) for item in client.items(kinds.path(kind, space), {"labelSelector": selector})
            ]
        else:
            raise InvalidInput(f"say which {kind.plural} to delete: by name, with -l LABEL=VALUE, or with -f FILE")
    if not found and not selector:
        raise InvalidInput("say what to delete: KIND/NAME, KIND -l LABEL=VALUE, or -f FILE")
    return found


def _wait_gone(client: Client, kind: ResourceType, namespace: str, name: str, uid: str) -> None:
    """Until the object is gone, or another of the same name has taken its place."""
    with output.progress(f"waiting until {kind.singular}/{name} is gone") as say:
        while True:
            try:
                there = client.json("GET", kinds.path(kind, namespace, name))
            except NotFound:
                return
            if uid and there["metadata"].get("uid") != uid:
                return
            if left := (there.get("status") or {}).get("withdrawing"):
                say(f"waiting until {kind.singular}/{name} is gone; not yet confirmed: {', '.join(left)}")
            time.sleep(DELETE_POLL_SECONDS)
