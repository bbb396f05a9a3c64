"""A lane: who goes first, who is not run at all, who is run together, and that nobody fails for another's sake."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_ai.serve import batches
from edge_ai.serve.batches import Knee
from edge_ai.serve.errors import Busy, Expired, ModelFailed, RequestError
from edge_ai.serve.lane import Job, Lane
from edge_ai.serve.tensors import Array, InferRequest, TensorSpec, WantedOutput

PATIENCE = 30.0
OUTPUTS = (WantedOutput("y", True),)


class Model:
    """y = 2 x; runs are recorded, wait for a gate, and fail on a negative number."""

    name, version = "m", "1"

    def __init__(self, cap: int = 1) -> None:
        self.cap = cap
        self.seconds = 0.0
        self.runs: list[list[float]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        self.runs.append(inputs["x"][:, 0].tolist())
        if (inputs["x"] < 0).any():
            raise ModelFailed("negative")
        return [2 * inputs["x"]]

    def stream(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Iterator[list[Array]]:
        for step in range(int(inputs["x"][0, 0])):
            yield [np.array([[step]])]


class Yard:
    """A lane on a running loop, held shut by a first job until `go`."""

    def __init__(self, model: Model, queue: int = 64, threads: int = 1) -> None:
        self.model = model
        self.lane = Lane("m", threads, queue, lambda *ended: self.ended.append(ended))
        self.ended: list[tuple[Job, Any, Exception | None]] = []
        self.decoded: list[float] = []

    def submit(self, value: float, rows: int = 1, width: int = 2, timeout: float | None = None, **more: Any) -> "asyncio.Future[Any]":
        asked = InferRequest("", {"x": np.full((rows, width), value, np.float32)}, OUTPUTS, timeout=timeout)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def decode() -> InferRequest:
            self.decoded.append(value)
            return asked

        priority = more.pop("priority", 100)
        self.lane.submit(Job(self.model, decode, lambda _, values: values[0][:, 0].tolist(), future, **more), priority)
        return future

    async def hold(self) -> "asyncio.Future[Any]":
        """The thread is busy from now on, until `Model.gate` is set."""
        self.model.gate.clear()
        held = self.submit(1)
        assert await asyncio.to_thread(self.model.entered.wait, PATIENCE)
        return held

    async def settle(self, *futures: "asyncio.Future[Any]") -> list[Any]:
        self.model.gate.set()
        try:
            return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), PATIENCE)
        finally:
            self.lane.close()


def test_the_most_urgent_goes_first_and_the_older_among_equals() -> None:
    async def check() -> None:
        yard = Yard(Model())
        held = await yard.hold()
        late = [yard.submit(value, priority=priority) for value, priority in ((10, 5), (11, 1), (12, 5), (13, 1))]
        assert await yard.settle(held, *late) == [[2], [20], [22], [24], [26]]
        assert yard.model.runs == [[1], [11], [13], [10], [12]]
        assert yard.lane.open == 0

    asyncio.run(check())


def test_who_is_gone_or_late_is_not_run() -> None:
    async def check() -> None:
        yard = Yard(Model())
        held = await yard.hold()
        gone, late, own = yard.submit(10), yard.submit(11, deadline=time.monotonic() - 1), yard.submit(12, timeout=1e-9)
        fine = yard.submit(13, deadline=time.monotonic() + PATIENCE, timeout=PATIENCE)
        gone.cancel()
        answers = await yard.settle(held, late, own, fine)
        assert isinstance(answers[1], Expired) and isinstance(answers[2], Expired) and answers[3] == [26]
        assert yard.model.runs == [[1], [13]]
        assert 10 not in yard.decoded and 11 not in yard.decoded  # nor were their bytes looked at
        assert len(yard.ended) == 4

    asyncio.run(check())


def test_more_than_may_wait_are_refused_with_when_to_come_again() -> None:
    async def check() -> None:
        yard = Yard(Model(), queue=2)
        yard.model.seconds = 7.0
        held = await yard.hold()
        waiting = [yard.submit(2), yard.submit(3)]
        with pytest.raises(Busy, match="2 requests") as refused:
            yard.submit(4)
        assert refused.value.retry_after_seconds == 14  # two that wait, seven seconds each
        assert await yard.settle(held, *waiting) == [[2], [4], [6]]

    asyncio.run(check())


def test_those_who_wait_are_run_together_up_to_the_cap() -> None:
    async def check() -> None:
        yard = Yard(Model(cap=4))
        held = await yard.hold()
        waiting = [yard.submit(value) for value in range(10, 16)]
        answers = await yard.settle(held, *waiting)
        assert answers == [[2], *([2.0 * value] for value in range(10, 16))]
        assert yard.model.runs == [[1], [10, 11, 12, 13], [14, 15]]
        assert [job.rows for job, _, _ in yard.ended] == [1, 4, 4, 4, 4, 2, 2]

    asyncio.run(check())


def test_rows_count_and_shapes_must_agree() -> None:
    async def check() -> None:
        yard = Yard(Model(cap=4))
        held = await yard.hold()
        futures = [yard.submit(10, rows=3), yard.submit(11, rows=3), yard.submit(12, width=5), yard.submit(13)]
        await yard.settle(held, *futures)
        assert sorted(yard.model.runs) == [[1], [10, 10, 10], [11, 11, 11, 13], [12]]

    asyncio.run(check())


def test_a_thread_leaves_the_others_their_share() -> None:
    async def check() -> None:
        yard = Yard(Model(cap=64), threads=2)
        yard.model.gate.clear()
        futures = [yard.submit(value) for value in range(2)]
        while yard.lane.running < 2:
            await asyncio.sleep(0.001)
        futures += [yard.submit(value) for value in range(10, 18)]
        await yard.settle(*futures)
        assert max(len(run) for run in yard.model.runs) <= 4

    asyncio.run(check())


def test_one_that_fails_in_a_batch_fails_alone() -> None:
    async def check() -> None:
        yard = Yard(Model(cap=8))
        held = await yard.hold()
        answers = await yard.settle(held, yard.submit(10), yard.submit(-1), yard.submit(12))
        assert answers[1] == [20] and isinstance(answers[2], ModelFailed) and answers[3] == [24]

    asyncio.run(check())


def test_a_defect_reaches_who_asked_and_the_lane_goes_on() -> None:
    async def check() -> None:
        yard = Yard(Model())
        broken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        yard.lane.submit(Job(yard.model, lambda: 1 / 0, lambda *_: None, broken), 1)  # type: ignore[arg-type, return-value]
        fine = yard.submit(3)
        answers = await yard.settle(broken, fine)
        assert isinstance(answers[0], ZeroDivisionError) and answers[1] == [6]

    asyncio.run(check())


def test_what_is_for_idle_moments_waits_for_them() -> None:
    async def check() -> None:
        yard = Yard(Model())
        held = await yard.hold()
        steps: list[int] = []
        done = threading.Event()

        def step() -> bool:
            steps.append(len(yard.model.runs))
            if len(steps) == 3:
                done.set()
            return len(steps) < 3

        yard.lane.when_idle(step)
        waiting = [yard.submit(2), yard.submit(3)]
        yard.model.gate.set()
        await asyncio.gather(held, *waiting)
        assert await asyncio.to_thread(done.wait, PATIENCE)
        await yard.settle()
        assert steps == [3, 3, 3]

    asyncio.run(check())


def test_a_stream_goes_at_the_pace_of_who_takes_it_and_ends_when_he_is_gone() -> None:
    async def check() -> None:
        yard = Yard(Model())
        taken: asyncio.Queue[Any] = asyncio.Queue(1)
        whole = yard.submit(5, emit=taken.put)
        assert [await taken.get() for _ in range(5)] == [[0], [1], [2], [3], [4]]
        assert await whole == [4]
        gone = yard.submit(1e6, emit=taken.put)
        assert await taken.get() == [0]
        gone.cancel()
        assert await yard.settle(yard.submit(0, emit=taken.put)) == [None]
        assert taken.qsize() <= 1

    asyncio.run(check())


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.booleans()), min_size=1, max_size=20), st.integers(1, 12))
def test_a_batch_answers_as_each_would_have_been(requests: list[tuple[int, int, bool]], cap: int) -> None:
    model = Model(cap)
    asked = []
    for number, (rows, width, swapped) in enumerate(requests):
        arrays = {"x": np.full((rows, width), number, np.float32), "z": np.zeros((rows, 2), np.int64)}
        asked.append(InferRequest("", dict(reversed(arrays.items())) if swapped else arrays, OUTPUTS))
    jobs = [Job(model, lambda: asked[0], lambda *_: None, None) for _ in asked]  # type: ignore[arg-type]
    for job, request in zip(jobs, asked, strict=True):
        job.asked = request
    seen: list[int] = []
    for group in batches.groups(jobs):
        held = [job.asked for job in group if job.asked is not None]
        assert len(group) == 1 or sum(map(batches.rows, held)) <= cap
        assert len({batches.signature(request) for request in held}) == 1
        for request, answer in zip(held, batches.run(model, held), strict=True):
            assert (answer[0] == 2 * request.inputs["x"]).all() and answer[0].shape == request.inputs["x"].shape
        seen += [next(number for number, each in enumerate(jobs) if each is job) for job in group]
    assert sorted(seen) == list(range(len(jobs)))


def test_a_model_that_does_not_answer_row_by_row_is_batched_once_and_never_again() -> None:
    class Sum(Model):
        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
            return [inputs["x"].sum(axis=0, keepdims=True)]

    model = Sum(cap=8)
    asked = [InferRequest("", {"x": np.ones((1, 2), np.float32)}, OUTPUTS) for _ in range(3)]
    with pytest.raises(RequestError, match="row by row"):
        batches.run(model, asked)
    assert model.cap == 1


@pytest.mark.parametrize(
    ("seconds", "most", "cap"),
    [
        (lambda rows: 1e-3 * rows, 64, 1),  # a batch costs as much as its rows: none pays
        (lambda rows: 1e-3, 64, 64),  # it costs nothing more
        (lambda rows: 1e-3 + 1e-4 * rows, 512, 64),  # each doubling gains less; the last that gains enough
        (lambda rows: 1e-3 if rows <= 8 else 1e-3 * rows, 64, 8),
        (lambda rows: 0.2, 64, 1),  # too long for a larger one to be tried
        (lambda rows: 1e-3, 1, 1),
    ],
)
def test_the_knee_is_where_a_larger_batch_no_longer_pays(seconds: Callable[[int], float], most: int, cap: int) -> None:
    knee = Knee(most, seconds)
    for _ in range(100):
        if not knee.step():
            break
    else:
        raise AssertionError("it never ends")
    assert knee.cap == cap


def test_only_free_first_dimensions_of_one_name_make_a_batch() -> None:
    def spec(shape: tuple[int, ...], symbol: str = "") -> dict[str, TensorSpec]:
        return {"t": TensorSpec("t", "FP32", shape, (symbol, *("" for _ in shape[1:])))}

    assert batches.batchable(spec((-1, 4), "n"), spec((-1,), "n"))
    assert batches.batchable(spec((-1, 4)), spec((-1,), "n"))
    assert not batches.batchable(spec((-1, 4), "n"), spec((-1,), "m"))
    assert not batches.batchable(spec((1, 4)), spec((-1,)))
    assert not batches.batchable(spec((-1, 4)), spec((1,)))
    assert not batches.batchable({}, spec((-1,)))
