"""Every benchmark runs, on real controllers, with small counts; no figure is asserted."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import records
from benchmarks.__main__ import NAMES

NEEDS = {"lists": ("kubectl",)}
PROMISED = {  # of issue and architecture: how many rows of each benchmark carry a target
    "footprint": 6, "size": 1, "startup": 2, "idle": 2, "propagation": 3, "three": 2, "relay": 2, "burst": 6, "lists": 2,
}  # fmt: skip
SECONDS = 180


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs(*NEEDS.get(name, ()))) for name in NAMES])
def test_it_measures_what_it_promises(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "benchmarks", name, "--quick", "--seed", "3", "--output", str(tmp_path)]
    before = records.RESULTS.joinpath(f"{name}.json")
    stamp = before.stat().st_mtime if before.exists() else None
    done = subprocess.run(argv, cwd=records.ROOT, env=os.environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = records.load(tmp_path / f"{name}.json")
    assert (made.name, made.quick, made.seed) == (name, True, 3)
    assert all(math.isfinite(row.measured) and row.unit and row.what for row in made.rows)
    assert len([row for row in made.rows if row.target is not None]) == PROMISED[name]
    assert all(row.what in done.stdout for row in made.rows)
    assert (before.stat().st_mtime if before.exists() else None) == stamp  # what was measured in earnest stays


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    argv = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(argv, cwd=records.ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert "footprint" in done.stderr
