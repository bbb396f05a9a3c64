"""`banyan drill`: play a fault on one's own tree: a plan, a confirmation, an end that does not need this program, and a report.

The controller that is drilled ends the fault by a timer of its own and keeps the report; this program only waits for it.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from banyanctl import arguments, kinds, output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.client import Client
from cluster_controller.errors import BanyanError, Conflict, Unreachable

app = application("Play a fault on your own tree, and see what it keeps.")
KIND = kinds.find("clusters")
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 180.0  # beyond the fault itself: until the cluster is in reach again and has reported
LONGEST_NAMES = 10

Name = Annotated[str, typer.Argument(help="The cluster, as `banyan tree` shows it.")]
Target = Annotated[str, typer.Argument(metavar="[NAMESPACE/]APPLICATION[/COMPONENT]", help="Whose instances on that cluster.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the report.")]


@app.command(cls=Command)
@examples("banyan drill cut edge-1 --for 60s", "banyan drill cut region-a --for 5m --yes")
def cut(
    name: Name,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="How long, as in 30s, 5m; at most an hour.")] = "30s",
    yes: Yes = False,
    wait: Wait = True,
) -> None:
    """Cut a controller off from everything above it, for a bounded time."""
    seconds = arguments.seconds(lasting, "--for")
    plan = f"{name} lets go of its parent, and of every other that could take it in, for {seconds} s; then it dials again by itself"
    _play(name, {"fault": "cut", "seconds": seconds}, plan, seconds, yes=yes, wait=wait)


@app.command(cls=Command)
@examples("banyan drill restart edge-1")
def restart(name: Name, yes: Yes = False, wait: Wait = True) -> None:
    """Restart a controller. What its cluster runs runs on."""
    _play(name, {"fault": "restart", "seconds": 1}, f"the controller of {name} stops and begins anew", 1, yes=yes, wait=wait)


@app.command(cls=Command)
@examples("banyan drill kill edge-1 shop/web", "banyan drill kill edge-1 shop/web/serve --yes")
def kill(name: Name, target: Target, yes: Yes = False, wait: Wait = True) -> None:
    """Kill instances of one application on one cluster. They are started again."""
    whose = _target(target)
    plan = f"every instance of {whose} on {name} is killed (SIGKILL); the cluster starts them again"
    _play(name, {"fault": "kill", "seconds": 1, "target": whose}, plan, 1, yes=yes, wait=wait)


@app.command(cls=Command)
@examples("banyan drill freeze edge-1 shop/web --for 30s")
def freeze(
    name: Name,
    target: Target,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="How long, as in 30s, 5m; at most an hour.")] = "30s",
    yes: Yes = False,
    wait: Wait = True,
) -> None:
    """Stop instances of one application on one cluster in the midst of their work, for a bounded time: they neither answer nor end."""
    whose, seconds = _target(target), arguments.seconds(lasting, "--for")
    plan = (
        f"every instance of {whose} on {name} stands still (SIGSTOP) for {seconds} s, then goes on; a liveness probe may restart it before"
    )
    _play(name, {"fault": "freeze", "seconds": seconds, "target": whose}, plan, seconds, yes=yes, wait=wait)


def _target(word: str) -> str:
    """With its namespace: `web` is that of the person who asks."""
    return word if "/" in word else f"{settings().namespace or 'default'}/{word}"


@app.command(cls=Command)
@examples("banyan drill status edge-1", "banyan drill status edge-1 -o json")
def status(name: Name) -> None:
    """The last drill of a controller: whether it is over, and what was kept."""
    with settings().client() as client:
        report = _ask(_there(client, name), name, "GET")
    output.emit(report, settings().output, lambda: _say(name, report))


def _play(name: str, body: Mapping[str, Any], plan: str, seconds: float, *, yes: bool, wait: bool) -> None:
    with settings().client() as client:
        cluster = client.json("GET", kinds.path(KIND, "", name))
        _refuse(name, cluster)
        output.note(_plan(plan, client, name, cluster, strikes="target" in body))
        if not yes:
            output.ask(f"Play this on {name}?", "--yes")
        there = _there(client, name, cluster)
        report = _ask(there, name, "POST", body)
        if wait:
            with output.progress(f"{name} is being drilled; it ends by itself"):
                report = _awaited(there, name, report, seconds + PATIENCE_SECONDS)
    output.emit(report, settings().output, lambda: _say(name, report))


def _refuse(name: str, cluster: Mapping[str, Any]) -> None:
    phase = (cluster.get("status") or {}).get("phase", "")
    if phase != "Ready":
        raise Conflict(f"{name} is {phase or 'not known well'}; a drill begins with what is well: see `banyan tree`")


def _plan(plan: str, client: Client, name: str, cluster: Mapping[str, Any], *, strikes: bool) -> str:
    state = cluster.get("status") or {}
    facts = state.get("facts") or {}
    below = [
        str(one["metadata"]["name"])
        for one in client.items(kinds.path(KIND, ""))
        if name in ((one.get("status") or {}).get("path") or [])[:-1]
    ]
    lines = [
        f"plan      {plan}",
        f"touches   {name}: {facts.get('applications', 0)} applications, {facts.get('instances', 0)} instances, "
        + ("of which only those are touched" if strikes else "which shall run on"),
    ]
    if below:
        names = ", ".join(below[:LONGEST_NAMES]) + (" …" if len(below) > LONGEST_NAMES else "")
        lines.append(f"below it  {len(below)} clusters, which go with it or find another way: {names}")
    lines.append(f"the end   a timer of {name} itself, whatever becomes of this program; a restart ends it too")
    return "\n".join(lines)


def _there(client: Client, name: str, cluster: Mapping[str, Any] | None = None) -> Client:
    """The controller itself: the one that is asked, or one below it."""
    found = cluster or client.json("GET", kinds.path(KIND, "", name))
    return client.at(name) if (found.get("status") or {}).get("path") else client


def _ask(there: Client, name: str, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = there.json(method, kinds.path(KIND, "", name, "drill"), body=body)
    return answer


def _awaited(there: Client, name: str, report: dict[str, Any], patience: float) -> dict[str, Any]:
    """Until the controller says that it is over. Unreachable when it does not come back in time; the drill ends all the same."""
    began, deadline = report["began"], time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        try:
            report = _ask(there, name, "GET")
        except BanyanError:
            continue  # it is cut off, or not up again: that is the drill
        if report["state"] == "ended" and report["began"] == began:
            return report
    raise Unreachable(f"{name} has not reported within {patience:.0f} s; see `banyan tree`, and later `banyan drill status {name}`")


def _say(name: str, report: Mapping[str, Any]) -> None:
    if report["state"] != "ended":
        print(f"{name}: {report['fault']} since {report['began']}, asked for by {report['by']}; it ends by itself")
        return
    print(f"{name}: {report['fault']}, {report['began']} to {report['ended']}, asked for by {report['by']}")
    print(f"  kept    {report['kept']} of {report['instances']} instances of {report['applications']} applications")
    if report.get("target"):
        print(f"  struck  {', '.join(report['struck'])}: {report['target']} is {'well again' if report['recovered'] else 'NOT well again'}")
    if report["lost"]:
        print(f"  lost    {', '.join(report['lost'])}")
    if report["fresh"]:
        print(f"  fresh   {report['fresh']} instances came meanwhile")
    print(f"  parent  {'in reach again' if report['parent'] else 'NOT back within two minutes; see `banyan tree`'}")
