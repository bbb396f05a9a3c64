"""Which fields are ours, told from `managedFields` as real API servers write it."""

import copy
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_shim.kubernetes import fields, names
from cluster_shim.kubernetes.fields import Conflict

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no defect

# As Kubernetes 1.34 has it for an apply of `DEPLOYMENT`.
OWNED: dict[str, Any] = {
    "f:metadata": {"f:annotations": {"f:banyan.dev/applied": {}}, "f:labels": {"f:a": {}}},
    "f:spec": {
        "f:replicas": {},
        "f:selector": {},
        "f:template": {
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {
                "f:containers": {
                    'k:{"name":"web"}': {
                        ".": {},
                        "f:args": {},
                        "f:image": {},
                        "f:name": {},
                        "f:ports": {
                            'k:{"containerPort":8080,"protocol":"TCP"}': {".": {}, "f:containerPort": {}},
                        },
                        "f:resources": {},
                    }
                }
            },
        },
    },
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "default", "labels": {"a": "b"}, "annotations": {"banyan.dev/applied": "x"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {
                "containers": [{"name": "web", "image": "i", "args": ["x"], "ports": [{"containerPort": 8080}], "resources": {}}],
            },
        },
    },
}


def raw(owned: object) -> bytes:
    return msgspec.json.encode(owned)


def test_what_was_applied_is_ours() -> None:
    assert fields.missing(raw(OWNED), DEPLOYMENT) == []


def test_a_field_that_somebody_took_is_named() -> None:
    owned = copy.deepcopy(OWNED)
    del owned["f:spec"]["f:replicas"]
    container = owned["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"web"}']
    del container["f:image"]
    assert fields.missing(raw(owned), DEPLOYMENT) == [".spec.replicas", ".spec.template.spec.containers[web].image"]


def test_an_item_that_somebody_took_away_is_named() -> None:
    owned = copy.deepcopy(OWNED)
    owned["f:spec"]["f:template"]["f:spec"]["f:containers"] = {'k:{"name":"other"}': {".": {}}}
    assert fields.missing(raw(owned), DEPLOYMENT) == [".spec.template.spec.containers[web]"]


def test_no_entry_and_a_broken_one_have_nothing_of_ours() -> None:
    # An entry that is empty, or cannot be read, is a leaf: whether it is ours, its digest says.
    assert fields.digest(b"") == ""
    assert fields.missing(raw({"f:spec": {}}), {"kind": "X", "metadata": {"labels": {"a": "b"}}, "spec": {}}) == [".metadata.labels.a"]


def test_items_of_sets_and_by_place() -> None:
    owned = {"f:finalizers": {'v:"a"': {}}, "f:list": {"i:0": {}}}
    assert fields.missing(raw(owned), {"finalizers": ["a", "b"], "list": [1, 2]}) == [".finalizers[1]", ".list[1]"]


# --- any object ---

scalars = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.booleans())
keys = st.text("abcdef", min_size=1, max_size=3)
objects = st.recursive(
    st.dictionaries(keys, scalars, min_size=1, max_size=4),
    lambda inner: st.dictionaries(
        keys,
        st.one_of(
            scalars,
            inner,
            st.lists(scalars, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(lambda items: [{**item, "name": f"n{at}"} for at, item in enumerate(items)]),
        ),
        min_size=1,
        max_size=4,
    ),
    max_leaves=6,
)


def owned_by_us(value: Any) -> dict[str, Any]:
    """The entry of an apply: associative lists by name, other lists atomic."""
    if isinstance(value, dict):
        return {f"f:{key}": owned_by_us(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {f"k:{msgspec.json.encode({'name': item['name']}).decode()}": {".": {}, **owned_by_us(item)} for item in value}
    return {}


def leaves(entry: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [leaf for key, inner in entry.items() for leaf in ([(*path, key)] if not inner else leaves(inner, (*path, key)))]


@calm
@given(objects)
def test_every_object_is_covered_by_its_own_entry(made: dict[str, Any]) -> None:
    assert fields.missing(raw(owned_by_us({"spec": made})), {"spec": made}) == []


@calm
@given(objects, st.data())
def test_any_leaf_that_goes_is_missed(made: dict[str, Any], data: st.DataObject) -> None:
    entry = owned_by_us({"spec": made, "other": 1})
    gone = data.draw(st.sampled_from([leaf for leaf in leaves(entry) if leaf[-1] != "." and leaf[0] == "f:spec"]))
    place = entry
    for step in gone[:-1]:
        place = place[step]
    del place[gone[-1]]
    for at in range(len(gone) - 1, 0, -1):  # what is empty now is not written either
        holder = entry
        for step in gone[: at - 1]:
            holder = holder[step]
        if holder[gone[at - 1]] == {}:
            del holder[gone[at - 1]]
    assert fields.missing(raw(entry), {"spec": made, "other": 1})


@calm
@given(objects)
def test_the_hash_does_not_care_for_the_order_of_keys(made: dict[str, Any]) -> None:
    assert fields.hash_of(dict(reversed(made.items()))) == fields.hash_of(made)


# --- conflicts ---


def cause(message: str, field: str = ".spec.replicas") -> dict[str, str]:
    return {"reason": "FieldManagerConflict", "message": message, "field": field}


def test_conflicts_in_the_words_of_an_api_server() -> None:
    said = [
        cause('conflict with "kubectl-edit" using apps/v1'),
        cause('conflict with "kube-controller-manager" with subresource "scale" using autoscaling/v1'),
        cause('conflict with "kubectl" with subresource "scale" using apps/v1 at 2026-11-21T16:00:00Z'),
        cause('conflict with "argocd \\"x\\""'),
        {"reason": "FieldValueInvalid", "message": "no", "field": ".x"},
    ]
    found = fields.conflicts(said)
    assert [(one.update, one.subresource, one.by_hand) for one in found] == [
        (True, "", True),
        (True, "scale", False),
        (True, "scale", True),
        (False, "", False),
    ]
    assert str(found[0]) == ".spec.replicas by kubectl-edit"
    assert str(found[1]) == ".spec.replicas by kube-controller-manager (its scale)"


def test_a_conflict_in_words_that_we_do_not_know_is_nobodys_hand() -> None:
    (found,) = fields.conflicts([cause("somebody minds")])
    assert found == Conflict("another manager", ".spec.replicas", False)
    assert not found.by_hand


def test_a_field_can_be_left_to_others_but_not_one_in_a_list() -> None:
    slim = fields.without(DEPLOYMENT, [".spec.replicas"])
    assert slim is not None
    assert "replicas" not in slim["spec"]
    assert DEPLOYMENT["spec"]["replicas"] == 2
    for path in ('.spec.template.spec.containers[name="web"].image', ".spec.absent.field", ".metadata.labels.a", ".kind", "", ".spec..x"):
        assert fields.without(DEPLOYMENT, [path]) is None


def test_the_mark_is_an_annotation_and_changes_nothing_else() -> None:
    marked = fields.stamped(DEPLOYMENT, "m")
    assert marked["metadata"]["annotations"][names.APPLIED] == "m"
    assert DEPLOYMENT["metadata"]["annotations"][names.APPLIED] == "x"
    assert marked["spec"] == DEPLOYMENT["spec"]
