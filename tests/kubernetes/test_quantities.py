"""Quantities of a member, whole and never less than was asked; what cannot be read is nothing."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_shim.kubernetes.quantities import MOST, millis, units


@pytest.mark.parametrize(
    ("quantity", "whole", "thousandths"),
    [
        ("1", 1, 1000), (1, 1, 1000), (1.5, 2, 1500), ("1500m", 2, 1500), ("0.1", 1, 100), ("100u", 1, 1), ("250000000n", 1, 250),
        ("1Ki", 1024, 1024_000), ("8148620Ki", 8344186880, 8344186880_000), ("1k", 1000, 1_000_000), ("12e3", 12000, 12_000_000),
        ("1E", 10**18, 0), ("", 0, 0), ("much", 0, 0), ("1.2.3", 0, 0), ("nan", 0, 0), ("1e999", 0, 0), (" 2 ", 2, 2000),
        (float("inf"), 0, 0),
    ],
)  # fmt: skip
def test_examples(quantity: str | float, whole: int, thousandths: int) -> None:
    assert units(quantity) == whole
    if quantity != "1E":  # a thousand times that is more than any machine has
        assert millis(quantity) == thousandths


@given(st.decimals(min_value=0, max_value=10**6, places=3), st.sampled_from(["", "m", "k", "Ki", "Mi"]))
def test_never_less_than_was_asked_and_less_than_one_more(number: Decimal, suffix: str) -> None:
    factor = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000), "Ki": Decimal(1024), "Mi": Decimal(1024**2)}[suffix]
    assert number * factor <= units(f"{number}{suffix}") < number * factor + 1


@given(st.text(max_size=30) | st.floats(allow_nan=True, allow_infinity=True) | st.integers())
def test_nothing_that_a_member_says_breaks_us(quantity: str | float) -> None:
    assert abs(units(quantity)) <= MOST
