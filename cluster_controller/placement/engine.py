"""Settle applications: divide what was given among children and the own cluster, fold what they report, write both.

One loop, level-triggered: events only mark applications as dirty; `settle` looks at the newest state and writes what is
missing, so a lost or repeated event changes nothing, and settling twice writes nothing the second time. Applications that are dirty
at once are settled in one commit, or in several when that would hold up the loop.

Invariants: what may be running never exceeds what was given (`placement.divide`), but for what a silent target may still run of a
share that the Application asked to replace (`placement.replace`); Work for a target is written in the same
commit as the documents that it needs, documents first; a Work that ended stays until nobody waits for its acknowledgement.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import structlog

from cluster_controller.delivered import is_lent
from cluster_controller.documents import Documents, recall
from cluster_controller.placement import records, transferring
from cluster_controller.placement.aggregate import aggregate
from cluster_controller.placement.allotment import Allotment, needed
from cluster_controller.placement.balancing import Balancing, Situation
from cluster_controller.placement.beside import Beside
from cluster_controller.placement.borrowing import tidy
from cluster_controller.placement.capacity import Ledger, add, awaited
from cluster_controller.placement.carried import STRAY, Carried
from cluster_controller.placement.contest import Contest, Seen, told, yielding
from cluster_controller.placement.deciding import Deciding, Rooms
from cluster_controller.placement.given import Reading, answer, confirmed, standing
from cluster_controller.placement.lending import Lending
from cluster_controller.placement.model import Given, Placement, Request
from cluster_controller.placement.overrides import Overriding
from cluster_controller.placement.place import place
from cluster_controller.placement.refused import Refused
from cluster_controller.placement.replacing import Plan, Replacing
from cluster_controller.placement.ruling import KEY as POLICY
from cluster_controller.placement.ruling import SiteRules
from cluster_controller.placement.status import only_status, withdraw_application
from cluster_controller.placement.subtree import Subtree, distances, placing_facts
from cluster_controller.placement.taints import TaintAges
from cluster_controller.placement.telling import Decided, Telling
from cluster_controller.placement.transferring import Transferring, stood_by
from cluster_controller.placement.uses import Uses
from cluster_controller.placement.works import Reader, Works
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.rollout.keeping import NOTHING, Gates, Rolling
from cluster_controller.settling import Alarm, Settler
from cluster_controller.store import Event, Key, Store, Stored, Tx

log = structlog.get_logger()

TURN_SECONDS = 0.05  # for which placement holds the loop at most, but for one application: heartbeats and watchers wait meanwhile
NOTHING_SEEN = Seen(None, None)
REFERENCED = ("Model", "ConfigMap", "Secret")


class Engine:
    """The placement of one controller. ``silent`` names, per direct child out of reach, the broken hop; ``silence`` says for how many
    seconds one of them was not heard; ``strays``: descendants that are heard by way of adopters (`tree.away`), ``astray``: those that
    are not back yet, heard or not. ``now`` is the boot-time
    clock."""

    heeds: tuple[str, ...] = ()  # `changed` is called for every kind: of some spaces each counts

    def __init__(
        self,
        store: Store,
        reporter: Reporter,
        *,
        uid: str,
        name: str,
        silent: Callable[[], Mapping[str, str]],
        silence: Callable[[str], float],
        now: Callable[[], float],
        timestamp: Callable[[], str],
        strays: Callable[[], Collection[str]] = tuple,
        astray: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._store = store
        self._reporter = reporter
        self._uid = uid
        self._name = name
        self._silent = silent
        self._timestamp = timestamp
        self._documents = Documents(store.get)
        self._works = Works(uid, store.get)
        self._keys: dict[str, Key] = {}  # application uid → its Application or Work
        self._uses = Uses()
        self._unplaced: set[str] = set()
        self._everywhere: set[str] = set()  # applications that every cluster that qualifies shall have
        self._near: set[str] = set()  # applications that are placed by latency
        self._ledger = Ledger()
        self._subtree = Subtree(uid, self._documents, self._ledger)
        self._refused = Refused()
        self._ages = TaintAges()
        self._beside = Beside(self._works)
        self._now = now
        self._carried = Carried(store, self._documents, strays)
        tree = self._subtree
        self._lending = Lending(uid, self._documents, self._works, heard=strays, kept=astray, way=tree.way, above=tree.above, silent=silent)
        self.transferring = Transferring(uid)
        self._replacing = Replacing(lambda child: silence(child) - self.transferring.grace(child), now, self._living)
        self._reading = Reading(uid, self._works, self._refused, silent=silent, living=self._living)
        self._contest = Contest(uid, name, self._works, self._subtree.capacity)
        self._rules = SiteRules(self._documents, self._contest.order)
        self._overriding = Overriding(uid, self._subtree, timestamp)
        self._balancing = Balancing(uid, name=self._subtree.name, now=now, timestamp=timestamp)
        self._rolling = Rolling(
            uid,
            silent=silent,
            labels=self._subtree.labels,
            name=self._subtree.name,
            now=now,
            timestamp=timestamp,
            revision=self._overriding.revision,
        )
        self._deciding = Deciding(
            Rooms(
                self._works, self._ledger, self._subtree, self._rules, self._reading, self._replacing, self._ages, self._rolling,
                self._overriding, self._balancing, self._contest, self._beside,
            ),
            self._documents, self._keys, uid=uid, name=name, silent=silent, strays=strays, now=now, timestamp=timestamp,
        )  # fmt: skip
        self.explain = self._deciding.explain
        self._telling = Telling(
            reporter, self._subtree, self._refused, self._documents, uid=uid, silent=silent, timestamp=timestamp, carried=self._carried
        )
        self._settler = Settler(store, self.settle, self._contest.order, turn=TURN_SECONDS)
        self._alarm = Alarm(self._settler.mark, now)
        self._ran = False
        self.settled = 0  # placements decided, for /metrics
        self.unknown = 0  # reports about applications that nobody here knows, dropped

    # --- what changed ---

    def load(self) -> None:
        """Learn the stored state; everything is settled once after a start."""
        for stored in self._store.list("own", "Application"):
            self._learn(stored.uid, stored)
            self._settler.mark(stored.uid)
        for stored in self._store.list("desired", "Work"):
            self._learn(stored.key.name, stored)
            self._settler.mark(stored.key.name)
        self._settler.mark_all(self._read_works())

    def _read_works(self) -> set[str]:
        applications = self._works.load(self._store) | self._lending.load(self._store)
        self._ledger.clear()
        self._rules.clear()
        self._settler.mark_all(self._contest.clear())
        for application in applications:
            self._book(self._store, application, self._deciding.look(self._store, application))
        return applications

    def changed(self, events: Sequence[Event]) -> None:
        """Called after each commit; only marks."""
        for event in events:
            space, kind = event.stored.key.space, event.stored.key.kind
            if space == "own" and kind == "Application":
                self._know(event, event.stored.uid)
                self._settler.mark_all(self._uses.of(event.stored))  # those that wait until it is ready
            elif space == "desired" and kind == "Work":
                self._know(event, event.stored.key.name)
            elif kind == "WorkStatus" and space != "report":
                self._reported(event)
            elif event.stored.key == POLICY:
                self._settler.mark_all(application for application, key in self._keys.items() if key.space == "desired")
            elif kind == "Cluster" and space == "own":
                self._cluster_changed(event)
            elif is_lent(space):  # of what a Work names, each that was served may be a user
                self._settler.mark_all(
                    [event.stored.key.name] if kind == "Work" else [each.key.name for each in self._store.list(space, "Work")]
                )
            elif kind == STRAY and space == "desired":
                self._settler.mark_all(self._works.of_target(event.stored.key.name))
            elif kind in REFERENCED and space in {"own", "desired"}:
                self._settler.mark_all(self._uses.of(event.stored))

    def _reported(self, event: Event) -> None:
        application = event.stored.key.name
        if event.kind_of == "put" and application not in self._keys and not self._works.targets(application):
            self.unknown += 1
        else:
            self._settler.mark(application)
            self._settler.mark_all(self._beside.watchers(application))

    def _know(self, event: Event, application: str) -> None:
        if event.kind_of == "put":
            if event.previous is not None and event.stored.key.space == "own" and only_status(event.previous, event.stored):
                return  # this room wrote it
            self._learn(application, event.stored)
        else:
            self._keys.pop(application, None)
            self._everywhere.discard(application)
            self._near.discard(application)
            self._beside.gone(application)
            self._uses.learn(application, frozenset())
        self._settler.mark(application)

    def _learn(self, application: str, stored: Stored) -> None:
        """Where the application is written, and which documents it names: by name at its origin, by uid below."""
        self._keys[application] = stored.key
        if stored.key.space == "desired":
            work = self._documents.read(stored, kinds.Work).spec
            placement, links, priority = work.placement, work.references, work.priority
            name = (work.application.origin, work.application.namespace, work.application.name)
            self._uses.learn(application, frozenset((link.kind, "", link.uid) for link in links))
        else:
            spec = self._documents.read(stored, kinds.Application).spec
            placement, priority = spec.placement, spec.priority
            name = (self._uid, stored.key.namespace, stored.key.name)
            named = [(kind, each) for kind, each, _ in needed(spec.components, spec.overrides)]
            named += [("Application", each) for each in spec.depends_on]
            self._uses.learn(application, frozenset((kind, stored.key.namespace, each) for kind, each in named))
        self._contest.learn(application, priority)
        self._beside.learn(application, name, placement)
        self._settler.mark_all(self._beside.watchers(application))
        (self._everywhere.add if placement.strategy == "Duplicated" else self._everywhere.discard)(application)
        (self._near.add if placement.latency is not None else self._near.discard)(application)

    def _cluster_changed(self, event: Event) -> None:
        self._refused.forget(self._subtree.ways.get(event.stored.uid, ""))
        after = self._documents.read(event.stored, kinds.Cluster) if event.kind_of == "put" else None
        before = self._documents_before(event)
        stays = self._subtree.changed(before, after)
        if after is not None and before is not None and placing_facts(before) == placing_facts(after):
            # Only what is free has changed: of interest to those who still look for room; or how far it is, to those who asked for that.
            self._settler.mark_all(self._unplaced)
            if distances(before) != distances(after):
                self._settler.mark_all(self._near)
        elif stays:
            # What stands elsewhere stays there: it concerns who is there, who looks for room, and who is to run everywhere.
            self._settler.mark_all(self._works.of_target(self._subtree.ways.get(event.stored.uid, "")))
            self._settler.mark_all(self._unplaced | self._everywhere)
        else:
            self._settler.mark_all(set(self._keys) | self._works.applications())

    def _documents_before(self, event: Event) -> kinds.Cluster | None:
        if event.previous is None:
            return None
        return recall(event.previous.document, kinds.Cluster)

    def link_changed(self, child: str) -> None:
        """The link to a direct child came up or was lost: what runs there counts, or does not."""
        if child not in self._silent():
            self._carried.came(child)
        self._settler.mark_all(self._works.of_target(child))
        self._settler.mark_all([*self._carried.applications(child), *self._lending.applications(child)])

    def _living(self, tx: Tx, target: str, allotment: Allotment) -> Mapping[str, int]:
        names = [component.name for component in allotment.components]
        below = self._carried.below(tx, self._subtree.name(tx, target), allotment.application.uid)
        return self._carried.living(tx, target, names, below, self._lending.held(tx, target, allotment.application.uid))

    def measured_by(self, gates: Gates, ungated: Callable[[str], None]) -> None:
        """Who reads the metrics of what runs on the own cluster, where there is one."""
        self._rolling.gates, self._rolling.ungated = gates, ungated

    def look_at(self, application: str) -> None:
        """Something about it is known that no document says."""
        self._settler.mark(application)

    def rollouts(self) -> Mapping[str, int]:
        """How many rollouts are in each phase here, for /metrics."""
        return self._rolling.phases()

    @property
    def replaced(self) -> int:
        """Replicas of silent shares that count as replaced, for /metrics."""
        return self._replacing.count

    @property
    def rebalanced(self) -> int:
        """Replicas that were moved because balance was lost, since the start, for /metrics."""
        return self._balancing.moves

    @property
    def lent(self) -> int:
        """Parts of shares that strays hold directly while their home is away, for /metrics."""
        return self._lending.count

    @property
    def refused(self) -> int:
        """Replicas that the policy of this site refuses, for /metrics."""
        return self._telling.refusing

    def ring(self) -> None:
        """Look at what has waited long enough; the alarm does so by itself."""
        self._alarm.ring()

    def places(self, view: Store | Tx, application: str) -> bool:
        """Is it divided here, from above or from here, and not on its way out?"""
        key = self._keys.get(application)
        stored = view.get(key) if key is not None else None
        if stored is None or stored.key.space == "desired":
            return stored is not None
        return self._documents.read(stored, kinds.Application).metadata.deletion_timestamp is None

    def transfer(self, tx: Tx, application: str, transfer: kinds.Transfer) -> None:
        """What a cluster took along to another parent is counted when the application is settled next."""
        transferring.decide(tx, application, transfer)

    def settle_again(self, target: str, applications: Collection[str] = ()) -> None:
        """Look at all that concerns a direct child, and at these."""
        self._settler.mark_all({*self._works.of_target(target), *applications})

    # --- settling ---

    async def run(self) -> None:
        """Settle what is marked, for ever. A commit that failed leaves the indexes ahead of the store: then they are read anew."""
        if self._ran:
            self._read_works()
        self._ran = True
        await self._settler.run()

    async def once(self) -> int:
        """Settle what is marked now; how many applications that were."""
        return await self._settler.once()

    def settle(self, tx: Tx, application: str) -> None:
        """Write what is missing for one application; nothing when all is well."""
        self.settled += 1
        tidy(tx, self._documents, application)
        self._lending.sweep(tx, application)
        allotment = self._deciding.allotment(tx, application)
        ceilings = self._works.ceilings(tx, application)
        if allotment is None or allotment.withdrawn:
            self._withdraw(tx, application, allotment, ceilings)
            return
        if self.transferring.waits(tx, self._works.targets(application)):
            return  # a cluster is on its way to another branch; it is settled once that is counted
        seen = self._deciding.look(tx, application)
        asked, ruled = allotment, self._rules.apply(tx, allotment)
        allotment = ruled.allotment
        given: Mapping[str, Mapping[str, Given]] = self._reading.given(tx, self.transferring.before(tx, allotment), ceilings, seen)
        shifted = self.transferring.look(tx, allotment, given, self._silent())
        yields = self._contest.yields(application) if not allotment.missing else {}
        if not allotment.missing:
            given = yielding(shifted.given, self._uid, yields)
        plan = self._replacing.plan(tx, allotment, given, confirmed(seen))
        awaited = self.transferring.awaited(tx, allotment, seen)
        rolled = NOTHING
        evicted: float | None = None
        if allotment.missing:
            # What runs, runs on; nothing new is decided with half of what it needs.
            placement = Placement(shares=standing(given), unplaced={}, waiting={}, refusals=(), eligible={})
            plan = Plan(given, before=plan.before)
        else:
            placement, evicted = self._decide(tx, allotment, seen, stood_by(plan.given, awaited))
            shares = plan.whole(placement.shares)
            rolled = self._rolling.plan(tx, allotment, shares, seen)
            if rolled.back:
                return  # to the version before: that change of the Application is settled next
            rolled = self._overriding.lay(tx, allotment, shares, seen, rolled)
            if self._works.write(tx, allotment, shares, given, plan.renew, rolled=rolled, shifted=shifted):
                seen = self._deciding.look(tx, application)
            self.transferring.made(tx, allotment, seen)
            if self._lending.serve(tx, application, duplicated=allotment.placement.strategy == "Duplicated"):
                seen = self._deciding.look(tx, application)
            self._telling.replaced(tx, allotment, plan, self._replacing.keep(tx, application, plan, placement.shares))
        self._alarm.set(application, min((each for each in (plan.again, rolled.again, evicted) if each is not None), default=None))
        self._book(tx, application, seen)
        left = {name: count + placement.waiting.get(name, 0) for name, count in placement.unplaced.items()}
        for name, (count, _) in ruled.refused.items():
            left[name] = left.get(name, 0) + count
        (self._unplaced.add if any(left.values()) or placement.stuck else self._unplaced.discard)(application)
        gave, again = self._contest.settled(tx, allotment, placement, left, seen)
        self._settler.mark_all(again | self._rules.marked())
        self._telling.preempted(tx, allotment, gave, yields)
        self._telling.stuck(tx, allotment, placement)
        placement = told(placement, gave)
        decided = Decided(
            ruled.told(placement, self._uid), left, plan, ruled.ruling.pinned, rolled, gave, self._deciding.revisions(tx, allotment, seen)
        )
        self._telling.refused(tx, asked, ruled.refused)
        self._telling.report(tx, asked, decided, seen)

    def _decide(
        self, tx: Tx, allotment: Allotment, seen: Mapping[str, Seen], given: Mapping[str, Mapping[str, Given]]
    ) -> tuple[Placement, float | None]:
        """The placement, and in how many seconds a taint that is tolerated until then, or a move, asks for another."""
        demand, pending = self._deciding.demand(tx, allotment), self._deciding.pending(tx, allotment, given)
        clusters, again = self._ages.look(demand, self._deciding.records(tx, seen), self._now())
        looked = self._balancing.look(
            tx, Situation(allotment, demand, clusters, given, seen, lambda stands: place(demand, clusters, stands, pending))
        )
        given, again = looked.given, min((each for each in (again, looked.again) if each is not None), default=None)
        rivals = partial(self._contest.rivals, demand.application, demand.priority)
        placement = place(demand, clusters, given, pending, reasons=False, rivals=rivals)
        if self._ledger.reserve(demand.application, awaited(placement, demand.components, self._subtree.ways)):
            self._settler.mark_all(self._unplaced)
        short = any(placement.unplaced.values()) or placement.preempting
        return place(demand, clusters, given, pending, rivals=rivals) if short else placement, again

    def _book(self, view: Reader, application: str, seen: Mapping[str, Seen]) -> None:
        """Keep account of what was given, but for what a target said that it has no place for."""
        parts = {}
        holds: dict[str, int] = {}
        for target, (work, status) in seen.items():
            asked = Request()
            for component in work.components if work is not None else ():
                part = answer(work, status, component.name)
                placed = component.replicas - (min(component.replicas, part.unplaced) if part is not None else 0)
                asked = add(asked, records.request(component.resources), placed)
                holds[component.name] = holds.get(component.name, 0) + component.replicas
            parts[target] = asked
        self._ledger.book(application, parts)
        work, status = seen.get(self._uid, NOTHING_SEEN)
        self._settler.mark_all(self._contest.hold(view, application, work, status))
        key = self._keys.get(application)
        if key is not None and key.space == "desired":
            whole = Request()
            for asked in parts.values():
                whole = add(whole, asked)
            if self._rules.book(application, whole, holds):
                self._settler.mark_all(self._unplaced)  # there is room below a cap of the site

    def _withdraw(self, tx: Tx, application: str, allotment: Allotment | None, ceilings: Mapping[str, Mapping[str, int]]) -> None:
        """Take the Works back. The Application goes when every target in reach has confirmed; the rest is listed at its Cluster."""
        self._lending.withdraw(tx, application)
        self._works.remove_all(tx, application)
        self._ledger.book(application, {})
        self._ledger.reserve(application, {})
        self._refused.drop(application)
        self._settler.mark_all(self._contest.forget(tx, application))
        self._replacing.forget(tx, application)
        transferring.forget(tx, application)
        self._rolling.forget(tx, application)
        self._balancing.forget(application)
        self._rules.forget(tx, application)
        self._telling.forget(application)
        self._alarm.set(application, None)
        silent = self._silent()
        waiting = [target for target in self._works.reporting(tx, application) if target not in silent]
        if not waiting:
            self._unplaced.discard(application)
            tx.delete(Key("report", "WorkStatus", "", application))
        for target in ceilings:
            if target not in waiting and target not in silent:
                self._works.confirm(tx, application, target)
        stored = tx.get(allotment.key) if allotment is not None and allotment.key.space == "own" else None
        if allotment is None or stored is None:
            return
        reports = [self._telling.target(tx, target, None, self._works.status(tx, target, application)) for target in waiting]
        left = aggregate(components=allotment.components, duplicated=True, reports=reports, unplaced={}, messages={}, version=0)
        before = self._documents.read(stored, kinds.Application).status
        names = [self._subtree.name(tx, target) for target in waiting]
        withdraw_application(tx, stored, before, waiting=names, left=left, timestamp=self._timestamp())
