"""One inference, whichever door it came through: queued, run, measured."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from edge_ai.serve.engine import LoadedModel
from edge_ai.serve.errors import Busy
from edge_ai.serve.metrics import Metrics
from edge_ai.serve.repository import Repository
from edge_ai.serve.runner import Runner
from edge_ai.serve.tensors import Array, InferRequest

T = TypeVar("T")


class Inference:
    def __init__(self, repository: Repository, runner: Runner, metrics: Metrics, max_batch: int) -> None:
        self.repository = repository
        self.metrics = metrics
        self.max_batch = max_batch
        self._runner = runner

    def submit(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        """Raises `Busy`."""
        try:
            return self._runner.submit(job)
        except Busy:
            self.metrics.requests.labels("any", "rejected").inc()
            raise

    def run(self, model: LoadedModel, request: InferRequest) -> list[Array]:
        """On one of the runner's threads."""
        first = next(iter(request.inputs.values()), None)
        if first is not None and first.ndim:
            self.metrics.batch_size.observe(first.shape[0])
        started = time.perf_counter()
        values = model.run(request.inputs, [output.name for output in request.outputs])
        self.metrics.run_seconds.observe(time.perf_counter() - started)
        return values

    def count(self, protocol: str, code: str, started: float) -> None:
        self.metrics.requests.labels(protocol, code).inc()
        self.metrics.request_seconds.labels(protocol).observe(time.perf_counter() - started)
