"""Lay the overrides of an Application over what each target is told.

Every level passes all overrides on, since a cluster that joins below while the branch is cut off may be one that they are for, and the
controller of the cluster that runs the Application applies them, by the labels and the name that it has for itself. A target whose own
controller does not know overrides (it is of the version before) is told the result instead, where all of its clusters are to have
the same; where they are not, it is told nothing new, and says why: nothing runs unpatched without anybody knowing.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from cluster_controller.events import Reason, record
from cluster_controller.placement.allotment import Allotment, needed
from cluster_controller.placement.contest import Seen
from cluster_controller.placement.subtree import Subtree
from cluster_controller.resources import kinds
from cluster_controller.resources.overriding import called, concerning, everything, lay
from cluster_controller.resources.rules import component_problems
from cluster_controller.rollout.keeping import Rolled
from cluster_controller.rollout.revision import Order, with_overrides, with_shares
from cluster_controller.store import Tx

Indexed = Sequence[tuple[int, kinds.Override]]


class Overriding:
    def __init__(self, uid: str, subtree: Subtree, timestamp: Callable[[], str]) -> None:
        self._uid = uid
        self._subtree = subtree
        self._timestamp = timestamp

    def revision(self, tx: Tx, revision: str, overrides: Sequence[kinds.Override], target: str) -> str:
        """What a target has when it has this version: the same wherever no override concerns it."""
        return with_overrides(revision, [each for _, each in self._concerning(tx, overrides, target)])

    def lay(
        self, tx: Tx, allotment: Allotment, shares: Mapping[str, Mapping[str, int]], seen: Mapping[str, Seen], rolled: Rolled
    ) -> Rolled:
        """``rolled`` with what each target is told of the overrides of its version."""
        if not allotment.overrides and not any(order.overrides for order in rolled.orders.values()):
            return rolled
        orders = dict(rolled.orders)
        for target in sorted({*shares, *seen}):
            order = orders.get(target) or Order(
                revision=allotment.revision,
                components=with_shares(allotment.components, shares.get(target, {})),
                references=[],
                overrides=allotment.overrides,
            )
            orders[target] = order if order.kept else self._told(tx, allotment, target, order, seen.get(target))
        return rolled._replace(orders=orders)

    def alone(self, tx: Tx, components: list[kinds.Component], overrides: Sequence[kinds.Override]) -> list[kinds.Component]:
        """What to look for room with: as it will run, where this cluster is the only one."""
        if not overrides or any(target != self._uid for _, target in self._subtree.known(tx)):
            return components
        return lay(components, self._concerning(tx, overrides, self._uid), component_problems).components

    def names(self, tx: Tx, overrides: Sequence[kinds.Override]) -> dict[str, list[str]]:
        """For every cluster which overrides are for it, for people."""
        found: dict[str, list[str]] = {}
        if overrides:
            resolved = self._resolved(tx, overrides)
            for target in {way for _, way in self._subtree.known(tx)}:
                for place in self._subtree.places(tx, target):
                    found[place.uid] = [called(each, index) for index, each in concerning(resolved, [place])]
        return found

    # --- one target ---

    def _told(self, tx: Tx, allotment: Allotment, target: str, order: Order, seen: Seen | None) -> Order:
        before = seen.work if seen is not None else None
        mine = self._concerning(tx, order.overrides, target)
        told = msgspec.structs.replace(
            order,
            revision=with_overrides(order.revision, [each for _, each in mine]),
            version=order.revision,
            without=_only_elsewhere(order.components, order.overrides, [each for _, each in mine]),
        )
        places = self._subtree.places(tx, target)
        if target == self._uid:
            laid = _apply(told, mine, before)
            self._tell(tx, allotment, before, laid.unpatched)
            return laid
        if all(place.aware for place in places if place.uid == target):
            return msgspec.structs.replace(told, overrides=self._resolved(tx, order.overrides))
        there = [place for place in places if place.runs]
        resolved = self._resolved(tx, order.overrides)
        if len({tuple(index for index, _ in concerning(resolved, [place])) for place in there}) <= 1:
            return _apply(told, mine, before)
        return _held_back(told, mine, before, f"{self._subtree.name(tx, target)} does not know overrides: upgrade its controller")

    def _concerning(self, tx: Tx, overrides: Sequence[kinds.Override], target: str) -> Indexed:
        return concerning(self._resolved(tx, overrides), self._subtree.places(tx, target)) if overrides else ()

    def _resolved(self, tx: Tx, overrides: Sequence[kinds.Override]) -> list[kinds.Override]:
        """Names as uids as far as they are known here: another cluster may have the same name in a branch of its own."""
        uids = self._subtree.uids(tx) if any(each.clusters.names for each in overrides) else {}
        return [
            msgspec.structs.replace(
                each, clusters=msgspec.structs.replace(each.clusters, names=[uids.get(name, name) for name in each.clusters.names])
            )
            if each.clusters.names
            else each
            for each in overrides
        ]

    def _tell(self, tx: Tx, allotment: Allotment, before: kinds.WorkSpec | None, unpatched: Mapping[str, str]) -> None:
        """An Event about this cluster when an override does not fit it, or fits at last."""
        was = before.unpatched if before is not None else {}
        if dict(unpatched) == dict(was):
            return
        application = allotment.application
        what = f"{application.namespace}/{application.name} of {application.origin_name}"
        said = "; ".join(f"{name}: {why}" for name, why in sorted(unpatched.items()))
        record(
            tx,
            about=kinds.ObjectReference(
                api_version=kinds.API_VERSION, kind="Cluster", name=self._subtree.name(tx, self._uid), uid=self._uid
            ),
            reason=Reason.OVERRIDE_FAILED if unpatched else Reason.OVERRIDE_APPLIED,
            message=f"{what} runs on as it was: {said}" if unpatched else f"the overrides of {what} are applied",
            component="placement",
            timestamp=self._timestamp(),
        )


def _apply(order: Order, mine: Indexed, before: kinds.WorkSpec | None) -> Order:
    laid = lay(order.components, mine, component_problems)
    components = [_as_before(each, before) if each.name in laid.unpatched else each for each in laid.components]
    return msgspec.structs.replace(order, components=components, overrides=[], overridden=laid.names, unpatched=laid.unpatched)


def _held_back(order: Order, mine: Indexed, before: kinds.WorkSpec | None, why: str) -> Order:
    """What overrides concern stays as it is there; the rest is told."""
    concerned = {each.component for _, each in mine}
    unpatched = {each.name: why for each in order.components if {each.name, ""} & concerned}
    components = [_as_before(each, before) if each.name in unpatched else each for each in order.components]
    return msgspec.structs.replace(order, components=components, overrides=[], unpatched=unpatched)


def _as_before(component: kinds.Component, before: kinds.WorkSpec | None) -> kinds.Component:
    """What runs there, with the replicas of now; nothing where nothing runs."""
    kept = next((each for each in before.components if each.name == component.name and each.replicas), None) if before is not None else None
    if kept is None:
        return msgspec.structs.replace(component, replicas=0)
    return msgspec.structs.replace(kept, replicas=component.replicas)


def _only_elsewhere(
    components: Sequence[kinds.Component], overrides: Sequence[kinds.Override], mine: Sequence[kinds.Override]
) -> Collection[tuple[str, str]]:
    """(kind, name) of documents that overrides for others name, and nothing that this target runs."""
    there = {(kind, name) for kind, name, _ in needed([*components, *everything(components, mine)])}
    return frozenset({(kind, name) for kind, name, _ in needed(everything(components, overrides))} - there)
