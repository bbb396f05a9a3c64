"""`banyan rollout`: what it asks of the API, what it says, and with which exit code it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from banyanctl.rollout import verdict
from tests.banyanctl.https import Authority, Reply, serving
from tests.banyanctl.test_commands import APPS, Api, Banyan

SHOP = f"{APPS}/shop"


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def banyan(api: Api, tmp_path: Path) -> Iterator[Banyan]:
    authority = Authority()
    with serving(authority, api, tmp_path) as (url, asked):
        yield Banyan(tmp_path, url, authority, asked)


def shop(
    phase: str = "Complete", reason: str = "", message: str = "all is well", *, seen: int = 2, uid: str = "u", **spec: Any
) -> dict[str, Any]:
    rollout = {"phase": phase, "reason": reason or phase, "message": message, "wave": 2, "waves": 3, "updated": 2, "clusters": 3}
    return {
        "kind": "Application",
        "metadata": {"name": "shop", "namespace": "default", "uid": uid, "generation": 2},
        "spec": {"components": [], "rollout": spec},
        "status": {
            "observedGeneration": seen, "phase": "Running", "ready": 3, "desired": 3, "updated": 2, "rollout": rollout,
            "clusters": [{"cluster": "x", "name": "edge-1", "path": ["region", "edge-1"], "ready": 1, "desired": 1}],
        },
    }  # fmt: skip


def found(document: dict[str, Any]) -> Reply:
    return 200, document


def test_status_waits_until_it_is_done_and_says_what_it_waits_for(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {SHOP}"] = [
        found(shop(seen=1)), found(shop("Progressing", message="wave 2 of 3: waits for edge-2")),
        found(shop("Progressing", message="wave 2 of 3: waits for edge-2")), found(shop()),
    ]  # fmt: skip
    done = banyan("rollout", "status", "application/shop")
    assert done.stderr.splitlines() == [
        "waits until the change has been seen",
        "wave 2 of 3: waits for edge-2 (3 of 3 replicas ready, 2 updated)",
    ]
    assert done.stdout.splitlines() == ["Complete: wave 2 of 3, 2 of 3 clusters", "  all is well (3 of 3 replicas ready, 2 updated)"]


@pytest.mark.parametrize(("phase", "reason"), [("Failed", "CrashLoopBackOff"), ("Complete", "RolledBack")])
def test_status_of_what_failed_ends_with_1(phase: str, reason: str, banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {SHOP}"] = found(shop(phase, reason, "wave 1 of 3 failed: edge-1"))
    done = banyan("rollout", "status", "shop", "-o", "json", code=1)
    assert json.loads(done.stdout)["verdict"] == "failed"
    assert "error: application shop: wave 1 of 3 failed: edge-1" in done.stderr


def test_status_gives_up_in_time_and_with_no_watch_at_once(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {SHOP}"] = found(shop("Progressing", message="wave 2 of 3: waits for edge-2"))
    assert "is not done after 0.1 s" in banyan("rollout", "status", "shop", "--timeout", "0.1", code=1).stderr
    done = banyan("rollout", "status", "shop", "--no-watch", "-o", "wide")
    assert "region/edge-1" in done.stdout
    assert done.stderr == ""


def test_an_application_of_that_name_that_is_another_is_not_taken_for_it(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {SHOP}"] = [found(shop("Progressing")), found(shop(uid="another"))]
    assert "was deleted" in banyan("rollout", "status", "shop", code=3).stderr


def test_without_waves_it_is_done_when_all_replicas_are_new_and_ready() -> None:
    document = shop()
    del document["status"]["rollout"]
    assert verdict(document) == ("done", "3 of 3 replicas ready, 2 updated")
    document["status"]["phase"] = "Degraded"
    document["status"]["conditions"] = [{"type": "Ready", "message": "serve: it ended"}]
    assert verdict(document) == ("going", "serve: it ended")


def test_pause_and_resume_write_what_kubectl_could(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {SHOP}"] = [found(shop("Progressing")), found(shop("Paused", paused=True)), found(shop("Paused", "Manual"))]
    api.replies[f"PATCH {SHOP}"] = found(shop())
    assert banyan("rollout", "pause", "shop").stdout == "application/shop paused\n"
    assert banyan("rollout", "resume", "shop").stdout == "application/shop goes on\n"
    banyan("rollout", "resume", "shop")
    pause, unpause, onward = [json.loads(asked.body) for asked in banyan.asked if asked.method == "PATCH"]
    assert pause == {"spec": {"rollout": {"paused": True}}}
    assert unpause["spec"] == {"rollout": {"paused": None}}
    assert list(onward) == ["metadata"]
    assert unpause["metadata"]["annotations"] != onward["metadata"]["annotations"]
    assert list(onward["metadata"]["annotations"]) == ["banyan.dev/rollout-resume"]


def test_pause_and_resume_of_what_is_so_already_are_refused(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {SHOP}"] = [found(shop(paused=True)), found(shop("Progressing"))]
    assert "is paused already" in banyan("rollout", "pause", "shop", code=5).stderr
    assert "waits for nobody" in banyan("rollout", "resume", "shop", code=5).stderr


def test_history_and_undo(banyan: Banyan, api: Api) -> None:
    items = [{"revision": number, "cause": f"c{number}", "spec": {"components": [number]}} for number in (1, 2)]
    api.replies[f"GET {SHOP}/history"] = (200, {"kind": "ApplicationHistory", "items": items})
    api.replies[f"POST {SHOP}/undo"] = found(shop())
    assert "c2" in banyan("rollout", "history", "shop").stdout
    assert json.loads(banyan("rollout", "history", "shop", "--revision", "2", "-o", "json").stdout)["spec"] == {"components": [2]}
    assert "has no revision 7; it has 1, 2" in banyan("rollout", "history", "shop", "--revision", "7", code=3).stderr
    banyan("rollout", "undo", "shop", "--to-revision", "1")
    assert json.loads(banyan.asked[-1].body) == {"toRevision": 1}
