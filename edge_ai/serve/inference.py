"""One inference, whichever door it came through: found, run at once or queued, counted, now and then logged."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from edge_ai.serve import batches, events
from edge_ai.serve.errors import Busy, RequestError
from edge_ai.serve.lane import Job, Lane
from edge_ai.serve.metrics import Metrics
from edge_ai.serve.model import QUICK_ROWS, LoadedModel
from edge_ai.serve.repository import Repository
from edge_ai.serve.tensors import MAX_PRIORITY, Array, InferRequest

NO_PRIORITY = MAX_PRIORITY + 1  # behind all that have one
clock = time.monotonic


class Request(Job):
    """A job that remembers which door it came through."""

    __slots__ = ("protocol",)

    def __init__(self, protocol: str, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.protocol = protocol


class Inference:
    repository: Repository  # set once, by the worker: a lane tells this of its jobs, and the repository makes the lanes

    def __init__(self, metrics: Metrics, logged: int = 0) -> None:
        """``logged``: each so many requests, one is written to the log; 0: none."""
        self.metrics = metrics
        self._logged = logged
        self._count = 0

    def at_once(
        self, protocol: str, model: LoadedModel, asked: InferRequest, encode: Callable[[InferRequest, list[Array]], Any], began: float
    ) -> Any:
        """On the event loop: for a model whose run is shorter than the way to a thread. Raises `RequestError`."""
        started = clock()
        values = model.run(asked.inputs, [output.name for output in asked.outputs])
        now = clock()
        answer = encode(asked, values)
        rows = batches.rows(asked)
        self.metrics.ran(model.name, 0.0, now - started, rows)
        model.statistics.run(0.0, now - started, rows, 1)
        self._answered(model, protocol, "200" if protocol == "rest" else "OK", now - began, rows=rows, waited=0.0)
        return answer

    def quick(self, model: LoadedModel, asked: InferRequest) -> bool:
        return model.quick and batches.rows(asked) <= QUICK_ROWS

    def submit(
        self,
        protocol: str,
        model: LoadedModel,
        decode: Callable[[], InferRequest],
        encode: Callable[[InferRequest, list[Array]], Any],
        *,
        priority: int = 0,
        deadline: float | None = None,
        emit: Callable[[Any], Awaitable[None]] | None = None,
    ) -> "asyncio.Future[Any]":
        """Through the model's lane. Cancelling the future takes a job that still waits out of it. With ``emit`` each answer of a streaming
        model is handed over as it is made, and the future's result is the last of them. Raises `Busy`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lane = self.repository.served(model.name).lane
        try:
            lane.submit(Request(protocol, model, decode, encode, future, deadline=deadline, emit=emit), priority or NO_PRIORITY)
        except Busy as error:
            self.refused(model, protocol, error)
            raise
        return future

    def refused(self, model: LoadedModel, protocol: str, error: RequestError) -> None:
        self.metrics.count(model.name, protocol, str(error.status) if protocol == "rest" else error.grpc_code)
        model.statistics.end(False, 0.0)

    def lane(self, name: str, threads: int, queue: int) -> Lane:
        return Lane(name, threads, queue, self._finished)

    def _finished(self, job: Job, answer: Any, error: Exception | None) -> None:
        assert isinstance(job, Request)
        model, rest = job.model, job.protocol == "rest"
        if job.future.cancelled():
            code = "cancelled"
        elif error is None:
            code = "200" if rest else "OK"
        elif isinstance(error, RequestError):
            code = str(error.status) if rest else error.grpc_code
        else:
            code = "500" if rest else "INTERNAL"
        waited = job.started - job.queued
        if job.rows:
            self.metrics.ran(model.name, waited, job.ran, job.rows)
            assert job.asked is not None
            model.statistics.run(waited, job.ran, batches.rows(job.asked), job.first)
        self._answered(model, job.protocol, code, clock() - job.queued, rows=job.rows, waited=waited)

    def _answered(self, model: Any, protocol: str, code: str, seconds: float, *, rows: int, waited: float) -> None:
        self.metrics.answered(model.name, protocol, code, seconds)
        model.statistics.end(code in ("200", "OK"), seconds)
        self._count += 1
        if self._logged and self._count % self._logged == 0:
            took, queued = round(1000 * seconds, 3), round(1000 * waited, 3)
            events.info(
                "request", model=model.name, version=model.version, protocol=protocol, code=code, ms=took, queued_ms=queued, rows=rows,
                one_of=self._logged,
            )  # fmt: skip
