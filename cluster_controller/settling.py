"""The loop that all level-triggered rooms share: things are marked, and settled together in one commit.

Marking costs nothing and may be repeated; settling looks at the newest state and writes what differs, so a lost, doubled or
reordered mark changes nothing. What could not be written stays marked.
"""

import asyncio
import math
from collections.abc import Callable, Iterable

from cluster_controller.store import Store, Tx

BATCH = 256  # settled in one commit


class Settler:
    """Marks by name; ``settle(tx, name)`` for each, in ``order``.

    ``turn``: seconds after which the loop has its turn, and what is left goes into another commit; for names that need no common one.
    """

    def __init__(
        self, store: Store, settle: Callable[[Tx, str], None], order: Callable[[str], object] | None = None, *, turn: float = math.inf
    ) -> None:
        self._store = store
        self._settle = settle
        self._order = order
        self._turn = turn
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()

    def mark(self, name: str) -> None:
        self._dirty[name] = None
        self._wake.set()

    def mark_all(self, names: Iterable[str]) -> None:
        for name in sorted(names):  # sets come in another order in each process: what is written shall not depend on that
            self.mark(name)

    async def run(self) -> None:
        """For ever; an error leaves the batch marked and ends this run (its task starts it again)."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.once()

    async def once(self) -> int:
        """Settle until nothing is marked; returns how many were."""
        settled = 0
        while self._dirty:
            names = sorted(self._dirty, key=self._order)[:BATCH] if self._order is not None else list(self._dirty)[:BATCH]  # type: ignore[arg-type]
            for name in names:
                del self._dirty[name]
            try:
                count = await self._store.commit(lambda tx, names=names: self._settle_all(tx, names))  # type: ignore[misc]
            except BaseException:
                self.mark_all(names)
                raise
            settled += count
            if count < len(names):
                self.mark_all(names[count:])
                await asyncio.sleep(0)  # a commit of nothing waits for nothing
        return settled

    def _settle_all(self, tx: Tx, names: list[str]) -> int:
        """How many of them, from the first."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._turn
        for count, name in enumerate(names):
            if count and loop.time() >= until:
                return count
            self._settle(tx, name)
        return len(names)


class Alarm:
    """Marks names when their time has come: one timer for the earliest, none when nothing waits.

    ``now`` is the boot-time clock; the loop's timer may lag behind it (a machine that slept), so what is not due yet is armed again.
    Kept in memory: whoever settles anew after a start asks again.
    """

    def __init__(self, mark: Callable[[str], None], now: Callable[[], float]) -> None:
        self._mark = mark
        self._now = now
        self._times: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0

    def set(self, name: str, after: float | None) -> None:
        """Mark ``name`` in so many seconds, and no longer when it was set for before; None: not at all."""
        if after is None:
            self._times.pop(name, None)
            return
        self._times[name] = self._now() + after
        if self._timer is None or self._times[name] < self._armed:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._times:
            self._armed = min(self._times.values())
            self._timer = asyncio.get_running_loop().call_later(max(0.001, self._armed - self._now()), self.ring)

    def ring(self) -> None:
        """Mark what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        for name in [name for name, when in self._times.items() if when <= now]:
            del self._times[name]
            self._mark(name)
        self._arm()
