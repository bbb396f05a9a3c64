"""What the soak run holds a process to."""

import pytest

from benchmarks.serve_soak import Figures, growth


def figures(memory: float, descriptors: float) -> Figures:
    return {"memory": (memory, "MiB"), "descriptors": (descriptors, "")}


@pytest.mark.parametrize(("last", "met"), [((105.0, 21.0), [True, True]), ((105.1, 20.0), [False, True]), ((90.0, 22.0), [True, False])])
def test_what_grew_by_more_than_it_may_is_not_met(last: tuple[float, float], met: list[bool]) -> None:
    rows = growth([figures(100.0, 20.0), figures(500.0, 500.0), figures(*last)], 5.0)
    assert [row.met for row in rows] == met
    assert "100.0 after the warm-up, 500.0 in the middle" in rows[0].note
