"""What rounds say of a ratio: no more than so few of them can."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import pairs

POSITIVE = st.floats(0.001, 1000)


def test_the_two_of_a_round_are_compared_with_each_other() -> None:
    """A machine that is half as fast in the second half changes both, and says nothing of the ratio."""
    ours, theirs = [10.0, 11.0, 5.0, 5.5], [5.0, 5.5, 2.5, 2.75]
    found = pairs.ratio(ours, theirs)
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == (pytest.approx(2), pytest.approx(2))
    assert found.rounds == 4


def test_the_interval_is_students() -> None:
    found = pairs.ratio([math.e, math.e**2, math.e**3], [1.0, 1.0, 1.0])
    assert found.value == pytest.approx(math.e**2)
    assert found.low is not None
    assert math.log(found.low) == pytest.approx(2 - 4.303 / math.sqrt(3), rel=1e-3)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=3, max_size=40))
def test_it_holds_its_value_and_turned_round_it_is_the_reciprocal(rounds: list[tuple[float, float]]) -> None:
    ours, theirs = [mine for mine, _ in rounds], [other for _, other in rounds]
    there, back = pairs.ratio(ours, theirs), pairs.ratio(theirs, ours)
    assert there.low is not None and there.high is not None and back.low is not None
    assert there.low <= there.value * (1 + 1e-9) and there.value <= there.high * (1 + 1e-9)
    assert there.value * back.value == pytest.approx(1)
    assert there.high * back.low == pytest.approx(1)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    dice = random.Random(5)
    held = 0
    for _ in range(1000):
        theirs = [dice.lognormvariate(0, 0.3) for _ in range(5)]
        ours = [2 * other * dice.lognormvariate(0, 0.1) for other in theirs]
        found = pairs.ratio(ours, theirs)
        assert found.low is not None and found.high is not None
        held += found.low <= 2 <= found.high
    assert 930 <= held <= 970


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [2.0]), ([1.0, 2.0], [2.0, 2.0])])
def test_too_few_rounds_have_no_interval(ours: list[float], theirs: list[float]) -> None:
    found = pairs.ratio(ours, theirs)
    assert (found.low, found.high) == (None, None)
    assert found.value == pytest.approx(statistics.geometric_mean(ours) / statistics.geometric_mean(theirs))


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_what_are_no_pairs_is_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError):
        pairs.ratio(ours, theirs)
