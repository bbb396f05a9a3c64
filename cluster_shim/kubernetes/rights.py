"""What the shim may do in a member, rule by rule, and why. Pure: the chart, the manifest, the page for people and the tests are made of it.

Two profiles. Both read pods, nodes and workloads everywhere, for free room is a matter of the whole cluster. `full` writes in every
namespace, and makes and removes namespaces; `namespaced` writes in those that the site names. Nothing here lets the shim change RBAC,
nodes or admission, and the only wildcard is one for listing (`TIDY`). Applications that bring other kinds of objects need what the
site adds (`EXTRA`).

No more than is used: an end-to-end test compares these rules with the audit log of a real API server, both ways.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

Profile = Literal["full", "namespaced"]
PROFILES: tuple[Profile, ...] = ("full", "namespaced")

# What people who come in through the tree are, once they are here (member.py). The member's own RBAC decides what that allows.
PERSON = "banyan"
GROUPS = ("banyan:admin", "banyan:edit", "banyan:view")
EXTRA_KEY = "person"
ROLES = {"banyan:admin": "cluster-admin", "banyan:edit": "edit", "banyan:view": "view"}

# A ClusterRole with this label is added to what the shim may do: how a site lets Applications bring other kinds of objects.
EXTRA = {"banyan.dev/aggregate-to-edge": "true"}

# The Lease by which a member knows its controller (owner.py): in a namespace that every API server makes.
OWNER = "banyan-owner"
OWNER_NAMESPACE = "kube-public"

CORE = ""
EVERY = "*"


class Rule(Struct, frozen=True, kw_only=True):
    """One rule of a role. ``reason`` is a sentence for the person who grants it."""

    reason: str
    group: str = CORE
    resources: tuple[str, ...]  # with subresources as RBAC writes them: pods/log
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()  # only objects of these names; empty: all

    def allows(self, verb: str, group: str, resource: str, name: str = "") -> bool:
        return (
            verb in self.verbs
            and self.group in (group, EVERY)
            and not {resource, EVERY}.isdisjoint(self.resources)
            and (not self.names or name in self.names)
        )

    def as_policy(self) -> dict[str, list[str]]:
        """The rule as RBAC has it."""
        made = {"apiGroups": [self.group], "resources": list(self.resources), "verbs": list(self.verbs)}
        return made | ({"resourceNames": list(self.names)} if self.names else {})


class Grant(Struct, frozen=True, kw_only=True):
    """Rules that are granted together. ``everywhere``: by a ClusterRole and its binding; else in the namespace ``within``, and without
    that in those that the site chose."""

    name: str  # a DNS label, part of the role's name
    about: str
    everywhere: bool
    rules: tuple[Rule, ...]
    within: str = ""


SEE = (
    Rule(
        resources=("pods", "nodes"),
        verbs=("list", "watch"),
        reason="What runs where, and how much room is left; placement needs the whole cluster.",
    ),
    Rule(
        group="apps",
        resources=("deployments", "statefulsets", "daemonsets"),
        verbs=("list", "watch"),
        reason="Whether what was applied is rolled out, and whether somebody changed it by hand.",
    ),
    Rule(group="batch", resources=("jobs",), verbs=("list", "watch"), reason="Whether jobs that an Application brought have ended."),
    Rule(
        resources=("events",),
        verbs=("list",),
        reason="The kubelet's and the scheduler's own words about an instance that does not become ready.",
    ),
    Rule(
        resources=("namespaces",),
        verbs=("get",),
        reason="The uid of kube-system tells this cluster from every other; an Application's namespace may be there already.",
    ),
    Rule(
        group="metrics.k8s.io",
        resources=("nodes", "pods"),
        verbs=("list",),
        reason="Usage of nodes and instances, where the cluster has a metrics server.",
    ),
    Rule(
        group="authorization.k8s.io",
        resources=("selfsubjectaccessreviews",),
        verbs=("create",),
        reason="To name the rights that are missing, one by one. Clusters usually grant it to everybody.",
    ),
)
USAGE = (
    Rule(
        resources=("nodes/proxy",),
        verbs=("get",),
        reason="Usage from the kubelet, where the cluster has no metrics server.",
    ),
)
RUN = (
    Rule(
        group="apps",
        resources=("deployments",),
        verbs=("get", "list", "watch", "create", "patch", "delete"),
        reason="A model, command or container component is a Deployment.",
    ),
    Rule(
        resources=("services", "configmaps", "secrets", "persistentvolumeclaims"),
        verbs=("get", "list", "watch", "create", "patch", "delete"),
        reason="What a component exposes, reads and keeps, watched for changes by hand; ConfigMap banyan-applyset lists what is ours.",
    ),
    Rule(resources=("pods/log",), verbs=("get",), reason="`banyan logs`, and the last log line of an instance that crashed."),
    Rule(
        resources=("pods/portforward",),
        verbs=("get",),
        reason="Requests to an application that came through the tree, where the controller cannot reach pods itself.",
    ),
)
NAMESPACES = (
    Rule(
        resources=("namespaces",),
        verbs=("create", "delete"),
        reason="An Application's namespace is made when it is missing, and removed when it was made so and is empty.",
    ),
)
OWN = (
    Rule(
        group="coordination.k8s.io",
        resources=("leases",),
        names=(OWNER,),
        verbs=("get", "update"),
        reason="One controller per cluster: this Lease says whose it is, and another controller is refused.",
    ),
    Rule(group="coordination.k8s.io", resources=("leases",), verbs=("create",), reason="To make that Lease where there is none yet."),
)
TIDY = (
    Rule(
        group=EVERY,
        resources=(EVERY,),
        verbs=("list",),
        reason="A namespace is empty when nothing of any kind is in it. Without this rule, namespaces that were made stay.",
    ),
)
ENTER = (
    Rule(resources=("users",), names=(PERSON,), verbs=("impersonate",), reason="kubectl through the tree: whoever comes in is this user."),
    Rule(
        resources=("groups",),
        names=GROUPS,
        verbs=("impersonate",),
        reason="They are in one of these groups, never in system:masters; bindings of the site say what each may do.",
    ),
    Rule(
        group="authentication.k8s.io",
        resources=(f"userextras/{EXTRA_KEY}",),
        verbs=("impersonate",),
        reason="The person's own name, for this cluster's audit log.",
    ),
)


def grants(profile: Profile) -> tuple[Grant, ...]:
    """Everything of a profile, in the order in which people read it."""
    full = profile == "full"
    see = Grant(name="see", about="See what runs and how much room there is.", everywhere=True, rules=SEE)
    usage = Grant(name="usage", about="Ask kubelets how much is used.", everywhere=True, rules=USAGE)
    run = Grant(name="run", about="Run what models, commands and containers are made of.", everywhere=full, rules=RUN)
    namespaces = Grant(name="namespaces", about="Make and remove the namespaces of Applications.", everywhere=True, rules=NAMESPACES)
    tidy = Grant(name="tidy", about="Look whether a namespace is empty before it is removed.", everywhere=True, rules=TIDY)
    enter = Grant(name="enter", about="Let people in through the tree, as this cluster's RBAC allows them.", everywhere=True, rules=ENTER)
    own = Grant(name="own", about="Be the one controller of the cluster.", everywhere=False, rules=OWN, within=OWNER_NAMESPACE)
    return (see, usage, run, namespaces, tidy, own, enter) if full else (see, run, own, enter)


def rules(profile: Profile) -> Iterator[Rule]:
    for grant in grants(profile):
        yield from grant.rules


def allows(found: Sequence[Rule], verb: str, group: str, resource: str, name: str = "") -> bool:
    """Whether one of the rules allows it. ``resource`` with its subresource, as in ``pods/log``."""
    return any(rule.allows(verb, group, resource, name) for rule in found)


class Question(Struct, frozen=True):
    """What to ask the API server about (SelfSubjectAccessReview), and what does not work without it."""

    verb: str
    group: str
    resource: str
    subresource: str
    name: str
    reason: str

    def __str__(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {resource}{f'.{self.group}' if self.group else ''}{f' {self.name}' if self.name else ''}"


def questions(found: Sequence[Rule]) -> Iterator[Question]:
    """One per right, so that those that are missing can be named one by one."""
    for rule in found:
        for resource in rule.resources:
            base, _, subresource = resource.partition("/")
            for name in rule.names or ("",):
                for verb in rule.verbs:
                    yield Question(verb, rule.group, base, subresource, name, rule.reason)
