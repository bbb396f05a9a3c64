"""A few dozen lines of event loop: descriptors, timers, nothing else. With nothing due it sleeps without a wakeup.

Deadlines are on the boot-time clock, so that they mean the same after the supervisor has been replaced.
"""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timer:
    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self.running = True

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready; again with other events to change them."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed, never after: the number may be somebody else's by then."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        while self.running:
            for fd, events in self._epoll.poll(self._timeout(), 64):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback(events)
            self._fire()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(self._timers[0].when - now(), 0.0) if self._timers else None

    def _fire(self) -> None:
        while self._timers and (self._timers[0].callback is None or self._timers[0].when <= now()):
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
