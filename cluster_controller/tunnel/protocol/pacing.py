"""How much bulk may be under way on a link, so that what is urgent never stands behind a long queue.

A window over the bytes that the peer's kernel has not acknowledged, moved as FAST TCP moves its own (Jin, Wei, Low 2004):
towards the size at which the queue adds `TARGET_DELAY` to the shortest round trip seen, and by doubling while there is no queue.
On a fast link it grows until it does not matter; on a slow one it shrinks to a few frames. Pure: the shell feeds it what the kernel
measures.

The kernel remembers the shortest round trip for minutes. When the way itself gets longer (another uplink, a route around a cut), that
looks like a queue that does not drain; who is down to the smallest window and still sees it has the new length of the way before it.
"""

from msgspec import Struct

TARGET_DELAY = 0.025  # seconds of queue that bulk may cause
FRAME_TIME = 0.020  # seconds that one bulk frame may take on the wire
MIN_FRAME = 160  # bytes; 20 ms at 64 kbit/s
MIN_WINDOW = 512
MAX_WINDOW = 16 * 1024 * 1024
FIRST_WINDOW = 8 * 1024
MEASURE_TIME = 0.1  # seconds over which a busy link's rate is measured; two round trips where they take longer
DETOUR = 0.1  # seconds; no queue of the smallest window is that long at 64 kbit/s
DETOUR_TIME = 1.0  # seconds at the smallest window, and four round trips, until a delay is known to be the way's own
FIRST_RATE = 128 * 1024.0  # bytes per second until something is measured


class Sample(Struct, frozen=True):
    """What the kernel says of a connection (Linux: TCP_INFO)."""

    unacknowledged: int  # bytes handed to the kernel and not yet acknowledged
    rtt: float  # seconds, smoothed
    min_rtt: float
    rate: float  # bytes per second delivered
    acknowledged: int = 0  # bytes, since the connection began


class Pacer:
    __slots__ = ("_detour", "_limited", "_mark", "_marked_at", "_small_at", "_small_since", "_updated_at", "rate", "window")

    def __init__(self) -> None:
        self.window = FIRST_WINDOW
        self.rate = FIRST_RATE
        self._updated_at = 0.0
        self._limited = False
        self._mark = -1  # bytes acknowledged when the link became busy, -1: it is not
        self._marked_at = 0.0
        self._small_since = -1.0  # since when the window is the smallest, -1: it is not
        self._small_at = 0  # bytes acknowledged at that time
        self._detour = 0.0  # seconds: the way's length where the kernel's shortest round trip is one of another way

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
        shortest = self._shortest(sample)
        if sample.unacknowledged == 0:
            self._mark = -1
        elif self._mark < 0:
            self._mark, self._marked_at = sample.acknowledged, now
        elif now - self._marked_at >= max(MEASURE_TIME, 2 * shortest):
            drained = (sample.acknowledged - self._mark) / (now - self._marked_at)
            if drained == 0 or sample.rtt - shortest > TARGET_DELAY / 2:  # else the window was what held it back, not the link
                self.window = max(MIN_WINDOW, min(self.window, int(drained * (shortest + 2 * TARGET_DELAY))))
            self._mark, self._marked_at = sample.acknowledged, now

    def _shortest(self, sample: Sample) -> float:
        """The round trip without a queue."""
        return max(sample.min_rtt, self._detour)

    def _notice_detour(self, now: float, sample: Sample) -> None:
        self._detour = min(self._detour, sample.rtt)
        if self.window > (2 * MIN_WINDOW if self._detour else MIN_WINDOW):
            self._small_since = -1.0
        elif self._small_since < 0:
            self._small_since, self._small_at = now, sample.acknowledged
        elif now - self._small_since >= max(DETOUR_TIME, 4 * sample.rtt) and sample.acknowledged > self._small_at:
            # Once it is known to be a detour, what comes on top is a part of it: the smoothed round trip takes its time.
            if self._detour or sample.rtt - self._shortest(sample) > DETOUR:
                self._detour = sample.rtt
            self._small_since, self._small_at = now, sample.acknowledged

    def retry_after(self) -> float:
        """Seconds until a part of the window has probably drained."""
        return min(0.05, max(0.001, self.window / 4 / self.rate))

    def _update(self, now: float, sample: Sample) -> None:
        self._updated_at = now
        if sample.rtt <= 0 or sample.min_rtt <= 0:
            return
        self._notice_detour(now, sample)
        shortest = self._shortest(sample)
        empty = sample.rtt - shortest < TARGET_DELAY / 4
        wanted = 2.0 * self.window if empty else self.window * (shortest + TARGET_DELAY) / sample.rtt
        if wanted > self.window and not self._limited:
            return  # not the window is what holds the traffic back
        self._limited = False
        moved = (self.window + min(wanted, 2.0 * self.window)) / 2  # half way: the smoothed round trip lags behind
        self.window = int(min(MAX_WINDOW, max(MIN_WINDOW, moved)))
