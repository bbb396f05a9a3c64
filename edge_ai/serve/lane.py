"""Where the requests of one model wait for the processor, and the threads that take them: priorities, deadlines, batches.

Each model has a lane of its own, so that a slow one never stands before a quick one. Decoding, the model's run and encoding happen on a
lane's thread; the event loop only moves bytes and stays quick for health checks.

Invariants
- At most `Lane.queue` jobs wait; the next is refused at once with `Busy`: a queue that grows only makes everybody late.
- The lowest ``priority`` goes first, the older first among equals. What is cancelled or past its deadline when its turn comes is not run.
- Jobs are batched only when they wait already: no one is held back in the hope of company. A batch takes no more rows than the model was
  measured to gain from, and no thread takes more than its share of those who wait.
- One job never fails for another's sake: a batch that fails is run one by one.
"""

import asyncio
import concurrent.futures
import contextlib
import heapq
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from edge_ai.serve import batches, events
from edge_ai.serve.errors import Busy, Expired, RequestError
from edge_ai.serve.statistics import Statistics
from edge_ai.serve.tensors import Array, InferRequest

CALIBRATION = 1 << 40  # a priority below all that a request can have
GONE_SECONDS = 0.5  # how often a thread that waits for a client to take an answer looks whether it is still there
clock = time.monotonic


