"""Label and field selectors: what Kubernetes accepts is accepted, and matches what it matches there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.resources.meta import LabelSelector, LabelSelectorRequirement
from cluster_controller.resources.selectors import from_struct, parse_fields, parse_labels

EDGE = {"tier": "edge", "zone": "a", "banyan.dev/gpu": ""}


@pytest.mark.parametrize(
    ("text", "holds"),
    [("", True), ("  ", True), ("tier=edge", True), ("tier==edge", True), ("tier = edge", True), ("tier=hub", False), ("tier!=hub", True),
     ("tier!=edge", False), ("none!=x", True), ("tier", True), ("none", False), ("!none", True), ("!tier", False), ("! none", True),
     ("tier in (edge,hub)", True), ("tier in (hub)", False), ("tier notin (hub)", True), ("none notin (hub)", True),
     ("none in (hub)", False),
     ("tier in (edge),zone=a,!x", True), ("tier=edge,zone=b", False), ("banyan.dev/gpu=", True), ("banyan.dev/gpu in (,x)", True),
     ("banyan.dev/gpu", True), ("tier=", False), ("c=1", False), ("in in (in)", False), ("zone=a,tier", True)],
)  # fmt: skip
def test_matches_as_kubernetes_does(text: str, holds: bool) -> None:
    assert parse_labels(text).matches(EDGE) is holds


def test_is_exact() -> None:
    assert not parse_labels("name=c1").matches({"name": "c10"})
    assert not parse_labels("name in (c1)").matches({"name": "c10"})


@pytest.mark.parametrize(
    "text",
    ["a=b,", ",", "a b", "a in b", "a in (b", "a in", "=b", "a=b=c", "-a=b", "a=" + "x" * 64, "a=-", "a>1", "a notin ()x", "!", "a=b;c",
     "é=1",
     "x" * 9000, "a,b(", "/a=b", "a//b", ",".join(f"k{i}" for i in range(300))],
)  # fmt: skip
def test_says_why_it_cannot_parse(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_labels(text)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = parse_labels(text)
    except InvalidInput:
        return
    assert found.matches({}) in (True, False)


_WORD = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)


@given(_WORD, st.sets(_WORD, min_size=1), st.dictionaries(_WORD, _WORD))
def test_in_and_notin_are_opposites(key: str, values: set[str], labels: dict[str, str]) -> None:
    text = ",".join(sorted(values))
    assert parse_labels(f"{key} in ({text})").matches(labels) != parse_labels(f"{key} notin ({text})").matches(labels)


def test_the_selector_of_a_document() -> None:
    def requirement(key: str, operator: str, *values: str) -> LabelSelectorRequirement:
        return LabelSelectorRequirement(key=key, operator=operator, values=list(values))  # type: ignore[arg-type]

    selector = LabelSelector(
        match_labels={"tier": "edge"},
        match_expressions=[requirement("zone", "In", "a", "b"), requirement("x", "DoesNotExist"), requirement("zone", "NotIn", "c")],
    )
    assert from_struct(selector).matches(EDGE)
    assert not from_struct(selector).matches({**EDGE, "x": "1"})
    assert from_struct(None).matches({}) and from_struct(LabelSelector()).matches({})
    for bad in (requirement("zone", "In"), requirement("zone", "Exists", "a")):
        with pytest.raises(InvalidInput) as caught:
            from_struct(LabelSelector(match_expressions=[bad]), "spec.placement.clusterSelector")
        assert caught.value.field == "spec.placement.clusterSelector.matchExpressions[0].values"


def test_field_selectors() -> None:
    document = {"metadata": {"name": "a,b"}, "status": {"phase": "Running"}, "spec": {"unschedulable": False, "n": 3}}
    fields = ("metadata.name", "status.phase", "spec.unschedulable", "spec.n")
    assert parse_fields("status.phase=Running,metadata.name!=x", fields).matches(document)
    assert parse_fields(r"metadata.name=a\,b", fields).matches(document)
    assert parse_fields("spec.unschedulable=false,spec.n==3", fields).matches(document)
    assert not parse_fields("status.phase!=Running", fields).matches(document)
    assert parse_fields("status.phase=", fields).matches({})
    assert parse_fields("metadata.name=x", fields).exactly("metadata.name") == "x"
    assert parse_fields("metadata.name!=x", fields).exactly("metadata.name") is None
    assert parse_fields("", fields).matches({})
    with pytest.raises(InvalidInput, match=r"not supported: spec\.x"):
        parse_fields("spec.x=1", fields)
    with pytest.raises(InvalidInput, match="is not FIELD=VALUE"):
        parse_fields("metadata.name", fields)
