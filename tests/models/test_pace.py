"""How fast, and when: the rate over any while, windows over midnight."""

import asyncio
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput, Unreachable
from cluster_controller.models.pace import Bucket, Pace
from cluster_controller.windows import Windows


@given(amounts=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=50))
def test_never_more_than_the_rate_over_the_whole(amounts: list[tuple[int, float]]) -> None:
    bucket, now, spent = Bucket(1000, 500), 0.0, 0
    for amount, idle in amounts:
        now += bucket.spend(amount, now)
        spent += amount
        assert spent <= 500 + 1000 * now + 1e-3
        now += idle


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-01-02T{text}")


@pytest.mark.parametrize(
    ("windows", "time", "is_open"),
    [
        ((), "12:00", True),
        (("22:00-06:00",), "21:59", False),
        (("22:00-06:00",), "22:00", True),
        (("22:00-06:00",), "05:59", True),
        (("22:00-06:00",), "06:00", False),
        (("01:00-02:00", "12:00-13:00"), "12:30", True),
        (("01:00-02:00", "12:00-13:00"), "13:00", False),
    ],
)
def test_windows(windows: tuple[str, ...], time: str, is_open: bool) -> None:
    assert Windows(windows).open(at(time)) is is_open


@pytest.mark.parametrize("text", ["", "22-06", "24:00-06:00", "22:00-06:60", "22:00–06:00", "06:00-06:00", "22:00-06:00 "])
def test_what_is_no_window_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="model_windows"):
        Windows((text,))


def test_outside_of_the_windows_it_is_said_when_and_which_setting() -> None:
    pace = Pace(windows=Windows(("22:00-06:00",)), local=lambda: at("12:00"))
    with pytest.raises(Unreachable, match=r"22:00-06:00.*model_windows"):
        pace.require_open()


def test_what_was_spent_is_waited_for() -> None:
    now, slept = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    async def scenario() -> None:
        pace = Pace(100_000, now=lambda: now, sleep=sleep)
        assert pace.part == 10_000
        for _ in range(100):
            await pace.spend(pace.part)

    asyncio.run(scenario())
    assert now == pytest.approx(9.9)
