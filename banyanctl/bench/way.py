"""Round trips and rates to each cluster's own controller, and what each hop adds.

Every round asks every cluster once, so that a machine that gets busy meets them all. A hop adds the difference between the medians of the
cluster and of its parent: what lies between is that link and two controllers. As a difference of two medians it is too unsteady to be held
against another run; the two are. The rate is of answers of the API (its own description),
several at a time: it says what passes on the way there, not what one link could carry alone.
"""

import http.client
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from banyanctl import kinds
from banyanctl.bench import record
from banyanctl.bench.asking import Asking
from banyanctl.bench.record import Row
from banyanctl.client import Client
from banyanctl.endpoint import below
from cluster_controller.errors import Unreachable

CLUSTERS = kinds.find("clusters")
PING, BULK = "/healthz", "/openapi/v3/apis/banyan.dev/v1alpha1"
AT_ONCE = 4  # downloads at the same time
MIB = 1024.0 * 1024.0


class Stop(Struct, frozen=True, kw_only=True):
    """A controller that is asked. ``name`` empty: the one that was entered by."""

    name: str
    title: str
    parent: str
    hops: int


def stops(clusters: Sequence[Mapping[str, Any]], most: int) -> tuple[list[Stop], int]:
    """The entry and what is Ready below it, nearest first and at most ``most``; and how many of them were left out."""
    found, entry = [], Stop(name="", title="the controller that is asked", parent="", hops=0)
    for item in clusters:
        status = item.get("status") or {}
        path, name = list(status.get("path") or []), str((item.get("metadata") or {}).get("name", ""))
        if not path:
            entry = Stop(name="", title=name, parent="", hops=0)
        elif status.get("phase") == "Ready":
            found.append(Stop(name=name, title=name, parent=str(path[-2]) if len(path) > 1 else "", hops=len(path)))
    found.sort(key=lambda stop: (stop.hops, stop.title))
    return [entry, *found[:most]], max(0, len(found) - most)


class Way:
    """Asks the controllers of a tree, each over a connection of its own to the entry."""

    def __init__(self, client: Client, found: Sequence[Stop], timeout: float) -> None:
        self.stops = list(found)
        self._client = client
        self._timeout = timeout

    def asking(self, stop: Stop) -> Asking:
        endpoint = below(self._client.endpoint, stop.name) if stop.name else self._client.endpoint
        return Asking(endpoint, self._timeout)

    def round_trips(self, rounds: int, say: Callable[[str], None]) -> list[Row]:
        connections = [self.asking(stop) for stop in self.stops]
        took: list[list[float]] = [[] for _ in self.stops]
        try:
            for number in range(rounds + 1):
                say(f"round trips, {number} of {rounds}")
                for stop, connection, mine in zip(self.stops, connections, took, strict=True):
                    passed = _timed(stop, connection)
                    if number:  # the first one makes connections
                        mine.append(1000 * passed)
        finally:
            for connection in connections:
                connection.close()
        return self._rows(took)

    def _rows(self, took: Sequence[Sequence[float]]) -> list[Row]:
        rows = []
        by_title = {stop.title: samples for stop, samples in zip(self.stops, took, strict=True)}
        for stop, samples in zip(self.stops, took, strict=True):
            rows.append(record.row(f"round trip to {stop.title} ({_hops(stop.hops)})", samples, "ms"))
            before = by_title.get(stop.parent) or (took[0] if stop.hops == 1 else None)
            if stop.hops and before:
                added = [mine - other for mine, other in zip(samples, before, strict=True)]
                rows.append(
                    record.row(f"added by the hop {stop.parent or self.stops[0].title} → {stop.title}", added, "ms", compared=False)
                )
        return rows

    def rates(self, seconds: float, rounds: int, say: Callable[[str], None]) -> list[Row]:
        """MiB/s of answers, each stop for ``seconds`` a round, in turns."""
        found: list[list[float]] = [[] for _ in self.stops]
        for number in range(rounds):
            for stop, mine in zip(self.stops, found, strict=True):
                say(f"rate to {stop.title}, round {number + 1} of {rounds}")
                mine.append(self._rate(stop, seconds))
        note = f"answers of the API, {AT_ONCE} at a time"
        return [
            record.row(f"rate from {stop.title} ({_hops(stop.hops)})", mine, "MiB/s", note)
            for stop, mine in zip(self.stops, found, strict=True)
        ]

    def _rate(self, stop: Stop, seconds: float) -> float:
        lock, passed, trouble = threading.Lock(), [0], []
        ready, end = threading.Barrier(AT_ONCE + 1, timeout=self._timeout), [0.0]

        def work() -> None:
            connection = self.asking(stop)
            try:
                _timed(stop, connection)
                ready.wait()
                while time.monotonic() < end[0]:
                    size = len(_asked(stop, connection, BULK))
                    with lock:
                        passed[0] += size
            except (Unreachable, threading.BrokenBarrierError) as error:
                trouble.append(error)
                ready.abort()
            finally:
                connection.close()

        workers = [threading.Thread(target=work, daemon=True, name=f"rate-{number}") for number in range(AT_ONCE)]
        end[0] = time.monotonic() + self._timeout + seconds
        for worker in workers:
            worker.start()
        try:
            ready.wait()
            began = time.monotonic()
            end[0] = began + seconds
        except threading.BrokenBarrierError:
            began = time.monotonic()
        for worker in workers:
            worker.join(seconds + 2 * self._timeout)
        if real := [error for error in trouble if isinstance(error, Unreachable)]:
            raise real[0]
        return passed[0] / MIB / max(time.monotonic() - began, 1e-9)


def _timed(stop: Stop, connection: Asking) -> float:
    began = time.perf_counter()
    _asked(stop, connection, PING)
    return time.perf_counter() - began


def _asked(stop: Stop, connection: Asking, path: str) -> bytes:
    try:
        status, body, _ = connection.ask("GET", path)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{stop.title} did not answer: {error}; see `banyan tree`, and leave it out with --selector") from error
    if status != 200:
        raise Unreachable(f"{stop.title} answered {status} to GET {path}: {body[:200].decode('utf-8', 'replace').strip()}")
    return body


def _hops(count: int) -> str:
    return f"{count} hop" if count == 1 else f"{count} hops"
