"""Heartbeats, death and round trips in virtual time."""

from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.protocol.liveness import GRACE, RTT_EVERY, Liveness
from tests.tunnel.memory import Cable, Node


def make(first: bool = True) -> Liveness:
    return Liveness(first, 5.0, 15.0, 0.0, 0.0)


def test_a_silent_peer_is_dead_after_fifteen_seconds_and_not_before() -> None:
    liveness = make()
    liveness.last_sent = 14.0
    assert liveness.deadline() == 15.0
    assert not liveness.tick(14.99)
    liveness.deadline()
    assert liveness.tick(15.0)


def test_any_byte_proves_life() -> None:
    liveness = make()
    liveness.last_heard = 10.0
    liveness.deadline()
    assert not liveness.tick(24.9)


def test_a_timer_that_fires_late_first_reads_what_came_meanwhile() -> None:
    liveness = make()
    liveness.deadline()
    assert not liveness.tick(3600.0)
    assert liveness.question(3600.0)
    liveness.last_sent = 3600.0
    assert liveness.deadline() == 3600.0 + GRACE
    assert liveness.tick(3600.0 + GRACE)


def test_an_answer_measures_and_an_old_or_second_one_does_not() -> None:
    liveness = make()
    one = liveness.ask(1.0)
    liveness.answered(one, 1.2)
    assert liveness.rtt is not None
    assert abs(liveness.rtt - 0.2) < 1e-9
    liveness.answered(one, 9.0)
    two = liveness.ask(10.0)
    liveness.answered(one, 19.0)
    assert abs(liveness.rtt - 0.2) < 1e-9
    liveness.answered(two, 10.6)
    assert abs(liveness.rtt - 0.25) < 1e-9


def test_a_question_that_cannot_leave_is_asked_once_an_interval() -> None:
    """A kernel buffer that is full takes nothing for as long as the peer is slow or frozen; the timer must neither spin nor pile up."""
    connection = Cable(Node("parent", Limits()), Node("child", Limits())).up
    asked, now = 0, 0.0
    for _ in range(100):
        now = max(now, connection.deadline())
        if connection.tick(now):
            break
        asked += 1
    assert now == Limits().dead_after
    assert 1 <= asked <= 4


def test_an_idle_link_costs_one_exchange_per_interval_and_stays_alive() -> None:
    parent, child = Node("parent", Limits()), Node("child", Limits())
    cable = Cable(parent, child)
    day = 86_400.0
    timers = messages = size = 0
    while cable.now < day:
        cable.now = min(cable.up.deadline(), cable.down.deadline())
        for connection in (cable.up, cable.down):
            if connection.deadline() <= cable.now:
                timers += 1
                assert not connection.tick(cable.now)
        moved = True
        while moved:
            moved = False
            for connection in (cable.up, cable.down):
                if cable.send(connection):
                    messages += 1
                    size += len(cable.under_way[connection][-1])
                    moved = cable.deliver(connection)
    exchanges = day / 5.0
    assert messages <= 2 * exchanges * (1 + 1.5 / RTT_EVERY)
    assert timers <= 2 * exchanges * (1 + 1.5 / RTT_EVERY)
    # Headers of a message: IPv4 20, TCP 32 with timestamps, TLS 1.3 record 22, WebSocket 2 and a mask of 4 one way;
    # each exchange ends with one pure acknowledgement; 14 of Ethernet on each packet, as an interface counts.
    on_the_wire = size + messages * (52 + 22 + 4 + 14) + messages / 2 * (52 + 14)
    assert on_the_wire <= 6e6


def test_both_ends_know_their_round_trip_soon_and_on_busy_links_too() -> None:
    cable = Cable(Node("parent", Limits()), Node("child", Limits()))
    for second in range(100):
        cable.now = float(second)
        for connection in (cable.up, cable.down):
            connection.liveness.last_sent = cable.now  # busy: nothing ever falls silent
            connection.tick(cable.now)
        while cable.send(cable.up) | cable.send(cable.down):
            cable.now += 0.01
            cable.deliver(cable.up)
            cable.deliver(cable.down)
    assert cable.up.liveness.rtt is not None
    assert cable.down.liveness.rtt is not None
