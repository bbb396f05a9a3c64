"""Changes at a steady pace, and when each of them arrived where it was meant to.

Everything that is timed is timed by one process on one monotonic clock: the request that changes, the watch that shows it, and the
stand-in's report. A change that never arrives is an error, not a missing sample.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

import msgspec
from msgspec import Struct

from benchmarks import gauges
from benchmarks.harness import API, APPS, Site

ARRIVE_SECONDS = 60.0


class Env(Struct, frozen=True):
    name: str = ""
    value: str = ""


class Component(Struct, frozen=True):
    env: tuple[Env, ...] = ()


class Reference(Struct, frozen=True):
    name: str = ""
    uid: str = ""


class WorkSpec(Struct, frozen=True):
    application: Reference = Reference()
    components: tuple[Component, ...] = ()


class Status(Struct, frozen=True):
    ready: int = 0
    desired: int = 0


class Metadata(Struct, frozen=True):
    name: str = ""
    uid: str = ""


class Object(Struct, frozen=True):
    metadata: Metadata = Metadata()
    spec: WorkSpec = WorkSpec()
    status: Status = Status()


class Event(Struct, frozen=True):
    type: str
    object: Object


DECODER = msgspec.json.Decoder(Event)


class Arrivals:
    """Moments by key; `arrived` is called by watches, `milliseconds` waits until every begun change is there."""

    def __init__(self) -> None:
        self.began: dict[Hashable, float] = {}
        self.took: dict[Hashable, float] = {}
        self._news = asyncio.Event()

    def arrived(self, key: Hashable, at: float) -> None:
        if key in self.began and key not in self.took:
            self.took[key] = 1000 * (at - self.began[key])
            self._news.set()

    async def milliseconds(self) -> list[float]:
        try:
            async with asyncio.timeout(ARRIVE_SECONDS):
                while len(self.took) < len(self.began):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            missing = [key for key in self.began if key not in self.took]
            raise RuntimeError(f"{len(missing)} of {len(self.began)} changes never arrived, first {missing[0]}") from None
        return list(self.took.values())


class Watches:
    """Follows lists of several sites in the background. What changes after `works` or `applications` returned is seen."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Watches":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def works(self, site: Site, seen: Callable[[str, str, float], None]) -> None:
        """``seen``(application, word, when) for every Work that the site's own store holds for its own cluster."""

        def show(event: Event, at: float) -> None:
            spec = event.object.spec
            word = spec.components[0].env[0].value if spec.components and spec.components[0].env else ""
            seen(spec.application.name, word, at)

        self._follow(await site.pool.watch(f"{API}/works"), show)

    async def applications(self, site: Site, seen: Callable[[str, Status, float], None]) -> None:
        self._follow(await site.pool.watch(APPS), lambda event, at: seen(event.object.metadata.name, event.object.status, at))

    def _follow(self, lines: AsyncIterator[tuple[float, bytes]], show: Callable[[Event, float], None]) -> None:
        async def read() -> None:
            async for at, line in lines:
                show(DECODER.decode(line), at)

        self._tasks.append(asyncio.create_task(read(), name="watch"))

    def check(self) -> None:
        """Raises what broke a watch."""
        for task in self._tasks:
            if task.done():
                task.result()
                raise RuntimeError("a watch has ended")


async def paced(count: int, per_second: float, act: Callable[[int], Awaitable[None]]) -> float:
    """``act(0)``, ``act(1)``, … at a steady pace, late ones at once and none left out; how many seconds the last began too late."""
    began, late = time.monotonic(), 0.0
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            late = time.monotonic() - due
            group.create_task(_run(act, number))
    return late


async def _run(act: Callable[[int], Awaitable[None]], number: int) -> None:
    await act(number)


def p50(values: list[float]) -> float:
    return gauges.percentile(values, 50)


def p99(values: list[float]) -> float:
    return gauges.percentile(values, 99)
