"""Who competes for the own cluster of this controller: what each application has there, what is kept for one that waits, who gives way.

Preemption happens where the cluster is. An application that finds no room on it, and has a higher priority than others there, *claims*
room: those others yield (their share here is lowered, and they are placed elsewhere or told to be unplaced), and once they have
acknowledged that, so nothing of it runs any more, the one that waits is raised. Until then nobody of an equal or lower priority gets that
room, so a replica that gave way does not come back into it. A claim is made anew at each look, from what is so then: those that have given
way are no longer in it, and what they still run counts as room that is on its way. So looking twice changes nothing, and a claim that is
no longer needed is gone with the next look.

The same order holds when the cluster itself becomes too small for what it was given (`preempt.squeeze`): the lowest priority gives way,
of equals what is not ready before what is, and what came last. A node that is not ready takes nothing from anybody but for those of a
higher priority that are not ready.

Kept in memory, for after a restart everything is settled once, the highest priority first. Who gave way to whom is a fact of the store.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.capacity import Capacity, add, positive
from cluster_controller.placement.contend import Rivals
from cluster_controller.placement.model import Given, Placement, Refusal, Request, Resident
from cluster_controller.placement.preempt import Yield, squeeze
from cluster_controller.placement.records import request
from cluster_controller.placement.works import Reader, Works
from cluster_controller.resources import kinds
from cluster_controller.store import Tx

FILTER = "Preempted"
NOTHING = Request()


class Seen(NamedTuple):
    """What one target was given, and what it last answered."""

    work: kinds.WorkSpec | None
    status: kinds.WorkStatusStatus | None


Gave = dict[str, kinds.Preemptor]  # component → to whom


class _Part(Struct, frozen=True):
    """Of one component of one application, here."""

    request: Request
    share: int
    well: int


class _Claim(Struct, frozen=True):
    """What is kept for one application, and who is still to give way for it: (application, component) → replicas."""

    reference: kinds.ApplicationReference
    asked: Request
    yields: dict[tuple[str, str], int]


class _Entry(Struct, frozen=True):
    reference: kinds.ApplicationReference
    priority: int
    rank: int
    parts: dict[str, _Part] = field(default_factory=dict)
    giving: Request = NOTHING  # of what it gave back, what it has not acknowledged yet


class Contest:
    """``name``: of the own cluster; ``capacity``: of it, None while it is not known."""

    def __init__(self, uid: str, name: str, works: Works, capacity: Callable[[], Capacity | None]) -> None:
        self._uid = uid
        self._name = name
        self._works = works
        self._capacity = capacity
        self._priorities: dict[str, int] = {}
        self._ranks: dict[str, int] = {}
        self._entries: dict[str, _Entry] = {}
        self._claims: dict[str, _Claim] = {}
        self._residents: tuple[Resident, ...] | None = None
        self._next = 0

    # --- what is known ---

    def learn(self, application: str, priority: int) -> None:
        """Applications are ranked in the order in which they are first learnt."""
        self._priorities[application] = priority
        if application not in self._ranks:
            self._renew(application)

    def _renew(self, application: str) -> None:
        self._next += 1
        self._ranks[application] = self._next

    def order(self, application: str) -> tuple[int, int]:
        """In which applications are settled: the highest priority first, then who came first."""
        return -self._priorities.get(application, 0), self._ranks.get(application, 0)

    def forget(self, tx: Tx, application: str) -> set[str]:
        """It is gone; returns who may now have the room that was kept for it."""
        _keep(tx, application, {})
        self._priorities.pop(application, None)
        self._ranks.pop(application, None)
        self._residents = None
        self._entries.pop(application, None)
        claim = self._claims.pop(application, None)
        return {victim for victim, _ in claim.yields} if claim is not None else set()

    def clear(self) -> set[str]:
        """What the store says is read anew; returns who has to be settled again."""
        again = {*self._claims, *(victim for claim in self._claims.values() for victim, _ in claim.yields)}
        self._claims.clear()
        self._entries.clear()
        self._residents = None
        return again

    def hold(self, view: Reader, application: str, work: kinds.WorkSpec | None, status: kinds.WorkStatusStatus | None) -> set[str]:
        """Take note of all that an application has here: its share, what is ready of it, what it may still run beyond. Returns who waits
        for what has changed by that."""
        before = self._entries.get(application)
        if work is None:
            self._entries.pop(application, None)
            self._residents = None
            return set() if before is None else set(self._claims) - {application}
        ready = {item.name: item.ready for item in status.components} if status is not None else {}
        asks = {component.name: request(component.resources) for component in work.components}
        parts = {
            component.name: _Part(asks[component.name], component.replicas, min(component.replicas, ready.get(component.name, 0)))
            for component in work.components
            if component.replicas and asks[component.name]
        }
        answered = status is not None and status.version >= work.shares[-1].id
        giving = NOTHING
        for name, most in {} if answered else self._ceilings(view, application).items():
            more = most - (parts[name].share if name in parts else 0)
            giving = add(giving, asks.get(name, NOTHING), max(0, more))
        if before is not None and any(
            name in before.parts and _grew(before.parts[name].request, part.request) for name, part in parts.items()
        ):
            self._renew(application)  # who asks for more than before is the last who came
        priority = self._priorities.get(application, work.priority)
        self._entries[application] = after = _Entry(work.application, priority, self._ranks.get(application, 0), parts, giving)
        if before == after or (before is None and not parts and not giving):
            return set()
        self._residents = None
        return set(self._claims) - {application}

    def _ceilings(self, view: Reader, application: str) -> Mapping[str, int]:
        return self._works.ceilings(view, application).get(self._uid, {})

    # --- what one that is settled has to heed ---

    def reserved(self, application: str, priority: int) -> Request:
        """What is kept on the own cluster for others that this one may not pass by."""
        kept = NOTHING
        for other in self._before(application, priority):
            kept = add(kept, self._claims[other].asked)
        return kept

    def pending(self, application: str, priority: int) -> Request:
        """The same, with what others gave back and may still be running."""
        kept = self.reserved(application, priority)
        for other, entry in self._entries.items():
            if entry.giving and other != application:
                kept = add(kept, entry.giving)
        return kept

    def _before(self, application: str, priority: int) -> list[str]:
        """Others that wait and that it may not pass by."""
        return [other for other in self._claims if other != application and self._priorities.get(other, 0) >= priority]

    def rivals(self, application: str, priority: int) -> Rivals:
        """Who could give way, less what gives way already."""
        gone: dict[tuple[str, str], int] = {}
        for other in self._before(application, priority):
            for key, count in self._claims[other].yields.items():
                gone[key] = gone.get(key, 0) + count
        left = []
        for resident in self._everybody():
            key = (resident.application, resident.component)
            less = min(resident.count, gone.get(key, 0))
            gone[key] = gone.get(key, 0) - less
            if resident.count > less:
                left.append(msgspec.structs.replace(resident, count=resident.count - less) if less else resident)
        return Rivals(tuple(left), self.reserved(application, priority))

    def yields(self, application: str) -> dict[str, int]:
        """Replicas per component that it has to give back here, by claims and because the cluster is too small."""
        found: dict[str, int] = {}
        for claim in self._claims.values():
            for (victim, component), count in claim.yields.items():
                if victim == application:
                    found[component] = found.get(component, 0) + count
        capacity = self._capacity() if application in self._entries else None
        if capacity is not None and not found:
            found = {component: count for (victim, component), count in self._squeezed(capacity).items() if victim == application}
        return found

    def _squeezed(self, capacity: Capacity) -> dict[tuple[str, str], int]:
        everybody = self._everybody()
        taken = NOTHING
        for resident in everybody:
            taken = add(taken, resident.request, resident.count)
        over = positive(add(taken, capacity.whole, -1))
        if over:
            return _summed(squeeze(over, everybody))
        over = positive(add(taken, capacity.ready, -1)) if capacity.ready != capacity.whole else NOTHING
        return _displaced(over, everybody) if over else {}

    def _everybody(self) -> tuple[Resident, ...]:
        if self._residents is None:
            self._residents = tuple(resident for uid, entry in self._entries.items() for resident in _residents(uid, entry))
        return self._residents

    # --- what one that was settled leaves behind ---

    def settled(
        self, tx: Tx, allotment: Allotment, placement: Placement, left: Mapping[str, int], seen: Mapping[str, Seen]
    ) -> tuple[Gave, set[str]]:
        """After the decision was written: to whom it gave way, while something of it has no place, and who is to be settled now."""
        application = allotment.application.uid
        below = {
            part.name: part.preempted_by
            for _, status in seen.values()
            for part in (status.components if status is not None else ())
            if part.unplaced and part.preempted_by is not None
        }
        gave = {**below, **gave_way(tx, application), **self._to_whom(application)}
        gave = {name: one for name, one in gave.items() if left.get(name)}
        _keep(tx, application, gave)
        self._yielded(application)
        return gave, self._claim(allotment, placement)

    def _yielded(self, application: str) -> None:
        """It has given back what it had to."""
        for other, claim in list(self._claims.items()):
            left = {key: count for key, count in claim.yields.items() if key[0] != application}
            if len(left) != len(claim.yields):
                self._claims[other] = msgspec.structs.replace(claim, yields=left)

    def _claim(self, allotment: Allotment, placement: Placement) -> set[str]:
        """Keep what it waits for, and nothing more; returns who has to be settled for that: those who give way, those for whom something
        is no longer kept, and those of a lower priority who counted on the same replicas."""
        application = allotment.application.uid
        asks = {component.name: request(component.resources) for component in allotment.components}
        asked, yields = NOTHING, dict[tuple[str, str], int]()
        for each in placement.preempting:
            if each.cluster == self._uid and placement.waiting.get(each.component):
                asked = add(asked, asks[each.component], each.replicas)
                for resident, count in each.yields:
                    key = (resident.application, resident.component)
                    yields[key] = yields.get(key, 0) + count
        before = self._claims.pop(application, None)
        again = {victim for victim, _ in yields}
        if before is not None:
            again |= {victim for victim, _ in before.yields}
        if asked:
            before_it = self._before(application, allotment.priority)
            passed = [other for other in self._claims if other not in before_it and self._claims[other].yields.keys() & yields.keys()]
            for other in passed:
                del self._claims[other]
            again.update(passed)
            self._claims[application] = _Claim(allotment.application, asked, yields)
        return again

    def _to_whom(self, application: str) -> Gave:
        """For whom it has to give way, per component: the first in line."""
        found: Gave = {}
        for other in sorted(self._claims, key=self.order):
            claim = self._claims[other]
            for victim, component in claim.yields:
                if victim == application and component not in found:
                    found[component] = kinds.Preemptor(
                        namespace=claim.reference.namespace,
                        name=claim.reference.name,
                        uid=other,
                        priority=self._priorities.get(other, 0),
                        cluster=self._name,
                    )
        return found


def _residents(uid: str, entry: _Entry) -> Iterable[Resident]:
    for name, part in entry.parts.items():
        for count, well in ((part.well, True), (part.share - part.well, False)):
            if count:
                yield Resident(
                    priority=entry.priority,
                    request=part.request,
                    count=count,
                    application=uid,
                    name=f"{entry.reference.namespace}/{entry.reference.name}",
                    component=name,
                    well=well,
                    rank=entry.rank,
                )


def _summed(found: Iterable[Yield]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for each in found:
        key = (each.resident.application, each.resident.component)
        sums[key] = sums.get(key, 0) + each.count
    return sums


def _displaced(over: Request, everybody: Sequence[Resident]) -> dict[tuple[str, str], int]:
    """A node is gone: what is not ready and has a higher priority than others that have room takes theirs, and nobody else moves."""
    highest = max((each.priority for each in everybody if not each.well), default=None)
    lower = [each for each in everybody if highest is not None and each.priority < highest]
    lost = NOTHING
    for each in everybody:
        if not each.well and lower and each.priority > min(one.priority for one in lower):
            lost = add(lost, each.request, each.count)
    need = Request(
        min(over.cpu_millis, lost.cpu_millis),
        min(over.memory_bytes, lost.memory_bytes),
        {name: min(count, lost.accelerators.get(name, 0)) for name, count in over.accelerators.items()},
    )
    return _summed(squeeze(need, lower))


def _grew(before: Request, after: Request) -> bool:
    return bool(positive(add(after, before, -1)))


# --- who gave way to whom ---


def gave_way(tx: Tx, application: str) -> Gave:
    """Per component of which something has no place: to whom that gave way here."""
    stored = tx.fact(_fact(application))
    return msgspec.json.decode(stored, type=Gave) if stored else {}


def _keep(tx: Tx, application: str, gave: Gave) -> None:
    """For as long as something has no place."""
    if gave != gave_way(tx, application):
        tx.set_fact(_fact(application), msgspec.json.encode(gave) if gave else None)


def told(placement: Placement, gave: Gave) -> Placement:
    """The same placement with what explains most: to whom something gave way."""
    mine = [
        Refusal(
            cluster="",
            component=component,
            filter=FILTER,
            message=f"preempted by {one.name} (priority {one.priority}) on {one.cluster}",
            remedy="it comes back when there is room; raise spec.priority, or make room",
        )
        for component, one in sorted(gave.items())
    ]
    return msgspec.structs.replace(placement, refusals=(*mine, *placement.refusals)) if mine else placement


def yielding(given: Mapping[str, Mapping[str, Given]], target: str, yields: Mapping[str, int]) -> dict[str, Mapping[str, Given]]:
    """The same with what has to go from ``target``."""
    mine = {
        name: msgspec.structs.replace(item, yields=min(item.share, yields[name])) if yields.get(name) else item
        for name, item in given.get(target, {}).items()
    }
    return {**given, target: mine} if target in given else dict(given)


def _fact(application: str) -> str:
    return f"placement/preempted/{application}"
