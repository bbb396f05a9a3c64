"""Which requests can be run as one, how that is done, and up to which size it pays. Pure, but for the runs that are measured.

Two requests go together when they give the same inputs with the same datatypes and the same shapes behind the first dimension, want the
same outputs, and the model's first dimensions are all free: then row i of an answer depends on row i of the request alone. That is what a
free first dimension means by convention; a model whose answer has another number of rows than its request is not batched again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_ai.serve.errors import ModelFailed
from edge_ai.serve.tensors import Array, InferRequest, TensorSpec

if TYPE_CHECKING:
    from edge_ai.serve.lane import Job, Model

WORTH = 0.93  # a size is taken when a row of it costs at most this part of a row at the size before
LONGEST_SECONDS = 0.25  # of a run that is tried, and of one that is served as a batch


def batchable(inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> bool:
    """Whether all first dimensions are free, and none of them has another name than the others."""
    specs = [*inputs.values(), *outputs.values()]
    names = {spec.symbols[0] for spec in specs if spec.symbols and spec.symbols[0]}
    return bool(inputs) and all(spec.shape and spec.shape[0] == -1 for spec in specs) and len(names) <= 1


def rows(request: InferRequest) -> int:
    first = next(iter(request.inputs.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def signature(request: InferRequest) -> tuple[Any, ...]:
    """Equal for requests that can be run as one. The order of the inputs does not matter to the model, so not here either."""
    inputs = tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in request.inputs.items()))
    return inputs, tuple(output.name for output in request.outputs)


def groups(jobs: "Sequence[Job]") -> "Iterable[list[Job]]":
    """``jobs`` in their order, those that can be run as one together, none over its model's cap of rows."""
    if len(jobs) == 1:
        yield [jobs[0]]
        return
    open_: dict[tuple[Any, ...], list[Job]] = {}
    filled: dict[tuple[Any, ...], int] = {}
    for job in jobs:
        assert job.asked is not None
        key = signature(job.asked)
        size = rows(job.asked)
        if key in open_ and filled[key] + size > job.model.cap:
            yield open_.pop(key)
        if key not in open_:
            open_[key], filled[key] = [], 0
        open_[key].append(job)
        filled[key] += size
    yield from open_.values()


def run(model: "Model", requests: Sequence[InferRequest]) -> list[list[Array]]:
    """The answer to each request, from one run. Raises what the model raises; `ModelFailed` when rows were lost or came up."""
    wanted = [output.name for output in requests[0].outputs]
    if len(requests) == 1:
        return [model.run(requests[0].inputs, wanted)]
    inputs = {name: np.concatenate([request.inputs[name] for request in requests]) for name in requests[0].inputs}
    values = model.run(inputs, wanted)
    sizes = [rows(request) for request in requests]
    if any(value.ndim == 0 or value.shape[0] != sum(sizes) for value in values):
        model.cap = 1
        raise ModelFailed(f"model '{model.name}' version '{model.version}' does not answer row by row: it is not batched any more")
    edges = np.cumsum(sizes)[:-1]
    split = [np.split(value, edges) for value in values]
    return [[parts[number] for parts in split] for number in range(len(requests))]


class Knee:
    """Finds, one run at a time, the largest batch of which a row is still cheaper than one of the batch before it.

    `step` runs once and answers whether there is more to find out; the sizes are powers of two, each is run three times and the quickest
    counts. A size where it no longer pays ends the search, and so does a run that takes too long.
    """

    def __init__(self, most: int, run: Callable[[int], float]) -> None:
        """``run``: of so many rows; the seconds it took."""
        self.cap = 1
        self._most = most
        self._run = run
        self._size = 1
        self._tries: list[float] = []
        self._best = float("inf")  # seconds of one row

    def step(self) -> bool:
        self._tries.append(self._run(self._size))
        if len(self._tries) < 3 and self._tries[-1] < LONGEST_SECONDS:
            return True
        each = min(self._tries) / self._size
        if self._size > 1 and each > self._best * WORTH:
            return False
        self.cap, self._best = self._size, each
        slow = min(self._tries) * 2 > LONGEST_SECONDS
        self._size, self._tries = self._size * 2, []
        return self._size <= self._most and not slow
