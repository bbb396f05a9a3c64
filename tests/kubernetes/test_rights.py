"""What the shim may do: small, said with a reason, and the same in the chart (tests/repository/test_charts.py) and the audit log (e2e)."""

import pytest

from cluster_shim.kubernetes import rights
from cluster_shim.kubernetes.rights import Profile, Rule


@pytest.mark.parametrize("profile", rights.PROFILES)
def test_every_rule_has_its_reason_and_no_wildcard(profile: Profile) -> None:
    for rule in rights.rules(profile):
        assert len(rule.reason) > 20, rule
        words = (rule.group, *rule.resources, *rule.verbs, *rule.names)
        assert "*" not in words or (rule in rights.TIDY and rule.verbs == ("list",)), rule
        assert rule.resources
        assert rule.verbs


@pytest.mark.parametrize("profile", rights.PROFILES)
def test_nothing_lets_the_shim_give_itself_more(profile: Profile) -> None:
    found = tuple(rights.rules(profile))
    for verb in ("create", "update", "patch", "bind", "escalate"):
        for resource in ("clusterroles", "clusterrolebindings", "roles", "rolebindings"):
            assert not rights.allows(found, verb, "rbac.authorization.k8s.io", resource)
    assert not rights.allows(found, "create", "", "serviceaccounts/token")
    assert not rights.allows(found, "create", "", "pods/exec")
    assert not rights.allows(found, "patch", "", "nodes")
    assert not rights.allows(found, "delete", "", "pods")


def test_people_come_in_as_one_user_in_three_groups() -> None:
    found = tuple(rights.rules("full"))
    assert rights.allows(found, "impersonate", "", "users", "banyan")
    assert not rights.allows(found, "impersonate", "", "users", "admin")
    assert not rights.allows(found, "impersonate", "", "groups", "system:masters")
    assert not rights.allows(found, "impersonate", "", "serviceaccounts", "banyan-edge")
    assert all(rights.allows(found, "impersonate", "", "groups", group) for group in rights.GROUPS)
    assert set(rights.ROLES) == set(rights.GROUPS)


def test_namespaced_is_a_part_of_full_and_writes_nowhere_but_where_it_may() -> None:
    everything = {str(question) for question in rights.questions(tuple(rights.rules("full")))}
    less = {str(question) for question in rights.questions(tuple(rights.rules("namespaced")))}
    assert less < everything
    everywhere = [rule for grant in rights.grants("namespaced") if grant.everywhere for rule in grant.rules]
    verbs = {verb for rule in everywhere for verb in rule.verbs if rule.group != "authorization.k8s.io"}
    assert verbs == {"get", "list", "watch", "impersonate"}
    assert not rights.allows(everywhere, "list", "", "secrets")
    assert not rights.allows(tuple(rights.rules("namespaced")), "create", "", "namespaces")


def test_rights_are_asked_for_one_by_one() -> None:
    rule = Rule(group="apps", resources=("deployments", "deployments/scale"), verbs=("get", "patch"), reason="to see whether it is there")
    asked = list(rights.questions((rule, *rights.ENTER[:1])))
    assert [str(each) for each in asked] == [
        "get deployments.apps",
        "patch deployments.apps",
        "get deployments/scale.apps",
        "patch deployments/scale.apps",
        "impersonate users banyan",
    ]
    assert asked[2].subresource == "scale"
    assert asked[0].reason == rule.reason


def test_a_rule_allows_just_what_it_says() -> None:
    rule = Rule(resources=("pods", "pods/log"), verbs=("get",), names=("one",), reason="a test's own")
    assert rule.allows("get", "", "pods/log", "one")
    assert not rule.allows("get", "", "pods/log", "two")
    assert not rule.allows("get", "", "pods/exec", "one")
    assert not rule.allows("list", "", "pods", "one")
    assert not rule.allows("get", "apps", "pods", "one")
    every = rights.TIDY[0]
    assert every.allows("list", "example.com", "widgets")
    assert not every.allows("get", "example.com", "widgets")
    assert rule.as_policy() == {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"], "resourceNames": ["one"]}
