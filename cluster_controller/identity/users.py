"""Who a person is once authenticated, and what was granted to them.

Pure. Roles nest: view < edit < admin. A grant without a namespace holds everywhere; whoever has none may do nothing (law 7).
"""

from typing import Literal

from msgspec import Struct

Role = Literal["view", "edit", "admin"]
RANK: dict[Role, int] = {"view": 1, "edit": 2, "admin": 3}


class Grant(Struct, frozen=True):
    """``namespace`` empty: all namespaces and everything outside of any."""

    role: Role
    namespace: str = ""


class User(Struct, frozen=True):
    """An authenticated person or system. ``entry`` is the uid of the controller where the request entered the tree."""

    name: str
    groups: tuple[str, ...]
    entry: str
    grants: tuple[Grant, ...]


def allows(grants: tuple[Grant, ...], role: Role, namespace: str = "") -> bool:
    """Is ``role`` granted in ``namespace`` (empty: outside of namespaces, which only a grant for all covers)?"""
    return any(RANK[grant.role] >= RANK[role] and grant.namespace in ("", namespace) for grant in grants)


def groups_of(grants: tuple[Grant, ...]) -> tuple[str, ...]:
    """Names shown by `kubectl auth whoami`: ``banyan:edit``, or ``banyan:edit:NAMESPACE``."""
    named = (f"banyan:{grant.role}:{grant.namespace}" if grant.namespace else f"banyan:{grant.role}" for grant in grants)
    return (*dict.fromkeys(named), "system:authenticated")
