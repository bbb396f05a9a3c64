"""A model that was verified and warmed up, whatever runs it: it can be served.

An `Executor` knows how one run is done (`engine.Onnx`, `pipeline.Pipeline`); everything that the doors need besides is here.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edge_ai.serve import batches, rest_codec
from edge_ai.serve.batches import Knee
from edge_ai.serve.errors import BadRequest, LoadFailed, ModelFailed
from edge_ai.serve.statistics import Statistics
from edge_ai.serve.tensors import DATATYPES, Array, TensorSpec

WARM_UP_RUNS = 2
QUICK_SECONDS = 100e-6  # a run on the event loop that takes no longer is cheaper than going to a thread and back
QUICK_BYTES = 32 * 1024  # of a request that is run there
QUICK_ROWS = 8


class Executor(Protocol):
    platform: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    streams: bool
    """Whether one request can have several answers."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Safe to call from several threads at once. Raises `BadRequest`, `ModelFailed`."""
        ...

    def stream(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Iterator[list[Array]]:
        """The answers one by one, as they are made; one for an executor that does not stream."""
        ...


class LoadedModel:
    """``size``: bytes of memory that it is taken to need. ``cap``: rows of a batch that pay. ``seconds``: of a run with one row."""

    def __init__(self, name: str, version: str, executor: Executor, max_batch: int, size: int = 0) -> None:
        self.name = name
        self.version = version
        self.platform = executor.platform
        self.inputs = executor.inputs
        self.outputs = executor.outputs
        self.streams = executor.streams
        self.size = size
        self.max_batch = max_batch
        self.batching = True  # whether requests that wait may be run as one
        self.cap = 1
        self.seconds = 0.0
        self.statistics = Statistics()
        self.run = executor.run
        self.stream = executor.stream
        self.reader = rest_codec.Reader(self.inputs, self.outputs, max_batch)
        self.writer = rest_codec.Writer(name, version, self.outputs)

    @property
    def quick(self) -> bool:
        """Small enough to be run at once, on the event loop."""
        return 0 < self.seconds <= QUICK_SECONDS and not self.streams

    def warm_up(self) -> None:
        """Run on zeros with every free dimension 1. Raises `LoadFailed`.

        A model whose only free dimension is the batch must pass. Where other dimensions are free, 1 may be a size that the model
        does not take: that says nothing about real requests, so the failure is not held against it.
        """
        for _ in range(WARM_UP_RUNS):
            try:
                self.seconds = self._timed(1)
            except (BadRequest, ModelFailed) as error:
                if any(-1 in spec.shape[1:] for spec in self.inputs.values()):
                    return
                raise LoadFailed(f"model '{self.name}' version '{self.version}' fails its warm-up: {error}") from None

    def knee(self) -> "Calibration | None":
        """What finds out how large a batch pays; None when the model's requests cannot be run as one, or never wait."""
        fixed = not any(-1 in spec.shape[1:] for spec in self.inputs.values())
        if (
            not self.batching
            or self.quick
            or not self.seconds
            or not fixed
            or self.max_batch < 2
            or not batches.batchable(self.inputs, self.outputs)
        ):
            return None
        return Calibration(self)

    def _timed(self, rows: int) -> float:
        inputs = {spec.name: zeros(spec, rows) for spec in self.inputs.values()}
        started = time.perf_counter()
        if self.streams:
            next(self.stream(inputs, list(self.outputs)), None)  # zeros may well have no answer, and another may have no end
        else:
            self.run(inputs, list(self.outputs))
        return time.perf_counter() - started


class Calibration:
    """Measures a model in the moments when nobody wants it (`lane.Lane.when_idle`); the cap grows while it does."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._knee = Knee(model.max_batch, model._timed)

    def __call__(self) -> bool:
        try:
            more = self._knee.step()
        except (BadRequest, ModelFailed):  # it does not take so many rows
            return False
        self._model.cap = self._knee.cap
        return more


def zeros(spec: TensorSpec, rows: int = 1) -> Array:
    shape = [1 if size == -1 else size for size in spec.shape]
    if shape and spec.shape[0] == -1:
        shape[0] = rows
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    made: np.ndarray[Any, Any] = np.zeros(shape, DATATYPES[spec.datatype].dtype)
    return made
