"""JSON, merge and strategic merge patches, each by its own rules."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.resources.patch import MOST_COPIED_BYTES, json_patch, merge_patch, strategic_merge

# RFC 7386, appendix A (those whose target is an object).
RFC_7386 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}), ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}), ({"a": ["b"]}, {"a": "c"}, {"a": "c"}), ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}), ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}), ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]  # fmt: skip


@pytest.mark.parametrize(("document", "patch", "result"), RFC_7386)
def test_merge_patch_is_rfc_7386(document: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(document)
    assert merge_patch(document, patch) == result
    assert document == before


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)
_OBJECT = st.dictionaries(st.text(max_size=3), _JSON)


@given(_OBJECT, _OBJECT)
def test_a_merge_patch_applied_twice_changes_nothing_more(document: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once


@given(_OBJECT)
def test_an_empty_patch_changes_nothing(document: dict[str, Any]) -> None:
    assert merge_patch(document, {}) == strategic_merge(document, {}) == json_patch(document, []) == document


def test_json_patch() -> None:
    document = {"spec": {"replicas": 1, "list": [1, 2]}}
    patch = [
        {"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "replace", "path": "/spec/replicas", "value": 2},
        {"op": "add", "path": "/spec/list/-", "value": 3}, {"op": "remove", "path": "/spec/list/0"},
        {"op": "copy", "from": "/spec/list", "path": "/other"}, {"op": "move", "from": "/spec/list", "path": "/list"},
    ]  # fmt: skip
    assert json_patch(document, patch) == {"spec": {"replicas": 2}, "other": [2, 3], "list": [2, 3]}
    assert document == {"spec": {"replicas": 1, "list": [1, 2]}}


@pytest.mark.parametrize(
    "patch",
    [{}, "x", None, [1], [{}], [{"op": "replace", "path": "/none", "value": 1}], [{"op": "test", "path": "/a", "value": 2}],
     [{"op": "remove", "path": "/a/b/c"}], [{"op": "jump", "path": "/a"}], [{"op": "add", "path": 3, "value": 1}], [{"op": "copy",
      "path": "/b"}],
     [{"op": "replace", "path": "", "value": []}], [{"op": "add", "path": "/a"}], [{"op": "copy", "from": "/zz", "path": "/b"}],
     [{"op": "test", "path": "/a", "value": 1}] * 10_001, [{"op": "add", "path": "/l/99", "value": 1}], [{"op": "add", "path": "/l/x",
      "value": 1}]],
)  # fmt: skip
def test_json_patches_that_cannot_be_applied_say_so(patch: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be applied"):
        json_patch({"a": 1, "l": []}, patch)


def test_copying_cannot_grow_a_document_without_bound() -> None:
    document = {"a": "x" * 100_000}
    bomb = [{"op": "copy", "from": "", "path": f"/c{number}"} for number in range(40)]
    with pytest.raises(InvalidInput, match="copy operations"):
        json_patch(document, bomb)
    assert len(json.dumps(json_patch(document, bomb[:2]))) < MOST_COPIED_BYTES


def test_strategic_merge_merges_lists_by_their_keys() -> None:
    document = {"metadata": {"finalizers": ["a/x"], "ownerReferences": [{"uid": "1", "name": "n"}, {"uid": "2"}]}, "data": {"k": "v"}}
    patch = {
        "data": {"k": None, "n": "1"},
        "metadata": {
            "finalizers": ["b/y", "a/x"],
            "$setElementOrder/finalizers": ["b/y", "a/x"],
            "ownerReferences": [{"uid": "1", "name": "m"}, {"uid": "2", "$patch": "delete"}, {"uid": "3"}],
        },
    }
    assert strategic_merge(document, patch) == {
        "data": {"n": "1"},
        "metadata": {"finalizers": ["b/y", "a/x"], "ownerReferences": [{"uid": "1", "name": "m"}, {"uid": "3"}]},
    }


def test_strategic_merge_directives() -> None:
    document = {"data": {"a": "1", "b": "2"}, "metadata": {"finalizers": ["a/x", "b/y"], "ownerReferences": [{"uid": "1"}]}}
    assert strategic_merge(document, {"data": {"$patch": "replace", "c": "3"}})["data"] == {"c": "3"}
    assert "data" not in strategic_merge(document, {"data": {"$patch": "delete"}})
    assert strategic_merge(document, {"data": {"$retainKeys": ["b", "c"], "c": "3"}})["data"] == {"b": "2", "c": "3"}
    assert strategic_merge(document, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"]}})["metadata"]["finalizers"] == ["b/y"]
    replaced = strategic_merge(document, {"metadata": {"ownerReferences": [{"$patch": "replace"}, {"uid": "9"}]}})
    assert replaced["metadata"]["ownerReferences"] == [{"uid": "9"}]
    assert strategic_merge(document, {"$patch": "delete"}) == {}
    bads: list[Any] = [[], {"$patch": "x"}, {"data": {"$retainKeys": 1}}, {"metadata": {"ownerReferences": [{"name": "n"}]}}]
    for bad in bads:
        with pytest.raises(InvalidInput):
            strategic_merge(document, bad)
