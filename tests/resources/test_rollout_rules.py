"""Which rollouts and orders of starts are accepted, and what is said of the others."""

from typing import Any

import pytest

from cluster_controller.resources import validate
from cluster_controller.resources.rollout_rules import cycle
from cluster_controller.resources.validate import InvalidDocument


def problems(components: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, str]:
    parts = components or [{"name": "web"}]
    document = {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"components": [{"command": ["run"], **part} for part in parts], **spec},
    }
    try:
        validate.check("Application", document)
    except InvalidDocument as error:
        return {each.field: each.message for each in error.problems}
    return {}


@pytest.mark.parametrize(
    "rollout",
    [
        {},
        {"wave": 1, "pauseSeconds": 10},
        {"waves": [{"clusterSelector": {"matchLabels": {"canary": "true"}}, "manual": True}, {"percent": 25, "pauseSeconds": 60}]},
        {"waves": [{"count": 1}], "wave": 10, "progressDeadlineSeconds": 60, "rollback": "Automatic", "paused": True},
    ],
)
def test_good_rollouts(rollout: dict[str, Any]) -> None:
    assert problems(rollout=rollout) == {}


@pytest.mark.parametrize(
    ("rollout", "field"),
    [
        ({"waves": [{}]}, "spec.rollout.waves[0]"),
        ({"waves": [{"count": 1, "percent": 5}]}, "spec.rollout.waves[0]"),
        ({"waves": [{"count": 1, "clusterSelector": {}}]}, "spec.rollout.waves[0]"),
        ({"waves": [{"clusterSelector": {"matchLabels": {"a b": "c"}}}]}, "spec.rollout.waves[0].clusterSelector"),
        ({"waves": [{"percent": 101}]}, "spec.rollout.waves[0].percent"),
        ({"waves": [{"count": 1}] * 51}, "spec.rollout.waves"),
        ({"wave": -1}, "spec.rollout.wave"),
        ({"progressDeadlineSeconds": 0}, "spec.rollout.progressDeadlineSeconds"),
        ({"rollback": "Always"}, "spec.rollout.rollback"),
        ({"maxSurge": 1}, "spec.rollout.maxSurge"),
    ],
)
def test_bad_rollouts_are_named(rollout: dict[str, Any], field: str) -> None:
    assert list(problems(rollout=rollout)) == [field]


def test_components_that_wait_for_each_other_are_named_in_order() -> None:
    parts = [{"name": "web", "dependsOn": ["api"]}, {"name": "api", "dependsOn": ["db"]}, {"name": "db", "dependsOn": ["web"]}]
    assert problems(parts) == {"spec.components.dependsOn": "web waits for api waits for db waits for web: nobody of them could ever start"}


def test_a_component_cannot_wait_for_itself_for_a_stranger_or_twice_for_one() -> None:
    assert list(problems([{"name": "web", "dependsOn": ["web"]}])) == ["spec.components.dependsOn"]
    assert problems([{"name": "web", "dependsOn": ["db"]}]) == {
        "spec.components[0].dependsOn[0]": "'db' is no component of this application; it has web"
    }
    assert list(problems([{"name": "web", "dependsOn": ["db", "db"]}, {"name": "db"}])) == ["spec.components[0].dependsOn[1]"]


def test_applications_to_wait_for_have_names_and_are_others() -> None:
    assert problems(dependsOn=["db"]) == {}
    assert list(problems(dependsOn=["Data Base"])) == ["spec.dependsOn[0]"]
    assert problems(dependsOn=["shop"]) == {"spec.dependsOn": "shop waits for shop: it could never start"}
    assert list(problems(dependsOn=[f"a{number}" for number in range(21)])) == ["spec.dependsOn"]


def test_cycle() -> None:
    assert cycle({}) == []
    assert cycle({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) == []
    assert cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert cycle({"a": ["gone"]}) == []
    long = {str(number): [str(number + 1)] for number in range(5000)} | {"5000": ["0"]}
    assert len(cycle(long)) == 5002
