"""What breaks in a simulated world, and how it is mended: each fault is struck at a place and ends by itself, or when all is mended."""

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from cluster_controller.errors import BanyanError
from cluster_controller.placement.ruling import KEY
from cluster_controller.resources import kinds, policy
from cluster_controller.store import Tx
from tests.simulation.invariants import Invariants
from tests.simulation.reach import awake
from tests.simulation.ways import Conditions
from tests.simulation.world import Place, World

FLAP_SECONDS = 3.0
Mend = Callable[[], None]


class Faults:
    def __init__(self, world: World, invariants: Invariants) -> None:
        self._world = world
        self._invariants = invariants
        self._waiting: dict[str, list[Callable[[Tx], object]]] = {}  # place → what somebody is about to write there
        self._active: dict[int, Mend] = {}
        self._lasting: dict[int, Mend] = {}
        self._number = 0

    def strike(self, kind: str, place: Place, seconds: float, args: dict[str, Any]) -> None:
        """``kind`` as the plan names it."""
        method: Callable[..., Mend | None] = getattr(self, f"_{kind.replace('-', '_')}")
        mend = method(place, **args)
        if mend is not None:
            self.begin(kind, place.name, seconds, mend)
        self._invariants.sample()

    def begin(self, kind: str, name: str, seconds: float, mend: Mend) -> None:
        """What was just struck is mended after ``seconds``, or with all else."""
        self._number += 1
        (self._lasting if kind.endswith("lasting") else self._active)[self._number] = mend
        self._world.loop.call_later(seconds, self._mend, self._number, kind, name, context=self._world.network.kernel)
        self._invariants.sample()

    def _mend(self, number: int, kind: str, name: str) -> None:
        mend = self._active.pop(number, None) or self._lasting.pop(number, None)
        if mend is not None:
            self._world.note("-", f"mend {kind} {name}")
            mend()
            self._invariants.sample()

    @property
    def lasting(self) -> bool:
        """Is something broken that outlives a round?"""
        return bool(self._lasting)

    def mend_all(self, *, lasting: bool) -> None:
        """``lasting``: also what is meant to outlive a round."""
        active, self._active = self._active, {}
        if lasting:
            active |= self._lasting
            self._lasting = {}
        for mend in active.values():
            mend()
        for place in self._world.places.values():
            place.start()
        self._invariants.sample()

    # --- ways ---

    def _cut(self, place: Place, up: bool = True) -> Mend | None:
        assert place.parent is not None
        return self._isolate([place], [place.parent])

    def _cut_and_clock(self, place: Place, offset: float) -> Mend:
        """The way is cut, and at the same instant the clock of the parent jumps, as when it is set by a time server."""
        assert place.parent is not None
        cut, clock = self._cut(place), self._clock(place.parent, offset)

        def mend() -> None:
            clock()
            if cut is not None:
                cut()

        return mend

    def _cut_one_way(self, place: Place, up: bool = True) -> Mend | None:
        assert place.parent is not None
        one, other = (place, place.parent) if up else (place.parent, place)
        return self._isolate([one], [other], one_way=True)

    def _cut_region(self, place: Place) -> Mend | None:
        """Nothing in it reaches anything outside."""
        inside = list(place.subtree())
        return self._isolate(inside, [each for each in self._world.places.values() if each not in inside])

    _cut_lasting = _cut_region

    def _isolate(self, inside: list[Place], outside: list[Place], *, one_way: bool = False) -> Mend:
        network = self._world.network
        cut = network.cut([each.name for each in inside], [each.name for each in outside], one_way=one_way)
        return lambda: network.heal(cut)

    def _flap(self, place: Place, up: bool = True) -> Mend:
        """Cut and healed every three seconds."""
        state: dict[str, Mend | None] = {"heal": self._cut(place)}
        loop, kernel = self._world.loop, self._world.network.kernel

        def turn() -> None:
            heal = state["heal"]
            if heal is not None:
                heal()
                state["heal"] = None
            else:
                state["heal"] = self._cut(place)
            self._invariants.sample()
            state["timer"] = loop.call_later(FLAP_SECONDS, turn, context=kernel)  # type: ignore[assignment]

        state["timer"] = loop.call_later(FLAP_SECONDS, turn, context=kernel)  # type: ignore[assignment]

        def mend() -> None:
            state["timer"].cancel()  # type: ignore[union-attr]
            if state["heal"] is not None:
                state["heal"]()

        return mend

    def _slow(self, place: Place, bandwidth: float, delay: float) -> Mend:
        return self._worsen(place, lambda now: Conditions(delay=delay, jitter=now.jitter, loss=now.loss, bandwidth=bandwidth))

    def _lossy(self, place: Place, loss: float, jitter: float) -> Mend:
        return self._worsen(place, lambda now: Conditions(delay=now.delay, jitter=jitter, loss=loss, bandwidth=now.bandwidth))

    def _worsen(self, place: Place, how: Callable[[Conditions], Conditions]) -> Mend:
        conditions = self._world.network.conditions
        before = self._world.usual[place.name]
        conditions[place.name] = how(conditions[place.name])

        def mend() -> None:
            conditions[place.name] = before

        return mend

    # --- processes and machines ---

    def _kill(self, place: Place) -> Mend:
        place.kill()
        return place.start

    def _power(self, place: Place) -> Mend:
        place.power_off()
        return place.start

    def _restart(self, place: Place) -> Mend | None:
        """Stopped as a person stops it, and started again."""
        if not place.alive or place.life is None or place.life.frozen:
            return None
        life, controller = place.life, place.controller
        assert controller is not None
        again = False

        async def stop() -> None:
            await controller.stop()
            self._world.loop.call_soon(ended, context=self._world.network.kernel)

        def ended() -> None:
            if place.life is life:
                place.kill()
            if again:
                place.start()

        def mend() -> None:
            nonlocal again
            again = True
            place.start()  # nothing while it has yet to stop

        life.context.run(self._world.loop.create_task, stop())
        return mend

    def _blackout(self, place: Place, order: float) -> Mend:
        """All machines lose their power at once, and come back one after the other in any order."""
        places = list(self._world.places.values())
        for each in places:
            each.power_off()
        Random(order).shuffle(places)

        def mend() -> None:
            for number, each in enumerate(places):
                self._world.loop.call_later(1.5 * number, each.start, context=self._world.network.kernel)

        return mend

    def _freeze(self, place: Place) -> Mend | None:
        """SIGSTOP: its connections stand, and nobody answers."""
        life = place.life
        if life is None or life.dead:
            return None
        life.frozen = True

        def mend() -> None:
            if not life.dead and life.frozen:
                self._world.loop.thaw(life)

        return mend

    def _copy(self, place: Place) -> Mend | None:
        """Somebody starts a copy of its data folder on another machine: of two that speak for one cluster one is held."""
        if place.children or not place.alive:
            return None
        copy = place.copied()
        self._invariants.rewound.add(place.name)
        copy.start()

        def mend() -> None:
            copy.power_off()

        return mend

    # --- people ---

    def _cordon(self, place: Place) -> Mend | None:
        """Somebody above wants nothing new to be placed there or below."""
        above = place.path()[0]
        self._overlay(above, place, cordoned=True)
        return lambda: self._overlay(above, place, cordoned=False)

    def _overlay(self, above: Place, place: Place, *, cordoned: bool) -> None:
        def work(tx: Tx) -> None:
            stored = next((each for each in tx.list("own", "Cluster") if each.uid == place.uid), None)
            if stored is not None:
                document = msgspec.json.decode(stored.document)
                document["spec"] = {**document.get("spec", {}), "unschedulable": cordoned}
                tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

        self._write(above, work)

    def _policy(self, place: Place, replicas: int) -> Mend | None:
        """The owner of a site bounds what may run there from above; later there is no such bound any more."""
        document = kinds.SitePolicy(
            metadata=kinds.Metadata(name=KEY.name, uid=f"policy-{place.name}"),
            spec=policy.SitePolicySpec(caps=policy.Caps(replicas=replicas)),
        )
        self._invariants.wishes.decided()
        self._write(place, lambda tx: tx.put(KEY, msgspec.json.encode(document), uid=document.metadata.uid))

        def mend() -> None:
            self._invariants.wishes.decided()
            self._write(place, lambda tx: tx.delete(KEY))

        return mend

    def _write(self, place: Place, work: Callable[[Tx], object]) -> None:
        """One after the other, each as soon as its controller takes it, however long that is down."""
        loop, kernel, waiting = self._world.loop, self._world.network.kernel, self._waiting.setdefault(place.name, [])

        async def write(work: Callable[[Tx], object]) -> None:
            assert place.controller is not None
            try:
                await place.controller.store.commit(work)
            except BanyanError:
                return
            if waiting and waiting[0] is work:
                waiting.pop(0)

        def again() -> None:
            if not waiting:
                return
            if awake(place):
                place.run(write(waiting[0]))
            loop.call_later(2.0, again, context=kernel)

        waiting.append(work)
        if len(waiting) == 1:
            again()

    # --- disks, clocks ---

    def _commit_crash(self, place: Place, writes: int, taken: bool) -> Mend:
        """The process dies with one of its next writes: before it is on the disk, or after it, with nobody told."""
        disk, life = place.disk, place.life

        def crash() -> None:
            if place.life is not life or life is None or life.dead:
                return
            life.frozen = True  # from this instant on nothing of it runs
            self._world.loop.call_soon(place.kill, context=self._world.network.kernel)

        disk.crash_in, disk.crashes_taken, disk.crashed = writes, taken, crash

        def mend() -> None:
            disk.crash_in = 0
            place.start()

        return mend

    def _restore(self, place: Place) -> Mend | None:
        """The disk is lost, and a backup from the last quiet point takes its place."""
        if place.backup is None:
            return None
        self._invariants.before_restoring(place)
        place.kill()
        place.disk.rewind(place.backup)
        self._invariants.restored(place)
        return place.start

    def _disk_full(self, place: Place) -> Mend:
        place.machine.full = True

        def mend() -> None:
            place.machine.full = False

        return mend

    def _disk_lost(self, place: Place, taken: bool) -> Mend:
        """An fdatasync fails: the controller begins anew by itself."""
        place.disk.lose_next, place.disk.loses_taken = True, taken

        def mend() -> None:
            place.disk.lose_next = False

        return mend

    def _clock(self, place: Place, offset: float) -> Mend:
        place.machine.wall_offset += offset

        def mend() -> None:
            place.machine.wall_offset -= offset

        return mend

    # --- sites ---

    def _shim_lost(self, place: Place) -> Mend:
        place.site.lose_shim()

        def mend() -> None:
            place.site.habits.lost = False

        return mend

    def _shim_slow(self, place: Place) -> Mend:
        habits = place.site.habits
        before = habits.start, habits.grace, habits.late, habits.repeats
        habits.start, habits.grace, habits.late, habits.repeats = (5.0, 40.0), (2.0, 20.0), (1.0, 8.0), 0.5
        habits.slow = True

        def mend() -> None:
            habits.slow = False
            habits.start, habits.grace, habits.late, habits.repeats = before

        return mend

    def _instance_crash(self, place: Place) -> Mend | None:
        place.site.crash_one()
        return None
