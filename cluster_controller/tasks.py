"""Background tasks with a name, an owner and a guard: no task ends unseen.

The guard is the only place that catches every exception. A guarded loop that fails is logged and started again after a
capped, jittered delay, so one bad object cannot silence a controller.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from cluster_controller.errors import BanyanError
from cluster_shim.contract import ShimError

log = structlog.get_logger()

RESTART_DELAY_SECONDS = (0.2, 10.0)
CANCEL_ROUNDS = 10
CANCEL_SECONDS = 1.0

crashes: Counter[str] = Counter()  # defects that the guard met in this process, by owner


class Tasks:
    """The background tasks of one owner; `close` cancels them all and waits until they have ended."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run once; a failure is logged, cancellation is silent."""
        task = asyncio.create_task(self._once(name, coroutine), name=f"{self.owner}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: coroutine.close())  # one cancelled before its first step was never begun
        return task

    def keep(self, name: str, factory: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run again whenever it ends or fails, until closed."""
        return self.spawn(name, self._forever(name, factory))

    async def close(self) -> None:
        """Cancel all and wait. A cancellation can get lost on its way (bpo-37658), so it is said again until everybody has heard."""
        pending = set(self._tasks)
        for _ in range(CANCEL_ROUNDS):
            for task in pending:
                task.cancel()
            if pending:
                _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
            if not pending:
                return
        log.error("task.does_not_end", owner=self.owner, tasks=sorted(task.get_name() for task in pending))

    async def _once(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except (BanyanError, ShimError) as error:
            log.warning("task.failed", owner=self.owner, task=name, error=str(error))
        except Exception:
            crashes[self.owner] += 1
            log.exception("task.crashed", owner=self.owner, task=name)

    async def _forever(self, name: str, factory: Callable[[], Awaitable[None]]) -> None:
        low, high = RESTART_DELAY_SECONDS
        delay = low
        while True:
            started = asyncio.get_running_loop().time()
            await self._once(name, _run(factory))
            if asyncio.get_running_loop().time() - started > high:
                delay = low
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, high)


async def follow(wake: asyncio.Event, step: Callable[[], Awaitable[bool]], pauses: tuple[float, float]) -> None:
    """For ever: ``step`` when woken, and again after a pause that doubles from the first to the second of ``pauses`` (seconds) until it
    says that all is done that can be done now."""
    pause = pauses[0]
    while True:
        await wake.wait()
        wake.clear()
        if await step():
            pause = pauses[0]
            continue
        await asyncio.sleep(pause)
        pause = min(2 * pause, pauses[1])
        wake.set()


async def end_task(task: "asyncio.Task[Any]") -> None:
    """Cancel it and wait, whatever it ends with. Unlike a suppressed CancelledError this never swallows the caller's own."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # seen


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Done whole, however often the caller is cancelled meanwhile; then its own CancelledError is passed on. For what must not be left
    half done: nobody else may begin before it has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def _run(factory: Callable[[], Awaitable[None]]) -> None:
    await factory()
