"""Who may come in to a site: the default, what a site says, and who is which group in its cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.resources import policy
from cluster_controller.resources.policy import Entry, SitePolicy, SitePolicySpec, entry_of, group_of, refusal
from cluster_controller.resources.validate import InvalidDocument, check


def test_without_a_policy_administrators_of_the_tree_come_in() -> None:
    for none in (None, SitePolicy(), SitePolicy(spec=SitePolicySpec())):
        entry = entry_of(none)
        assert refusal(entry, "ann", "banyan:admin") == ""
        assert "lets in banyan:admin" in refusal(entry, "eve", "banyan:edit")


def test_a_site_says_who() -> None:
    nobody = entry_of(SitePolicy(spec=SitePolicySpec(entry=Entry())))
    assert "lets in nobody" in refusal(nobody, "ann", "banyan:admin")
    some = Entry(groups=["banyan:edit"], users=["vic"])
    assert refusal(some, "eve", "banyan:edit") == ""
    assert refusal(some, "ann", "banyan:admin") == ""  # more than edit
    assert refusal(some, "vic", "banyan:view") == ""
    assert "banyan:edit, user vic" in refusal(some, "bob", "banyan:view")


@given(st.lists(st.sampled_from([*policy.GROUPS, "", "system:masters"])), st.lists(st.sampled_from(["ann", "vic"])))
def test_whoever_has_no_group_stays_out(groups: list[str], users: list[str]) -> None:
    assert refusal(Entry(groups=groups, users=users), "ann", "") != ""


@pytest.mark.parametrize(
    ("grants", "group"),
    [
        ([], ""),
        ([("view", "")], "banyan:view"),
        ([("view", ""), ("admin", ""), ("edit", "")], "banyan:admin"),
        ([("admin", "team")], ""),  # a namespace of the tree is none of the member
        ([("admin", "team"), ("view", "")], "banyan:view"),
        ([("root", "")], ""),
    ],
)
def test_grants_for_everything_count(grants: list[tuple[str, str]], group: str) -> None:
    assert group_of(grants) == group


def problems(name: str, **entry: object) -> set[str]:
    document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "SitePolicy", "metadata": {"name": name}, "spec": {"entry": entry}}
    try:
        check("SitePolicy", document, None)
    except InvalidDocument as invalid:
        return {problem.field for problem in invalid.problems}
    return set()


def test_a_policy_is_checked() -> None:
    assert problems("site", groups=["banyan:view"], users=["ann"]) == set()
    assert problems("other") == {"metadata.name"}
    assert problems("site", groups=["system:masters", "banyan:root"]) == {"spec.entry.groups[0]", "spec.entry.groups[1]"}
    assert problems("site", users=["Ann B", "ann", "ann"]) == {"spec.entry.users[0]", "spec.entry.users[2]"}
    assert problems("site", users=[f"u{number}" for number in range(501)]) == {"spec.entry.users"}
    assert problems("site", caps=[1]) == {"spec.entry.caps"}
