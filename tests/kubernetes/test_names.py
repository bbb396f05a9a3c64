"""Names: always fit to be one, never equal for two applications, always equal for one."""

import re

from hypothesis import given
from hypothesis import strategies as st

from cluster_shim.kubernetes import names

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
TEXT = st.text(st.characters(codec="utf-8"), max_size=90)


@given(TEXT, TEXT, TEXT, st.sampled_from([names.MAX_WORKLOAD, names.MAX_NAME]))
def test_object_names_fit(application: str, component: str, uid: str, limit: int) -> None:
    name = names.object_name(application, component, uid, limit=limit)
    assert LABEL.fullmatch(name)
    assert len(name) <= limit
    assert name == names.object_name(application, component, uid, limit=limit)


@given(TEXT, TEXT)
def test_equal_names_of_two_origins_never_meet(one: str, other: str) -> None:
    if one != other:
        assert names.object_name("web", "main", one) != names.object_name("web", "main", other)
        assert names.object_name("web", one, "uid") != names.object_name("web", other, "uid")


def test_what_is_cut_off_still_counts() -> None:
    long = "a" * 80
    assert names.object_name(f"{long}x", "main", "u1") != names.object_name(f"{long}y", "main", "u2")
    assert names.object_name("web", "main", "u").startswith("web-main-")
    assert names.object_name("web", "", "u") == f"web-{names.short_hash('u')}"


@given(TEXT)
def test_label_values_fit(text: str) -> None:
    value = names.label_value(text)
    assert VALUE.fullmatch(value)
    assert len(value) <= names.MAX_LABEL


def test_label_values_that_differ_far_to_the_right() -> None:
    assert names.label_value("v" * 70 + "1") != names.label_value("v" * 70 + "2")
    assert names.label_value("1.2_x") == "1.2_x"


def test_an_applyset_is_named_as_its_proposal_says() -> None:
    found = names.applyset_id("banyan-applyset", "default")
    assert re.fullmatch(r"applyset-[A-Za-z0-9_-]{43}-v1", found)
    assert found != names.applyset_id("banyan-applyset", "other")
    assert names.namespace_of("") == "default"
    assert names.namespace_of("shop") == "shop"
