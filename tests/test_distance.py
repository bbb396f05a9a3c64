"""What is told of the way to the parent: what changes placement, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.distance import TOLD_FACTOR, TOLD_MILLIS, ParentDistance, steady

millis = st.floats(min_value=0, max_value=1e6)


@given(millis, millis)
def test_little_changes_are_not_told_and_large_ones_always(told: float, measured: float) -> None:
    now = steady(told, measured)
    apart = abs(measured - told)
    if apart <= TOLD_MILLIS or max(measured, told) <= TOLD_FACTOR * min(measured, told):
        assert now == told
    else:
        assert now is not None
        assert abs(now - measured) <= max(0.05 * measured, 0.01)


def test_two_digits_and_what_was_told_stays_while_nothing_is_measured() -> None:
    assert steady(None, 123.4) == 120.0
    assert steady(None, 0.234) == 0.23
    assert steady(None, 0.0) == 0.0
    assert steady(50.0, None) == 50.0
    assert steady(None, None) is None


def test_only_a_change_is_news() -> None:
    news: list[float | None] = []
    samples: list[float | None] = [None, 0.05, 0.052, 0.12, None]
    watched = ParentDistance(lambda: samples.pop(0), lambda: news.append(watched.millis))
    while samples:
        watched.look()
    assert news == [50.0, 120.0]
