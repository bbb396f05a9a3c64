"""Counters of one front; read by whoever renders /metrics."""

from collections import Counter


class FrontMetrics:
    """Plain numbers, changed on the loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (route kind, status code)
        self.in_flight = 0  # requests being served
        self.connections = 0  # open now, handshakes included
        self.accepted = 0
        self.refused = 0  # for the cap on connections
        self.evicted = 0  # idle ones closed to make room
        self.handshake_failures = 0
        self.bad_heads = 0
        self.bytes_in = 0  # of closed connections, after TLS
        self.bytes_out = 0
