"""The source of the relay's benchmark keeps its link busy: a link that rests would be measured as a slow relay."""

from types import SimpleNamespace
from typing import Any

from benchmarks import relay


def source(credit: int) -> tuple[relay.Source, list[str]]:
    woken: list[str] = []
    connection: Any = SimpleNamespace(message=lambda now, bulk: bytearray(), receive=lambda message, now: None)
    link: Any = SimpleNamespace(connection=connection, _wake=lambda: woken.append("woken"))
    stream: Any = SimpleNamespace(_state=SimpleNamespace(id=1, credit=credit))
    return relay.Source(link, [stream]), woken


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
