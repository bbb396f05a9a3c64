"""Clusters are given another parent while they work (`banyan move`): leaves, and branches with all below them.

Held to: what a moved cluster runs for those above both parents runs on untouched, and never more in sum than is wanted; when all is
mended no move is under way any more, the cluster stands under exactly one parent, and nobody whom it left still lists it.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

from tests.simulation.applications import quietly, spec
from tests.simulation.families import Family, family
from tests.simulation.reach import awake
from tests.simulation.steps import Plan, Step
from tests.simulation.world import Place

POLL_SECONDS = 0.5
STAYS = "stays-"


@family
class Moving(Family):
    name = "moves"
    steps = frozenset({"move", "move-off", "move-keep"})

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self.made = 0
        self._poll()

    @staticmethod
    def draw(rng: Random, plan: Plan, begin: float, length: float, number: int) -> Iterator[Step]:
        names = sorted(set(plan.tree) - {"root"})
        if number == 0:
            for each in range(2):
                yield Step(begin + 1.0 + each, "move-keep", "root", args={"name": f"{STAYS}{each}", "replicas": rng.randint(8, 16)})
        for _ in range(rng.randint(1, 3)):
            at, place = begin + rng.uniform(30.0, length), rng.choice(names)
            yield Step(at, "move", place, args={"to": rng.random()})
            if rng.random() < 0.2:
                yield Step(at + rng.uniform(0.1, 5.0), "move-off", place)
            fault = rng.choice(("", "kill", "cut", "power", "freeze", "restart", "commit-crash", "disk-full"))
            if fault:
                more = {"writes": rng.randint(1, 4), "taken": rng.random() < 0.5} if fault == "commit-crash" else {}
                where = rng.choice((place, plan.tree[place], "root"))
                if fault != "cut" or plan.tree[where]:
                    yield Step(at + rng.uniform(0.0, 3.0), fault, where, rng.uniform(1.0, 40.0), more)

    def do(self, step: Step) -> None:
        place = self.world.places[step.place]
        if step.kind == "move-keep":
            if place.alive:
                wanted = spec(step.args["replicas"], cpu="100m")
                place.run(quietly(self.wishes.create, place, step.args["name"], wanted))
        elif step.kind == "move":
            self._move(place, step.args["to"])
        else:
            for above in place.path()[:-1]:
                if awake(above) and above.controller is not None:
                    above.run(quietly(above.controller.moves.call_off, place.uid, "somebody"))

    def _move(self, place: Place, dice: float) -> None:
        """To somebody who takes children and does not stand below it, asked of the nearest controller above both."""
        below = {each.name for each in place.subtree()}
        inner = [each for each in self.world.places.values() if each.takes_children and each is not place.parent]
        possible = [each for each in inner if each.name not in below]
        if not possible or place.parent is None:
            return
        target = possible[int(dice * len(possible))]
        above = [each for each in place.path()[:-1] if each in target.path()][-1]
        if awake(above) and above.controller is not None:
            self.world.note(above.name, f"moves {place.name} from {place.parent.name} to {target.name}")
            above.run(quietly(above.controller.moves.begin, place.uid, target.uid, "somebody"))

    # --- who stands where ---

    def _poll(self) -> None:
        for place in list(self.world.places.values()):
            if place.controller is None or place.parent is None or place.life is None or place.life.dead:
                continue
            identity = self.world.identities[place.uid] = place.controller.identity()  # who joins below it is signed by what it is now
            parent = self.world.by_uid.get(identity.parent_uid)
            if parent is not None and parent is not place.parent:
                self._moved(place, parent)
        self.world.loop.call_later(POLL_SECONDS, self._poll, context=self.world.network.kernel)

    def _moved(self, place: Place, parent: Place) -> None:
        """The identity on its disk names another parent: from this instant on it stands there."""
        assert place.parent is not None
        self.made += 1
        self.invariants.moved.add(place.name)
        self.world.note("-", f"moved {place.name} from {place.parent.name} to {parent.name}")
        left, now = {each.name for each in place.path()[:-1]}, self.world.loop.time()
        place.parent.children.remove(place)
        parent.children.append(place)
        place.parent = parent
        entered = {each.name for each in place.path()[:-1]}
        for wish in self.wishes.by_uid.values():
            if wish.origin.name in left - entered:  # ends there; its origin starts it elsewhere, and does not hear when it has ended
                wish.most += sum(each.site.running(wish.uid) for each in place.subtree())
            if wish.origin.name in left ^ entered:
                wish.touched = True  # its origin has lost a cluster, or has one more
                wish.settled = set()
            if wish.origin.name in left | entered:
                wish.changed = now
        for above in entered - left:
            for below in place.subtree():
                self.invariants.reach.changed[above, below.name] = now
        self.invariants.sample()

    # --- at quiet points ---

    def unhealed(self) -> Iterator[tuple[str, str]]:
        for place in self.world.places.values():
            if not place.alive or place.controller is None:
                continue
            for move in place.controller.moves._moves.values():
                if move.active:
                    yield "a move ends", f"{place.name} has one of {move.name} to {move.parent_name}: {move.phase.value}, {move.reason}"
            below = {each.uid for each in place.subtree()}
            listed = {each.uid for each in place.controller.store.list("own", "Cluster")}
            for uid in sorted(listed - below):
                gone = self.world.by_uid.get(uid)
                yield "exactly one parent", f"{place.name} lists {gone.name if gone else uid}, which does not stand below it"
