"""Bulk in flight against a simulated bottleneck with a deep queue."""

from collections import deque

import pytest

from cluster_controller.tunnel.protocol.pacing import MIN_FRAME, MIN_WINDOW, Pacer, Sample


def simulate(rate: float, base_rtt: float, seconds: float, longer: float = 0.0) -> tuple[Pacer, float, float]:
    """A link of ``rate`` bytes/s with an endless queue: the pacer, the mean queueing delay of the second half, the share used.

    ``longer``: the round trip after a tenth of the time; the kernel goes on telling the shortest that it ever saw."""
    shortest = base_rtt
    pacer, now, step = Pacer(), 0.0, 0.001
    queued = under_way = delivered = acknowledged = 0.0
    arrivals: list[tuple[float, float]] = []
    smoothed = base_rtt
    delays: list[float] = []
    passed: deque[tuple[float, float]] = deque()
    while now < seconds:
        now += step
        if longer and now > seconds / 10:
            base_rtt = longer
        sent = min(queued, rate * step)
        queued -= sent
        if sent:
            arrivals.append((now + base_rtt, sent))
        heard = False
        while arrivals and arrivals[0][0] <= now:
            heard = True
            size = arrivals.pop(0)[1]
            under_way -= size
            acknowledged += size
            delivered += size if now > seconds / 2 else 0
        if heard:
            smoothed += 0.125 * (base_rtt + queued / rate - smoothed)
        passed.append((now, acknowledged))
        while passed[0][0] < now - max(base_rtt, 0.02):
            passed.popleft()
        known = (acknowledged - passed[0][1]) / max(base_rtt, 0.02)  # what was seen, which is less than the link's where little was sent
        allowed = pacer.allowance(now, Sample(int(under_way), smoothed, shortest, known, int(acknowledged)))
        queued += allowed
        under_way += allowed
        if now > seconds / 2:
            delays.append(queued / rate)
    return pacer, sum(delays) / len(delays), delivered / (rate * seconds / 2)


@pytest.mark.parametrize(
    ("rate", "rtt"), [(2.5e6, 0.001), (2.5e6, 0.05), (125e6, 0.0005), (125e3, 0.1), (8e3, 0.08), (125e3, 0.3), (1.25e6, 0.6)]
)
def test_the_queue_stays_short_and_the_link_stays_full(rate: float, rtt: float) -> None:
    _, delay, used = simulate(rate, rtt, max(20.0, 100 * rtt))
    assert delay < 0.06
    assert used > 0.6


@pytest.mark.parametrize(("rate", "rtt", "longer"), [(1.25e6, 0.001, 0.6), (2.5e6, 0.02, 0.3), (8e3, 0.04, 0.3)])
def test_a_way_that_gets_longer_is_not_taken_for_a_queue(rate: float, rtt: float, longer: float) -> None:
    """Another uplink, a route around a cut: the model goes on at the link's rate, within seconds and not minutes."""
    _, delay, used = simulate(rate, rtt, 60.0, longer)
    assert delay < 0.06
    assert used > 0.6


def test_a_frame_is_no_longer_than_twenty_milliseconds_of_the_measured_rate() -> None:
    pacer = Pacer()
    for rate in (1e4, 1e5, 1e6, 1e8):
        frame = pacer.allowance(0.0, Sample(0, 0.01, 0.01, rate))
        assert frame <= max(MIN_FRAME, rate * 0.02)


def test_the_window_keeps_its_floor_and_the_next_try_is_soon() -> None:
    pacer = Pacer()
    for second in range(100):
        pacer.allowance(float(second), Sample(10**6, 5.0, 0.01, 1000.0))
    assert pacer.window == MIN_WINDOW
    assert pacer.allowance(200.0, Sample(10**6, 5.0, 0.01, 1000.0)) == 0
    assert 0.001 <= pacer.retry_after() <= 0.05
