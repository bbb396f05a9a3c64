"""`kubectl auth whoami` and `auth can-i`: questions about oneself, answered from the same grants that every request is judged by."""

from collections.abc import Mapping
from typing import Any

from cluster_controller.resources.registry import REGISTRY, ResourceType
from openapi import access
from openapi.errors import ApiError
from openapi.services import User

NON_RESOURCE_URLS = (
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/docs",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
)


def answer(plural: str, document: Mapping[str, Any], user: User) -> dict[str, Any]:
    spec = document.get("spec") or {}
    if not isinstance(spec, Mapping):
        raise ApiError(400, "spec is no object")
    if plural == "selfsubjectreviews":
        return {**_head("authentication.k8s.io/v1", "SelfSubjectReview", document), "status": {"userInfo": user_info(user)}}
    if plural == "selfsubjectaccessreviews":
        allowed, reason = _may(spec, user)
        status = {"allowed": allowed, "reason": reason} if reason else {"allowed": allowed}
        return {**_head("authorization.k8s.io/v1", "SelfSubjectAccessReview", document), "spec": spec, "status": status}
    return {**_head("authorization.k8s.io/v1", "SelfSubjectRulesReview", document), "spec": spec, "status": _rules(spec, user)}


def user_info(user: User) -> dict[str, Any]:
    grants = [f"{grant.role}@{grant.namespace or '*'}" for grant in user.grants]
    return {"username": user.name, "groups": list(user.groups), "extra": {"banyan.dev/grants": grants, "banyan.dev/entry": [user.entry]}}


def _head(api_version: str, kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    for name, wanted in (("apiVersion", api_version), ("kind", kind)):
        if document.get(name) != wanted:
            raise ApiError(400, f"{name} is {str(document.get(name))[:80]!r}; at this address it must be {wanted!r}")
    return {"kind": kind, "apiVersion": api_version, "metadata": {"creationTimestamp": None}}


def _may(spec: Mapping[str, Any], user: User) -> tuple[bool, str]:
    asked, url = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if isinstance(url, Mapping):
        path = str(url.get("path", ""))
        known = any(path == each or (each.endswith("*") and path.startswith(each[:-1])) for each in NON_RESOURCE_URLS)
        return known and url.get("verb") in ("get", "head"), ""
    if not isinstance(asked, Mapping):
        raise ApiError(422, "spec needs resourceAttributes or nonResourceAttributes")
    plural, group, sub = (str(asked.get(name, "")) for name in ("resource", "group", "subresource"))
    verb, namespace, name = (str(asked.get(name, "")) for name in ("verb", "namespace", "name"))
    if plural == "*" or verb == "*":
        return access.has_role(user, "admin", namespace), "that needs the role admin"
    resource = find(plural, group)
    if resource is None:
        return False, f"no resource {plural!r} in group {group!r} is served here"
    if not sub and verb not in resource.verbs:
        return False, f"nobody can {verb} {resource.plural}"
    if sub and resource.subresource(sub) is None:
        return False, f"{resource.plural} has no subresource {sub!r}"
    scope = namespace if resource.namespaced else ""
    if access.may(user, verb, resource, scope, name=name, subresource=sub):
        return True, ""
    return False, f"that needs the role {access.role_for(resource, verb, sub)}"


def find(plural: str, group: str) -> ResourceType | None:
    return next((each for each in REGISTRY.values() if each.plural == plural and group in (each.group, "*")), None)


def _rules(spec: Mapping[str, Any], user: User) -> dict[str, Any]:
    namespace = spec.get("namespace", "")
    if not isinstance(namespace, str) or not namespace:
        raise ApiError(422, "spec.namespace is required")
    rules: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for resource, sub, verbs in access.rules(user, namespace):
        rules.setdefault((resource.group, verbs), []).append(f"{resource.plural}/{sub}" if sub else resource.plural)
    shown = [{"verbs": list(verbs), "apiGroups": [group], "resources": names} for (group, verbs), names in rules.items()]
    reviews = [
        {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
        {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]},
    ]
    urls = [{"verbs": ["get"], "nonResourceURLs": list(NON_RESOURCE_URLS)}]
    return {"resourceRules": shown + reviews, "nonResourceRules": urls, "incomplete": False}
