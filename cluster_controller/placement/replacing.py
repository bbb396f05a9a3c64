"""Carry out `onUnreachable: Replace` around one decision: which silent shares do not count, and who stands in for them.

`replace` decides; this remembers. What is replaced, and who stands in, is a fact of the store, written in the commit of the shares
themselves, so a crash forgets neither. Since when a target is in reach again is kept in memory: after a restart that wait begins anew.
"""

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct, field

from cluster_controller.placement import replace
from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.model import Given
from cluster_controller.store import Store, Tx

Counts = dict[str, dict[str, int]]  # target → component → replicas
Silence = Callable[[str], float]  # seconds for which nothing was heard of a direct child
Heard = Callable[[Tx, str, Allotment], Mapping[str, int]]  # ready replicas below a silent child that adopters carry, by component


class Replaced(Struct, frozen=True):
    """Of one application: what is replaced of which target's share, and who holds it instead."""

    replaced: Counts = field(default_factory=dict)
    stands_in: Counts = field(default_factory=dict)


class Plan(Struct, frozen=True):
    """``given`` is what placement shall see: replaced replicas left out, targets on their way back left alone."""

    given: Mapping[str, Mapping[str, Given]]
    outcomes: Mapping[str, replace.Outcome] = field(default_factory=dict)  # per component
    before: Replaced = Replaced()
    again: float | None = None

    def whole(self, shares: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        """Placement's shares with what is replaced: what the Works shall say."""
        result = {target: dict(per) for target, per in shares.items()}
        for component, outcome in self.outcomes.items():
            for target, count in outcome.replaced.items():
                per = result.setdefault(target, {})
                per[component] = per.get(component, 0) + count
        return result

    @property
    def renew(self) -> set[str]:
        return {target for outcome in self.outcomes.values() for target in outcome.renew}

    @property
    def lost(self) -> set[str]:
        """Targets for whose answer nobody waits."""
        return {target for outcome in self.outcomes.values() for target in outcome.lost}

    def replaced(self, target: str) -> dict[str, int]:
        return {component: outcome.replaced[target] for component, outcome in self.outcomes.items() if target in outcome.replaced}


def of(view: Store | Tx, application: str) -> Replaced:
    """What is replaced of an application at this moment."""
    stored = view.fact(_fact(application))
    return msgspec.json.decode(stored, type=Replaced) if stored else Replaced()


def drop(tx: Tx, application: str) -> None:
    tx.set_fact(_fact(application), None)


class Replacing:
    """``silence`` says for how long a direct child out of reach was not heard, ``now`` is the boot-time clock."""

    def __init__(self, silence: Silence, now: Callable[[], float], heard: Heard = lambda tx, target, allotment: {}) -> None:
        self._heard = heard
        self._silence = silence
        self._now = now
        self._counts: dict[str, int] = {}  # application → replicas that are replaced
        self._back: dict[tuple[str, str], float] = {}  # application, target → since when it is in reach with a replaced share

    def plan(
        self, tx: Tx, allotment: Allotment, given: Mapping[str, Mapping[str, Given]], confirmed: Mapping[str, Mapping[str, int]]
    ) -> Plan:
        """``confirmed``: per target that has answered its newest share, and component, the replicas that are ready there."""
        policy = allotment.placement.on_unreachable
        before = of(tx, allotment.application.uid)
        after = float(policy.after_seconds) if policy.action == "Replace" else None
        silent = {target: self._silence(target) for target, per in given.items() if not all(item.reachable for item in per.values())}
        if allotment.placement.strategy == "Duplicated" or not (before.replaced or (silent and after is not None)):
            return Plan(given, before=before)
        back = {target: self._back_for(allotment.application.uid, target, target in silent, target in before.replaced) for target in given}
        carried = {target: self._heard(tx, target, allotment) for target in silent}
        outcomes = {}
        for component in allotment.components:
            name = component.name
            targets = {
                target: replace.Target(
                    share=(item := per.get(name, Given())).share,
                    ceiling=item.ceiling,
                    confirmed=confirmed[target].get(name, 0) if target in confirmed else None,
                    silent=silent.get(target),
                    back=back[target],
                    replaced=before.replaced.get(target, {}).get(name, 0),
                    stands_in=before.stands_in.get(target, {}).get(name, 0),
                    carried=carried.get(target, {}).get(name, 0),
                )
                for target, per in given.items()
            }
            outcomes[name] = replace.settle(component.replicas, after, targets)
        seen = {target: {name: _seen(item, target, outcomes.get(name)) for name, item in per.items()} for target, per in given.items()}
        again = min((outcome.again for outcome in outcomes.values() if outcome.again is not None), default=None)
        return Plan(seen, outcomes, before, again)

    def keep(self, tx: Tx, application: str, plan: Plan, shares: Mapping[str, Mapping[str, int]]) -> Replaced:
        """Remember what the shares that were just written mean: ``shares`` without what is replaced."""
        after = Replaced(replaced={}, stands_in={})
        for component, outcome in plan.outcomes.items():
            given = {target: per.get(component, 0) for target, per in shares.items()}
            held = replace.stand_ins(outcome.stands_in, outcome, given)
            for target, count in outcome.replaced.items():
                after.replaced.setdefault(target, {})[component] = count
            for target, count in held.items():
                after.stands_in.setdefault(target, {})[component] = count
        if after != plan.before:
            tx.set_fact(_fact(application), msgspec.json.encode(after) if after.replaced else None)
        for key in [key for key in self._back if key[0] == application and key[1] not in after.replaced]:
            del self._back[key]
        self._counts.pop(application, None)
        if after.replaced:
            self._counts[application] = sum(sum(per.values()) for per in after.replaced.values())
        return after

    @property
    def count(self) -> int:
        """Replicas of silent shares that others hold at this moment, and those on their way back."""
        return sum(self._counts.values())

    def forget(self, tx: Tx, application: str) -> None:
        drop(tx, application)
        self._counts.pop(application, None)
        for key in [key for key in self._back if key[0] == application]:
            del self._back[key]

    def _back_for(self, application: str, target: str, silent: bool, replaced: bool) -> float:
        """For how many seconds it has been in reach with a replaced share."""
        if silent:
            self._back.pop((application, target), None)
        return self._now() - self._back.setdefault((application, target), self._now()) if replaced and not silent else 0.0


def _seen(item: Given, target: str, outcome: replace.Outcome | None) -> Given:
    if outcome is None:
        return item
    replaced = outcome.replaced.get(target, 0)
    share = max(0, outcome.shares[target] - replaced)
    ceiling = share if target in outcome.lost else max(share, max(item.ceiling, item.share) - replaced)
    if not replaced:
        unplaced = min(item.unplaced, share)
        return msgspec.structs.replace(item, share=share, ceiling=ceiling, unplaced=unplaced, counted=min(item.counted, share))
    # On its way back, or lost: nothing is given to it, and nothing is taken from it but by `replace`.
    return Given(share=share, ceiling=ceiling, reachable=False, counted=share)


def _fact(application: str) -> str:
    return f"placement/replaced/{application}"
