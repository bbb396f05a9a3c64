"""`banyan rollout`: how far a new version is, hold it up, let it go on, go back; the names and exit codes are those of `kubectl rollout`.

All of it is the ordinary API: `spec.rollout.paused`, the annotation `banyan.dev/rollout-resume`, `status.rollout`, the condition
Progressing, and the subresources history and undo. So kubectl and other programs can do the same.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from banyanctl import application as versions
from banyanctl import kinds, objects, output
from banyanctl.cli import Command, application, examples, settings
from banyanctl.client import Client
from cluster_controller.errors import BanyanError, Conflict, NotFound, Unreachable
from cluster_controller.resources.registry import ROLLOUT_RESUME

app = application("New versions on their way through the tree: status, pause, resume, undo, history.")
KIND = versions.KIND
MERGE = "application/merge-patch+json"
LOOK_SECONDS = 0.5
WAITS_FOR_SOMEBODY = ("Paused", "Failed")

Clock = Callable[[], float]


class NotDone(BanyanError):
    """The rollout has failed, or did not end in time."""


def read(client: Client, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.json("GET", kinds.path(KIND, namespace, name))
    return found


def verdict(document: Mapping[str, Any]) -> tuple[str, str]:
    """(done, failed or going; a sentence) for an Application."""
    status = document.get("status") or {}
    rollout = status.get("rollout")
    ready: Mapping[str, Any] = next((each for each in status.get("conditions") or [] if each["type"] == "Ready"), {})
    counts = f"{status.get('ready', 0)} of {status.get('desired', 0)} replicas ready, {status.get('updated', 0)} updated"
    if status.get("observedGeneration") != document["metadata"].get("generation"):
        return "going", "waits until the change has been seen"
    if rollout is None:
        return ("done", counts) if status.get("phase") == "Running" else ("going", ready.get("message") or counts)
    message = f"{rollout.get('message', '')} ({counts})"
    if rollout["phase"] == "Failed" or rollout.get("reason") == "RolledBack":
        return "failed", message
    return ("done" if rollout["phase"] == "Complete" else "going"), message


@app.command(cls=Command)
@examples(
    "banyan rollout status emotion", "banyan rollout status emotion --timeout 300", "banyan rollout status emotion --no-watch -o json"
)
def status(
    which: versions.Which,
    namespace: objects.Namespace = "",
    watch: Annotated[bool, typer.Option("--watch/--no-watch", "-w", help="Until it is done, or has failed.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after so long.", show_default="never")] = 0,
) -> None:
    """How far the newest version is. Exit code 0: done, or asked with --no-watch; 1: failed, rolled back, or not done in time."""
    name = versions.name_of(which)
    with settings().client() as client:
        space = namespace or client.endpoint.namespace
        found = follow(client, space, name, timeout) if watch else read(client, space, name)
    output.emit(_for_programs(found), settings().output, lambda: _show(found, wide=settings().output == "wide"))
    what, message = verdict(found)
    if what == "failed":
        raise NotDone(f"application {name}: {message}")
    if watch and what != "done":
        raise NotDone(f"application {name} is not done after {timeout:g} s: {message}")


def follow(client: Client, namespace: str, name: str, timeout: float, clock: Clock = time.monotonic) -> dict[str, Any]:
    """Read until it is done, has failed, or the time is up; tells what changes. A controller that restarts meanwhile is waited for."""
    until = clock() + timeout if timeout else None
    told = ""
    uid = ""
    while True:
        try:
            found = read(client, namespace, name)
        except Unreachable as error:
            if not uid or (until is not None and clock() >= until):
                raise
            message = str(error)
        else:
            if uid and found["metadata"]["uid"] != uid:
                raise NotFound(f"application {namespace}/{name} was deleted, and another one of that name was created")
            uid = found["metadata"]["uid"]
            what, message = verdict(found)
            if what != "going" or (until is not None and clock() >= until):
                return found
        if message != told:
            output.note(message)
            told = message
        time.sleep(LOOK_SECONDS)


def _for_programs(document: Mapping[str, Any]) -> dict[str, Any]:
    what, message = verdict(document)
    known = document.get("status") or {}
    keys = ("phase", "desired", "ready", "updated", "unplaced", "rollout", "conditions", "clusters")
    return {
        "kind": "Rollout",
        "metadata": {key: document["metadata"].get(key) for key in ("name", "namespace", "uid", "generation")},
        "verdict": what,
        "message": message,
        **{key: known[key] for key in keys if key in known},
    }


def _show(document: Mapping[str, Any], *, wide: bool) -> None:
    known = document.get("status") or {}
    rollout = known.get("rollout") or {}
    what, message = verdict(document)
    phase = rollout.get("phase") or {"done": "Complete", "going": "Progressing"}[what]
    waves = f"wave {rollout['wave']} of {rollout['waves']}" if rollout else "no waves"
    print(f"{phase}: {waves}, {rollout.get('updated', 0)} of {rollout.get('clusters', 0)} clusters" if rollout else f"{phase}: {waves}")
    print(f"  {message}")
    for level in rollout.get("below") or []:
        at, all_ = level.get("wave", 0), level.get("waves", 0)
        print(f"  {'/'.join(level['path'])}: {level['phase']}, wave {at} of {all_}, {level['updated']} of {level['clusters']} clusters")
    if wide:
        rows = [
            ("/".join(row.get("path") or []) or row.get("name", ""), row.get("ready", 0), row.get("desired", 0), row.get("reason", ""),
             row.get("message", ""))
            for row in known.get("clusters") or []
        ]  # fmt: skip
        output.table(("cluster", "ready", "desired", "reason", "message"), rows, empty="no cluster runs it")


@app.command(cls=Command)
@examples("banyan rollout pause emotion")
def pause(which: versions.Which, namespace: objects.Namespace = "") -> None:
    """Change no further cluster until `banyan rollout resume`. What runs, runs on; a cluster that is cut off does not hear of it."""
    name = versions.name_of(which)
    with settings().client() as client:
        space = namespace or client.endpoint.namespace
        if _paused(read(client, space, name)):
            raise Conflict(f"application {space}/{name} is paused already")
        changed = client.json("PATCH", kinds.path(KIND, space, name), body={"spec": {"rollout": {"paused": True}}}, content=MERGE)
    output.emit(changed, settings().output, lambda: print(f"application/{name} paused"))


@app.command(cls=Command)
@examples("banyan rollout resume emotion")
def resume(which: versions.Which, namespace: objects.Namespace = "") -> None:
    """Let a rollout go on that is paused, asks after a wave, or has failed (then what failed is given its time again)."""
    name = versions.name_of(which)
    with settings().client() as client:
        space = namespace or client.endpoint.namespace
        found = read(client, space, name)
        rollout = (found.get("status") or {}).get("rollout") or {}
        if not _paused(found) and rollout.get("phase") not in WAITS_FOR_SOMEBODY:
            raise Conflict(f"application {space}/{name} waits for nobody: {verdict(found)[1]}")
        patch: dict[str, Any] = {"metadata": {"annotations": {ROLLOUT_RESUME: datetime.now(UTC).isoformat(timespec="microseconds")}}}
        if _paused(found):
            patch["spec"] = {"rollout": {"paused": None}}
        changed = client.json("PATCH", kinds.path(KIND, space, name), body=patch, content=MERGE)
    output.emit(changed, settings().output, lambda: print(f"application/{name} goes on"))


def _paused(document: Mapping[str, Any]) -> bool:
    return bool(((document.get("spec") or {}).get("rollout") or {}).get("paused"))


@app.command(cls=Command)
@examples("banyan rollout undo emotion", "banyan rollout undo emotion --to-revision 3")
def undo(
    which: versions.Which,
    namespace: objects.Namespace = "",
    to: Annotated[
        int, typer.Option("--to-revision", metavar="REVISION", help="The version to go back to.", show_default="the last that was well")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would be, and change nothing.")] = False,
) -> None:
    """Go back to an earlier version that was well, as `banyan undo`. To the last one that was complete all clusters go at once."""
    versions.undo(which, namespace, to, dry_run)


@app.command(cls=Command)
@examples("banyan rollout history emotion", "banyan rollout history emotion --revision 2 -o yaml")
def history(
    which: versions.Which,
    namespace: objects.Namespace = "",
    revision: Annotated[int, typer.Option("--revision", metavar="REVISION", help="One version, whole.", show_default="all")] = 0,
) -> None:
    """Earlier versions, as `banyan history`; or one of them, whole."""
    if not revision:
        versions.history(which, namespace)
        return
    name = versions.name_of(which)
    with settings().client() as client:
        space = namespace or client.endpoint.namespace
        items = client.json("GET", kinds.path(KIND, space, name, "history")).get("items") or []
    found = next((item for item in items if item["revision"] == revision), None)
    if found is None:
        have = ", ".join(str(item["revision"]) for item in items)
        raise NotFound(f"application {space}/{name} has no revision {revision}; it has {have}")
    form = settings().output
    output.emit(found, "yaml" if form in {"table", "wide"} else form, lambda: None)
