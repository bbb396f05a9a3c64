"""What `apply` sends, as properties: the patch brings the object to the manifest and touches nothing else."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from banyanctl import merge

keys = st.sampled_from("abcde")
leaves = st.one_of(st.integers(0, 3), st.text("xyz", max_size=2), st.booleans(), st.lists(st.integers(0, 2), max_size=2))
documents = st.recursive(
    st.dictionaries(keys, leaves, max_size=4), lambda inner: st.dictionaries(keys, st.one_of(leaves, inner), max_size=4), max_leaves=12
)


def patched(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = patched(result.get(name), value)
    return result


def contains(there: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and isinstance(there, dict):
        return all(name in there and contains(there[name], value) for name, value in wanted.items())
    return bool(there == wanted)


@given(documents, documents, documents)
def test_after_the_patch_everything_wanted_is_there_and_a_second_apply_does_nothing(last: Any, wanted: Any, there: Any) -> None:
    result = patched(there, merge.three_way(last, wanted, there))
    assert contains(result, wanted)
    assert merge.three_way(wanted, wanted, result) == {}


@given(documents, documents, documents)
def test_what_no_manifest_mentions_stays(last: Any, wanted: Any, there: Any) -> None:
    result = patched(there, merge.three_way(last, wanted, there))
    for name in there:
        if name not in last and name not in wanted:
            assert result[name] == there[name]


@given(documents, documents)
def test_what_the_last_manifest_set_and_this_one_does_not_goes(last: Any, wanted: Any) -> None:
    result = patched(last, merge.three_way(last, wanted, last))
    assert set(result) == set(wanted)


def test_what_was_applied_is_remembered_as_kubectl_does() -> None:
    manifest = {"kind": "A", "metadata": {"name": "x", "annotations": {"note": "1"}}, "spec": {"n": 1}}
    stored = merge.with_memory(manifest)
    assert merge.LAST_APPLIED in stored["metadata"]["annotations"]
    assert merge.last_applied(stored) == manifest
    assert merge.last_applied(merge.with_memory(stored)) == manifest
    assert merge.last_applied({"metadata": {"annotations": {merge.LAST_APPLIED: "{nonsense"}}}) == {}
    assert merge.last_applied({"metadata": {}}) == {}
