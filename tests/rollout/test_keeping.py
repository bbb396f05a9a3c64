"""What a target's answer means for a rollout, also from programs of the neighbouring version."""

from typing import Any

import msgspec
import pytest

from cluster_controller.resources import kinds
from cluster_controller.rollout.keeping import judge

PART = kinds.ComponentStatus(name="serve", desired=2, ready=2, updated=2)
REFERENCE = kinds.ApplicationReference(uid="u", name="shop")
WORK = kinds.WorkSpec(
    application=REFERENCE,
    cluster="c",
    shares=[kinds.Share(allotter="me", id=7)],
    components=[kinds.Component(name="serve", command=["x"], replicas=2)],
    revision="new",
)
GOOD = kinds.WorkStatusStatus(version=7, seen=7, components=[PART])


def status(**fields: Any) -> kinds.WorkStatusStatus:
    return msgspec.structs.replace(GOOD, **fields)


def part(**fields: Any) -> list[kinds.ComponentStatus]:
    return [msgspec.structs.replace(PART, **fields)]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (None, "going"),
        (status(seen=6), "going"),
        (status(), "done"),
        (status(version=0), "going"),  # what is replaced still ends
        (status(components=[]), "going"),
        (status(components=part(ready=1)), "going"),
        (status(components=part(updated=1)), "going"),
        (status(components=part(ready=1, updated=1, unplaced=1)), "done"),
        (status(components=part(updated=0, reason="Pinned")), "done"),  # the site keeps its version: nobody waits for it
        (status(version=0, components=part(reason="CrashLoopBackOff")), "failed"),
        (status(version=6, seen=6, components=part(reason="CrashLoopBackOff")), "going"),  # of the version before, perhaps
    ],
)
def test_by_the_counts_of_the_own_cluster_or_of_an_older_program(answer: kinds.WorkStatusStatus | None, verdict: str) -> None:
    assert judge(WORK, answer, own=True)[0] == verdict
    assert judge(WORK, answer, own=False)[0] == verdict


@pytest.mark.parametrize(
    ("phase", "verdict"),
    [("Complete", "done"), ("Failed", "failed"), ("Paused", "asking"), ("Progressing", "judging"), ("Later", "judging")],
)
def test_by_what_a_controller_says_of_its_own_waves(phase: str, verdict: str) -> None:
    told = kinds.RolloutStatus(revision="new", phase=phase, reason="Because", message="it is so")
    assert judge(WORK, status(rollout=told), own=False) == (verdict, "Because", "it is so")
    assert judge(WORK, status(rollout=told, seen=6), own=False)[0] == "going", "it was said before the newest share"
    other = msgspec.structs.replace(told, revision="old")
    assert judge(WORK, status(rollout=other, components=part(updated=0)), own=False)[0] == "going", "it was said of another version"


def test_nothing_was_told() -> None:
    assert judge(None, GOOD, own=True)[0] == "going"
