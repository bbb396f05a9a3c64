"""The fewest steps with which a plan still fails in the same way: halves are left out, then smaller parts, then single steps.

Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002), with "fails" meaning that an
invariant is violated that the whole plan violated too.
"""

from collections.abc import Callable

import msgspec

from tests.simulation.scenario import Outcome, simulate
from tests.simulation.steps import Plan

TRIES = 200


def shrink(plan: Plan, run: Callable[[Plan], Outcome] = simulate, tries: int = TRIES) -> tuple[Plan, Outcome] | None:
    """The smaller plan and how it fails; None when ``plan`` does not fail."""
    outcome = run(plan)
    if not outcome.violations:
        return None
    wanted = {violation.invariant for violation in outcome.violations}
    size = max(1, len(plan.steps) // 2)
    while size and tries:
        position = 0
        while position < len(plan.steps) and tries:
            tries -= 1
            steps = plan.steps[:position] + plan.steps[position + size :]
            smaller = msgspec.structs.replace(plan, steps=steps)
            after = run(smaller)
            if wanted & {violation.invariant for violation in after.violations}:
                plan, outcome = smaller, after
            else:
                position += size
        size //= 2
    return plan, outcome
