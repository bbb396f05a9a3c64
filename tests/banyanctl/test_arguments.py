"""Values that people type, and the refusals that show a right one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyanctl import arguments, output
from cluster_controller.errors import InvalidInput


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    assert arguments.seconds(f"{days}d{hours}h{minutes}m{seconds}s", "--expires") == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "5x", "h", "1h 5m", "-5m", "1.5h", "0s"])
def test_what_is_no_duration_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(InvalidInput, match="--expires"):
        arguments.seconds(text, "--expires")


def test_labels_come_together_or_apart() -> None:
    assert arguments.labels(["a=1,b=", "c=x=y", "a=1"]) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize("words", [["a"], ["=b"], ["a=1,,b=2"], ["a=1", "a=2"]])
def test_wrong_labels_are_named(words: list[str]) -> None:
    with pytest.raises(InvalidInput, match="--labels"):
        arguments.labels(words)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))
def test_dns_labels_are_names(name: str) -> None:
    assert arguments.cluster_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a-", "a_b", "a" * 64, "ä", "a\n"])
def test_other_words_are_not(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a name"):
        arguments.cluster_name(name)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 20, "20 MiB"), (3 << 40, "3.0 TiB")])
def test_sizes_for_people(count: float, text: str) -> None:
    assert output.size(count) == text
