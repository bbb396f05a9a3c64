"""How much bulk may be under way on a link, so that what is urgent never stands behind a long queue.

A window over the bytes that the peer's kernel has not acknowledged, moved as FAST TCP moves its own (Jin, Wei, Low 2004):
towards the size at which the queue adds `TARGET_DELAY` to the shortest round trip seen. On a fast link it grows until it
does not matter; on a slow one it shrinks to a few frames. Pure: the shell feeds it what the kernel measures.
"""

from msgspec import Struct

TARGET_DELAY = 0.025  # seconds of queue that bulk may cause
FRAME_TIME = 0.020  # seconds that one bulk frame may take on the wire
MIN_FRAME = 160  # bytes; 20 ms at 64 kbit/s
MIN_WINDOW = 512
MAX_WINDOW = 16 * 1024 * 1024
FIRST_WINDOW = 8 * 1024
MEASURE_TIME = 0.1  # seconds over which a busy link's rate is measured
FIRST_RATE = 128 * 1024.0  # bytes per second until something is measured


class Sample(Struct, frozen=True):
    """What the kernel says of a connection (Linux: TCP_INFO)."""

    unacknowledged: int  # bytes handed to the kernel and not yet acknowledged
    rtt: float  # seconds, smoothed
    min_rtt: float
    rate: float  # bytes per second delivered
    acknowledged: int = 0  # bytes, since the connection began


class Pacer:
    __slots__ = ("_limited", "_mark", "_marked_at", "_updated_at", "rate", "window")

    def __init__(self) -> None:
        self.window = FIRST_WINDOW
        self.rate = FIRST_RATE
        self._updated_at = 0.0
        self._limited = False
        self._mark = -1  # bytes acknowledged when the link became busy, -1: it is not
        self._marked_at = 0.0

    def allowance(self, now: float, sample: Sample) -> int:
        """Bytes of bulk that may go into the next message; 0: ask again after `retry_after`."""
        if sample.rate > 0 and sample.rtt > 0:  # the kernel's figure is of a burst; no more than the window passes in a round trip
            self.rate = min(sample.rate, self.window / sample.rtt)
        self._measure(now, sample)
        if now - self._updated_at >= max(sample.rtt, 0.005):
            self._update(now, sample)
        frame = max(MIN_FRAME, int(self.rate * FRAME_TIME))
        room = self.window - sample.unacknowledged
        if room < frame:
            self._limited = True
        if room < min(frame, self.window // 4):
            return 0
        return min(room, frame)

    def _measure(self, now: float, sample: Sample) -> None:
        """A link that was busy all the time has shown its rate: no window may hold more than that rate drains soon.

        The smoothed round trip tells the same, but only a whole queue later.
        """
        if sample.unacknowledged == 0:
            self._mark = -1
        elif self._mark < 0:
            self._mark, self._marked_at = sample.acknowledged, now
        elif now - self._marked_at >= MEASURE_TIME:
            drained = (sample.acknowledged - self._mark) / (now - self._marked_at)
            self.window = max(MIN_WINDOW, min(self.window, int(drained * (sample.min_rtt + 2 * TARGET_DELAY))))
            self._mark, self._marked_at = sample.acknowledged, now

    def retry_after(self) -> float:
        """Seconds until a part of the window has probably drained."""
        return min(0.05, max(0.001, self.window / 4 / self.rate))

    def _update(self, now: float, sample: Sample) -> None:
        self._updated_at = now
        if sample.rtt <= 0 or sample.min_rtt <= 0:
            return
        wanted = self.window * (sample.min_rtt + TARGET_DELAY) / sample.rtt
        if wanted > self.window and not self._limited:
            return  # not the window is what holds the traffic back
        self._limited = False
        moved = (self.window + min(wanted, 2.0 * self.window)) / 2  # half way: the smoothed round trip lags behind
        self.window = int(min(MAX_WINDOW, max(MIN_WINDOW, moved)))
