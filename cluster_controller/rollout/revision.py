"""What one version of an application is, and what a target is told while it waits for its turn. Pure.

A version is its components without their replicas: scaling is no new version, and a target that keeps the version before is scaled all
the same (shares stay as placement says). Its digest is computed once, at the origin, and travels in each Work, so that all levels of
the tree speak of the same version, whatever an older program skips in it.

What is different on some clusters (`kinds.Override`) belongs to a version too. But a target has another version only where an override
that concerns it has changed: the part of its digest that speaks of overrides covers those alone, so the others have nothing to wait for.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.resources.kinds import Component, Override, WorkReference, WorkSpec

_encoder = msgspec.json.Encoder(order="deterministic")


class Version(Struct, frozen=True, kw_only=True):
    """Components with the replicas that they had when the version was written, and the documents that they need."""

    revision: str
    components: list[Component]
    references: list[WorkReference]
    overrides: list[Override] = []


class Order(Struct, frozen=True, kw_only=True):
    """What one target is told: components with its share as replicas, and what they need besides the newest version's documents."""

    revision: str
    components: list[Component]
    references: list[WorkReference]
    overrides: list[Override] = []
    kept: bool = False  # what it has already: nothing is to be made of it
    version: str = ""  # the revision of the whole level, where the target's own differs from it
    overridden: list[str] = []  # as in a Work
    unpatched: Mapping[str, str] = {}  # as in a Work
    without: Collection[tuple[str, str]] = ()  # (kind, name) of documents of the newest version that this target does not need


def digest(components: Sequence[Component]) -> str:
    """Equal for equal components, whatever their replicas; 16 hex digits."""
    plain = [msgspec.structs.replace(component, replicas=0) for component in components]
    return hashlib.sha256(_encoder.encode(plain)).hexdigest()[:16]


def base_of(revision: str) -> str:
    """The part that speaks of the components."""
    return revision.partition(".")[0]


def with_overrides(revision: str, overrides: Sequence[Override], *, whole: bool = False) -> str:
    """The revision of a target which these overrides concern; what they are called, and where else they apply, is no part of it.
    ``whole``: of the Application, where every word of them counts."""
    base = base_of(revision)
    if not base or not overrides:
        return base
    said = overrides if whole else [(each.component, each.merge, each.json_patch) for each in overrides]
    return f"{base}.{hashlib.sha256(_encoder.encode(said)).hexdigest()[:8]}"


def of_work(work: WorkSpec | None) -> str:
    """The version that a target was told; "" when it was told nothing. A Work of before the first rollout is recognised by what it says."""
    if work is None:
        return ""
    return work.revision or digest(work.components)


def order(
    newest: Version,
    stable: Version | None,
    before: WorkSpec | None,
    *,
    due: bool,
    shares: Mapping[str, int],
    extra: Sequence[WorkReference] = (),
) -> Order:
    """``before`` is the target's present Work, ``extra`` what the version before still needs below a target that divides on.

    Not due: it keeps what it has, and is given the stable version where it has nothing; without one, nothing.
    A component that only the kept version has keeps its replicas for as long as the target runs anything of the application.
    """
    if due:
        told = with_shares(newest.components, shares)
        return Order(revision=newest.revision, components=told, references=list(extra), overrides=newest.overrides)
    runs = any(shares.values())
    names = {component.name for component in newest.components}
    has = before or stable
    if has is None:
        return Order(revision="", components=[], references=[])
    components = []
    for component in has.components:
        alone = component.replicas if runs and before is not None else 0
        replicas = shares.get(component.name, 0) if component.name in names else alone
        components.append(msgspec.structs.replace(component, replicas=replicas))
    if isinstance(has, Version):
        return Order(revision=has.revision, components=components, references=has.references, overrides=has.overrides)
    return Order(
        revision=of_work(has),
        components=components,
        references=has.references,
        overrides=has.overrides,
        kept=True,
        overridden=has.overridden,
        unpatched=has.unpatched,
    )


def with_shares(components: Sequence[Component], shares: Mapping[str, int]) -> list[Component]:
    return [msgspec.structs.replace(component, replicas=shares.get(component.name, 0)) for component in components]


def rolled_back(stable: Version, present: Sequence[Component]) -> list[Component]:
    """The stable version as a spec to write: components that are still there keep the replicas that people gave them meanwhile."""
    replicas = {component.name: component.replicas for component in present}
    return [
        msgspec.structs.replace(component, replicas=replicas.get(component.name, component.replicas)) for component in stable.components
    ]
