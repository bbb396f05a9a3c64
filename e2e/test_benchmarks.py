"""The benchmarks that need real Kubernetes clusters run, with small counts; no figure is asserted."""

import math
from pathlib import Path

import pytest

from benchmarks import quick
from benchmarks.__main__ import CLUSTERS
from e2e.testbed import Shape
from e2e.testbed.fixtures import need


@pytest.mark.parametrize("name", CLUSTERS)
def test_it_measures_what_it_promises(name: str, tmp_path: Path) -> None:
    need(Shape.whole() if name == "kubectl" else Shape.kwok())
    made, printed = quick.run(name, tmp_path)
    assert all(math.isfinite(row.measured) and row.unit and row.what in printed for row in made.rows)
    assert len([row for row in made.rows if row.target is not None]) == quick.PROMISED[name]
