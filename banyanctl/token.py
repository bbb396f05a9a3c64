"""`banyan token`: one-time, expiring rights to join under a given parent.

The token itself is in the answer to its creation and nowhere else: the parent keeps a hash of its secret.
"""

from typing import Annotated, Any

import typer

from banyanctl import arguments, kinds, objects, output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.client import Client

app = application("Rights to join: create, list, revoke.")
KIND = kinds.find("jointokens")


def parent_client(parent: str) -> Client:
    """The controller that shall be the parent: the token is made, kept and consumed in its store."""
    client = settings().client()
    return client.at(parent) if parent and parent != settings().at else client


Parent = Annotated[
    str, typer.Option("--parent", metavar="CLUSTER", help="Cluster to join under.", show_default="the controller that is asked")
]


@app.command(cls=Command)
@examples(
    "banyan token create --parent region-a",
    "banyan token create --parent region-a --expires 15m --approve",
    "banyan token create --parent region-a --replace edge-1",
)
def create(
    parent: Parent = "",
    expires: Annotated[str, typer.Option("--expires", help="How long it can be used, as in 15m, 24h, 7d.")] = "24h",
    approve: Annotated[
        bool, typer.Option("--approve", help="A person has to let in the cluster that uses it: banyan approve NAME.")
    ] = False,
    replace: Annotated[
        str, typer.Option("--replace", metavar="NAME", help="The new machine takes the place of this one, which died.")
    ] = "",
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The only cluster name that may join with it.")] = "",
    labels: Annotated[
        list[str] | None, typer.Option("--labels", metavar="K=V", help="Labels that the parent gives the new cluster.")
    ] = None,
) -> None:
    """Make a token; give it to `banyan join` on the new machine."""
    spec: dict[str, Any] = {"expiresAfterSeconds": arguments.seconds(expires, "--expires")}
    if approve:
        spec["approve"] = True
    if replace:
        spec["replace"] = arguments.cluster_name(replace, "--replace")
    if name:
        spec["clusterName"] = arguments.cluster_name(name, "--name")
    if labels:
        spec["labels"] = arguments.labels(labels)
    document = {"apiVersion": KIND.api_version, "kind": KIND.kind, "metadata": {"generateName": "join-"}, "spec": spec}
    with parent_client(parent) as client:
        made = client.json("POST", kinds.path(KIND, ""), body=document)
    output.emit(made, settings().output, lambda: _told(made, expires, approve=approve))


def _told(made: dict[str, Any], expires: str, *, approve: bool) -> None:
    print(made["status"]["token"])
    output.note(f"This token is shown once. It lets one cluster join and ends in {expires}. On the new machine:")
    output.note("  banyan join TOKEN --name NAME")
    if approve:
        output.note("Then let it in here with: banyan approve NAME")


@app.command("list", cls=Command)
@examples("banyan token list", "banyan token list --parent region-a -o wide")
def list_tokens(parent: Parent = "") -> None:
    """Tokens that were made here, and what became of them."""
    with parent_client(parent) as client:
        if settings().output in ("table", "wide"):
            columns, rows = objects.read_table(
                client.pages(kinds.path(KIND, ""), accept=objects.AS_TABLE), wide=settings().output == "wide"
            )
            output.table(columns, rows, empty="no join tokens; make one with `banyan token create`")
            return
        items = client.items(kinds.path(KIND, ""))
    output.emit({"apiVersion": "v1", "kind": "List", "items": items}, settings().output, lambda: None)


@app.command(cls=Command)
@examples("banyan token revoke join-x7k2p", "banyan token revoke join-x7k2p --parent region-a")
def revoke(name: Annotated[str, typer.Argument(help="Name of the token, as `banyan token list` shows it.")], parent: Parent = "") -> None:
    """End a token that was not used yet."""
    with parent_client(parent) as client:
        gone = client.json("DELETE", kinds.path(KIND, "", name))
    output.emit(gone, settings().output, lambda: print(f"token {name} revoked"))
