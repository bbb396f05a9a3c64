"""A few seeds at each test run, that one seed is one history, and that what the simulation is there to find is found.

Many more seeds: ``make simulate``; all deliberate bugs: ``make simulate-mutants``.
"""

import os
import subprocess
import sys

import msgspec
import pytest

from tests.simulation import mutants, scenario
from tests.simulation.invariants import Violation
from tests.simulation.scenario import Outcome
from tests.simulation.shrink import shrink
from tests.simulation.steps import Plan


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_seeds(seed: int) -> None:
    outcome = scenario.simulate(scenario.draw(seed, rounds=2))
    assert outcome.violations == [], f"python -m tests.simulation --seeds 1 --from {seed} --rounds 2 --trace FILE"


def test_one_seed_is_one_history_whatever_the_process() -> None:
    digests = []
    for salt in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seeds", "1", "--from", "4", "--rounds", "1", "--verbose"]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, text=True, timeout=120, check=True)
        digests.append(done.stdout)
    assert digests[0] == digests[1]
    assert digests[0].endswith("1 seeds, 0.2 simulated hours, 0 violations\n")


@pytest.mark.parametrize("name", ["deletions_ignored", "never_dead", "resumes_from_now", "removals_are_lost"])
def test_deliberate_bugs_are_found(name: str) -> None:
    assert mutants.caught(name, range(3), rounds=1) is not None


def test_a_failing_plan_is_shrunk_to_the_steps_that_matter() -> None:
    plan = scenario.draw(0)
    first, second = plan.steps[3], plan.steps[11]
    runs = 0

    def run(tried: Plan) -> Outcome:
        nonlocal runs
        runs += 1
        fails = first in tried.steps and second in tried.steps
        violations = [Violation(at=1.0, invariant="one", what="both were there")] if fails else []
        return Outcome(seed=0, seconds=1.0, violations=violations, digest="", lines=0)

    found = shrink(plan, run)
    assert found is not None
    assert found[0].steps == (first, second)
    assert runs < 2 * len(plan.steps)
    assert shrink(msgspec.structs.replace(plan, steps=(first,)), run) is None
