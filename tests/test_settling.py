"""The alarm: what waits is marked when its time has come by the boot-time clock, and not before, with one timer for all."""

import asyncio

from cluster_controller.settling import Alarm


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.marked: list[str] = []
        self.alarm = Alarm(self.marked.append, lambda: self.now)


def test_names_are_marked_in_their_time_and_once() -> None:
    async def play() -> None:
        bench = Bench()
        bench.alarm.set("late", 20.0)
        bench.alarm.set("soon", 10.0)
        bench.alarm.set("never", 5.0)
        bench.alarm.set("never", None)
        bench.now += 9
        bench.alarm.ring()
        assert bench.marked == []
        bench.now += 1
        bench.alarm.ring()
        bench.alarm.ring()
        assert bench.marked == ["soon"]
        bench.alarm.set("late", 30.0)  # what was set last counts
        bench.now += 10
        bench.alarm.ring()
        assert bench.marked == ["soon"]
        bench.now += 20
        bench.alarm.ring()
        assert bench.marked == ["soon", "late"]

    asyncio.run(play())


def test_the_timer_of_the_loop_rings_it_and_one_that_came_too_early_is_armed_again() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        now = 0.0
        alarm = Alarm(lambda name: rung.set(), lambda: now)
        alarm.set("a", 0.02)
        waited = loop.create_future()
        loop.call_later(0.05, waited.set_result, None)
        await waited
        assert not rung.is_set(), "the boot-time clock stood still"
        now = 1.0
        async with asyncio.timeout(60):
            await rung.wait()

    asyncio.run(play())
