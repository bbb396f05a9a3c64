"""`banyan move`: give a cluster another parent while it works: a plan, a confirmation, progress, and what became of it.

The nearest controller above both parents decides and drives it, whatever becomes of this program.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from banyanctl import kinds, output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from cluster_controller.errors import BanyanError, Conflict, InvalidInput, Unreachable

KIND = kinds.find("clusters")
POLL_SECONDS = 0.3
PATIENCE_SECONDS = 300.0
LONGEST = 20

Name = Annotated[str, typer.Argument(help="The cluster, as `banyan tree` shows it. What stands below it goes along.")]
Parent = Annotated[str, typer.Option("--parent", metavar="NAME", help="The controller that shall be its parent.")]
Plan = Annotated[bool, typer.Option("--dry-run", help="Show the plan, ask everybody concerned, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]
Status = Annotated[bool, typer.Option("--status", help="How far the move of this cluster is, or what became of the last one.")]
CallOff = Annotated[bool, typer.Option("--call-off", help="Call the move off, if the cluster has not gone yet.")]


@examples(
    "banyan move edge-3 --parent region-b --dry-run",
    "banyan move edge-3 --parent region-b",
    "banyan move edge-3 --status",
    "banyan move edge-3 --call-off",
)
def move(
    name: Name,
    parent: Parent = "",
    dry_run: Plan = False,
    yes: Yes = False,
    wait: Wait = True,
    status: Status = False,
    call_off: CallOff = False,
) -> None:
    """Give a cluster, with all below it, another parent. What it runs for those above both parents runs on untouched."""
    if (parent != "") + status + call_off != 1:
        raise InvalidInput("say one of --parent NAME, --status and --call-off")
    with settings().client() as client:
        if status or call_off:
            there = _keeper(client, name)
            answer = _ask(there, name, "POST", {"callOff": True}) if call_off else _ask(there, name, "GET")
            output.emit(answer, settings().output, lambda: _say(answer))
            return
        there = _decider(client, name, parent)
        plan = _ask(there, name, "POST", {"parent": parent}, query="?dryRun=All")
        if dry_run:
            output.emit(plan, settings().output, lambda: print(_plan(plan)))
            return
        output.note(_plan(plan))
        if plan["troubles"]:
            raise Conflict(f"{name} cannot be moved to {parent}: {'; '.join(plan['troubles'])}")
        if not yes:
            output.ask(f"Move {name} to {parent}?", "--yes")
        answer = _ask(there, name, "POST", {"parent": parent})
        if wait:
            with output.progress(f"{name} is being moved to {parent}"):
                answer = _awaited(there, name, answer)
    output.emit(answer, settings().output, lambda: _say(answer))
    if answer["phase"] == "Undone":
        raise Conflict(f"{name} stays under {answer['from']}: {answer['reason']}")


def _path(client: Client, name: str) -> list[str]:
    found: dict[str, Any] = client.json("GET", kinds.path(KIND, "", name))
    return [str(one) for one in (found.get("status") or {}).get("path") or []]


def _decider(client: Client, name: str, parent: str) -> Client:
    """The nearest controller above both parents."""
    mine, theirs = _path(client, name)[:-1], _path(client, parent)
    shared = 0
    while shared < min(len(mine), len(theirs)) and mine[shared] == theirs[shared]:
        shared += 1
    return client.at(mine[shared - 1]) if shared else client


def _keeper(client: Client, name: str) -> Client:
    """Who knows of its move: the controller that is asked, or one between it and the cluster."""
    for above in ["", *_path(client, name)[:-1]]:
        there = client.at(above) if above else client
        try:
            _ask(there, name, "GET")
        except BanyanError:
            continue
        return there
    return client


def _ask(there: Client, name: str, method: str, body: Mapping[str, Any] | None = None, query: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = there.json(method, kinds.path(KIND, "", name, "move") + query, body=body)
    return answer


def _awaited(there: Client, name: str, answer: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if not answer["active"]:
            return answer
        time.sleep(POLL_SECONDS)
        try:
            answer = _ask(there, name, "GET")
        except BanyanError:
            continue  # the way to whoever drives it may be cut; the move goes on
    raise Unreachable(f"the move of {name} is {answer['phase']} ({answer['reason'] or 'it waits'}); see `banyan move {name} --status`")


def _plan(plan: Mapping[str, Any]) -> str:
    name = plan["cluster"]
    lines = [f"plan       {name} leaves {plan['from']} and becomes a child of {plan['to']}; its key stays, its certificates are made anew"]
    below = [one for one in plan["clusters"] if one != name]
    if below:
        lines.append(f"with it    {len(below)} clusters below it: {_some(below)}")
    for fate, words in (("stays", "runs on"), ("goes along", "goes along"), ("ends there", "ends there")):
        found = [one for one in plan["applications"] if one["fate"] == fate]
        if found:
            named = _some([f"{one['namespace']}/{one['name']} ({one['replicas']})" for one in found])
            why = (
                f"; of {plan['from']} or above it, which no longer stand above {name}: placed elsewhere there"
                if fate == "ends there"
                else ""
            )
            lines.append(f"{words:<10} {named}{why}")
    lines.append(
        f"overlays   labels, taints and cordons laid on {name} by controllers above both parents stay; those of its old branch end"
    )
    lines += [f"refused    {one}" for one in plan["troubles"]]
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return ", ".join(names[:LONGEST]) + (f" and {len(names) - LONGEST} more" if len(names) > LONGEST else "")


def _say(answer: Mapping[str, Any]) -> None:
    name, old, new = answer["cluster"], answer["from"], answer["to"]
    reason = f": {answer['reason']}" if answer["reason"] else ""
    match answer["phase"]:
        case "Done":
            print(f"{name} was moved from {old} to {new}")
        case "Undone":
            print(f"{name} stays under {old}{reason}")
        case phase:
            print(f"{name} is on its way from {old} to {new} ({phase}{reason})")
