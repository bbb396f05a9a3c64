"""A bounded run of the fuzzer; the long one is `python -m tests.tunnel.fuzz`."""

from tests.tunnel.fuzz import fuzz


def test_five_thousand_hostile_messages() -> None:
    counts = fuzz(5_000, seed=3)
    assert counts["taken"] > 500
    assert sum(counts.values()) == 5_000
    assert len(counts) >= 4  # several kinds of violation were reached
