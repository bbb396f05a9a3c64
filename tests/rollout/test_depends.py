"""Who waits for whom at one target, and across targets."""

import pytest

from cluster_controller.resources.kinds import Component
from cluster_controller.rollout.depends import Given, waiting

COMPONENTS = [Component(name="db", replicas=1), Component(name="web", replicas=2, depends_on=["db"])]
ME = "me"


def held(picture: dict[str, dict[str, Given]], outside: list[str] | None = None) -> dict[str, dict[str, str]]:
    return waiting(COMPONENTS, picture, own=ME, outside=outside or [])


@pytest.mark.parametrize(
    ("db", "expected"),
    [
        (Given(share=1), "waits for db (0 of 1 ready)"),
        (Given(share=1, told=1), "waits for db (0 of 1 ready)"),
        (Given(share=2, told=2, ready=1), "waits for db (1 of 2 ready)"),
        (Given(share=1, told=1, ready=1, well=True), ""),
        (Given(), "waits for db (nobody runs it yet)"),
    ],
)
def test_on_the_own_cluster(db: Given, expected: str) -> None:
    assert held({ME: {"db": db, "web": Given(share=2)}}) == ({ME: {"web": expected}} if expected else {})


def test_what_has_started_is_never_taken_back() -> None:
    assert held({ME: {"db": Given(share=1), "web": Given(share=3, told=1)}}) == {}


def test_a_child_that_has_both_orders_them_itself() -> None:
    assert held({"edge": {"db": Given(share=1), "web": Given(share=2)}}) == {}


def test_what_others_run_must_be_ready_wherever_it_can_be_heard() -> None:
    web = {"web": Given(share=2)}
    well = Given(share=1, told=1, ready=1, well=True)
    assert held({"a": {"db": Given(share=1, told=1)}, "b": web}) == {"b": {"web": "waits for db (0 of 1 ready)"}}
    assert held({"a": {"db": well}, "b": web}) == {}
    cut = Given(share=1, told=1, reachable=False)
    assert held({"a": {"db": well}, "c": {"db": cut}, "b": web}) == {}
    assert list(held({"c": {"db": cut}, "b": web})) == ["b"]


def test_something_that_nobody_wants_is_not_waited_for() -> None:
    parts = [Component(name="db", replicas=0), COMPONENTS[1]]
    assert waiting(parts, {ME: {"web": Given(share=1)}}, own=ME, outside=[]) == {}


def test_what_the_whole_application_waits_for_holds_every_component() -> None:
    found = held({ME: {"db": Given(share=1), "web": Given(share=2)}}, ["application store (0 of 1 ready)"])
    assert found[ME] == {
        "db": "waits for application store (0 of 1 ready)",
        "web": "waits for application store (0 of 1 ready), db (0 of 1 ready)",
    }
