"""The line of a seed that fails names commands that play that very seed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.simulation import __main__ as program
from tests.simulation import scenario
from tests.simulation.invariants import Violation
from tests.simulation.scenario import Outcome
from tests.simulation.steps import Plan

ROOT = Path(__file__).parent.parent.parent


def arguments(command: str) -> list[str]:
    """What ``make`` gives to the program for a command of the line."""
    made = subprocess.run(
        [*shlex.split(command), "-n", "-o", ".venv/.ready-dev"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.replace("\\\n", " ")
    line = next(line for line in made.splitlines() if "tests.simulation" in line)
    return shlex.split(line.partition("tests.simulation")[2])


@pytest.mark.parametrize(
    "options",
    [
        ["--seeds", "3", "--from", "40"],
        ["--seeds", "2", "--from", "7", "--rounds", "2"],
        ["--seeds", "2", "--from", "7", "--clusters", "60", "--rounds", "1"],
        ["--seeds", "2", "--from", "3", "--weeks"],
    ],
)
def test_a_seed_that_fails_is_replayed_as_it_was(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played: list[Plan] = []

    def fails(plan: Plan, trace: Path | None = None) -> Outcome:
        played.append(plan)
        return Outcome(plan.seed, 1.0, [Violation(0.5, "counts", "one too many")], "", 0)

    monkeypatch.setattr(scenario, "simulate", fails)
    assert program.main(options) == 1
    said = r"^seed \d+: 1 violations; replay: (make .+) TRACE=FILE; its fewest steps: (make .+ SHRINK=1)$"
    lines = re.findall(said, capsys.readouterr().out, re.MULTILINE)
    first = list(played)
    assert len(lines) == len(first) == int(options[1])
    played.clear()
    shrunk: list[Plan] = []
    monkeypatch.setattr(program, "shrink", shrunk.append)
    for replay, shrink in lines:
        program.main(arguments(replay))
        program.main(arguments(shrink))
    assert played == first
    assert shrunk == first
