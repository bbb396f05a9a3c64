"""What must hold in every simulated world, whatever breaks: one small checker each.

Some look at every commit and every change of a site as it happens, some now and then, all of them at quiet points, when everything
that was broken has been mended and has had time to heal. A checker says what is wrong; it never mends anything.
"""

import itertools
from collections.abc import Callable, Iterator

import msgspec

from cluster_controller.placement import replacing
from cluster_controller.resources import kinds
from cluster_controller.store.database import Batch
from cluster_controller.store.model import Stored
from tests.simulation import bounds
from tests.simulation.disk import Disk
from tests.simulation.quiet import QUIET
from tests.simulation.reach import Reach, awake, served
from tests.simulation.site import Instance, Site
from tests.simulation.wishes import Wish, Wishes
from tests.simulation.world import Place, World

SLACK_SECONDS = 12.0  # from a link declared dead until everybody above in reach was told
HOP_SECONDS = 4.0
REPLACE_SECONDS = 45.0  # from when a cluster counts as silent, and afterSeconds, until what it had runs elsewhere
SURPLUS_SECONDS = 60.0  # from when the links are up
LINKED_SECONDS = 10.0  # until they are, once the ways are open: the longest pause between two attempts
WHOLE_SECONDS = 60.0  # in a tree that is whole, and with nobody changing anything, all has become as it was wanted
REPEATED = 20  # violations of one kind that are written down


class Violation(msgspec.Struct):
    at: float
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.invariant}: {self.what}"


Demand = dict[str, int]  # component → replicas


def at_most(one: Demand, other: Demand) -> Demand:
    """Of each component the larger of both."""
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


class Given:
    """What one controller was given and gives on, as its disk has it: application → component → replicas."""

    def __init__(self) -> None:
        self.demand: dict[str, Demand] = {}
        self.divided: set[str] = set()
        self.shares: dict[str, dict[str, dict[str, int]]] = {}  # application → target → component → replicas


