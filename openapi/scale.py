"""`applications/NAME/scale`: the replicas of an Application that has exactly one component, as autoscaling/v1 Scale."""

from collections.abc import Callable
from typing import Any

from openapi.errors import ApiError

Json = dict[str, Any]
API_VERSION = "autoscaling/v1"


def scale_of(application: Json) -> Json:
    """Raises 422 where replicas would be ambiguous."""
    component = _only(application)
    metadata = application["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status = application.get("status") or {}
    return {
        "kind": "Scale",
        "apiVersion": API_VERSION,
        "metadata": {name: metadata[name] for name in kept if name in metadata},
        "spec": {"replicas": component.get("replicas", 1)},
        "status": {"replicas": status.get("ready", 0), "selector": f"banyan.dev/application={metadata['name']}"},
    }


def rescaled(change: Callable[[Json], Json]) -> Callable[[Json], Json]:
    """A change of the Scale as a change of the Application that it stands for."""

    def apply(application: Json) -> Json:
        scale = change(scale_of(application))
        for field, wanted in (("apiVersion", API_VERSION), ("kind", "Scale")):
            if scale.get(field) != wanted:
                raise ApiError(400, f"{field} is {str(scale.get(field))[:80]!r}; at this address it must be {wanted!r}")
        spec = scale.get("spec", {})
        replicas = spec.get("replicas", 0) if isinstance(spec, dict) else None
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            raise ApiError(422, f"spec.replicas is {str(replicas)[:40]!r}; it is a whole number, zero or more")
        metadata = scale.get("metadata", {})
        if not isinstance(metadata, dict):
            raise ApiError(400, "metadata is no object")
        component = {**_only(application), "replicas": replicas}
        kept = {name: metadata[name] for name in ("name", "uid", "resourceVersion") if name in metadata}
        return {
            **application,
            "metadata": {**application["metadata"], "resourceVersion": "", **kept},
            "spec": {**application["spec"], "components": [component]},
        }

    return apply


def _only(application: Json) -> Json:
    components = (application.get("spec") or {}).get("components") or []
    if len(components) != 1:
        names = ", ".join(str(each.get("name")) for each in components)
        raise ApiError(
            422,
            f'Application "{application["metadata"]["name"]}" has {len(components)} components ({names}); scale needs exactly one: '
            "set spec.components[].replicas by kubectl edit or patch",
        )
    only: Json = components[0]
    return only
