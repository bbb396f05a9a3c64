"""What the controller is told of instances that come and go, are not ready, or take too long. Pure."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cluster_shim.contract import Component, Instance, Phase, Work
from cluster_shim.process import observe
from cluster_shim.process.views import InstanceView
from tests.shim.harness import Asker, Driver, cluster, free_port, server, work

CRASHED: dict[str, Any] = {"reason": "Error", "message": "it exited with code 3", "exit_code": 3, "restarts": 4, "last_line": "boom"}


def view(phase: Phase, **fields: Any) -> InstanceView:
    return InstanceView(**{"id": "i", "phase": phase, "labels": {}, **fields})


@pytest.mark.parametrize(
    ("seen", "ready", "trouble", "wanted"),
    [
        (view(Phase.RUNNING), True, "", ("", "")),
        (view(Phase.STARTING), False, "", ("", "")),
        (view(Phase.RUNNING), False, "GET /: answered 503", ("NotReady", "the readiness probe fails: GET /: answered 503")),
        (view(Phase.BACKOFF, **CRASHED, failures=1, pause=0.5), False, "", ("Error", "it exited with code 3; its last log line: boom")),
        (
            view(Phase.BACKOFF, **CRASHED, failures=4, pause=4.0),
            False,
            "",
            (
                "CrashLoopBackOff",
                "it exited with code 3; its last log line: boom; restart 4 comes after a pause of 4 s",
            ),
        ),
        (
            view(Phase.RUNNING, **CRASHED, failures=4),
            False,
            "",
            ("CrashLoopBackOff", "it exited with code 3; its last log line: boom; restart 4 is not ready yet"),
        ),
        (view(Phase.RUNNING, **CRASHED, failures=4), True, "", ("", "")),
        (view(Phase.RUNNING, **CRASHED, failures=1), False, "", ("", "")),
        (view(Phase.STOPPING, **CRASHED, failures=9), False, "", ("", "")),
        (
            view(Phase.BACKOFF, **CRASHED | {"reason": "OOMKilled", "message": "too much"}, failures=3, pause=2.0),
            False,
            "",
            ("CrashLoopBackOff", "OOMKilled: too much; its last log line: boom; restart 4 comes after a pause of 2 s"),
        ),
        (
            view(Phase.BACKOFF, reason="StartFailed", message="x: No such file", failures=9, pause=60.0, restarts=9),
            False,
            "",
            ("StartFailed", "x: No such file; restart 9 comes after a pause of 60 s"),
        ),
    ],
)
def test_the_reason_of_an_instance(seen: InstanceView, ready: bool, trouble: str, wanted: tuple[str, str]) -> None:
    assert observe.condition(seen, Phase(seen.phase), ready=ready, trouble=trouble) == wanted


def test_a_new_revision_is_late_until_it_was_ready_once() -> None:
    progress = observe.Progress()
    one = Component(name="c", replicas=2, revision="a", command=("x",))
    limit = observe.PROGRESS_SECONDS

    def late(component: Component, ready: int, now: float) -> bool:
        wanted = [Work(uid="u", name="w", namespace="n", origin="o", version=1, components=(component,))]
        found = progress.late(wanted, lambda uid, each: ready, now)
        assert found in (set(), {("u", "c")})
        return bool(found)

    two = structs.replace(one, revision="b")
    assert [late(one, 1, 0.0), late(one, 1, limit - 1), late(one, 1, limit), late(one, 2, limit + 1)] == [False, False, True, False]
    assert not late(one, 0, 9 * limit), "it was ready: what goes wrong later is no rollout"
    assert [late(two, 0, 10 * limit), late(two, 1, 11 * limit)] == [False, True]
    assert not late(one, 0, 11 * limit + 1), "back to the first is a change like any other"
    assert progress.late([], lambda uid, each: 0, 20 * limit) == set()


def test_what_is_ready_of_another_revision_is_not_updated() -> None:
    part = Component(name="c", replicas=1, revision="b", command=("x",))
    wanted = Work(uid="u", name="w", namespace="n", origin="o", version=1, components=(part,))
    old = Instance(id="1", component="c", revision="a", phase=Phase.RUNNING, ready=True)
    new = Instance(id="2", component="c", revision="b", phase=Phase.RUNNING, reason="NotReady", message="503")
    (told,) = observe.observed_work("u", wanted, [old, new], {}, {}).components
    assert (told.ready, told.updated, told.reason) == (1, 0, "NotReady")
    (told,) = observe.observed_work("u", wanted, [old, new], {}, {}, late={("u", "c")}).components
    assert told.reason == "ProgressDeadlineExceeded"
    assert told.message == "its newest version is not ready after 600 s: 2: 503"
    looping = structs.replace(new, phase=Phase.BACKOFF, reason="CrashLoopBackOff")
    (told,) = observe.observed_work("u", wanted, [old, looping], {}, {}, late={("u", "c")}).components
    assert told.reason == "CrashLoopBackOff", "what is more precise stays"


def test_a_deadline_passes_and_the_old_one_serves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new revision starts for ever. When its time is over it says so; nothing else happens."""
    monkeypatch.setattr(observe, "PROGRESS_SECONDS", 1.0)

    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path, usage_seconds=0.2) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            before = await driver.until_ready()
            async with Asker(port) as asker:
                slow = structs.replace(server(version="v2", port=port, env={"SLOW_START": "600"}), readiness=None, takes_socket=True)
                probe = structs.replace(server(port=port).readiness, failure_threshold=1000)  # type: ignore[type-var]
                driver.want(work(structs.replace(slow, readiness=probe), version=2))
                works = await driver.until(lambda works: works["uid-1"].components[0].reason == "ProgressDeadlineExceeded")
                assert [i.id for i in works["uid-1"].instances if i.ready] == [before.instances[0].id]
                driver.want(work(server(version="v3", port=port), version=3))
                seen = await driver.until_ready(revision="v3")
                assert seen.components[0].reason == ""
            assert asker.failures == []
            assert "v2" not in asker.answers

    asyncio.run(scenario())
