"""The relay's source keeps its link busy: one that rests would be measured as a slow relay. What arrives is compared."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import relay_ends
from benchmarks.relay_ends import FRAME, PATTERN, PAYLOAD, REST, STAMP, Sink
from cluster_controller.tunnel.protocol import frames


def source(credit: int) -> tuple[relay_ends.Source, list[str]]:
    woken: list[str] = []
    connection: Any = SimpleNamespace(message=lambda now, bulk: bytearray(), receive=lambda message, now: None, _dirty=False)
    link: Any = SimpleNamespace(connection=connection, _wake=lambda: woken.append("woken"))
    stream: Any = SimpleNamespace(_state=SimpleNamespace(id=1, credit=credit))
    made = relay_ends.Source(link, [stream])
    made.go()
    return made, woken


def test_it_wakes_its_link_again_while_there_is_credit() -> None:
    made, woken = source(1 << 20)
    del woken[:]
    assert len(made.message(0.0)) > 60_000
    assert woken == ["woken"]


def test_it_waits_for_credit_when_that_is_spent() -> None:
    made, woken = source(1000)
    del woken[:]
    assert 0 < len(made.message(0.0)) <= 1000
    assert woken == []
    made.connection.receive(b"credit", 0.0)
    assert woken == ["woken"]


def test_it_sends_nothing_before_it_is_told_to_and_after_it_is_stopped() -> None:
    made, _ = source(1 << 20)
    made.stopped = True
    assert made.message(0.0) == b""


def test_one_frame_in_each_message_when_it_is_told_so() -> None:
    made, _ = source(1 << 20)
    made.go(at_most=1)
    assert [len(made.message(0.0)) for _ in range(3)] == [FRAME] * 3


def test_at_a_pace_it_sends_what_is_due_with_a_number_and_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = source(1 << 20)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    made.go(rate=1000.0)
    assert made.message(0.0) == b""
    now = 100.0035
    due = made.message(0.0)
    assert len(due) == 3 * FRAME
    assert [STAMP.unpack_from(due, at * FRAME + frames.HEADER_SIZE)[0] for at in range(3)] == [0, 1, 2]
    assert made.message(0.0) == b""


def stamped(*numbers: int) -> bytes:
    return b"".join(STAMP.pack(number, time.monotonic_ns()) + REST for number in numbers)


@pytest.mark.parametrize(("numbers", "wrong"), [((0, 1, 2, 3), 0), ((0, 2, 3), 1), ((0, 1, 1, 2), 1), ((1, 0, 2), 3)])
def test_a_stamped_frame_that_is_lost_doubled_or_late_is_wrong(numbers: tuple[int, ...], wrong: int) -> None:
    sink = Sink()
    sink.turn(stamped=True)
    data = stamped(*numbers)
    for at in range(0, len(data), 100):  # pieces as a stream gives them
        sink._stamps(data[at : at + 100])
    assert sink.wrong == wrong
    assert len(sink.took) == len(numbers)


def test_a_plain_byte_that_differs_is_wrong() -> None:
    sink = Sink()
    sink._compare(PATTERN[: 3 * PAYLOAD])
    assert not sink.wrong
    sink._compare(bytes([1]) + PATTERN[1:PAYLOAD])
    assert sink.wrong
