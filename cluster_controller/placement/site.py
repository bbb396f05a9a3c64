"""What a site's policy makes of an Application from above: what it refuses, how much of it fits, what stays as it is. Pure.

A site may veto, cap and pin, not edit: the answer to those above is "unplaced, because", and they decide where else it goes.
Images are looked for where they are written: in `container` and in `manifests`. What a chart will render is not known here; a chart is
refused by the name of its Model.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import Struct, field

from cluster_controller.placement.capacity import add
from cluster_controller.placement.filters import matches
from cluster_controller.placement.model import Request
from cluster_controller.placement.records import request, requirements
from cluster_controller.resources import kinds, policy, quantity

DEEPEST = 32  # levels of a manifest in which an image is looked for
_UNLIMITED = 1_000_000


class Taken(Struct, frozen=True):
    """What Applications from above have here."""

    asked: Request = Request()
    replicas: int = 0

    def plus(self, other: "Taken", times: int = 1) -> "Taken":
        return Taken(add(self.asked, other.asked, times), self.replicas + times * other.replicas)

    def at_least(self, other: "Taken") -> "Taken":
        """Of each the larger."""
        names = {*self.asked.accelerators, *other.asked.accelerators}
        return Taken(
            Request(
                max(self.asked.cpu_millis, other.asked.cpu_millis),
                max(self.asked.memory_bytes, other.asked.memory_bytes),
                {name: max(self.asked.accelerators.get(name, 0), other.asked.accelerators.get(name, 0)) for name in names},
            ),
            max(self.replicas, other.replicas),
        )


NOTHING_TAKEN = Taken()
NOTHING_HELD: Mapping[str, int] = {}


class Pinned(Struct, frozen=True):
    """What an Application was when it was pinned."""

    components: tuple[kinds.Component, ...]
    generation: int = 0


class Ruling(Struct, frozen=True):
    """``components`` as this site runs them, in the numbers that it allows; ``refused[component]``: how many it does not, and why.

    ``pinned``: components that are kept in another version than the one that is asked for, with a sentence each.
    """

    components: list[kinds.Component]
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)


def means(subject: policy.Subject, application: kinds.ApplicationReference, labels: Mapping[str, str]) -> bool:
    """Whether every field that is given holds; one without any field means nobody."""
    given = [
        (subject.namespaces, (application.namespace,)),
        (subject.names, (application.name,)),
        (subject.origins, (application.origin_name, application.origin)),
    ]
    if not all(_one_of(patterns, values) for patterns, values in given if patterns):
        return False
    if subject.selector is not None and not matches(requirements(subject.selector), labels):
        return False
    return subject.selector is not None or any(patterns for patterns, _ in given)


def veto(
    spec: policy.SitePolicySpec, application: kinds.ApplicationReference, labels: Mapping[str, str], component: kinds.Component
) -> str | None:
    """The first reason why the component may not run here; None when it may."""
    for rule in spec.veto:
        about = bool(rule.namespaces or rule.names or rule.origins or rule.selector is not None)
        if about and not means(rule, application, labels):
            continue
        used = _uses(rule, component)
        if used is None or (not used and not about):
            continue
        what = f"it uses {used}" if used else "it is of those that the policy names"
        return rule.reason or f"the policy of the site refuses it: {what}"
    return None


def _uses(rule: policy.Veto, component: kinds.Component) -> str | None:
    """What of it the rule refuses; "" when the rule looks at nothing in it; None when it finds nothing."""
    if not rule.images and not rule.models:
        return ""
    for image in images(component):
        if _one_of(rule.images, (image,)):
            return f"image {image}"
    reference = component.model or (component.helm.chart if component.helm is not None else None)
    if reference is not None and _one_of(rule.models, (reference.name,)):
        return f"model {reference.name}"
    return None


def images(component: kinds.Component) -> list[str]:
    """Images that a component names."""
    if component.container is not None:
        return [component.container.image]
    return sorted({image for manifest in component.manifests for image in _images(manifest, DEEPEST)})


def _images(value: Any, deepest: int) -> Iterable[str]:
    if deepest and isinstance(value, dict):
        for name, item in value.items():
            if name == "image" and isinstance(item, str):
                yield item
            else:
                yield from _images(item, deepest - 1)
    elif deepest and isinstance(value, list):
        for item in value:
            yield from _images(item, deepest - 1)


def rule(
    spec: policy.SitePolicySpec,
    application: kinds.ApplicationReference,
    labels: Mapping[str, str],
    components: Sequence[kinds.Component],
    *,
    others: Taken = NOTHING_TAKEN,
    pinned: Pinned | None = None,
    before: Taken = NOTHING_TAKEN,
    holds: Mapping[str, int] = NOTHING_HELD,
) -> Ruling:
    """``others``: what other Applications from above have here, ``before``: those of them that are before this one when there is not
    enough for all. What it ``holds`` it keeps as far as those leave room; beyond, it gets what all others leave. ``pinned``: what stays,
    where a pin means this one."""
    refused: dict[str, tuple[int, str]] = {}
    kept: dict[str, str] = {}
    pins = {component.name: component for component in pinned.components} if pinned is not None else None
    runs: list[tuple[kinds.Component, str | None]] = []
    for asked in components:
        component = asked
        if pins is not None:
            component, why = _keep(asked, pins.get(asked.name), pinned)
            if why:
                kept[asked.name] = why
        runs.append((component, veto(spec, application, labels, component)))
    allowed = {component.name: 0 for component, _ in runs}
    mine = NOTHING_TAKEN
    caps = dict.fromkeys(allowed, "")
    for round_, beside in ((holds, before), (None, others)):
        for component, reason in runs:
            if reason is None:
                fits, caps[component.name] = _fits(spec.caps, component, beside.plus(mine))
                most = component.replicas if round_ is None else min(component.replicas, round_.get(component.name, 0))
                more = min(most - allowed[component.name], fits)
                allowed[component.name] += more
                mine = mine.plus(Taken(add(Request(), request(component.resources), more), more))
    for asked, (component, reason) in zip(components, runs, strict=True):
        if allowed[component.name] < asked.replicas:
            refused[asked.name] = asked.replicas - allowed[component.name], reason or caps[component.name] or kept.get(asked.name, "")
    return Ruling([msgspec.structs.replace(component, replicas=allowed[component.name]) for component, _ in runs], refused, kept)


def _keep(asked: kinds.Component, before: kinds.Component | None, pinned: Pinned | None) -> tuple[kinds.Component, str]:
    generation = f" (generation {pinned.generation})" if pinned is not None and pinned.generation else ""
    if before is None:
        return msgspec.structs.replace(asked, replicas=0), f"pinned by the policy of the site, whose version{generation} has no such part"
    kept = msgspec.structs.replace(before, replicas=asked.replicas)
    return kept, "" if kept == asked else f"pinned by the policy of the site: it keeps the version that it has{generation}"


def _fits(caps: policy.Caps, component: kinds.Component, taken: Taken) -> tuple[int, str]:
    """How many replicas the caps leave room for, and which of them is the narrowest."""
    each = request(component.resources)
    bounds: list[tuple[int, str]] = []
    if caps.replicas is not None:
        bounds.append((caps.replicas - taken.replicas, f"{caps.replicas} replica{'s' if caps.replicas != 1 else ''}"))
    if caps.cpu != "" and each.cpu_millis:
        bounds.append(((quantity.millis(caps.cpu) - taken.asked.cpu_millis) // each.cpu_millis, f"cpu {caps.cpu}"))
    if caps.memory != "" and each.memory_bytes:
        bounds.append(((quantity.units(caps.memory) - taken.asked.memory_bytes) // each.memory_bytes, f"memory {caps.memory}"))
    fits, name = min(bounds, default=(_UNLIMITED, ""))
    return max(0, fits), f"the policy of the site caps what comes from above at {name}" if name else ""


def _one_of(patterns: Sequence[str], values: Sequence[str]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns for value in values)
