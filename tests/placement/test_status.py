"""An Application's verdict: what is broken is told, whatever else is still on its way."""

import pytest

from cluster_controller.placement.status import application_status
from cluster_controller.resources import kinds

STARTING = kinds.ComponentStatus(name="good", desired=1, ready=1, updated=1, reason="Starting", message="waiting")
REFUSED = kinds.ComponentStatus(name="bad", desired=1, reason="Invalid", message="port 99999")


def verdict(*components: kinds.ComponentStatus) -> tuple[str, str, str]:
    application = kinds.Application(spec=kinds.ApplicationSpec(components=[]))
    status = application_status(application, kinds.WorkStatusStatus(components=list(components)), (), "now")
    ready = next(condition for condition in status.conditions if condition.type == "Ready")
    return status.phase, ready.reason, ready.message


@pytest.mark.parametrize("components", [(STARTING, REFUSED), (REFUSED, STARTING)])
def test_what_is_broken_is_told_and_not_what_is_on_its_way(components: tuple[kinds.ComponentStatus, ...]) -> None:
    assert verdict(*components) == ("Degraded", "Invalid", "1 of 2 replicas ready; bad: port 99999")


def test_what_is_on_its_way_alone_is_no_trouble() -> None:
    begun = kinds.ComponentStatus(name="good", desired=1, reason="Starting", message="waiting")
    assert verdict(begun) == ("Progressing", "Progressing", "0 of 1 replicas ready, 0 updated")
