"""What an older version sent is still read: every sync message as it was once recorded."""

from typing import get_args

import pytest

from cluster_controller.sync import messages
from cluster_controller.sync.codec import Decoder
from tests.sync.samples import FIXTURES, SAMPLES


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_recorded_message_still_decodes(name: str) -> None:
    recorded = (FIXTURES / f"{name}.bin").read_bytes()
    assert Decoder().feed(recorded) == [SAMPLES[name]]
    assert b"long long" not in recorded, "the long ones were recorded compressed"


def test_every_message_has_a_fixture_and_every_fixture_its_test() -> None:
    assert {type(sample) for sample in SAMPLES.values()} == set(get_args(messages.Message))
    assert {path.stem for path in FIXTURES.glob("*.bin")} == set(SAMPLES)
