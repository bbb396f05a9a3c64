"""No property test fails because the machine is busy."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=1)
@given(st.none())
def test_an_example_may_take_longer_than_hypothesis_would_let_it(_: None) -> None:
    assert settings().deadline is None
    time.sleep(0.3)
