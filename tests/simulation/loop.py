"""An event loop in virtual time: no sockets, no threads, no waiting. Time jumps to the next timer.

Deterministic: what is ready runs in the order in which it became ready, timers of one instant in the order in which they were
set, and what would go to a thread runs on the loop when a simulated disk has taken the time that it takes.
"""

import asyncio
import heapq
from asyncio import events, futures
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from tests.simulation.life import LIFE, Life
from tests.simulation.net import Network

COMPACT = 4096  # cancelled timers after which the heap is swept
TICK = 1e-6  # seconds; a clock that stood still would let who waits for an instant that rounding puts an instant away wait for ever
STEPS_PER_TICK = 64
STEPS_PER_INSTANT = 20_000  # callbacks at one instant after which nothing is getting on any more


class Stuck(Exception):
    """Callbacks follow callbacks and time stands still: something spins."""


class Turn:
    """A callback that waits for its turn; what `asyncio` calls a handle, with the life that it belongs to looked up once."""

    __slots__ = ("_args", "_callback", "_context", "_loop", "dropped", "life", "timer", "when_due")

    def __init__(self, loop: "VirtualLoop", callback: Callable[..., object], args: tuple[Any, ...], context: Context | None) -> None:
        self._loop = loop
        self._callback: Callable[..., object] | None = callback
        self._args = args
        if context is None:
            self._context = copy_context()
            self.life = LIFE.get()
        else:
            self._context = context
            self.life = context.get(LIFE)
        self.dropped = False
        self.timer = False  # it waits in the heap
        self.when_due = 0.0

    def __repr__(self) -> str:
        return f"<Turn of {self._callback!r}>"

    def cancel(self) -> None:
        if not self.dropped:
            self.dropped = True
            self._callback, self._args = None, ()
            if self.timer:
                self._loop._timer_dropped()

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.when_due


class VirtualLoop(asyncio.AbstractEventLoop):
    """``network`` is where connections are made; set after construction. ``failed`` collects what no code of anybody caught."""

    network: Network

    def __init__(self) -> None:
        self._now = 1000.0
        self._ready: deque[Turn] = deque()
        self._timers: list[tuple[float, int, Turn]] = []
        self._sequence = 0
        self._cancelled = 0
        self._stopping = False
        self._running = False
        self._closed = False
        self.failed: list[str] = []
        self.steps = 0

    # --- time ---

    def time(self) -> float:
        return self._now

    # A turn stands where asyncio has a handle, so these return no `Handle`.

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Turn:
        turn = Turn(self, callback, args, context)
        self._ready.append(turn)
        return turn

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Turn:
        return self.call_at(self._now + max(0.0, delay), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Turn:
        turn = Turn(self, callback, args, context)
        turn.timer, turn.when_due = True, when
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, turn))
        return turn

    def _timer_dropped(self) -> None:
        self._cancelled += 1
        if self._cancelled > COMPACT and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].dropped]
            heapq.heapify(self._timers)
            self._cancelled = 0

    # --- running ---

    def run_to(self, until: float) -> None:
        """Everything that happens up to the instant ``until``."""
        self._enter()
        try:
            while not self._stopping:
                self._run_ready()
                if self._stopping or not self._advance(until):
                    break
            if not self._stopping:
                self._now = max(self._now, until)
        finally:
            self._leave()

    def run_for(self, seconds: float) -> None:
        self.run_to(self._now + seconds)

    def run_until_complete(self, future: Any, *, limit: float = 3600.0) -> Any:
        """``limit`` in virtual seconds; TimeoutError after it."""
        future = asyncio.ensure_future(future, loop=self)
        future.add_done_callback(self._stop)
        self.run_for(limit)
        future.remove_done_callback(self._stop)
        if not future.done():
            raise TimeoutError(f"{future!r} has not ended within {limit} virtual seconds")
        return future.result()

    def _stop(self, _: Any) -> None:
        self._stopping = True

    def stop(self) -> None:
        self._stopping = True

    def _enter(self) -> None:
        self._running, self._stopping = True, False
        events._set_running_loop(self)

    def _leave(self) -> None:
        self._running = False
        events._set_running_loop(None)

    def _run_ready(self) -> None:
        ready, steps = self._ready, 0
        while ready and not self._stopping:
            turn = ready.popleft()
            if turn.dropped:
                continue
            life = turn.life
            if life is None or not (life.dead or life.frozen):
                callback = turn._callback
                try:
                    turn._context.run(callback, *turn._args)  # type: ignore[arg-type]
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # as asyncio's own handles do: the loop's to tell, and no end of it
                    self.call_exception_handler({"message": f"Exception in callback {callback!r}", "exception": error, "handle": turn})
            elif not life.dead:
                life.deferred.append(turn)
            steps += 1
            if not steps % STEPS_PER_TICK:
                self._now += TICK
            if steps > STEPS_PER_INSTANT:
                raise Stuck(f"{steps} callbacks at {self._now}, the last {turn!r}")
        self.steps += steps

    def _advance(self, until: float) -> bool:
        """To the next timer; False when none is due by ``until``."""
        timers = self._timers
        while timers and timers[0][2].dropped:
            heapq.heappop(timers)
            self._cancelled = max(0, self._cancelled - 1)
        if not timers or timers[0][0] > until:
            return False
        now = self._now = max(self._now + TICK, timers[0][0])
        while timers and timers[0][0] <= now:
            turn = heapq.heappop(timers)[2]
            turn.timer = False
            self._ready.append(turn)
        return True

    def defer(self, life: Life, callback: Callable[..., object], *args: Any) -> None:
        """What happens to a frozen process waits for it."""
        life.deferred.append(Turn(self, callback, args, life.context))

    def thaw(self, life: Life) -> None:
        """A frozen process goes on with what has waited for it."""
        life.frozen = False
        deferred, life.deferred = life.deferred, []
        self._ready.extend(deferred)

    # --- what programs ask of a loop ---

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        return futures.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.add_task(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        future = self.create_future()
        life = LIFE.get()
        before, after = life.machine.disk_pause() if life is not None else (0.0, 0.0)
        self.call_later(before, self._work, future, func, args, after)
        return future

    def _work(self, future: "asyncio.Future[Any]", func: Callable[..., Any], args: tuple[Any, ...], after: float) -> None:
        try:
            result = func(*args)
        except Exception as error:  # as a thread pool does: it is the waiting code's to judge
            self.call_later(after, _settle, future, None, error)
        else:
            self.call_later(after, _settle, future, result, None)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return self.network.listen(protocol_factory, host, port)

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **_: Any) -> Any:
        if sock is not None:  # see `patches`: the address that it is for
            host, port = sock.host, sock.port
        return await self.network.connect(protocol_factory, host, port)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        life = LIFE.get()
        if life is None or not life.dead:
            self.failed.append(
                f"{context.get('message')}: {context.get('exception')!r} {context.get('task') or context.get('handle') or ''}"
            )

    async def shutdown_asyncgens(self) -> None:
        return None

    async def shutdown_default_executor(self) -> None:
        return None


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
