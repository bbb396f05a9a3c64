"""Further kinds of steps: drawn beside the usual ones without changing them, and a seed of each without a violation."""

import pytest

from tests.simulation import scenario
from tests.simulation.playing import FAMILIES


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_changes_nothing_of_the_usual_steps(name: str) -> None:
    plan = scenario.draw(3)
    more = scenario.draw_with(plan, (name,))
    kinds = FAMILIES[name].without
    assert [step for step in plan.steps if step.kind not in kinds] == [step for step in more.steps if step in plan.steps]
    assert not FAMILIES[name].steps or {step.kind for step in more.steps} & FAMILIES[name].steps
    assert scenario.draw_with(plan, (name,)) == more
    assert scenario.draw_with(plan, ()) is plan


@pytest.mark.parametrize("name", ["rollouts", "shims", "documents", "bulk"])
def test_seeds(name: str) -> None:
    plan = scenario.draw_with(scenario.draw(1, rounds=1), (name,))
    outcome = scenario.simulate(plan)
    assert outcome.violations == [], f"make simulate SEEDS=1 FROM=1 ROUNDS=1 FAMILIES={name} TRACE=FILE"
