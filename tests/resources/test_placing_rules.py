"""A placement that would be ignored, or that contradicts itself, is refused by its field."""

from typing import Any

import msgspec
import pytest

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds, validate
from cluster_controller.resources.placing_rules import hourly_cost_problem
from tests.resources.test_validate import P, application, problems

CHEAPEST = {"by": "LowestCost"}
TERM = {"weight": 1, "selector": {"matchLabels": {"a": "b"}}}
BAD = {"matchExpressions": [{"key": "a", "operator": "In"}]}


def test_all_of_it_together_is_accepted() -> None:
    placement = {
        "affinity": {"clusters": [TERM]},
        "spread": [{"topologyKey": "zone", "maxSkew": 2}, {"whenUnsatisfiable": "ScheduleAnyway"}],
        "division": {"by": "LowestCost", "min": 1, "max": 3},
        "cost": {"weight": 2},
        "latency": {"to": ["edge-1"], "weight": 5, "maxMillis": 50},
    }
    found = validate.decode("Application", msgspec.json.encode(application(placement=placement)))
    assert isinstance(found, kinds.Application)
    assert found.spec.placement.latency == kinds.LatencyWish(to=["edge-1"], weight=5, max_millis=50)
    assert not problems("Application", application(placement={"division": {"by": "Weights", "weights": [{"weight": 2}]}}))


@pytest.mark.parametrize(
    ("placement", "field"),
    [
        ({"affinity": {"clusters": [TERM | {"weight": 0}]}}, f"{P}.affinity.clusters[0].weight"),
        ({"affinity": {"clusters": [TERM | {"selector": BAD}]}}, f"{P}.affinity.clusters[0].selector.matchExpressions[0].values"),
        ({"affinity": {"clusters": [TERM] * 51}}, f"{P}.affinity.clusters"),
        ({"affinity": {"applications": [{"name": "A"}]}}, f"{P}.affinity.applications[0].name"),
        ({"antiAffinity": {"applications": [{"name": "a", "topologyKey": "a b"}]}}, f"{P}.antiAffinity.applications[0].topologyKey"),
        ({"strategy": "Duplicated", "antiAffinity": {"applications": [{"name": "a", "weight": 3}]}},
         f"{P}.antiAffinity.applications[0].weight"),
        ({"tolerations": [{"operator": "Exists", "tolerationSeconds": 3}]}, f"{P}.tolerations[0].tolerationSeconds"),
        ({"spread": [{"topologyKey": "a b"}]}, f"{P}.spread[0].topologyKey"),
        ({"spread": [{"maxSkew": 0}]}, f"{P}.spread[0].maxSkew"),
        ({"division": {"by": "Weights"}}, f"{P}.division.weights"),
        ({"division": {"by": "Weights", "weights": [{"weight": 0}]}}, f"{P}.division.weights"),
        ({"division": {"weights": [{"weight": 1}]}}, f"{P}.division.weights"),
        ({"division": {"by": "Weights", "weights": [{"weight": 1, "selector": BAD}]}},
         f"{P}.division.weights[0].selector.matchExpressions[0].values"),
        ({"division": {"min": 3, "max": 2}}, f"{P}.division.min"),
        ({"cost": {"weight": 1}}, f"{P}.cost"),
        ({"latency": {"to": ["a"]}}, f"{P}.latency"),
        ({"latency": {"to": [], "maxMillis": 5}}, f"{P}.latency.to"),
        ({"latency": {"to": ["A_"], "maxMillis": 5}}, f"{P}.latency.to[0]"),
        ({"latency": {"users": ["A_"], "maxMillis": 5}}, f"{P}.latency.users[0]"),
        ({"latency": {"users": ["a"] * 51, "maxMillis": 5}}, f"{P}.latency.users"),
        ({"strategy": "Duplicated", "spread": [{"maxSkew": 1}]}, f"{P}.spread"),
        ({"strategy": "Duplicated", "division": CHEAPEST}, f"{P}.division"),
        ({"strategy": "Duplicated", "affinity": {"clusters": [TERM]}}, f"{P}.affinity.clusters"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_contradicts_itself_is_refused(placement: dict[str, Any], field: str) -> None:
    assert field in problems("Application", application(placement=placement))


def test_a_price_is_a_quantity() -> None:
    assert hourly_cost_problem("0.12") == hourly_cost_problem("120m") == ""
    assert "is no price" in hourly_cost_problem("cheap")
    labels = {"apiVersion": "banyan.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": "a", "labels": {kinds.HOURLY_COST: "-1"}}}
    with pytest.raises(InvalidInput):
        validate.decode("Cluster", msgspec.json.encode(labels))


@pytest.mark.parametrize(
    ("users", "field"),
    [
        ([{"name": "A_", "millis": 3}], "spec.users[0].name"),
        ([{"name": "hall"}], "spec.users[0]"),
        ([{"name": "hall", "address": "a:1", "millis": 3}], "spec.users[0]"),
        ([{"name": "hall", "address": "10.0.0.5"}], "spec.users[0].address"),
        ([{"name": "hall", "address": ":443"}], "spec.users[0].address"),
        ([{"name": "hall", "address": "a:70000"}], "spec.users[0].address"),
        ([{"name": "hall", "millis": 3}, {"name": "hall", "millis": 4}], "spec.users[1]"),
        ([{"name": f"hall-{index}", "millis": 3} for index in range(17)], "spec.users"),
    ],
)
def test_users_have_a_name_and_either_an_address_or_a_distance(users: list[dict[str, Any]], field: str) -> None:
    document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": "a"}, "spec": {"users": users}}
    assert field in problems("Cluster", document)
    document["spec"] = {"users": [{"name": "hall", "address": "[::1]:443"}, {"name": "dock", "millis": 0}]}
    assert not problems("Cluster", document)


def test_users_alone_are_somebody_to_be_near_to() -> None:
    assert problems("Application", application(placement={"latency": {"users": ["hall"], "maxMillis": 5}})) == set()
