"""`banyan cluster` and `banyan approve`: what a person decides about members of the tree."""

from typing import Annotated, Any

import typer

from banyanctl import cordon, kinds, objects, output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.client import Client
from banyanctl.tree import cluster_pages

app = application("Members of the tree: list, cordon, drain, remove, revoke, keep.")
for decide in (cordon.cordon, cordon.uncordon, cordon.drain):
    app.command(cls=Command)(decide)
KIND = kinds.find("clusters")

Name = Annotated[str, typer.Argument(help="Name of the cluster, as `banyan tree` shows it.")]


def keeper(client: Client, name: str) -> Client:
    """The controller that decides about a member: its parent, reached through the tree when it is not the one that is asked."""
    cluster = client.json("GET", kinds.path(KIND, "", name))
    way = (cluster.get("status") or {}).get("path") or []
    return client.at(way[-2]) if len(way) > 1 else client


@app.command("list", cls=Command)
@examples("banyan cluster list", "banyan cluster list -l tier=edge", "banyan cluster list -o wide")
def list_clusters(selector: objects.Selector = "") -> None:
    """Every cluster below the controller that is asked, with parent, state and when it was last heard."""
    form = settings().output
    with settings().client() as client:
        pages = list(cluster_pages(client, selector))
    items = [{"apiVersion": KIND.api_version, "kind": KIND.kind, **row["object"]} for page in pages for row in page["rows"]]
    columns, rows = objects.read_table(pages, wide=form == "wide")
    data = {"apiVersion": "v1", "kind": "List", "items": items}
    output.emit(data, form, lambda: output.table(columns, rows, empty="no cluster has these labels; `banyan tree -o wide` shows them"))


@app.command(cls=Command)
@examples("banyan cluster remove edge-3")
def remove(name: Name) -> None:
    """Take a cluster out of the tree. Its machine runs on with what it has; it can join again with a new token."""
    with settings().client() as client:
        gone = keeper(client, name).json("DELETE", kinds.path(KIND, "", name))
    output.emit(gone, settings().output, lambda: print(f"cluster {name} removed; `banyan leave` on its machine ends what runs there"))


@app.command(cls=Command)
@examples("banyan cluster revoke edge-3 --reason 'stolen on 12 May'")
def revoke(
    name: Name, reason: Annotated[str, typer.Option("--reason", help="Kept with the revocation, and shown to the cluster.")] = ""
) -> None:
    """Cut a cluster off at once and for good: its key is refused by every parent that it may have."""
    with settings().client() as client:
        answer = keeper(client, name).json("POST", kinds.path(KIND, "", name, "revoke"), body={"reason": reason})
    output.emit(
        answer,
        settings().output,
        lambda: print(f"cluster {name} revoked; a new machine takes its place with `banyan token create --replace {name}`"),
    )


@app.command(cls=Command)
@examples("banyan cluster keep edge-1 --instance 6f3k2mpa")
def keep(
    name: Name,
    instance: Annotated[
        str,
        typer.Option(
            "--instance", metavar="ID", help="The copy that shall be the cluster. The logs of both name the two ids; so does a wrong one."
        ),
    ],
) -> None:
    """Decide between two copies of one data folder: the one named goes on, the other is refused."""
    with settings().client() as client:
        answer = keeper(client, name).json("POST", kinds.path(KIND, "", name, "keep"), body={"instance": instance})
    output.emit(answer, settings().output, lambda: print(f"instance {instance} is {name} now; any other copy is refused"))


@examples("banyan approve", "banyan approve edge-4")
def approve(name: Annotated[str, typer.Argument(help="Name of the cluster that waits. None: list those that wait.")] = "") -> None:
    """Let in a cluster that joined with a token made with --approve."""
    with settings().client() as client:
        if name:
            answer = keeper(client, name).json("POST", kinds.path(KIND, "", name, "approve"), body={})
            already = answer.get("state") == "member"
            said = "is a member already" if already else "approved; it is let in when it asks again, within seconds"
            output.emit(answer, settings().output, lambda: print(f"cluster {name} {said}"))
            return
        waiting = [item for item in client.items(kinds.path(KIND, "")) if (item.get("status") or {}).get("phase") == "Pending"]
    output.emit({"apiVersion": "v1", "kind": "List", "items": waiting}, settings().output, lambda: _list(waiting))


def _list(waiting: list[dict[str, Any]]) -> None:
    rows = [
        (item["metadata"]["name"], item["status"].get("parent", ""), item["status"].get("address", ""), item["status"].get("uid", ""))
        for item in waiting
    ]
    output.table(("name", "parent", "address", "uid"), rows, empty="no cluster waits for approval")


@app.command(cls=Command)
@examples(
    "banyan cluster conflicts edge-1",
    "banyan cluster conflicts edge-1 --keep field",
    "banyan cluster conflicts edge-1 --keep root --kind Work",
)
def conflicts(
    name: Name,
    keep: Annotated[
        str, typer.Option("--keep", metavar="field|root", help="field: what runs there stays. root: what the parent has replaces it.")
    ] = "",
    kind: Annotated[str, typer.Option("--kind", help="Only objects of this kind.")] = "",
    item: Annotated[str, typer.Option("--object", metavar="NAME", help="Only this object, as the list names it.")] = "",
) -> None:
    """Objects that a parent with another history (a restored backup) would change: list them, or decide.

    Until somebody decides, everything runs on as it is.
    """
    with settings().client() as client:
        path = kinds.path(KIND, "", name, "conflicts")
        there = client.at(name) if _is_below(client, name) else client
        if not keep:
            listed = there.json("GET", path)
            rows = [
                [one["kind"], one["name"], one["object"], "changed" if one["parentHas"] else "not known there"] for one in listed["items"]
            ]
            output.emit(
                listed, settings().output, lambda: output.table(["KIND", "NAME", "OBJECT", "AT THE PARENT"], rows, empty="no conflicts")
            )
            return
        body = {key: value for key, value in (("keep", keep), ("kind", kind), ("name", item)) if value}
        answer = there.json("POST", path, body=body)
    output.emit(answer, settings().output, lambda: print(f"{answer['settled']} conflicts of {name} settled: keep {keep}"))


def _is_below(client: Client, name: str) -> bool:
    """Whether ``name`` is a descendant of the controller that is asked, and not that controller itself."""
    cluster = client.json("GET", kinds.path(KIND, "", name))
    return bool((cluster.get("status") or {}).get("path"))
