"""Who may do what: the one gate that every request passes, decided by the kind, the verb and the user's grants.

Deny by default (ARCHITECTURE law 7). A grant is a role in one namespace or in all; what belongs to no namespace needs a grant
for all. view reads, edit changes and reads Secrets, admin also admits clusters and people.
"""

from collections.abc import Iterator

from cluster_controller.resources.registry import REGISTRY, ResourceType
from openapi.errors import ApiError
from openapi.services import User

READ_VERBS = frozenset({"get", "list", "watch"})
RANK = {"view": 1, "edit": 2, "admin": 3}


def role_for(resource: ResourceType, verb: str, subresource: str = "") -> str:
    """The least role that may do this."""
    reading = verb in READ_VERBS
    needed = resource.read_role if reading else resource.write_role
    if subresource:
        found = resource.subresource(subresource)
        if found is not None and found.role and not reading and RANK[found.role] > RANK[needed]:
            needed = found.role
        # A member's own API and a descendant's are judged where they end; here it is enough to be known to all of the tree.
        if found is not None and found.raw and found.name in ("banyan", "proxy"):
            needed = found.role or "view"
    return needed


def has_role(user: User, role: str, namespace: str) -> bool:
    """``namespace`` "": for everything, not for one namespace only."""
    return any(RANK[grant.role] >= RANK[role] and grant.namespace in ("", namespace) for grant in user.grants)


def may(user: User, verb: str, resource: ResourceType, namespace: str = "", *, name: str = "", subresource: str = "") -> bool:
    role = role_for(resource, verb, subresource)
    if has_role(user, role, namespace):
        return True
    # A user of one namespace may look at that namespace itself.
    return resource.kind == "Namespace" and verb == "get" and bool(name) and has_role(user, role, name)


def require(user: User, verb: str, resource: ResourceType, namespace: str = "", *, name: str = "", subresource: str = "") -> None:
    """Raises a Forbidden ApiError that says what was asked and which role is missing."""
    if may(user, verb, resource, namespace, name=name, subresource=subresource):
        return
    what = f"{resource.plural}/{subresource}" if subresource else resource.plural
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope" if not resource.namespaced else "in all namespaces"
    role = role_for(resource, verb, subresource)
    raise ApiError(
        403,
        f'{resource.group_resource}{f" {chr(34)}{name}{chr(34)}" if name else ""} is forbidden: User "{user.name}" cannot {verb} resource '
        f'"{what}" in API group "{resource.group}" {where}: that needs the role {role}',
        details={"name": name, "group": resource.group, "kind": resource.plural}
        if name
        else {"group": resource.group, "kind": resource.plural},
    )


def rules(user: User, namespace: str) -> Iterator[tuple[ResourceType, str, tuple[str, ...]]]:
    """(kind, subresource, verbs) of all that the user may do in ``namespace``, for `kubectl auth can-i --list`."""
    for resource in REGISTRY.values():
        scope = namespace if resource.namespaced else ""
        verbs = tuple(verb for verb in resource.verbs if may(user, verb, resource, scope))
        if verbs:
            yield resource, "", verbs
        for sub in resource.subresources:
            found = tuple(verb for verb in verbs_of(sub.methods) if may(user, verb, resource, scope, subresource=sub.name))
            if found:
                yield resource, sub.name, found


def verbs_of(methods: tuple[str, ...]) -> tuple[str, ...]:
    names = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    return tuple(names[method] for method in methods if method in names)
