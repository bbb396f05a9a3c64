"""Quantities mean what they mean in Kubernetes, and what is none is refused by its field."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("250m", Decimal("0.25")), ("1.5", Decimal("1.5")), ("128Mi", 128 * 2**20), ("2k", 2000), ("2e3", 2000), ("1E", 10**18),
     ("2E2", 200), (".5", Decimal("0.5")), ("5.", 5), ("0", 0), ("-0", 0), ("100n", Decimal("1e-7")), ("8Ei", None), (2, 2),
     (0.5, Decimal("0.5"))],
)  # fmt: skip
def test_reads_what_kubernetes_reads(text: str, value: Decimal | None) -> None:
    if value is None:
        with pytest.raises(InvalidInput, match="too large"):
            quantity.parse(text)
    else:
        assert quantity.parse(text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", "1e99", "abc", "1 Mi", "1MiB", "--1", "1e", "0x10", "9" * 40, "1e99999", "NaN", "inf", "1mm", "١"]
)
def test_refuses_what_is_no_quantity_and_names_the_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        quantity.millis(text, "spec.cpu")
    assert caught.value.field == "spec.cpu"


def test_rounds_up_so_that_little_is_not_nothing() -> None:
    assert quantity.millis("0.1m") == 1
    assert quantity.units("1.2") == 2
    assert quantity.units("1n") == 1


@given(st.integers(0, 2**53))
def test_millis_survive_being_written_and_read(value: int) -> None:
    assert quantity.millis(quantity.format_millis(value)) == value


@given(st.integers(0, 2**63 - 1))
def test_bytes_survive_being_written_and_read(value: int) -> None:
    assert quantity.units(quantity.format_bytes(value)) == value


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        value = quantity.units(text)
    except InvalidInput:
        return
    assert 0 <= value <= quantity.LARGEST
