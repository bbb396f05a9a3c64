"""Bulk in flight against a simulated bottleneck with a deep queue."""

import pytest

from cluster_controller.tunnel.protocol.pacing import MIN_FRAME, MIN_WINDOW, Pacer, Sample


def simulate(rate: float, base_rtt: float, seconds: float) -> tuple[Pacer, float, float]:
    """A link of ``rate`` bytes/s with an endless queue: the pacer, the mean queueing delay of the second half, the share used."""
    pacer, now, step = Pacer(), 0.0, 0.001
    queued = under_way = delivered = acknowledged = 0.0
    arrivals: list[tuple[float, float]] = []
    smoothed = base_rtt
    delays: list[float] = []
    while now < seconds:
        now += step
        sent = min(queued, rate * step)
        queued -= sent
        if sent:
            arrivals.append((now + base_rtt, sent))
        while arrivals and arrivals[0][0] <= now:
            size = arrivals.pop(0)[1]
            under_way -= size
            acknowledged += size
            delivered += size if now > seconds / 2 else 0
        smoothed += 0.05 * (base_rtt + queued / rate - smoothed)
        known = rate if now > 3 * base_rtt else 0.0
        allowed = pacer.allowance(now, Sample(int(under_way), smoothed, base_rtt, known, int(acknowledged)))
        queued += allowed
        under_way += allowed
        if now > seconds / 2:
            delays.append(queued / rate)
    return pacer, sum(delays) / len(delays), delivered / (rate * seconds / 2)


@pytest.mark.parametrize(("rate", "rtt"), [(2.5e6, 0.001), (2.5e6, 0.05), (125e6, 0.0005), (125e3, 0.1), (8e3, 0.08)])
def test_the_queue_stays_short_and_the_link_stays_full(rate: float, rtt: float) -> None:
    _, delay, used = simulate(rate, rtt, max(20.0, 100 * rtt))
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
