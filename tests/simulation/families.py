"""Kinds of steps besides the usual ones: each is a family with its own draw from the seed, its own people, and its own invariants.

A seed without families is what it always was. With some, each adds what it draws from dice of its own, so that one family more changes
nothing of what the others do.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from random import Random
from typing import TYPE_CHECKING, ClassVar

import msgspec

from cluster_controller.store.database import Batch
from tests.simulation.disk import Disk
from tests.simulation.steps import Plan, Step

if TYPE_CHECKING:
    from tests.simulation.scenario import Run


class Family:
    """``steps``: the kinds that it does. ``without``: usual ones that do not happen beside it."""

    name: ClassVar[str] = ""
    steps: ClassVar[frozenset[str]] = frozenset()
    without: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.world, self.wishes, self.invariants = run.world, run.wishes, run.invariants
        self.mending = False  # everything is being mended, people included

    @staticmethod
    def stage(seed: int) -> AbstractContextManager[None]:
        """What is otherwise for as long as the world stands."""
        return nullcontext()

    @staticmethod
    def draw(rng: Random, plan: Plan, begin: float, length: float, number: int) -> Iterator[Step]:
        """What happens in round ``number``, which has ``length`` seconds for it."""
        return iter(())

    def do(self, step: Step) -> None:
        """One of `steps`."""

    def committed(self, disk: Disk, batch: Batch) -> None:
        """Look at every commit."""

    def reread(self, disk: Disk) -> None:
        """What is on ``disk`` was set back."""

    def look(self) -> None:
        """Every 20 seconds; while it is ``mending``, people set right what waits for them."""

    def unhealed(self) -> Iterator[tuple[str, str]]:
        """At quiet points: (invariant, what is not as it should be)."""
        return iter(())

    def quiet(self) -> None:
        """All is as it should be."""


FAMILIES: dict[str, type[Family]] = {}


def family(each: type[Family]) -> type[Family]:
    FAMILIES[each.name] = each
    return each


def extend(plan: Plan, names: tuple[str, ...], settle: float, calm: float) -> Plan:
    """``plan`` with the steps of these families. ``calm``: part of each round in which nothing more happens."""
    left_out = {kind for name in names for kind in FAMILIES[name].without}
    steps = [step for step in plan.steps if step.kind not in left_out]
    for name in names:
        rng = Random(f"{name} {plan.seed}")
        for number in range(plan.rounds):
            begin, length = settle + number * plan.round_seconds, plan.round_seconds * (1.0 - calm)
            steps.extend(FAMILIES[name].draw(rng, plan, begin, length, number))
    steps.sort(key=lambda step: step.at)
    return msgspec.structs.replace(plan, steps=tuple(steps), families=names)
