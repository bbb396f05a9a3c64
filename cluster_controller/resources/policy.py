"""SitePolicy: what a site decides by itself, whatever an ancestor wants, and what goes on holding when nobody above is in reach.

One object, named ``site``, written at the site and nowhere else. It says who may come in, that is use the API of the site's own cluster
(`clusters/NAME/proxy`); where there is none, or none that says so, only administrators of the tree may. And it says what may come from
above, to this site and to what is below it: what it refuses, how much there may be, and whose version stays as it is. What the
site's own people write is not meant.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from msgspec import Meta, field

from cluster_controller.resources.meta import Document, LabelSelector, Quantity, Resource

NAME = "site"
ROLES = ("view", "edit", "admin")  # each includes those before it
GROUP_PREFIX = "banyan:"
GROUPS = tuple(GROUP_PREFIX + role for role in ROLES)  # what people of the tree are in a member


class Entry(Document, frozen=True, kw_only=True):
    """Who may come in. Both empty: nobody."""

    groups: list[str] = field(default_factory=list)  # banyan:admin, banyan:edit or banyan:view; each lets those with more rights in, too
    users: list[str] = field(default_factory=list)  # names, as the tree knows them; what they may is still what they were granted


class Subject(Document, frozen=True, kw_only=True):
    """Which Applications are meant: those for which every field that is given holds. Texts may hold * and ?."""

    namespaces: list[str] = field(default_factory=list)  # of the Application; one of them
    names: list[str] = field(default_factory=list)  # of the Application; one of them
    origins: list[str] = field(default_factory=list)  # names or uids of clusters where it was written; one of them
    selector: LabelSelector | None = None  # over the labels of the Application


class Veto(Subject, frozen=True, kw_only=True):
    """What is refused. With images or models, only components that use one of them."""

    images: list[str] = field(default_factory=list)  # of containers and manifests, as they are written there; one of them
    models: list[str] = field(default_factory=list)  # names of Models, charts too; one of them
    reason: str = ""  # a sentence for those who are refused


class Caps(Document, frozen=True, kw_only=True):
    """Of all together that comes from above. Left out: no bound but the machines'."""

    cpu: Quantity = ""  # that they may ask for
    memory: Quantity = ""  # that they may ask for
    replicas: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None  # that they may have


class SitePolicySpec(Document, frozen=True, kw_only=True):
    entry: Entry | None = None  # left out: administrators of the tree
    veto: list[Veto] = field(default_factory=list)  # what from above may not run here or below
    caps: Caps = Caps()  # how much from above may run here and below
    pins: list[Subject] = field(default_factory=list)  # whose components stay as they are here, whatever version comes
    parents: list[str] | None = None  # who may carry it while its parent is lost: names or uids; left out: whom its parent names


class SitePolicy(Resource, frozen=True, kw_only=True):
    kind: str = "SitePolicy"
    spec: SitePolicySpec = SitePolicySpec()


DEFAULT_ENTRY = Entry(groups=[GROUP_PREFIX + "admin"])


def permits(spec: SitePolicySpec | None, uid: str, name: str) -> bool:
    """Whether a controller other than the home parent may carry this cluster. Without a word about it, whoever the home parent names."""
    if spec is None or spec.parents is None:
        return True
    return any(uid == wanted or fnmatchcase(name, wanted) for wanted in spec.parents)


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
