"""What an override makes of a component, and which overrides are refused where they are written."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds, validate
from cluster_controller.resources.overriding import Place, concerning, everything, lay, merge, patched
from cluster_controller.resources.rules import component_problems

SERVE = {"name": "serve", "command": ["serve", "--fast"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
EDGE = Place("uid-1", "edge-1", {"tier": "edge"})


def component(**fields: Any) -> kinds.Component:
    return msgspec.convert(SERVE | fields, kinds.Component)


def override(**fields: Any) -> kinds.Override:
    return msgspec.convert({"clusters": {"names": ["edge-1"]}} | fields, kinds.Override)


def document(*overrides: dict[str, Any], **fields: Any) -> bytes:
    spec = {"components": [SERVE | fields], "overrides": [{"clusters": {"names": ["edge-1"]}} | each for each in overrides]}
    meta = {"name": "shop", "namespace": "default"}
    return json.dumps({"apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "metadata": meta, "spec": spec}).encode()


def refusal(*overrides: dict[str, Any], **fields: Any) -> tuple[str, str]:
    with pytest.raises(validate.InvalidDocument) as caught:
        validate.decode("Application", document(*overrides, **fields))
    return caught.value.problems[0].field, caught.value.problems[0].message


def test_a_merge_finds_variables_by_their_names_and_null_takes_away() -> None:
    merged = patched(
        component(resources={"memory": "1Gi"}),
        override(merge={"env": [{"name": "B", "value": "9"}, {"name": "C", "value": "3"}], "resources": {"memory": None, "cpu": "2"}}),
    )
    assert [(each.name, each.value) for each in merged.env] == [("A", "1"), ("B", "9"), ("C", "3")]
    assert merged.resources == kinds.Resources(cpu="2")
    gone = patched(component(), override(merge={"env": [{"name": "A", "$patch": "delete"}]}))
    assert [each.name for each in gone.env] == ["B"]
    assert patched(component(), override(merge={"command": ["other"]})).command == ["other"]


def test_a_merge_finds_kubernetes_objects_and_their_containers() -> None:
    pod = {"spec": {"containers": [{"name": "web", "image": "web:1"}, {"name": "log", "image": "log:1"}]}}
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 1, "template": pod}},
    ]
    here = {"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}}
    change = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}} | here
    result = patched(component(command=[], env=[], manifests=objects), override(merge={"manifests": [change]})).manifests
    assert result[0] == objects[0]
    assert [each["image"] for each in result[1]["spec"]["template"]["spec"]["containers"]] == ["web:2", "log:1"]


def test_a_json_patch_comes_after_the_merge() -> None:
    both = override(merge={"command": ["a", "b"]}, jsonPatch=[{"op": "replace", "path": "/command/1", "value": "c"}])
    assert patched(component(), both).command == ["a", "c"]


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"merge": {"replicas": 3}}, "merge", "replicas cannot be overridden"),
        ({"merge": {"name": "x"}}, "merge", "name cannot be overridden"),
        ({"merge": {"dependsOn": ["x"]}}, "merge", "dependsOn cannot be overridden"),
        ({"merge": {"command": None, "container": {"image": "x"}}}, "merge", "what a component is"),
        ({"merge": {"environment": []}}, "merge", "unknown field"),
        ({"merge": {"env": "x"}}, "merge", "Expected"),
        ({"jsonPatch": [{"op": "remove", "path": "/env/7"}]}, "jsonPatch", "operation 0"),
        ({"jsonPatch": [{"op": "add", "path": "/placement", "value": {}}]}, "jsonPatch", "unknown field"),
        ({"jsonPatch": [{"op": "replace", "path": "", "value": []}]}, "jsonPatch", "no object"),
        ({"merge": {"env": [{"name": "A", "value": "x" * 2**20}]}}, "merge", "more than"),
    ],
)
def test_what_cannot_be_meant_says_which_patch_and_why(fields: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        patched(component(), override(**fields))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("one", "field", "why"),
    [
        ({"merge": {"replicas": 3}}, "spec.overrides[0].merge", "component serve: replicas cannot be overridden"),
        ({"merge": {"env": [{"name": "A B"}]}}, "spec.overrides[0]", "no environment variable name"),
        ({"merge": {"env": []}, "component": "db"}, "spec.overrides[0].component", "it has serve"),
        ({"merge": {"env": []}, "clusters": {}}, "spec.overrides[0].clusters", "one of selector, names is required"),
        ({"merge": {"env": []}, "clusters": {"names": ["A_"]}}, "spec.overrides[0].clusters.names[0]", ""),
        ({"merge": {"env": []}, "name": "A"}, "spec.overrides[0].name", ""),
        ({}, "spec.overrides[0]", "one of merge, jsonPatch is required"),
        ({"patch": {}}, "spec.overrides[0].patch", "jsonPatch"),
        (
            {"merge": {"env": []}, "clusters": {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}},
            "spec.overrides[0].clusters.selector",
            "",
        ),
    ],
)
def test_an_override_is_refused_with_its_path_where_it_is_written(one: dict[str, Any], field: str, why: str) -> None:
    found, message = refusal(one)
    assert found.startswith(field)
    assert why in message


def test_overrides_have_names_of_their_own_and_are_not_endless() -> None:
    assert refusal({"name": "a", "merge": {"env": []}}, {"name": "a", "merge": {"env": []}})[0] == "spec.overrides[1].name"
    assert refusal(*[{"merge": {"env": []}}] * 51)[0] == "spec.overrides"


def test_nulls_of_a_kept_patch_stay_what_they_are() -> None:
    kept = {"merge": {"env": None}, "jsonPatch": [{"op": "add", "path": "/liveness", "value": None}]}
    app = validate.decode("Application", document(kept))
    assert isinstance(app, kinds.Application)
    assert app.spec.overrides[0].merge == {"env": None}
    assert app.spec.overrides[0].json_patch[0]["value"] is None


def test_what_fits_only_after_another_or_only_by_itself_is_not_refused() -> None:
    first = {"merge": {"files": [{"path": "f", "configMap": {"name": "c"}}]}}
    second = {"jsonPatch": [{"op": "replace", "path": "/files/0/path", "value": "g"}]}
    validate.decode("Application", document(first, second))
    validate.decode("Application", document({"merge": {"env": None}}, {"jsonPatch": [{"op": "remove", "path": "/env/1"}]}))
    assert refusal(second, first)[0] == "spec.overrides[0].jsonPatch"


def test_labels_and_names_choose_and_both_must_hold() -> None:
    by_label = override(clusters={"selector": {"matchLabels": {"tier": "edge"}}}, merge={"env": []})
    by_uid = override(clusters={"names": ["uid-1"]}, merge={"env": []})
    both = override(clusters={"names": ["edge-2"], "selector": {"matchLabels": {"tier": "edge"}}}, merge={"env": []})
    assert [index for index, _ in concerning([both, by_label, by_uid], [EDGE])] == [1, 2]
    assert concerning([both, by_label, by_uid], [Place("uid-2", "edge-3", {})]) == []


def test_a_component_that_one_override_does_not_fit_stays_as_it_was() -> None:
    good = override(name="good", merge={"env": [{"name": "A", "value": "9"}]})
    bad = override(jsonPatch=[{"op": "remove", "path": "/files/0"}], component="serve")
    laid = lay([component(), component(name="other")], [(0, good), (1, bad)], component_problems)
    assert laid.components[0] == component()
    assert laid.components[1].env[0].value == "9"
    assert laid.names == ["good"]
    assert list(laid.unpatched) == ["serve"]
    assert laid.unpatched["serve"].startswith("overrides[1]: jsonPatch: ")
    meaningless = lay([component()], [(0, override(merge={"env": [{"name": "A B"}]}))], component_problems)
    assert "no environment variable name" in meaningless.unpatched["serve"]


def test_everything_that_may_be_needed_somewhere_is_known() -> None:
    one = override(merge={"env": [{"name": "A", "value": None, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})
    two = override(merge={"files": [{"path": "f", "configMap": {"name": "c"}}]}, component="other")
    found = everything([component(), component(name="other")], [one, two])
    assert {each.env[0].value_from.secret_key_ref.name for each in found if each.env[0].value_from} == {"s"}  # type: ignore[union-attr]
    assert [each.name for each in found if each.files] == ["other", "other"]


_json = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "x", "y"]), inner, max_size=3),
    max_leaves=8,
)
_object = st.dictionaries(st.sampled_from(["a", "b", "name"]), _json, max_size=3)


def test_a_list_that_was_not_there_has_no_word_of_what_is_taken_out() -> None:
    patch = {"env": [{"name": "A", "value": None, "as": "b"}, {"name": "B", "$patch": "delete"}]}
    assert merge({}, patch) == {"env": [{"name": "A", "as": "b"}]}


@example({}, {"a": [{"x": None, "name": "a"}]})
@example({"a": [1]}, {"a": [{"x": None, "name": "a"}]})
@given(_object, _object)
def test_merging_twice_is_merging_once_and_leaves_the_original(before: dict[str, Any], patch: dict[str, Any]) -> None:
    kept = json.dumps(before)
    once = merge(before, patch)
    assert merge(once, patch) == once
    assert json.dumps(before) == kept
