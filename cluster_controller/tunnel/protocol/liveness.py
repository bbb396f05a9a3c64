"""Is the other side alive, how far away is it, and when must this side say something.

Any received byte proves life, so on a busy link no heartbeat is needed and on an idle one a single exchange per interval proves
both directions: the side that dialled speaks first, the answer is the other side's sign of life, and that other side speaks up
by itself only when the first is late. A timer that fires late (the machine slept, the process was stopped) is no
proof of silence: what arrived meanwhile is read first.

A question that cannot leave yet, for the kernel's buffer is full, is not asked again before its time: on a link that is stuck the next
one would only wait behind it.
"""

from msgspec import Struct

RTT_EVERY = 12  # intervals after which the round trip is measured again on a link that needs no heartbeat
LATE = 1.0  # seconds
GRACE = 2.0  # seconds to read what waits in the kernel after a late timer
IDENTIFIERS = 127  # ids of heartbeats; they stay one byte on the wire


class Liveness(Struct):
    first: bool  # this side dialled
    heartbeat: float
    dead_after: float
    last_heard: float
    last_sent: float
    rtt: float | None = None  # seconds, smoothed (RFC 6298 weights)
    _id: int = 0
    _asked_at: float = 0.0
    _asking: bool = False  # a question is open
    _measured_at: float = 0.0
    _expected: float = 0.0

    def deadline(self) -> float:
        """When `tick` has something to do."""
        self._expected = min(self._speak_at(), self.last_heard + self.dead_after)
        return self._expected

    def _speak_at(self) -> float:
        silent_for = self.heartbeat if self.first else self.heartbeat * 1.25
        due = min(self.last_sent + silent_for, max(self._measured_at, self._asked_at) + RTT_EVERY * self.heartbeat)
        return max(due, self._asked_at + self.heartbeat) if self._id else due

    def tick(self, now: float) -> bool:
        """True when the other side is dead."""
        if now - self.last_heard < self.dead_after:
            return False
        if now - self._expected > LATE:
            self.last_heard = now - self.dead_after + GRACE
            return False
        return True

    def question(self, now: float) -> int:
        """The id of the heartbeat to send now; 0: none is due."""
        return self.ask(now) if now >= self._speak_at() else 0

    def ask(self, now: float) -> int:
        self._id = self._id % IDENTIFIERS + 1
        self._asked_at = now
        self._asking = True
        return self._id

    def answered(self, id: int, now: float) -> None:
        """An answer to an older question, or to none, measures nothing."""
        if id != self._id or not self._asking:
            return
        sample = max(0.0, now - self._asked_at)
        self.rtt = sample if self.rtt is None else 0.875 * self.rtt + 0.125 * sample
        self._asking = False
        self._measured_at = now
