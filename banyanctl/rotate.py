"""`banyan rotate`: the tree's key and issuing certificates, changed while everything works; the old and the new count for a while."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from banyanctl import kinds, output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.client import Client
from banyanctl.tree import read_rows
from cluster_controller.errors import NotFound

app = application("Change keys while the tree works: the tree's own, or a controller's issuing key.")
KIND = kinds.find("clusters")
NAMED = 20

Force = Annotated[bool, typer.Option("--force", help="Although some would have to join again, or lose their certificate.")]


def own_name(client: Client) -> str:
    """Of the controller that is asked."""
    from banyanctl.objects import AS_TABLE

    rows = read_rows(client.pages(kinds.path(KIND, ""), {"includeObject": "Object"}, AS_TABLE))
    name = next((row["name"] for row in rows if not row["path"]), None)
    if name is None:
        raise NotFound("the controller has not listed itself yet; try again in a moment")
    return str(name)


def ask(client: Client, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = client.json(method, kinds.path(KIND, "", own_name(client), "rotate"), body=body)
    return answer


@app.command("tree-key", cls=Command)
@examples("banyan rotate tree-key", "banyan rotate status", "banyan rotate finish")
def tree_key() -> None:
    """Give the tree a new key, at the root. The old one counts beside it until `banyan rotate finish`.

    Every controller gets certificates under the new key by itself, branches that are cut off when they are back.
    """
    with settings().client() as client:
        state = ask(client, "POST", {"what": "tree-key"})
    output.emit(state, settings().output, lambda: _say(state))


@app.command(cls=Command)
@examples("banyan rotate status", "banyan rotate status -o json")
def status() -> None:
    """How far the rotation of the tree's key is, and whom it waits for."""
    with settings().client() as client:
        state = ask(client, "GET")
    output.emit(state, settings().output, lambda: _say(state))


@app.command(cls=Command)
@examples("banyan rotate finish", "banyan rotate finish --force")
def finish(force: Force = False) -> None:
    """End the rotation: the old key counts no more and is deleted. Refused while anybody still needs it."""
    with settings().client() as client:
        state = ask(client, "POST", {"what": "finish", "force": force})
    output.emit(state, settings().output, lambda: _say(state))


@app.command(cls=Command)
@examples("banyan rotate issuing", "banyan --at region-a rotate issuing")
def issuing() -> None:
    """Give one controller fresh certificates and a fresh issuing key. What it signed before counts on until it is renewed."""
    with settings().client() as client:
        answer = ask(client, "POST", {"what": "issuing"})
    output.emit(
        answer,
        settings().output,
        lambda: print(f"{answer['name']} has a fresh issuing key; its certificates are good until {answer['until']}"),
    )


def _say(state: Mapping[str, Any]) -> None:
    if state["phase"] != "both":
        print(f"the tree has one key, {state['authority']}" + (f", since the rotation of {state['begun']}" if state["begun"] else ""))
        return
    missing, users = state["missing"], state["users"]
    done = f"{state['clusters'] - len(missing)} of {state['clusters']} clusters have certificates under {state['authority']}"
    print(f"two keys count since {state['begun']}; {done}")
    if missing:
        output.table(("missing", "state", "its key"), [(one["name"], one["phase"], one["authority"]) for one in missing[:NAMED]])
    if users:
        print(f"users with older certificates, which end with the old key: {', '.join(users[:NAMED])}{' …' if len(users) > NAMED else ''}")
    print("end it with `banyan rotate finish`" if not missing and not users else "`banyan rotate finish` waits for them")
