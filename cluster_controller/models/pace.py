"""How fast, and when, models may come over the link to the parent: a rate and windows of the day, by the site's own clock.

The child alone says so, for a link belongs to the child that dials it; what it does not read, the parent does not send (credit). Pure
but for `Pace`, which sleeps: `Bucket` and `windows.Windows` take the time as an argument.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from cluster_controller.clock import boottime, wall
from cluster_controller.errors import Unreachable
from cluster_controller.windows import Windows

PART = 1 << 18  # bytes read at once where nothing is limited


class Bucket:
    """``rate`` bytes a second over any while, ``burst`` bytes at once. Who spends more than there is has to wait."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left = burst
        self._at: float | None = None

    def spend(self, amount: int, now: float) -> float:
        """Seconds to wait before the next."""
        if self._at is not None:
            self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        self._left -= amount
        return max(0.0, -self._left / self._rate)


class Pace:
    """``rate``: bytes a second for all models together; 0: as fast as the link gives."""

    def __init__(
        self,
        rate: int = 0,
        windows: Windows | None = None,
        *,
        now: Callable[[], float] = boottime,
        local: Callable[[], datetime] = lambda: wall().astimezone(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        # A tenth of a second's worth at once: the sender never runs far ahead of the rate.
        self.part = PART if rate <= 0 else max(1024, min(PART, rate // 10))
        self._bucket = Bucket(rate, self.part) if rate > 0 else None
        self._windows = windows or Windows()
        self._now, self._local, self._sleep = now, local, sleep

    def require_open(self) -> None:
        """`Unreachable` outside of the windows."""
        if not self._windows.open(self._local()):
            raise Unreachable(f"models come from the parent within {self._windows} only, by this site's clock (model_windows)")

    async def spend(self, amount: int) -> None:
        if self._bucket is not None:
            seconds = self._bucket.spend(amount, self._now())
            if seconds > 0:
                await self._sleep(seconds)


FREE = Pace()
