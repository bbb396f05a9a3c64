"""What targets hold and say, as one decision reads it: of the newest share only what answers it.

What an ancestor gave a target while nobody here could reach it counts instead of what this controller gave (`moving`).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.model import Given
from cluster_controller.placement.moving import taken_over
from cluster_controller.placement.refused import Refused
from cluster_controller.placement.telling import answers
from cluster_controller.placement.works import Works
from cluster_controller.resources import kinds
from cluster_controller.store import Tx

Living = Callable[[Tx, str, Allotment], Mapping[str, int]]  # replicas below a direct child that need no replacement, by component


class Seen(Protocol):
    """What one target was given, and what it last answered."""

    @property
    def work(self) -> kinds.WorkSpec | None: ...
    @property
    def status(self) -> kinds.WorkStatusStatus | None: ...


class Reading:
    """``silent`` names the direct children out of reach."""

    def __init__(self, uid: str, works: Works, refused: Refused, *, silent: Callable[[], Collection[str]], living: Living) -> None:
        self._uid = uid
        self._works = works
        self._refused = refused
        self._silent = silent
        self._living = living

    def given(
        self, tx: Tx, allotment: Allotment, ceilings: Mapping[str, Mapping[str, int]], seen: Mapping[str, Seen]
    ) -> dict[str, dict[str, Given]]:
        """Target → component → what it was given; targets that have acknowledged their newest share are noted."""
        silent = self._silent()
        return {
            target: self._target(tx, allotment, target, each, ceilings=ceilings.get(target), reachable=target not in silent)
            for target, each in seen.items()
        }

    def _target(
        self,
        tx: Tx,
        allotment: Allotment,
        target: str,
        seen: Seen,
        *,
        ceilings: Mapping[str, int] | None,
        reachable: bool,
    ) -> dict[str, Given]:
        work, status = seen.work, seen.status
        shares = {component.name: component.replicas for component in work.components} if work else {}
        held = taken_over(work, target, shares, allotment.lent) if work is not None and allotment.lent else shares
        acknowledged = (answers(work, status) or (work is None and status is None)) and held == shares
        asks = reachable and status is not None and any(item.unplaced for item in status.components)
        living = self._living(tx, target, allotment) if asks else {}
        duplicated = allotment.placement.strategy == "Duplicated"
        per: dict[str, Given] = {}
        for component in allotment.components:
            name, share = component.name, held.get(component.name, 0)
            ceiling = share if acknowledged else max(shares.get(name, 0), (ceilings or {}).get(name, 0))
            part = answer(work, status, name)
            unplaced = min(share, part.unplaced) if part is not None and not duplicated else 0
            unplaced = max(0, unplaced - living.get(name, 0))  # what strays hold has its place: the target does not hear them yet
            self._refused.answer(allotment.application, target, name, part if not duplicated and share else None, share)
            per[name] = Given(
                share=share,
                ceiling=ceiling,
                unplaced=unplaced,
                reachable=reachable,
                refused=bool(self._refused.why(allotment.application, target, name)),
                counted=counted(status, name, share - unplaced if target == self._uid or part is not None else 0),
            )
        if acknowledged and ceilings is not None:
            self._works.confirm(tx, allotment.application.uid, target)
        return per


def confirmed(seen: Mapping[str, Seen]) -> dict[str, dict[str, int]]:
    """Per target that has taken its newest share into account, the replicas that it says are ready since."""
    return {
        target: {component.name: component.confirmed for component in each.status.components}
        for target, each in seen.items()
        if each.work is not None and each.status is not None and each.status.seen >= each.work.shares[-1].id
    }


def answer(work: kinds.WorkSpec | None, status: kinds.WorkStatusStatus | None, component: str) -> kinds.ComponentStatus | None:
    """What the target says of a component, when it answers the newest share."""
    if status is None or not answers(work, status):
        return None
    return next((item for item in status.components if item.name == component), None)


def counted(status: kinds.WorkStatusStatus | None, component: str, at_least: int) -> int:
    """Replicas that are seen to run; rows are the worst 20 only, so an answer counts for more."""
    return max(at_least, sum(row.components.get(component, 0) for row in status.clusters) if status is not None else 0)


def standing(given: Mapping[str, Mapping[str, Given]]) -> dict[str, dict[str, int]]:
    return {target: {name: item.share for name, item in per.items() if item.share} for target, per in given.items()}
