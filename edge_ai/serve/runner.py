"""A bounded queue before a few threads: where requests wait for the processor.

Decoding, the model's run and encoding are one job on one thread, so the event loop only moves bytes and stays quick for health
checks. At most ``queue`` jobs wait; the next is refused at once with `Busy`, because a queue that grows only makes everybody late.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edge_ai.serve.errors import Busy

T = TypeVar("T")


class Runner:
    def __init__(self, threads: int, queue: int, waited: Callable[[float], None] | None = None) -> None:
        """``waited`` is told, on the job's thread, how many seconds each job stood in the queue."""
        self.threads = threads
        self.queue = queue
        self.open = 0  # jobs that wait or run
        self._waited = waited
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infer")

    def submit(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        """Cancelling the future takes a job that still waits out of the queue. Raises `Busy`."""
        if self.open >= self.threads + self.queue:
            raise Busy(f"{self.queue} requests are waiting already; try again")
        self.open += 1
        started = time.perf_counter()

        def work() -> T:
            if self._waited is not None:
                self._waited(time.perf_counter() - started)
            return job()

        loop = asyncio.get_running_loop()
        inner = self._pool.submit(work)
        # The thread's own end frees the place: a cancelled caller's job may still be running.
        inner.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done) if not loop.is_closed() else None)
        return asyncio.wrap_future(inner)

    def _done(self) -> None:
        self.open -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def default_threads() -> int:
    """Runs at once: the processors that this process may use, at most two. Replicas, not threads, are for more."""
    return min(2, len(os.sched_getaffinity(0)))
