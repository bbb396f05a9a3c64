"""`banyan cluster cordon|uncordon|drain`: nothing new on a cluster and what is below it; or nothing at all.

Each is an overlay of the controller that is asked: it flows down to the cluster, holds there also while nobody above is in reach, and what
one controller takes back stays for as long as another wants it.
"""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from banyanctl import kinds, output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from cluster_controller.errors import Conflict
from cluster_controller.resources.kinds import DRAIN, DRAIN_FORCED

KIND = kinds.find("clusters")
POLL_SECONDS = 0.5

Name = Annotated[str, typer.Argument(help="Name of the cluster, as `banyan tree` shows it.")]


@examples("banyan cluster cordon edge-3")
def cordon(name: Name) -> None:
    """Nothing new comes to a cluster or below it; what runs, runs on."""
    with settings().client() as client:
        changed = _lay(client, name, cordoned=True, drained=None)
    output.emit(changed, settings().output, lambda: print(f"cluster {name} cordoned; `banyan cluster uncordon {name}` ends it"))


@examples("banyan cluster uncordon edge-3")
def uncordon(name: Name) -> None:
    """Take back a cordon or a drain that was asked for here."""
    with settings().client() as client:
        changed = _lay(client, name, cordoned=False, drained=False)
        others = _others(client, changed)
    more = f"; it stays cordoned for {', '.join(others)}" if others else ""
    output.emit(changed, settings().output, lambda: print(f"cluster {name} uncordoned{more}"))


@examples("banyan cluster drain edge-3", "banyan cluster drain region-a --timeout 600", "banyan cluster drain edge-3 --timeout 0")
def drain(
    name: Name,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait until nothing runs there; 0: not.")
    ] = 300,
    force: Annotated[bool, typer.Option("--force", help="What has no room elsewhere ends too.")] = False,
) -> None:
    """Cordon a cluster and move away what runs on it and below, each replica only after the one before it has ended there.

    What has no room elsewhere stays, and is told; it goes as soon as there is room. What tolerates every taint stays. Clusters out of reach
    move their replicas when they are back.
    """
    with settings().client() as client:
        told = _Told(client)
        changed = _lay(client, name, cordoned=True, drained=True, force=force)
        left, silent = _wait(client, name, timeout, told)
    if left and timeout:
        there = ", ".join(f"{cluster} ({count})" for cluster, count in sorted(left.items()))
        why = "; ".join(told.found) or f"after {timeout:g} s instances still run on {there}"
        raise Conflict(
            f"{why}; the drain goes on: `banyan get pods` there says which run ({there}), make room elsewhere, "
            f"`--force` ends them, `banyan cluster uncordon {name}` takes it back"
        )
    said = "is drained" if timeout else "is being drained"
    later = f"; out of reach, and drained when back: {', '.join(silent)}" if silent else ""
    output.emit(changed, settings().output, lambda: print(f"cluster {name} {said}{later}; `banyan cluster uncordon {name}` ends it"))


def _lay(client: Client, name: str, *, cordoned: bool, drained: bool | None, force: bool = False) -> dict[str, Any]:
    """Change this controller's own overlay; its other taints stay. ``drained`` None: as it is."""
    path = kinds.path(KIND, "", name)
    document = client.json("GET", path)
    taints = list((document.get("spec") or {}).get("taints") or [])
    if drained is not None:
        taints = [taint for taint in taints if taint.get("key") != DRAIN]
    if drained:
        taints.append({"key": DRAIN, "effect": "NoExecute"} | ({"value": DRAIN_FORCED} if force else {}))
    patch = {
        "metadata": {"resourceVersion": document["metadata"]["resourceVersion"]},
        "spec": {"unschedulable": cordoned, "taints": taints},
    }
    changed: dict[str, Any] = client.json("PATCH", path, body=patch, content="application/merge-patch+json")
    return changed


def _others(client: Client, document: Mapping[str, Any]) -> list[str]:
    """Who else cordons it; the status still names this controller, whose word has just changed."""
    setters = {item.get("setBy", "") for item in (document.get("status") or {}).get("sources", []) if item.get("key") == "cordon"}
    if not setters:
        return []
    here = {item["metadata"]["name"] for item in client.items(kinds.path(KIND, "")) if not (item.get("status") or {}).get("path")}
    return sorted(setters - here)


class _Told:
    """What was said, since this was made, of replicas for which there is no room elsewhere."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before = self._counts()
        self.found: list[str] = []

    def _counts(self) -> dict[tuple[str, str], int]:
        items = self._client.items("/api/v1/events", {"fieldSelector": "reason=CannotDrain"})
        return {(item["involvedObject"]["name"], item.get("message", "")): item.get("count", 1) for item in items}

    def look(self, clusters: Iterable[str]) -> None:
        """Print what is new about these clusters."""
        among = set(clusters)
        for (cluster, message), count in sorted(self._counts().items()):
            line = f"{cluster}: {message}"
            if cluster in among and count > self._before.get((cluster, message), 0) and line not in self.found:
                self.found.append(line)
                print(line, file=sys.stderr, flush=True)


def _wait(client: Client, name: str, timeout: float, told: _Told) -> tuple[dict[str, int], list[str]]:
    """Instances that are left, by cluster, and clusters that nobody can ask."""
    deadline = time.monotonic() + timeout
    while True:
        left, silent = _running(client, name)
        if left and timeout:
            told.look(left)
        if not left or time.monotonic() >= deadline:
            return left, silent
        time.sleep(POLL_SECONDS)


def _running(client: Client, name: str) -> tuple[dict[str, int], list[str]]:
    left: dict[str, int] = {}
    silent = []
    items = client.items(kinds.path(KIND, ""))
    everywhere = any(item["metadata"]["name"] == name and not (item.get("status") or {}).get("path") for item in items)
    for item in items:
        status = item.get("status") or {}
        here = item["metadata"]["name"]
        if not everywhere and here != name and name not in (status.get("path") or [])[:-1]:
            continue
        if status.get("phase") != "Ready":
            silent.append(here)
        elif count := (status.get("facts") or {}).get("instances", 0):
            left[here] = count
    return left, sorted(silent)