class Invariants:
    """Of one world."""

    def __init__(self, world: World, wishes: Wishes) -> None:
        self.world = world
        self.wishes = wishes
        self.violations: list[Violation] = []
        self.also: list[Callable[[Disk, Batch], None]] = []  # who else looks at every commit
        self.rereads: list[Callable[[Disk], None]] = []  # who else follows what is on a disk, when it was set back
        self._given: dict[str, Given] = {}
        self._counts: dict[tuple[str, str], int] = {}  # (site, application) → what runs
        self.totals: dict[str, int] = {}  # application → what runs in all
        self._gone: set[str] = set()  # applications that their origin has forgotten, all having stopped
        self.reach = Reach(world)
        self._up: dict[str, float] = {}  # place → since when it runs undisturbed
        self.rewound: set[str] = set()  # places whose disk went back in time since the last quiet point
        self.moved: set[str] = set()  # places that were given another parent since the last quiet point
        self.thorough = True  # also count what is in memory, which takes as long as all else together
        self._seen_crashes = 0
        self._state: object = None  # what is broken, and how
        self._state_since = 0.0
        self._troubled: set[str] = set()  # places whose ways, disks or shims are bad, and not quite broken
        self._steady_since = 0.0  # since when there are none of them
        self._calm_from = 0.0  # everything is in reach, and has been for long enough that everybody knows
        self._settled: dict[str, int] = {}  # application → replicas that were ready at the last quiet point
        for place in world.places.values():
            self.watch(place)

    def watch(self, place: Place) -> None:
        place.disk.watch = self.committed
        place.site.changed = self.site_changed
        place.site.stopping = self.site_stops
        self._given[place.name] = Given()

    def violated(self, invariant: str, what: str) -> None:
        if sum(each.invariant == invariant for each in self.violations) < REPEATED:
            violation = Violation(self.world.loop.time(), invariant, what)
            self.violations.append(violation)
            self.world.note("!", f"{invariant}: {what}")

    def before_restoring(self, place: Place) -> None:
        """What runs as it is wanted, where nothing is broken, must not be stopped because ``place`` forgets about it."""
        self.sample()
        now = self.world.loop.time()
        near = [*place.path(), *place.subtree()]
        since = [self._up.get(each.name, now) for each in near]
        for above, below in itertools.product((each.name for each in place.path()), (each.name for each in place.subtree())):
            since.append(now if (above, below) in self.reach.unheard else self.reach.changed.get((above, below), 0.0))
        if now - max(since) < WHOLE_SECONDS or self._troubled.intersection(each.name for each in near):
            return
        for wish in self.wishes.living():
            if wish.divided and not wish.replaces and wish.sure and now - wish.changed > WHOLE_SECONDS:
                wish.settled = {each.name for each in place.subtree() if each.site.running(wish.uid) == each.site.ready(wish.uid) > 0}

    def restored(self, place: Place) -> None:
        """Its disk is as it was at the last quiet point."""
        self.rewound.add(place.name)
        given = self._given[place.name] = Given()
        for stored in place.disk.live().values():
            self._gone.discard(stored.uid)  # its deletion is forgotten with all else
            if stored.key.kind == "Application" and stored.key.space == "own":
                self._note_application(given, stored, gone=False)
            elif stored.key.kind == "Work":
                self._note_work(given, stored, gone=False)
        self.wishes.forget(place)
        for reread in self.rereads:
            reread(place.disk)

    # --- at every commit ---

    def committed(self, disk: Disk, batch: Batch) -> None:
        given = self._given[disk.name]
        raised: dict[str, Demand] = {}  # application → what was given when a share of it was raised
        for event in batch.events:
            stored, before = event.stored, event.previous
            space, kind = stored.key.space, stored.key.kind
            if event.kind_of == "put":
                self.no_older_version(disk, stored, before)
            if kind == "Application" and space == "own":
                self._note_application(given, stored, gone=event.kind_of == "delete")
            elif kind == "Work" and self._note_work(given, stored, gone=event.kind_of == "delete"):
                raised[stored.key.name] = at_most(raised.get(stored.key.name, {}), given.demand.get(stored.key.name, {}))
        for application, then in raised.items():
            self.allotment(disk, given, application, then)
        for also in self.also:
            also(disk, batch)
        self.world.note(disk.name, f"commit {batch.events[-1].revision if batch.events else '-'} {len(batch.events)} {len(batch.facts)}")

    def no_older_version(self, disk: Disk, stored: Stored, before: Stored | None) -> None:
        """What came from another controller is never replaced by an older version of itself."""
        space = stored.key.space
        if before is None or before.uid != stored.uid or not (space == "desired" or space.startswith("up/")):
            return
        if stored.version < before.version and not self.rewound and not self._has_moved(disk.name):  # a new parent counts anew
            self.violated(
                "no older version", f"{disk.name}: {space} {stored.key.kind} {stored.key.name} {before.version} → {stored.version}"
            )
        if stored.source and stored.source == before.source and (stored.start, stored.sequence) < (before.start, before.sequence):
            self.violated("no older report", f"{disk.name}: {space} {stored.key.kind} {stored.key.name} goes back in {stored.source}")

    def _has_moved(self, name: str) -> bool:
        """Since the last quiet point; by the identity that it has, be it a moment before that is noted."""
        place = self.world.places[name]
        if name in self.moved or place.controller is None or place.parent is None:
            return name in self.moved
        return place.controller.identity().parent_uid != place.parent.uid

    def _note_application(self, given: Given, stored: Stored, *, gone: bool) -> None:
        if stored.uid in self._gone and not self.rewound:
            self.violated("nothing deleted comes back", f"Application {stored.key.name} ({stored.uid})")
        if gone:
            given.demand.pop(stored.uid, None)
            self._gone.add(stored.uid)
            return
        document = msgspec.json.decode(stored.document, type=kinds.Application)
        self._note_demand(given, stored.uid, document.spec.components, document.spec.placement.strategy)

    def _note_demand(self, given: Given, uid: str, components: list[kinds.Component], strategy: str) -> None:
        given.demand[uid] = {each.name: each.replicas for each in components}
        if strategy == "Divided":
            given.divided.add(uid)
        else:
            given.divided.discard(uid)

    def _note_work(self, given: Given, stored: Stored, *, gone: bool) -> bool:
        """Whether a target has more than before."""
        uid, space = stored.key.name, stored.key.space
        if space not in {"desired", "local"} and not space.startswith("down/"):
            return False
        if space == "desired":
            if gone:
                given.demand.pop(uid, None)
            else:
                spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
                self._note_demand(given, uid, spec.components, spec.placement.strategy)
            return False
        targets = given.shares.setdefault(uid, {})
        if gone:
            targets.pop(space, None)
            return False
        spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
        now = {each.name: each.replicas for each in spec.components}
        before = targets.get(space, {})
        targets[space] = now
        return any(count > before.get(name, 0) for name, count in now.items())

    def allotment(self, disk: Disk, given: Given, uid: str, then: Demand) -> None:
        """Whoever raises a share has not given away more than it was given itself.

        Several transactions are in one batch (group commit): what was given is taken back by another one after it, perhaps. So a raise is
        held against what was given ``then``, at that transaction, or is now.
        """
        if uid not in given.divided or disk.name in self.rewound:
            return
        demand = at_most(given.demand.get(uid, {}), then)
        fact = disk.facts.get(replacing._fact(uid))
        replaced = msgspec.json.decode(fact, type=replacing.Replaced).replaced if fact else {}
        for name in sorted({name for each in given.shares.get(uid, {}).values() for name in each}):
            total = sum(each.get(name, 0) for each in given.shares[uid].values())
            total -= sum(each.get(name, 0) for each in replaced.values())  # a silent cluster's, which others run
            if total > demand.get(name, 0):
                shares = {space: each.get(name, 0) for space, each in given.shares[uid].items()}
                self.violated("allotment", f"{disk.name} gives {total} of {demand.get(name, 0)} of {uid}/{name}: {shares}")

    # --- at every change of a site ---

    def site_changed(self, site: Site, app: str) -> None:
        count = site.running(app)
        before = self._counts.get((site.name, app), 0)
        if count == before:
            return
        self._counts[site.name, app] = count
        total = self.totals[app] = self.totals.get(app, 0) + count - before
        self.world.note(site.name, f"runs {count} of {app}")
        if count > before:
            self.never_doubled(site, app, count, total)

    def never_doubled(self, site: Site, app: str, count: int, total: int) -> None:
        """With Keep, and in a move between live clusters, no more runs anywhere, ending instances included, than was ever wanted."""
        wish = self.wishes.by_uid.get(app)
        if wish is None:
            self.violated("nothing unknown runs", f"{site.name} runs {app}")
        elif self.rewound and wish.touched:
            return  # its origin, or somebody on the way, has forgotten what was last wanted
        elif wish.divided and not wish.replaces and total > wish.most:
            where = {name: n for (name, each), n in self._counts.items() if each == app and n}
            self.violated("keep never doubles", f"{wish.name}: {total} run, {wish.most} were wanted: {where}")
        elif not wish.divided and count > wish.most:
            self.violated("keep never doubles", f"{wish.name}: {count} run on {site.name}, {wish.most} were wanted")
        elif wish.deleted and not wish.touched and not self.rewound:
            self.violated("nothing deleted comes back", f"{site.name} starts {wish.name}, which was deleted before the last quiet point")

    def site_stops(self, site: Site, instance: Instance, why: str) -> None:
        """Nothing healthy is stopped but by a change that a person or a policy asked for."""
        wish = self.wishes.by_uid.get(instance.app)
        self.world.note(site.name, f"stops {instance.id} of {instance.app}: {why}")
        if not instance.ready or wish is None or (wish.touched and site.name not in wish.settled) or site.name in self.rewound:
            return
        if wish.replaces:
            left = self.totals.get(wish.uid, 0) - 1
            if self.world.loop.time() < self._calm_from:
                return  # what has just died has yet to be noticed
            if left < min(wish.replicas, self._settled.get(wish.uid, 0)):
                self.violated(
                    "replace never goes below", f"{site.name} stops one of {wish.name} ({why}): {left} of {wish.replicas} are left"
                )
            return
        self.violated("nothing healthy is stopped", f"{site.name} stops {instance.id} of {wish.name} ({why}), which nobody has changed")

    # --- now and then ---

    def sample(self) -> None:
        """Also after each fault, so that it is known since when something is broken."""
        now = self.world.loop.time()
        for place in self.world.places.values():
            if not awake(place) or place.machine.full:
                self._up.pop(place.name, None)
            else:
                self._up.setdefault(place.name, now)
        self.reach.sample()
        slow = {each.name for each in self.world.places.values() if each.site.habits.slow}
        worse = {name for name, usual in self.world.usual.items() if self.world.network.conditions[name] is not usual}
        full = {each.name for each in self.world.places.values() if each.machine.full or each.site.habits.lost}
        state = (frozenset(self.reach.broken), frozenset(self._up), frozenset(worse), frozenset(full))
        if state != self._state:
            self._state, self._state_since = state, now
        self._troubled = worse | full | slow
        if self._troubled:
            self._steady_since = now
        if self.reach.broken or any(not each.machine.powered for each in self.world.places.values()):
            self._calm_from = now + 3 * self.world.heartbeat + SLACK_SECONDS

    def look(self) -> None:
        """Everything that must hold at any time."""
        self.sample()
        for place in self.world.places.values():
            if awake(place):
                self.no_loops(place)
                self.bounded(place)
        self.nothing_stale_reads_ready()
        self.one_parent()
        self.what_is_silent_is_replaced()
        self.the_surplus_is_retired()
        self.no_defects()

    def what_is_silent_is_replaced(self) -> None:
        """With Replace, what fell silent runs elsewhere in reach of the origin once it has been silent for long enough."""
        if not self.reach.unheard or self.rewound:
            return
        now, heartbeat = self.world.loop.time(), self.world.heartbeat
        for wish in self.wishes.living():
            origin = wish.origin
            if not wish.replaces or not wish.sure or not awake(origin):
                continue
            needed = wish.spec["placement"]["onUnreachable"]["afterSeconds"] + 3 * heartbeat + REPLACE_SECONDS
            inside = list(origin.subtree())
            heard = [each for each in inside if (origin.name, each.name) not in self.reach.unheard]
            if len(heard) == len(inside) or not any(wish.may_run_on(each) and served(each, origin, heard) for each in heard):
                continue
            since = [wish.changed, *(self.reach.changed.get((origin.name, each.name), 0.0) for each in inside)]
            since += [self._up.get(each.name, now) for each in heard]
            lasted = now - max(since)
            if lasted < needed or self._troubled.intersection(each.name for each in inside):
                continue
            there = sum(each.site.running(wish.uid) for each in heard)
            if there < wish.replicas:
                self.violated("what is silent is replaced", f"{wish.name}: {there} of {wish.replicas} run in reach after {lasted:.0f} s")

    def the_surplus_is_retired(self) -> None:
        """With Replace, no more runs on clusters that are in reach than is wanted, a minute after they are."""
        now = self.world.loop.time()
        if self.rewound:
            return
        for wish in self.wishes.living():
            origin = wish.origin
            if not wish.replaces or not wish.sure or not awake(origin):
                continue
            heard = [each for each in origin.subtree() if (origin.name, each.name) not in self.reach.unheard]
            total = sum(each.site.running(wish.uid) for each in heard) - self._of_the_orphaned(wish, heard)
            if total <= wish.replicas or self._troubled.intersection(each.name for each in origin.subtree()):
                continue
            since = [wish.changed, *(self.reach.changed.get((origin.name, each.name), 0.0) for each in heard)]
            lasted = now - max([*since, *(self._up.get(each.name, now) for each in heard), self._steady_since])
            slower = 2 * (self.world.heartbeat - 5.0)  # a link of a metered site is found dead so much later
            if lasted > LINKED_SECONDS + SURPLUS_SECONDS + slower:
                where = {each.name: n for each in heard if (n := each.site.running(wish.uid))}
                what = f"{wish.name}: {total} run, {wish.replicas} are wanted, for {lasted:.0f} s in reach: {where}"
                self.violated("surplus", what)

    def _of_the_orphaned(self, wish: Wish, heard: list[Place]) -> int:
        """What carried clusters run beyond the share of a branch whose own controller is still gone.

        It has replaced one of its children, died, and the child came back by way of an adopter. Only that controller knows which of them
        stands in for which, and nobody else takes anything from what is below it (one writer per fact): it is healed with its return.
        """
        beyond = 0
        for place in wish.origin.subtree():
            if place in heard or place.parent not in heard:
                continue
            shares = self._given[place.parent.name].shares.get(wish.uid, {}).get(f"down/{place.uid}", {})
            runs = sum(each.site.running(wish.uid) for each in place.subtree() if each in heard)
            beyond += max(0, runs - sum(shares.values()))
        return beyond

    def nothing_stale_reads_ready(self) -> None:
        """A cluster that has not been heard for longer than its lease is not shown as Ready."""
        now, heartbeat, places = self.world.loop.time(), self.world.heartbeat, self.world.places
        for (name, below), unheard in self.reach.unheard.items():
            place, other = places[name], places[below]
            path = other.path()
            above = path[path.index(place) : -1]  # who restarted has to find out for itself who is still there
            up = max(self._up.get(each.name, now) for each in above if each is place or awake(each))
            allowed = 3 * heartbeat + SLACK_SECONDS + HOP_SECONDS * len(above)
            since = max(unheard, self.reach.broken_since(other))  # what broke further down is told first
            if self.rewound.intersection(self.reach.chain(other)):
                continue  # a copy of its folder may speak for it
            if now - up < 3 * heartbeat + SLACK_SECONDS or now - since <= allowed:
                continue
            assert place.controller is not None
            stored = place.controller.store.find("own", "Cluster", other.uid)
            if stored is not None and msgspec.json.decode(stored.document, type=kinds.Cluster).status.phase == "Ready":
                self.violated("nothing stale reads Ready", f"{name} shows {below} as Ready, which it has not heard for {now - since:.0f} s")

    def one_parent(self) -> None:
        """No cluster has two parents, not even while things break, for longer than it takes to notice that a link is dead."""
        now = self.world.loop.time()
        for name, since in list(self.reach.doubled.items()):
            home = self.world.places[name].parent
            if name in self.rewound and home is not None and home.machine.full:
                # A copy of a data folder is the newer start of its cluster until home has committed which one it takes (law 2): with a
                # full disk it takes neither, and the copy may be somebody's guest meanwhile. It is counted from when there is room.
                self.reach.doubled[name] = now
            elif now - since > 3 * self.world.heartbeat + SLACK_SECONDS:
                self.violated("one parent", f"{self.reach.holders[name]} have {name} on a link, for {now - since:.0f} s")

    def no_loops(self, place: Place) -> None:
        """Routes lead down only, to clusters that stand below, and never back to where they began."""
        assert place.controller is not None
        router = place.controller.tunnel.router
        for uid in router.subtree(place.uid):
            here, hops = place, 0
            while here.uid != uid and hops <= len(self.world.places):
                controller = here.controller
                if controller is None or not here.alive:
                    break
                following = controller.tunnel.router.next_hop(uid)
                if following is None or following not in self.world.by_uid:
                    break
                here = self.world.by_uid[following]
                hops += 1
                if here is place:
                    self.violated("routes have no loop", f"{place.name} → {uid} comes back")
                    return

    def bounded(self, place: Place) -> None:
        """Queues, streams, tables and tasks stay within their caps."""
        for what in bounds.over(place):
            self.violated("bounded", f"{place.name}: {what}")

    def no_defects(self) -> None:
        """No task of the product has died of anything but what it may die of."""
        crashes = self.world.crashes
        if crashes > self._seen_crashes:
            self.violated("no defects", f"{crashes - self._seen_crashes} tasks crashed; the trace has the tracebacks")
            self._seen_crashes = crashes
        for failure in self.world.loop.failed:
            self.violated("no defects", failure)
        self.world.loop.failed.clear()

    # --- at quiet points: everything is mended, and has had time ---

    def unhealed(self) -> Iterator[tuple[str, str]]:
        """What is not yet as it should be: (invariant, what)."""
        for check in QUIET:
            for what in check(self):
                yield (check.__doc__ or check.__name__).split(".")[0].strip(), what

    def quiet(self) -> None:
        """Everything has healed: the next fault begins from here."""
        self.wishes.quiet()
        self._settled = {wish.uid: wish.replicas for wish in self.wishes.living()}
        self.rewound.clear()
        self.moved.clear()


__all__ = ["Invariants", "Violation", "Wish"]
