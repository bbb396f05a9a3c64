"""What is served here, in the two forms in which clients ask: aggregated (kubectl, client-go) and one list per group (older ones)."""

from collections.abc import Mapping
from typing import Any

from cluster_controller.resources.registry import REGISTRY, ResourceType
from openapi.access import verbs_of

AGGREGATED = "apidiscovery.k8s.io"
# Virtual resources that answer at once and store nothing: (group, version, plural, kind).
REVIEWS = (
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview"),
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
)
# kubectl cluster-info lists services that name themselves part of the cluster; there are none.
SERVICES = ("", "v1", "services", "Service")
SCALE = {"group": "autoscaling", "version": "v1", "kind": "Scale"}


def wants_aggregated(accept: str) -> bool:
    return f"g={AGGREGATED}" in accept and "as=APIGroupDiscoveryList" in accept and "v=v2" in accept


def groups() -> list[str]:
    """Named groups, ours first."""
    found = [each.group for each in REGISTRY.values() if each.group] + [each[0] for each in REVIEWS]
    return list(dict.fromkeys(found))


def aggregated(named: bool, content_version: str) -> dict[str, Any]:
    """APIGroupDiscoveryList of `/apis` (named groups) or of `/api` (core)."""
    items = []
    for group in groups() if named else [""]:
        versions: dict[str, list[dict[str, Any]]] = {}
        for resource in _of(group):
            versions.setdefault(resource.version, []).append(_aggregated_resource(resource))
        for virtual in (*REVIEWS, SERVICES):
            if virtual[0] == group:
                versions.setdefault(virtual[1], []).append(_aggregated_virtual(virtual))
        shown = [{"version": version, "resources": resources, "freshness": "Current"} for version, resources in versions.items()]
        metadata = {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None}
        items.append({"metadata": metadata, "versions": shown})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": f"{AGGREGATED}/{content_version}", "metadata": {}, "items": items}


def core_versions(address: str) -> dict[str, Any]:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list() -> dict[str, Any]:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(each) for each in groups()]}


def group_document(group: str) -> dict[str, Any] | None:
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)} if group in groups() else None


def resource_list(group: str, version: str) -> dict[str, Any] | None:
    """APIResourceList; None when the group or version is not served."""
    resources: list[dict[str, Any]] = []
    for resource in _of(group):
        if resource.version == version:
            resources += _legacy(resource)
    for virtual in (*REVIEWS, SERVICES):
        if (virtual[0], virtual[1]) == (group, version):
            namespaced, verbs = _virtual(virtual)
            resources.append(
                {"name": virtual[2], "singularName": virtual[3].lower(), "namespaced": namespaced, "kind": virtual[3], "verbs": verbs}
            )
    if not resources:
        return None
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _of(group: str) -> list[ResourceType]:
    return [each for each in REGISTRY.values() if each.group == group]


def _group(group: str) -> dict[str, Any]:
    versions = dict.fromkeys([each.version for each in _of(group)] + [each[1] for each in REVIEWS if each[0] == group])
    shown = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": shown, "preferredVersion": shown[0]}


def _kind(resource: ResourceType, kind: str = "") -> Mapping[str, str]:
    return SCALE if kind == "Scale" else {"group": resource.group, "version": resource.version, "kind": kind or resource.kind}


def _aggregated_resource(resource: ResourceType) -> dict[str, Any]:
    scope = "Namespaced" if resource.namespaced else "Cluster"
    found: dict[str, Any] = {
        "resource": resource.plural, "responseKind": _kind(resource), "scope": scope, "singularResource": resource.singular,
        "verbs": list(resource.verbs), "subresources": [
            {"subresource": each.name, "responseKind": _kind(resource, each.kind), "verbs": list(verbs_of(each.methods))}
            for each in resource.subresources
        ],
    }  # fmt: skip
    if resource.short_names:
        found["shortNames"] = list(resource.short_names)
    if resource.categories:
        found["categories"] = list(resource.categories)
    return found


def _aggregated_virtual(virtual: tuple[str, str, str, str]) -> dict[str, Any]:
    group, version, plural, kind = virtual
    namespaced, verbs = _virtual(virtual)
    return {
        "resource": plural, "responseKind": {"group": group, "version": version, "kind": kind},
        "scope": "Namespaced" if namespaced else "Cluster", "singularResource": kind.lower(), "verbs": verbs,
    }  # fmt: skip


def _virtual(virtual: tuple[str, str, str, str]) -> tuple[bool, list[str]]:
    return (True, ["get", "list"]) if virtual is SERVICES else (False, ["create"])


def _legacy(resource: ResourceType) -> list[dict[str, Any]]:
    base: dict[str, Any] = {
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced, "kind": resource.kind,
        "verbs": list(resource.verbs),
    }  # fmt: skip
    if resource.short_names:
        base["shortNames"] = list(resource.short_names)
    if resource.categories:
        base["categories"] = list(resource.categories)
    found = [base]
    for sub in resource.subresources:
        entry: dict[str, Any] = {
            "name": f"{resource.plural}/{sub.name}", "singularName": "", "namespaced": resource.namespaced,
            "kind": sub.kind or resource.kind, "verbs": list(verbs_of(sub.methods)),
        }  # fmt: skip
        if sub.kind == "Scale":
            entry |= {"group": "autoscaling", "version": "v1"}
        found.append(entry)
    return found
