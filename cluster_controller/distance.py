"""How far the parent is, said calmly: placement goes by the round trip of links, and must not be told of every breath of one.

Only a change by a quarter and by more than 5 ms is told, in two digits. So an idle tree reports nothing, and what is placed by
latency does not waver.
"""

import asyncio
from collections.abc import Callable
from math import floor, log10

PERIOD_SECONDS = 15.0
TOLD_FACTOR = 1.25
TOLD_MILLIS = 5.0


def steady(told: float | None, measured: float | None) -> float | None:
    """What to tell, in milliseconds, when ``told`` is what was told before. Nothing measured: what was told stays."""
    if measured is None:
        return told
    if told is not None and abs(measured - told) <= TOLD_MILLIS:
        return told
    if told is not None and max(measured, told) <= TOLD_FACTOR * min(measured, told):
        return told
    return _two_digits(measured)


def _two_digits(value: float) -> float:
    return round(value, 1 - floor(log10(value))) if value > 0.01 else 0.0


class ParentDistance:
    """Watches the link to the parent. ``measured`` is its round trip in seconds, or None while there is none."""

    def __init__(self, measured: Callable[[], float | None], changed: Callable[[], None]) -> None:
        self._measured = measured
        self._changed = changed
        self.millis: float | None = None

    def look(self) -> None:
        seconds = self._measured()
        now = steady(self.millis, None if seconds is None else 1000 * seconds)
        if now != self.millis:
            self.millis = now
            self._changed()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            self.look()
