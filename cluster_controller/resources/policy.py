"""SitePolicy: what a site decides by itself, whatever an ancestor wants, and what goes on holding when nobody above is in reach.

One object, named ``site``, written at the site and nowhere else. So far it says who may come in: use the API of the site's own cluster
(`clusters/NAME/proxy`). Where there is none, or none that says so, only administrators of the tree may.
"""

from collections.abc import Sequence

from msgspec import field

from cluster_controller.resources.meta import Document, Resource

NAME = "site"
ROLES = ("view", "edit", "admin")  # each includes those before it
GROUP_PREFIX = "banyan:"
GROUPS = tuple(GROUP_PREFIX + role for role in ROLES)  # what people of the tree are in a member


class Entry(Document, frozen=True, kw_only=True):
    """Who may come in. Both empty: nobody."""

    groups: list[str] = field(default_factory=list)  # banyan:admin, banyan:edit or banyan:view; each lets those with more rights in, too
    users: list[str] = field(default_factory=list)  # names, as the tree knows them; what they may is still what they were granted


class SitePolicySpec(Document, frozen=True, kw_only=True):
    entry: Entry | None = None  # left out: administrators of the tree


class SitePolicy(Resource, frozen=True, kw_only=True):
    kind: str = "SitePolicy"
    spec: SitePolicySpec = SitePolicySpec()


DEFAULT_ENTRY = Entry(groups=[GROUP_PREFIX + "admin"])


def entry_of(policy: SitePolicy | None) -> Entry:
    """What holds, whether or not somebody wrote a policy."""
    return DEFAULT_ENTRY if policy is None or policy.spec.entry is None else policy.spec.entry


def group_of(grants: Sequence[tuple[str, str]]) -> str:
    """The member's group for a person with these grants (role, namespace; "" for all namespaces), "" for none.

    A grant in one namespace of the tree says nothing about a member's namespaces, so only grants for everything count.
    """
    held = [ROLES.index(role) for role, namespace in grants if not namespace and role in ROLES]
    return GROUPS[max(held)] if held else ""


def refusal(entry: Entry, name: str, group: str) -> str:
    """Why ``name``, who would be in ``group``, may not come in; "" when they may."""
    if not group:
        return "coming in needs a grant for all namespaces; yours are for single ones"
    if name in entry.users:
        return ""
    if any(wanted in GROUPS and GROUPS.index(group) >= GROUPS.index(wanted) for wanted in entry.groups):
        return ""
    admitted = [*entry.groups, *(f"user {user}" for user in entry.users[:5])]
    return f"its site lets in {', '.join(admitted) or 'nobody'}; who administers it decides (kubectl edit sitepolicy {NAME}, at the site)"
