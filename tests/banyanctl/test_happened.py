"""`banyan events`: what is let through, and a watch that outlives its connections without showing anything twice."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from banyanctl import happened
from banyanctl.client import Client
from banyanctl.happened import Filter, chosen, follow
from cluster_controller.errors import InvalidInput, Unreachable
from tests.banyanctl.https import Asked, Authority, Reply, endpoint, serving

PATH = "/api/v1/events"


def event(
    name: str, reason: str = "LinkLost", *, kind: str = "Cluster", count: int = 1, at: int = 0, type: str = "Warning"
) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{name}.{reason}", "uid": f"{name}-{reason}", "resourceVersion": str(10 + at)},
        "involvedObject": {"kind": kind, "name": name},
        "reason": reason,
        "message": f"{name} {reason}",
        "type": type,
        "count": count,
        "lastTimestamp": f"2026-11-21T10:00:{at:02}Z",
    }


@pytest.mark.parametrize(
    ("wanted", "let"),
    [
        (Filter(), [True, True, True, True]),
        (Filter(kind="Cluster"), [True, False, False, False]),
        (Filter(kind="Application", name="emotion"), [False, True, True, False]),
        (Filter(reasons=("linklost",)), [True, False, False, False]),
        (Filter(warnings=True), [True, False, False, True]),
    ],
)
def test_what_is_let_through(wanted: Filter, let: list[bool]) -> None:
    found = [
        event("edge-1"),
        event("emotion", "Placed", kind="Application", type="Normal"),
        event("emotion.region-a", "Placed", kind="SubtreeApplication", type="Normal"),
        event("emotional", "Unplaced", kind="Application"),
    ]
    assert [wanted.lets(one) for one in found] == let


def test_options_name_what_exists() -> None:
    assert chosen("app/emotion", "LinkLost, Ready", True) == Filter("Application", "emotion", ("linklost", "ready"), True)
    with pytest.raises(InvalidInput, match="KIND/NAME"):
        chosen("emotion", "", False)
    with pytest.raises(InvalidInput, match="no kind"):
        chosen("tree/emotion", "", False)


class Controller:
    """Lists what happened so far; each watch answers with the next of ``watches`` and ends."""

    def __init__(self, *watches: list[dict[str, Any]]) -> None:
        self.happened: list[dict[str, Any]] = []
        self.watches = iter(watches)
        self.asked_from: list[str] = []
        self.down = 0  # so many requests are not answered

    def __call__(self, asked: Asked) -> Reply | None:
        if self.down:
            self.down -= 1
            return None
        if "watch=1" not in asked.path:
            return 200, {"metadata": {"resourceVersion": "20"}, "items": self.happened}
        self.asked_from.append(asked.path.partition("resourceVersion=")[2].partition("&")[0])
        changes = next(self.watches, [])
        return 200, b"".join(json.dumps(change).encode() + b"\n" for change in changes)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happened, "RETRY_SECONDS", (0.0, 0.0))


def watched(controller: Controller, folder: Path, count: int) -> list[str]:
    authority = Authority()
    with serving(authority, controller, folder) as (url, _), Client(endpoint(url, authority)) as client:
        found: Iterator[dict[str, Any]] = follow(client, PATH, Filter(), 10)
        return [f"{one['metadata']['name']} {one['count']}" for one in itertools.islice(found, count)]


def change(thing: dict[str, Any], kind: str = "ADDED") -> dict[str, Any]:
    return {"type": kind, "object": thing}


def test_a_watch_goes_on_after_its_connection_and_shows_nothing_twice(tmp_path: Path, quick: None) -> None:
    first, again, other = event("edge-1"), event("edge-1", count=2, at=5), event("edge-2", at=6)
    expired = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    controller = Controller([change(first), change(again, "MODIFIED")], [expired], [change(again, "MODIFIED"), change(other)])
    controller.happened = [first]
    assert watched(controller, tmp_path, 3) == ["edge-1.LinkLost 1", "edge-1.LinkLost 2", "edge-2.LinkLost 1"]
    assert controller.asked_from == ["20", "20", "20"]  # each goes on where the list before it ended


def test_it_waits_for_a_controller_that_is_away(tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    class Away(Controller):
        def __call__(self, asked: Asked) -> Reply | None:
            answer = super().__call__(asked)
            if "watch=1" in asked.path and not self.happened:
                self.down = 3
                self.happened = [event("edge-1"), event("edge-1", "Ready", type="Normal", at=1)]
            return answer

    controller = Away([change(event("edge-1"))])
    assert watched(controller, tmp_path, 2) == ["edge-1.LinkLost 1", "edge-1.Ready 1"]


def test_a_controller_that_cannot_be_reached_at_all_is_an_error(tmp_path: Path) -> None:
    controller = Controller()
    controller.down = 10
    with pytest.raises(Unreachable):
        watched(controller, tmp_path, 1)


def test_what_goes_is_no_news(tmp_path: Path, quick: None) -> None:
    controller = Controller([change(event("edge-1"), "DELETED"), change(event("edge-2"))])
    assert watched(controller, tmp_path, 1) == ["edge-2.LinkLost 1"]
