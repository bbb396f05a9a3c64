"""Every benchmark runs, on real controllers, with small counts; no figure is asserted."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import quick, records
from benchmarks.__main__ import CLUSTERS, NAMES

NEEDS = {"lists": ("kubectl",), "healing": ("root",), "models": ("root",), "tunnels": ("go",)}
SECONDS = 60
ELSEWHERE = {*CLUSTERS, "demo"}  # e2e/test_benchmarks.py; e2e/test_demo.py plays the demo, and there is no smaller one


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs(*NEEDS.get(name, ()))) for name in NAMES if name not in ELSEWHERE]
)
def test_it_measures_what_it_promises(name: str, tmp_path: Path) -> None:
    before = records.RESULTS.joinpath(f"{name}.json")
    stamp = before.stat().st_mtime if before.exists() else None
    made, printed = quick.run(name, tmp_path)
    assert (made.name, made.quick, made.seed) == (name, True, 3)
    assert all(math.isfinite(row.measured) and row.unit and row.what for row in made.rows)
    assert len([row for row in made.rows if row.target is not None]) == quick.PROMISED[name]
    assert all(row.what in printed for row in made.rows)
    assert (before.stat().st_mtime if before.exists() else None) == stamp  # what was measured in earnest stays


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    argv = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(argv, cwd=records.ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert "footprint" in done.stderr


def test_a_minute_of_soak_passes_and_every_answer_is_as_it_should_be() -> None:
    """Too short a time to hold memory to 5 %, as `make soak` does for an hour."""
    argv = [sys.executable, "-m", "benchmarks.serve_soak", "--seconds", "30", "--most-growth", "30"]
    done = subprocess.run(argv, cwd=records.ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"growth of {what}" in done.stdout for what in ("anonymous memory", "resident memory", "descriptors", "threads"))
