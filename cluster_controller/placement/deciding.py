"""What one decision is taken from, and the same decision without writing it: `Deciding.explain`.

Reads only: documents, Works, reports and books as they stand in one transaction. `engine` writes what follows from it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Struct

from cluster_controller.documents import Documents
from cluster_controller.placement import records
from cluster_controller.placement.allotment import Allotment, of_application, of_work, served
from cluster_controller.placement.balancing import Balancing, Situation
from cluster_controller.placement.beside import Beside
from cluster_controller.placement.capacity import Ledger, add, positive
from cluster_controller.placement.contest import Contest, Seen
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.given import Reading, answer, confirmed
from cluster_controller.placement.model import ClusterRecord, Demand, Given, Placement, Request
from cluster_controller.placement.overrides import Overriding
from cluster_controller.placement.place import place
from cluster_controller.placement.replacing import Replacing
from cluster_controller.placement.ruling import SiteRules
from cluster_controller.placement.subtree import Subtree
from cluster_controller.placement.taints import TaintAges
from cluster_controller.placement.works import Reader, Works
from cluster_controller.resources import kinds
from cluster_controller.rollout.keeping import Rolling
from cluster_controller.store import Key, Tx


class Supposed(Struct, frozen=True):
    """What if: ``document`` is the Application as it would be written; ``without`` the uids of clusters that would be gone."""

    document: bytes = b""
    without: frozenset[str] = frozenset()


AS_IT_IS = Supposed()


class Explained(NamedTuple):
    """A decision with all that it was taken from."""

    allotment: Allotment
    placement: Placement
    clusters: Sequence[ClusterRecord]
    given: Mapping[str, Mapping[str, Given]]
    answers: Mapping[tuple[str, str], kinds.ComponentStatus]  # (target, component): what it says of its newest share
    replaced: Mapping[str, Mapping[str, int]]  # target → component: of its share, what others hold while it is out of reach
    waits: Mapping[str, Mapping[str, str]]  # target → component: why its first start waits
    time: str  # when it was taken
    lower: Mapping[tuple[str, int], Sequence[str]]  # (cluster, priority): which others run there, of those that might give way
    overrides: Mapping[str, Sequence[str]]  # cluster → the overrides that are for it
    balance: str  # what would be moved to mend the balance, or why nothing; "" where nobody asked for that


class Rooms(NamedTuple):
    """Those who know a part of what a decision is taken from; the engine keeps them up to date."""

    works: Works
    ledger: Ledger
    subtree: Subtree
    rules: SiteRules
    reading: Reading
    replacing: Replacing
    ages: TaintAges
    rolling: Rolling
    overriding: Overriding
    balancing: Balancing
    contest: Contest
    beside: Beside


class Deciding:
    def __init__(
        self,
        rooms: Rooms,
        documents: Documents,
        keys: Mapping[str, Key],
        *,
        uid: str,
        name: str,
        silent: Callable[[], Mapping[str, str]],
        strays: Callable[[], Collection[str]],
        now: Callable[[], float],
        timestamp: Callable[[], str],
    ) -> None:
        """``keys``: by the application's uid, where it is written; ``silent``, ``strays``: as the engine is told."""
        self._documents = documents
        self._keys = keys
        self._uid = uid
        self._name = name
        self._silent = silent
        self._strays = strays
        self._now = now
        self._timestamp = timestamp
        self._works, self._ledger, self._subtree, self._rules = rooms.works, rooms.ledger, rooms.subtree, rooms.rules
        self._reading, self._replacing, self._ages, self._rolling = rooms.reading, rooms.replacing, rooms.ages, rooms.rolling
        self._overriding, self._balancing = rooms.overriding, rooms.balancing
        self._contest, self._beside = rooms.contest, rooms.beside

    def allotment(self, tx: Tx, application: str) -> Allotment | None:
        key = self._keys.get(application)
        stored = tx.get(key) if key is not None else None
        if stored is None:
            return None
        if stored.key.space == "desired":
            return of_work(tx, self._documents, stored)
        return of_application(tx, self._documents, stored, self._uid, self._name)

    def look(self, tx: Reader, application: str) -> dict[str, Seen]:
        """What every target was given and answered, read once for one settling."""
        works = self._works
        return {
            target: Seen(works.get(tx, target, application), works.status(tx, target, application)) for target in works.targets(application)
        }

    def demand(self, tx: Tx, allotment: Allotment) -> Demand:
        models = served(self._documents, allotment)
        components = self._overriding.alone(tx, allotment.components, allotment.overrides)
        demand = records.demand(allotment.application.uid, components, allotment.placement, origin=not allotment.chain, models=models)
        preempts = allotment.preemption_policy == "PreemptLowerPriority"
        demand = msgspec.structs.replace(demand, priority=allotment.priority, preempts=preempts)
        neighbours = self._beside.neighbours(tx, allotment.application.uid, allotment.placement, origin=not allotment.chain)
        return msgspec.structs.replace(demand, neighbours=neighbours) if neighbours else demand

    def pending(self, tx: Tx, allotment: Allotment, given: Mapping[str, Mapping[str, Given]]) -> dict[str, Request]:
        """What other applications were given below, and what no cluster there has counted as asked for yet.

        Where a target's own users ask for more this comes out too small. Then its placement, which knows, reports what did not fit.
        """
        pending = dict(self._subtree.pending(tx))
        for target, per in given.items():
            if target == self._uid or target not in pending:
                continue
            left = pending[target]
            for component in allotment.components:
                item = per.get(component.name, Given())
                left = add(left, records.request(component.resources), -max(0, item.share - item.unplaced - item.counted))
            pending[target] = positive(left)
        for target, asked in self._ledger.reserved(allotment.application.uid).items():
            pending[target] = add(pending.get(target, Request()), asked)
        kept = self._contest.pending(allotment.application.uid, allotment.priority)
        return pending | {self._uid: add(pending.get(self._uid, Request()), kept)} if kept else pending

    def records(self, tx: Tx, seen: Mapping[str, Seen]) -> Fleet:
        running: dict[str, Mapping[str, int]] = {}
        for target, (work, status) in seen.items():
            for row in status.clusters if status is not None else ():
                running[row.cluster] = row.components
            if target == self._uid and work is not None:
                running[target] = {component.name: component.replicas for component in work.components if component.replicas}
        return self._closed(self._subtree.records(tx, running))

    def _closed(self, fleet: Fleet) -> Fleet:
        """Clusters below a silent child may be heard, by way of adopters; but only that child could give them what is new."""
        strays = self._strays()
        if not strays:
            return fleet
        away = {
            record.uid: msgspec.structs.replace(record, reachable=False, broken_hop=hop, carried=True)
            for target, hop in self._silent().items()
            for record in fleet.behind(target)
            if record.reachable or record.uid in strays
        }
        return fleet.view(away) if away else fleet

    def revisions(self, tx: Tx, allotment: Allotment, seen: Collection[str]) -> Mapping[str, str]:
        """What each target has when it has the newest version, where overrides make that differ."""
        if not allotment.overrides:
            return {}
        return {target: self._overriding.revision(tx, allotment.revision, allotment.overrides, target) for target in seen}

    def explain(self, tx: Tx, application: str, supposed: Supposed = AS_IT_IS) -> Explained | None:
        """The decision as it would be taken now, or if what is supposed were so, with the records that it looks at; nothing is written."""
        allotment = self.allotment(tx, application)
        if allotment is None:
            return None
        stored = tx.get(allotment.key)
        if supposed.document and stored is not None:
            stored = msgspec.structs.replace(stored, document=supposed.document)
            allotment = of_application(tx, Documents(), stored, self._uid, self._name)
        seen = {target: each for target, each in self.look(tx, application).items() if target not in supposed.without}
        ruled = self._rules.apply(tx, allotment, write=False)
        allotment = ruled.allotment
        given = self._reading.given(tx, allotment, self._works.ceilings(tx, application), seen)
        plan = self._replacing.plan(tx, allotment, given, confirmed(seen))
        demand = self.demand(tx, allotment)
        clusters, _ = self._ages.look(demand, self.records(tx, seen), self._now())
        if supposed.without:
            clusters = Fleet(cluster for cluster in clusters if cluster.uid not in supposed.without)
        rivals = partial(self._contest.rivals, application, demand.priority)
        placement = place(demand, clusters, plan.given, self.pending(tx, allotment, plan.given), rivals=rivals)
        said = {
            (target, component.name): part
            for target, (work, status) in seen.items()
            for component in allotment.components
            if (part := answer(work, status, component.name)) is not None
        }
        return Explained(
            allotment=allotment,
            placement=ruled.told(msgspec.structs.replace(placement, shares=plan.whole(placement.shares)), self._uid),
            clusters=clusters,
            given=given,
            answers=said,
            replaced={target: plan.replaced(target) for target in given},
            waits=self._rolling.waiting(tx, allotment, plan.whole(placement.shares), seen),
            time=self._timestamp(),
            lower=self._lower(tx, placement),
            overrides=self._overriding.names(tx, allotment.overrides),
            balance=self._balancing.says(
                tx,
                Situation(
                    allotment,
                    demand,
                    clusters,
                    plan.given,
                    seen,
                    lambda stands: place(demand, clusters, stands, self.pending(tx, allotment, plan.given)),
                ),
            ),
        )

    def _lower(self, tx: Tx, placement: Placement) -> dict[tuple[str, int], list[str]]:
        """Who runs where something has to give way, by what this controller gave."""
        found: dict[tuple[str, int], list[str]] = {}
        for each in placement.preempting:
            priorities = {resident.priority for resident, _ in each.yields if not resident.name}
            for other in self._works.of_target(self._subtree.ways.get(each.cluster, "")) if priorities else ():
                for work, status in self.look(tx, other).values():
                    rows = status.clusters if status is not None else ()
                    if work is not None and work.priority in priorities and any(row.cluster == each.cluster for row in rows):
                        found.setdefault((each.cluster, work.priority), []).append(f"{work.application.namespace}/{work.application.name}")
        return {key: sorted(set(names)) for key, names in found.items()}
