"""Machines and the lives of processes on them: whose code runs now, by which clocks, and whether it still runs.

A context variable says whose turn it is. The loop starts every callback in the context in which it was scheduled, so all that a
controller ever starts stays its own; what belongs to a life that has ended is never run again, as after SIGKILL or a power cut.
"""

import asyncio
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from cluster_controller import tasks

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
MANY_TASKS = 256


class Machine:
    """A computer: its clocks, its disk's speed, whether it has power. It outlives the processes on it."""

    def __init__(self, name: str, now: Callable[[], float], rng: Random) -> None:
        self.name = name
        self.powered = True
        self.wall_offset = 0.0  # seconds by which its wall clock is wrong
        self.write_seconds = (0.0005, 0.004)  # from handing a write over until it is on the disk
        self.full = False
        self.now = now
        self._rng = rng
        self.booted = now() - rng.uniform(10.0, 1e6)

    def boottime(self) -> float:
        return self.now() - self.booted

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now() + self.wall_offset)

    def boot(self) -> None:
        """Power is back: the boot-time clock begins anew."""
        self.powered = True
        self.booted = self.now()

    def disk_pause(self) -> tuple[float, float]:
        """Seconds until a write is on the disk, and from then until its writer is told."""
        return self._rng.uniform(*self.write_seconds), self._rng.uniform(0.0, self.write_seconds[0])


class Life:
    """One process on a machine, from its start to its end."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.dead = False
        self.frozen = False
        self.context: Context = copy_context()
        self.context.run(LIFE.set, self)
        self.deferred: list[Any] = []  # the loop's turns that came while it was frozen
        self._tasks: list[weakref.ref[asyncio.Task[Any]]] = []
        self._prune_at = MANY_TASKS

    def add_task(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.append(weakref.ref(task))
        if len(self._tasks) > self._prune_at:
            self._tasks = [weakref.ref(each) for each in self.tasks()]
            self._prune_at = max(MANY_TASKS, 2 * len(self._tasks))

    def tasks(self) -> "list[asyncio.Task[Any]]":
        """Those that have not ended."""
        return [task for each in self._tasks if (task := each()) is not None and not task.done()]

    def end(self) -> None:
        """At once, in the midst of whatever it does: nothing of it runs any more, and nothing that it still says is heard."""
        self.dead = True
        running, self._tasks = self.tasks(), []  # held until they are unwound, also those that have yet to take their first step
        self.deferred.clear()
        crashes = tasks.crashes.copy()
        for task in running:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(self.context, task)
        tasks.crashes.clear()
        tasks.crashes.update(crashes)  # what goes wrong while it is unwound went wrong after its end


def _close(context: Context, task: "asyncio.Task[Any]") -> None:
    """Unwind a task that will never be stepped again, now and not when memory is collected. Its life is dead, so what its
    ``finally`` blocks ask for is not done."""
    coroutine = task.get_coro()
    for _ in range(10):
        try:
            context.run(coroutine.close)
            return
        except (RuntimeError, ValueError):  # one that awaits while it is closed, or is closed by the one that it waits for
            continue


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


def machine() -> Machine:
    """That of the process whose turn it is."""
    life = LIFE.get()
    assert life is not None, "only a process reads clocks and disks"
    return life.machine