class Model(Protocol):
    """What a lane knows of a model: `engine.LoadedModel` and `pipeline.Pipeline`."""

    name: str
    version: str
    cap: int
    """Rows of a batch that are worth it; 1: none is."""
    statistics: Statistics

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]: ...

    def stream(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Iterator[list[Array]]: ...


class Job:
    """One request on its way. ``decode`` and ``encode`` run on the lane's thread; ``future`` is resolved on the loop."""

    __slots__ = ("asked", "decode", "emit", "encode", "first", "future", "model", "queued", "ran", "request_deadline", "rows", "started")

    def __init__(
        self,
        model: Model,
        decode: Callable[[], InferRequest],
        encode: Callable[[InferRequest, list[Array]], Any],
        future: "asyncio.Future[Any]",
        *,
        deadline: float | None = None,
        emit: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None:
        self.model = model
        self.emit = emit  # takes each answer of a streaming model, on the loop; the next one is made when it has returned
        self.decode = decode
        self.encode = encode
        self.future = future
        self.request_deadline = deadline  # on `clock`
        self.asked: InferRequest | None = None
        self.queued = clock()
        self.started = self.queued
        self.ran = 0.0  # seconds of the run that it was part of
        self.rows = 0  # of that whole run
        self.first = False  # of those in that run

    @property
    def late(self) -> bool:
        asked = self.asked
        deadline = self.request_deadline
        if asked is not None and asked.timeout is not None:
            own = self.queued + asked.timeout
            deadline = own if deadline is None else min(deadline, own)
        return deadline is not None and clock() > deadline


class Lane:
    def __init__(self, name: str, threads: int, queue: int, finished: Callable[[Job, Any, Exception | None], None]) -> None:
        """``finished`` is told on the loop of each job that ended: with its answer, or with why there is none. Threads start with the
        first job."""
        self.name = name
        self.threads = threads
        self.queue = queue
        self.running = 0
        self._finished = finished
        self._waiting: list[tuple[int, int, Job | Callable[[], bool]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._started: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._done: list[tuple[Job, Any, Exception | None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs = 0  # those of `_waiting` that are requests

    @property
    def open(self) -> int:
        """Requests that wait or run."""
        return self._jobs + self.running

    def submit(self, job: Job, priority: int = 0) -> None:
        """Called on the loop. Raises `Busy`."""
        if self._jobs >= self.queue + self.threads - self.running:
            raise Busy(f"{self.queue} requests for model '{self.name}' are waiting already; try again", self._patience(job))
        self._loop = job.future.get_loop()
        with self._changed:
            heapq.heappush(self._waiting, (priority, next(self._order), job))
            self._jobs += 1
            self._wake()

    def when_idle(self, step: Callable[[], bool]) -> None:
        """Call ``step`` on a thread of the lane whenever nobody waits, until it answers False."""
        with self._changed:
            heapq.heappush(self._waiting, (CALIBRATION, next(self._order), step))
            self._wake()

    def close(self) -> None:
        """What waits is dropped; threads end after what they are doing. Without it the process does not end."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._jobs = 0
            self._changed.notify_all()

    def _patience(self, job: Job) -> int:
        """Whole seconds until those who wait now will have been served."""
        last = getattr(job.model, "seconds", 0.0)
        return max(1, min(60, round(self._jobs * last / self.threads)))

    def _wake(self) -> None:
        if self._idle:
            self._changed.notify()
        elif len(self._started) < self.threads and not self._closed:
            name = f"infer-{self.name}-{len(self._started)}"
            thread = threading.Thread(target=self._work, name=name)  # the process ends when its run does: onnxruntime bears no less
            self._started.append(thread)
            thread.start()

    # --- on the lane's threads ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if self._closed:
                    return
                taken = self._take()
            if isinstance(taken, list):
                try:
                    self._serve(taken)
                finally:
                    with self._changed:
                        self.running -= len(taken)
            elif taken():
                self.when_idle(taken)

    def _take(self) -> "list[Job] | Callable[[], bool]":
        """The next job, and with it those behind it that could go in the same batch: at most this thread's share of them."""
        first = heapq.heappop(self._waiting)[2]
        if not isinstance(first, Job):
            return first
        taken = [first]
        share = -(-self._jobs // self.threads)
        most = min(first.model.cap, share)
        while len(taken) < most and self._waiting and isinstance(other := self._waiting[0][2], Job) and other.model is first.model:
            taken.append(other)
            heapq.heappop(self._waiting)
        self._jobs -= len(taken)
        self.running += len(taken)
        return taken

    def _serve(self, jobs: list[Job]) -> None:
        ready: list[Job] = []
        for job in jobs:
            if job.future.cancelled():
                continue
            job.started = clock()
            try:
                if not job.late:  # before its bytes are looked at
                    job.asked = job.decode()
                if job.late:
                    raise Expired(f"the request waited {job.started - job.queued:.3f} s, longer than its deadline; it was not run")
            except RequestError as error:
                self._end(job, None, error)
            except Exception as error:  # a defect, which the door answers and logs
                self._end(job, None, error)
            else:
                if job.emit is None:
                    ready.append(job)
                else:
                    self._stream(job, job.emit)
        for group in batches.groups(ready):
            self._run(group)

    def _run(self, group: list[Job]) -> None:
        model = group[0].model
        asked = [job.asked for job in group if job.asked is not None]
        began = clock()
        try:
            answers = batches.run(model, asked)
        except RequestError as error:
            if len(group) == 1:
                self._end(group[0], None, error)
                return
            events.warning("batch.failed", model=model.name, version=model.version, jobs=len(group), error=str(error))
            for job in group:
                self._run([job])
            return
        except Exception as error:  # as above
            for job in group:
                self._end(job, None, error)
            return
        took = clock() - began
        rows = sum(batches.rows(request) for request in asked)
        for job, request, values in zip(group, asked, answers, strict=True):
            job.ran, job.rows, job.first = took, rows, job is group[0]
            try:
                answer = job.encode(request, values)
            except Exception as error:  # as above
                self._end(job, None, error)
            else:
                self._end(job, answer, None)

    def _stream(self, job: Job, emit: Callable[[Any], Awaitable[None]]) -> None:
        assert self._loop is not None
        assert job.asked is not None
        began, answer = clock(), None
        try:
            for values in job.model.stream(job.asked.inputs, [output.name for output in job.asked.outputs]):
                answer = job.encode(job.asked, values)
                taken = asyncio.run_coroutine_threadsafe(_taken(emit, answer), self._loop)
                while not job.future.cancelled():
                    with contextlib.suppress(concurrent.futures.TimeoutError):
                        taken.result(GONE_SECONDS)
                        break
                if job.future.cancelled():
                    taken.cancel()
                    break
        except Exception as error:  # a refusal, or a defect, which the door answers and logs
            self._end(job, None, error)
            return
        job.ran, job.rows, job.first = clock() - began, batches.rows(job.asked), True
        self._end(job, answer, None)

    def _end(self, job: Job, answer: Any, error: Exception | None) -> None:
        """Hand it to the loop; one wakeup for all that end before the loop has looked."""
        assert self._loop is not None
        with self._changed:
            self._done.append((job, answer, error))
            wake = len(self._done) == 1
        if wake and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._changed:
            done, self._done = self._done, []
        for job, answer, error in done:
            self._finished(job, answer, error)
            if not job.future.done():
                if error is None:
                    job.future.set_result(answer)
                else:
                    job.future.set_exception(error)


async def _taken(emit: Callable[[Any], Awaitable[None]], answer: Any) -> None:
    await emit(answer)


def default_threads() -> int:
    """Runs at once: the processors that this process may use, at most two. Replicas, not threads, are for more."""
    return min(2, len(os.sched_getaffinity(0)))
