"""A small change to every cluster and its word back; and, where it is asked for, an application started everywhere and ended.

The change is a label that the entry lays over each cluster: it is committed here, goes down by the same cursors as all that is wanted, is
committed at every hop, and the cluster's own API tells of it through the tree. Nothing selects by this label, nothing is started by it, and
it is taken away at the end. The application is one `sleep` for each process cluster: what it takes until the entry shows all of them ready
is placement, delivery, a process, and its status back.
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from banyanctl import kinds
from banyanctl.bench import record
from banyanctl.bench.record import Row
from banyanctl.bench.way import CLUSTERS, Stop
from banyanctl.client import Client
from banyanctl.endpoint import below
from cluster_controller.errors import BanyanError, NotFound, Unreachable

LABEL = "bench.banyan.dev/round"
MERGE = "application/merge-patch+json"
APPLICATIONS = kinds.find("applications")
POLL_SECONDS = 0.02


class Seen:
    """What the clusters' own APIs have told, by cluster."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._at: dict[tuple[str, str], float] = {}
        self._broken: list[BanyanError] = []

    def tell(self, cluster: str, word: str) -> None:
        with self._condition:
            self._at.setdefault((cluster, word), time.monotonic())
            self._condition.notify_all()

    def broke(self, error: BanyanError) -> None:
        with self._condition:
            self._broken.append(error)
            self._condition.notify_all()

    def wait(self, wanted: Mapping[str, float], word: str, seconds: float) -> dict[str, float]:
        """Seconds that each took, from its own beginning. Unreachable names who has not told."""
        with self._condition:
            done = self._condition.wait_for(lambda: self._broken or all((name, word) in self._at for name in wanted), seconds)
            if self._broken:
                raise self._broken[0]
            if not done:
                missing = ", ".join(sorted(name for name in wanted if (name, word) not in self._at)[:10])
                raise Unreachable(f"{missing} did not tell of a change within {seconds:g} s; see `banyan tree`")
            return {name: self._at[name, word] - began for name, began in wanted.items()}


def changes(client: Client, stops: Sequence[Stop], rounds: int, timeout: float, say: Callable[[str], None]) -> list[Row]:
    """Rows of a change on its way to each cluster below, and of the slowest of a round."""
    targets = [stop for stop in stops if stop.hops]
    if not targets:
        return []
    seen, watchers = Seen(), []
    mark = secrets.token_hex(4)  # what an earlier run left at a cluster that was out of reach is not this one's
    took: dict[str, list[float]] = {stop.title: [] for stop in targets}
    slowest = []
    try:
        for stop in targets:
            watchers.append(_watch(client, stop, seen, timeout))
        for number in range(rounds + 1):
            say(f"a change to {len(targets)} clusters, {number} of {rounds}")
            began, word = {}, f"{mark}-{number}"
            for stop in targets:
                began[stop.title] = time.monotonic()
                _label(client, stop, word)
            passed = seen.wait(began, word, timeout)
            if number:
                for name, each in passed.items():
                    took[name].append(1000 * each)
                slowest.append(1000 * max(passed.values()))
    finally:
        for watcher in watchers:
            watcher.interrupt()
        for stop in targets:
            with contextlib.suppress(NotFound):
                _label(client, stop, None)
    rows = [record.row(f"a change here → told by {stop.title}", took[stop.title], "ms") for stop in targets]
    return [*rows, record.row(f"a change here → told by the last of {len(targets)} clusters", slowest, "ms")]


def _label(client: Client, stop: Stop, word: str | None) -> None:
    client.json("PATCH", kinds.path(CLUSTERS, "", stop.name), None, {"metadata": {"labels": {LABEL: word}}}, content=MERGE)


def _watch(client: Client, stop: Stop, seen: Seen, timeout: float) -> Client:
    """Follows the cluster's own record of itself, from its own controller, on a connection of its own, until that is closed."""
    there = client.copy(below(client.endpoint, stop.name), timeout)
    listed = there.json("GET", kinds.path(CLUSTERS, ""))
    own = next((item for item in listed.get("items") or [] if not (item.get("status") or {}).get("path")), None)
    if own is None:
        raise Unreachable(f"{stop.title} does not list itself; is its version much older than this program's?")
    uid = own["metadata"]["uid"]
    query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}

    def follow() -> None:
        try:
            for line in there.lines(kinds.path(CLUSTERS, ""), query):
                found = json.loads(line).get("object") or {}
                if (found.get("metadata") or {}).get("uid") == uid:
                    seen.tell(stop.title, ((found.get("status") or {}).get("labels") or {}).get(LABEL, ""))
            seen.broke(Unreachable(f"{stop.title} ended the watch of its clusters"))
        except (BanyanError, ValueError, AttributeError) as error:
            seen.broke(error if isinstance(error, BanyanError) else Unreachable(f"the watch at {stop.title} broke: {error}"))

    threading.Thread(target=follow, daemon=True, name=f"watch-{stop.title}").start()
    return there


def started(client: Client, timeout: float, say: Callable[[str], None]) -> list[Row]:
    """An application on every process cluster here and below, until all of it is ready, and until it is gone."""
    clusters = [item for item in client.items(kinds.path(CLUSTERS, "")) if (item.get("status") or {}).get("phase") == "Ready"]
    names = sorted(str(item["metadata"]["name"]) for item in clusters if (item["status"].get("facts") or {}).get("shim") == "process")
    if not names:
        return []
    name = f"bench-{secrets.token_hex(4)}"
    path = kinds.path(APPLICATIONS, "default", name)
    say(f"starting {name} on {len(names)} clusters")
    began = time.monotonic()
    client.json("POST", kinds.path(APPLICATIONS, "default"), None, application(name, names))
    try:
        _until(lambda: _ready(client.json("GET", path), len(names)), timeout, f"{name} is ready on all of {len(names)} clusters")
        ready = time.monotonic() - began
    finally:
        ended = time.monotonic()
        client.json("DELETE", path)
    say(f"ending {name}")
    _until(lambda: _gone(client, path), timeout, f"{name} is gone")
    what = f"an application on {len(names)} process clusters"
    return [
        record.row(f"{what}: created → shown ready here", [1000 * ready], "ms"),
        record.row(f"{what}: deleted → ended everywhere", [1000 * (time.monotonic() - ended)], "ms"),
    ]


def application(name: str, clusters: Sequence[str]) -> dict[str, Any]:
    component = {"name": "sleep", "command": ["sleep", "3600"], "takesSocket": False, "resources": {"cpu": "1m", "memory": "4Mi"}}
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"components": [component], "placement": {"strategy": "Duplicated", "clusterNames": list(clusters)}},
    }


def _ready(found: Mapping[str, Any], wanted: int) -> bool:
    status = found.get("status") or {}
    return int(status.get("ready", 0)) >= wanted


def _gone(client: Client, path: str) -> bool:
    try:
        client.json("GET", path)
    except NotFound:
        return True
    return False


def _until(check: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise Unreachable(f"after {seconds:g} s it is still not so that {what}; see `banyan explain`")
        time.sleep(POLL_SECONDS)
