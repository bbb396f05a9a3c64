"""What a later version wrote stands where it stood, and nothing of this version's own words is changed by it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.documents import encode
from cluster_controller.resources import kinds
from cluster_controller.resources.carry import Carrier, carry, has_unknown
from cluster_controller.resources.shape import Shape, shape_of

WORK = Carrier(kinds.Application, ("components", "placement", "rollout"))


def application(**extra: Any) -> dict[str, Any]:
    components = [{"name": "a", "command": ["true"], "replicas": 5, **extra}, {"name": "b", "command": ["true"]}]
    return {"kind": "Application", "metadata": {"name": "x"}, "spec": {"components": components, "placement": {"clusterName": "e"}}}


def share(document: dict[str, Any], replicas: int) -> dict[str, Any]:
    """The same components in this version's words, as a Work has them, the other way round."""
    spec = msgspec.convert(document, kinds.Application).spec
    components = [msgspec.structs.replace(one, replicas=replicas) for one in reversed(spec.components)]
    reference = kinds.ApplicationReference(uid="u", name="x")
    work = kinds.WorkSpec(application=reference, cluster="c", shares=[], components=components, placement=spec.placement)
    carried = WORK(encode(kinds.Work(metadata=kinds.Metadata(name="u"), spec=work)), msgspec.json.encode(document))
    found: dict[str, Any] = msgspec.json.decode(carried)
    return found


def test_a_share_keeps_what_this_version_does_not_know() -> None:
    document = application(shine={"word": 7})
    document["spec"]["placement"]["mood"] = "blue"
    document["spec"]["other"] = "not part of a Work"
    spec = share(document, 2)["spec"]
    assert [(one["name"], one.get("shine"), one.get("replicas", 1)) for one in spec["components"]] == [
        ("b", None, 2),
        ("a", {"word": 7}, 2),
    ]
    assert spec["placement"] == {"clusterName": "e", "mood": "blue"} and "other" not in spec


def test_a_document_that_holds_nothing_unknown_keeps_its_bytes() -> None:
    encoded = b'{"kind":"Work"}'
    assert WORK(encoded, msgspec.json.encode(application())) is encoded


def test_what_was_written_here_is_never_replaced() -> None:
    shape = shape_of(kinds.ClusterStatus)
    fresh: dict[str, Any] = {"status": {"ready": "Unknown", "facts": {"later": "mine"}}}
    carry(fresh, {"status": {"ready": "True", "facts": {"later": "theirs", "other": 1}}}, shape)
    assert fresh == {"status": {"ready": "Unknown", "facts": {"later": "mine", "other": 1}}}


def test_items_without_names_are_matched_by_their_places_or_not_at_all() -> None:
    shape = shape_of(kinds.Work)
    fresh: dict[str, Any] = {"spec": {"shares": [{"allotter": "a"}, {"allotter": "b"}]}}
    carry(fresh, {"spec": {"shares": [{"allotter": "a", "x": 1}, {"allotter": "b", "x": 2}]}}, shape)
    assert [one["x"] for one in fresh["spec"]["shares"]] == [1, 2]
    shorter: dict[str, Any] = {"spec": {"shares": [{"allotter": "b"}]}}
    carry(shorter, {"spec": {"shares": [{"allotter": "a", "x": 1}, {"allotter": "b", "x": 2}]}}, shape)
    assert shorter == {"spec": {"shares": [{"allotter": "b"}]}}


def test_labels_are_no_unknown_fields() -> None:
    assert not has_unknown({"metadata": {"labels": {"anything": "goes"}}}, shape_of(kinds.Application))
    assert has_unknown({"metadata": {"later": 1}}, shape_of(kinds.Application))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "spec", "components", "placement", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_whatever_it_is_given_it_neither_fails_nor_takes_anything_away(fresh: Any, original: Any) -> None:
    shape = shape_of(kinds.Application)
    before = msgspec.json.decode(msgspec.json.encode(fresh))
    carry(fresh, original, shape)
    assert within(before, fresh)
    again = msgspec.json.decode(msgspec.json.encode(fresh))
    carry(fresh, original, shape)
    assert fresh == again


def within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(within, part, whole))
    return bool(part == whole)


def test_the_newest_documents_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster_controller.resources.carry.CACHED", 2)
    carrier = Carrier(kinds.Application)
    originals = [msgspec.json.encode({"metadata": {"name": str(number), "later": number}}) for number in range(3)]
    for original in (*originals, originals[1], originals[1]):
        assert b'"later"' in carrier(b'{"metadata":{}}', original)
    assert list(carrier._cache) == [originals[2], originals[1]]


def test_maps_of_objects_are_walked_too() -> None:
    shape = Shape(values=Shape(fields={"a": Shape()}))
    fresh: dict[str, Any] = {"x": {"a": 1}, "only here": {}}
    carry(fresh, {"x": {"a": 2, "later": 3}, "only there": {"later": 1}}, shape)
    assert fresh == {"x": {"a": 1, "later": 3}, "only here": {}}
    assert has_unknown({"x": {"later": 1}}, shape) and not has_unknown({"x": {"a": 1}}, shape)
