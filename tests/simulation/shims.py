"""Shims that lie, hang and flap: each says for a while what is not so, or does nothing of what it is told, or comes and goes.

Held to, besides all that holds anyway: while one cluster's shim lies nothing healthy is stopped anywhere for it, and nothing doubles; once
it tells the truth again everything is as it is. A shim whose word is the only one there is may not claim that an instance has ended
which runs: what is believed of that is what a lower share is acknowledged by. So these lies say too much, or too little of readiness,
or are old.
"""

from collections.abc import Callable, Iterator
from random import Random

import msgspec

from cluster_shim import contract
from cluster_shim.contract import Phase
from tests.simulation.families import Family, family
from tests.simulation.site import Lie, Site
from tests.simulation.steps import Plan, Step

FLAP_SECONDS = 3.0


@family
class Shims(Family):
    name = "shims"
    steps = frozenset({"shim-phantom", "shim-not-ready", "shim-miscounts", "shim-old", "shim-frozen", "shim-flaps"})

    @staticmethod
    def draw(rng: Random, plan: Plan, begin: float, length: float, number: int) -> Iterator[Step]:
        places = list(plan.tree)
        for _ in range(rng.randint(3, 7)):
            at, kind = begin + rng.uniform(0.0, length), rng.choice(sorted(Shims.steps))
            yield Step(at, kind, rng.choice(places), rng.choice((rng.uniform(1.0, 20.0), rng.uniform(20.0, 150.0))))

    def do(self, step: Step) -> None:
        site = self.world.places[step.place].site
        self.run.faults.begin(step.kind, step.place, step.seconds, BEGIN[step.kind](self, site))

    def _lying(self, site: Site, lie: Lie) -> Callable[[], None]:
        site.habits.lie, site.habits.slow = lie, True
        site.speak()

        def mend() -> None:
            if site.habits.lie is lie:
                site.habits.lie, site.habits.slow = None, False
                site.speak()

        return mend

    def phantom(self, site: Site) -> Callable[[], None]:
        """One instance more than there is, running and ready."""

        def lie(seen: contract.ObservedWork) -> contract.ObservedWork:
            if not seen.components:
                return seen
            first = seen.components[0]
            more = contract.Instance(id="phantom-0", component=first.name, revision="none", phase=Phase.RUNNING, ready=True, node=site.name)
            parts = (msgspec.structs.replace(first, ready=first.ready + 1, updated=first.updated + 1), *seen.components[1:])
            return msgspec.structs.replace(seen, components=parts, instances=(*seen.instances, more))

        return self._lying(site, lie)

    def not_ready(self, site: Site) -> Callable[[], None]:
        """Nothing is ready, though all is."""

        def lie(seen: contract.ObservedWork) -> contract.ObservedWork:
            parts = tuple(msgspec.structs.replace(each, ready=0, updated=0, reason="Starting") for each in seen.components)
            instances = tuple(msgspec.structs.replace(each, ready=False) for each in seen.instances)
            return msgspec.structs.replace(seen, components=parts, instances=instances)

        return self._lying(site, lie)

    def miscounts(self, site: Site) -> Callable[[], None]:
        """Its sums are not those of its instances."""

        def lie(seen: contract.ObservedWork) -> contract.ObservedWork:
            parts = tuple(msgspec.structs.replace(each, ready=7 * each.ready, updated=max(0, each.updated - 1)) for each in seen.components)
            return msgspec.structs.replace(seen, components=parts)

        return self._lying(site, lie)

    def old(self, site: Site) -> Callable[[], None]:
        """It says again and again what it saw first."""
        first: dict[str, contract.ObservedWork] = {}
        for uid in dict.fromkeys((*site.works, *site.instances)):
            seen = site.observed(uid)
            if seen is not None:
                first[uid] = seen
        return self._lying(site, lambda seen: first.get(seen.uid, seen))

    def frozen(self, site: Site) -> Callable[[], None]:
        """It takes what it is told, and does nothing."""
        site.habits.frozen = site.habits.slow = True

        def mend() -> None:
            site.habits.slow = False
            site.thaw()

        return mend

    def flaps(self, site: Site) -> Callable[[], None]:
        """Lost and back every three seconds."""
        loop, kernel = self.world.loop, self.world.network.kernel
        going = True

        def turn() -> None:
            if not going:
                return
            if site.habits.lost:
                site.habits.lost = False
            else:
                site.lose_shim()
            loop.call_later(FLAP_SECONDS, turn, context=kernel)

        def mend() -> None:
            nonlocal going
            going = False
            site.habits.lost = False

        turn()
        return mend


BEGIN: dict[str, Callable[[Shims, Site], Callable[[], None]]] = {
    "shim-phantom": Shims.phantom,
    "shim-not-ready": Shims.not_ready,
    "shim-miscounts": Shims.miscounts,
    "shim-old": Shims.old,
    "shim-frozen": Shims.frozen,
    "shim-flaps": Shims.flaps,
}
