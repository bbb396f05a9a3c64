"""What an override makes of a component, and what an override must mean. Pure.

Patches are Kubernetes users' two: a merge (objects are merged, null removes) in which lists of things that have a name are merged by it,
as kustomize does, and a JSON patch (RFC 6902) for all that this cannot say. The result is a component as a person could have written
it: whatever is unknown, malformed or means nothing is refused with its reason, where the Application is written as far as that can be
told there, and else by the controller of the cluster where it does not fit.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds
from cluster_controller.resources.names import label_problem, subdomain_problem
from cluster_controller.resources.patch import JsonObject, json_patch
from cluster_controller.resources.selectors import from_struct
from cluster_controller.resources.shape import depth_problem, dotted, unknown_fields, without_nulls

MOST_OVERRIDES = 50
MOST_NAMES = 500
LARGEST = 1024 * 1024  # bytes of a component, patched
KEPT = ("name", "replicas", "dependsOn")  # decided for the whole tree, never by cluster
KINDS = ("model", "command", "container", "manifests", "helm")  # what a component is
DIRECTIVE = "$patch"

Judge = Callable[[kinds.Component], Sequence[tuple[str, str]]]  # (field, what is wrong) of a component, by the rules of its kind


def called(override: kinds.Override, index: int) -> str:
    """The word by which people hear of it."""
    return override.name or f"overrides[{index}]"


def patched(component: kinds.Component, override: kinds.Override) -> kinds.Component:
    """The component with the override applied. InvalidInput says by its field which of the two patches is at fault."""
    before: JsonObject = msgspec.to_builtins(component)
    merged = merge(before, override.merge) if override.merge else before
    if override.merge:
        _readable(before, merged, "merge")
    if not override.json_patch:
        return _readable(before, merged, "merge")
    try:
        changed = json_patch(merged, override.json_patch)
    except InvalidInput as error:
        raise InvalidInput(str(error), "jsonPatch") from error
    return _readable(before, changed, "jsonPatch")


def _readable(before: JsonObject, document: JsonObject, field: str) -> kinds.Component:
    """The result as a component that differs only in what may be different."""
    deep = depth_problem(document)
    if deep:
        raise InvalidInput(deep, field)
    document = without_nulls(document)
    if len(msgspec.json.encode(document)) > LARGEST:
        raise InvalidInput(f"the component would have more than {LARGEST} bytes", field)
    for name in KEPT:
        if document.get(name) != before.get(name):
            raise InvalidInput(f"{name} cannot be overridden: it is decided for all clusters together", field)
    if {kind for kind in KINDS if document.get(kind)} != {kind for kind in KINDS if before.get(kind)}:
        raise InvalidInput(f"what a component is ({', '.join(KINDS)}) cannot be overridden: write two components", field)
    problems = unknown_fields(document, kinds.Component)
    if problems:
        raise InvalidInput(f"{problems[0].field}: {problems[0].message}", field)
    try:
        return msgspec.convert(document, kinds.Component)
    except msgspec.ValidationError as error:
        where, what = dotted(str(error))
        raise InvalidInput(f"{where}: {what}" if where else what, field) from None


class Place(Struct, frozen=True):
    """A cluster as its labels and names are known where that is asked. ``aware``: its controller knows overrides."""

    uid: str
    name: str
    labels: Mapping[str, str]
    aware: bool = True
    runs: bool = True  # it has a cluster of its own


class Laid(Struct, frozen=True, kw_only=True):
    """Components as one cluster shall run them. ``unpatched``: those that are as they were, because an override cannot be applied."""

    components: list[kinds.Component]
    names: list[str]
    unpatched: dict[str, str]


def concerning(overrides: Sequence[kinds.Override], places: Sequence[Place]) -> list[tuple[int, kinds.Override]]:
    """Those that are for any of these clusters, in order and with their places in the list."""
    return [(index, each) for index, each in enumerate(overrides) if any(_for(each.clusters, place) for place in places)]


def _for(clusters: kinds.OverrideClusters, place: Place) -> bool:
    if clusters.names and place.uid not in clusters.names and place.name not in clusters.names:
        return False
    return clusters.selector is None or from_struct(clusters.selector).matches(place.labels)


def lay(components: Sequence[kinds.Component], overrides: Sequence[tuple[int, kinds.Override]], judge: Judge) -> Laid:
    """One after the other. A component that one of them does not fit is left as it was: half of what was meant was never meant."""
    laid: list[kinds.Component] = []
    names: list[str] = []
    unpatched: dict[str, str] = {}
    for component in components:
        result, mine = component, [(index, each) for index, each in overrides if each.component in {"", component.name}]
        for index, override in mine:
            try:
                result = patched(result, override)
            except InvalidInput as error:
                unpatched[component.name] = f"{called(override, index)}: {error.field}: {error}"
                break
        wrong = judge(result) if mine and component.name not in unpatched else ()
        if wrong:
            unpatched[component.name] = f"{called(mine[-1][1], mine[-1][0])}: {wrong[0][0]}: {wrong[0][1]}"
        good = component.name not in unpatched
        laid.append(result if good else component)
        names += [name for index, each in mine if good and (name := called(each, index)) not in names]
    return Laid(components=laid, names=names, unpatched=unpatched)


def everything(components: Sequence[kinds.Component], overrides: Sequence[kinds.Override]) -> list[kinds.Component]:
    """The components with each override by itself, and with all of them: what they may come to need somewhere."""
    found: list[kinds.Component] = []
    for component in components:
        whole = component
        for override in overrides:
            if override.component not in {"", component.name}:
                continue
            with contextlib.suppress(InvalidInput):
                found.append(patched(component, override))
            with contextlib.suppress(InvalidInput):
                whole = patched(whole, override)
                found.append(whole)
    return found


# --- merge ---


def merge(document: JsonObject, patch: Mapping[str, Any]) -> JsonObject:
    """``patch`` laid over ``document``, which stays as it was."""
    result = dict(document)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _merged(before: Any, patch: Any) -> Any:
    if isinstance(patch, dict):
        return merge(before if isinstance(before, dict) else {}, patch)
    if isinstance(patch, list) and patch and all(said := [_identity(item) for item in patch]):
        known = [_identity(item) for item in before] if isinstance(before, list) else [None]
        if all(known) and len(set(known)) == len(known):
            return _list(before, known, patch, said)
        if len(set(said)) == len(said):  # a list that was not there, or of other things: what is taken out of an item is not put into it
            return _list([], [], patch, said)
    return patch


def _list(before: list[Any], known: Sequence[object], patch: list[Any], said: Sequence[object]) -> list[Any]:
    """Items by their identity: changed where they stand, new ones at the end, ``$patch: delete`` takes one away."""
    result = dict(zip(known, before, strict=True))
    for identity, item in zip(said, patch, strict=True):
        if item.get(DIRECTIVE) == "delete":
            result.pop(identity, None)
        else:
            result[identity] = _merged(result.get(identity, {}), item)
    return list(result.values())


def _identity(item: Any) -> object:
    """By what an item of a list is known: a Kubernetes object by kind and name, other things by name or path; None: only by its place."""
    if not isinstance(item, dict):
        return None
    metadata = item.get("metadata")
    if isinstance(metadata, dict) and isinstance(item.get("kind"), str):
        return item.get("apiVersion"), item["kind"], metadata.get("namespace", ""), metadata.get("name")
    known = item.get("name", item.get("path"))
    return known if isinstance(known, str) and known else None


# --- rules ---


def overrides(app: kinds.Application, judge: Judge, report: Callable[[str, str], None]) -> None:
    """Everything that is wrong with the overrides of an Application, as far as it can be told where it is written."""
    found = app.spec.overrides
    if len(found) > MOST_OVERRIDES:
        report("spec.overrides", f"has {len(found)} overrides; at most {MOST_OVERRIDES}")
    names: set[str] = set()
    components = {component.name: component for component in app.spec.components}
    so_far = dict(components)
    for index, override in enumerate(found[:MOST_OVERRIDES]):
        where = f"spec.overrides[{index}]"
        if override.name in names:
            report(f"{where}.name", f"{override.name[:80]!r} appears twice")
        names |= {override.name} - {""}
        _shape(override, where, sorted(components), report)
        for name in [override.component] if override.component in components else [] if override.component else list(components):
            wrong = _unfit((so_far[name], components[name]), override, judge)
            if isinstance(wrong, kinds.Component):
                so_far[name] = wrong
            else:
                report(f"{where}{wrong[0]}", f"component {name}{wrong[1]}")


def _shape(override: kinds.Override, where: str, components: Sequence[str], report: Callable[[str, str], None]) -> None:
    problem = label_problem(override.name) if override.name else ""
    if problem:
        report(f"{where}.name", problem)
    clusters = override.clusters
    if clusters.selector is None and not clusters.names:
        report(f"{where}.clusters", "one of selector, names is required; what shall hold everywhere belongs into the component")
    if len(clusters.names) > MOST_NAMES:
        report(f"{where}.clusters.names", f"has {len(clusters.names)} names; at most {MOST_NAMES}")
    for number, name in enumerate(clusters.names[:MOST_NAMES]):
        wrong = subdomain_problem(name)
        if wrong:
            report(f"{where}.clusters.names[{number}]", wrong)
    try:
        from_struct(clusters.selector, f"{where}.clusters.selector")
    except InvalidInput as error:
        report(error.field or f"{where}.clusters.selector", str(error))
    if override.component and override.component not in components:
        have = ", ".join(components)[:200]
        report(f"{where}.component", f"{override.component[:80]!r} is no component of this application; it has {have}")
    if not override.merge and not override.json_patch:
        report(where, "one of merge, jsonPatch is required")


def _unfit(candidates: Sequence[kinds.Component], override: kinds.Override, judge: Judge) -> kinds.Component | tuple[str, str]:
    """The component after it, or (field below the override, what is wrong).

    It is to fit after all that come before it, or by itself: which of those a cluster has is known only there.
    """
    known = {what for _, what in judge(candidates[-1])}
    trouble = ("", "")
    for before in candidates:
        try:
            result = patched(before, override)
        except InvalidInput as error:
            trouble = (f".{error.field}", f": {error}")
            continue
        wrong = next(((field, what) for field, what in judge(result) if what not in known), None)
        if wrong is None:
            return result
        trouble = ("", f" would have {wrong[0]}: {wrong[1]}")
    return trouble
