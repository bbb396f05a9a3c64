"""A long batch gives the loop its turn; what waits is marked when its time has come by the boot-time clock, with one timer for all."""

import asyncio
from pathlib import Path

import pytest

from cluster_controller.settling import Alarm, Settler
from cluster_controller.store import Store, Tx


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


def test_what_is_marked_together_is_settled_in_one_order_in_every_process(tmp_path: Path) -> None:
    names = {f"n{number:02d}" for number in range(40)}
    settled: list[str] = []

    async def play() -> None:
        store = await Store.open(tmp_path)
        settler = Settler(store, lambda tx, name: settled.append(name))
        settler.mark_all(names)
        await settler.once()
        await store.close()

    asyncio.run(play())
    assert settled == sorted(names)


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


@pytest.mark.parametrize("writes", [True, False])
def test_a_long_batch_gives_the_loop_its_turn_and_goes_on(tmp_path: Path, writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        loop, elapsed, batches, turns = asyncio.get_running_loop(), 0.0, [], 0  # type: ignore[var-annotated]
        real = loop.time
        store = await Store.open(tmp_path)

        def settle(tx: Tx, name: str) -> None:
            nonlocal elapsed
            elapsed += 0.03
            batches[-1:] = [(turns, [*batches[-1][1], name])] if batches and batches[-1][0] == turns else [*batches[-1:], (turns, [name])]
            if writes:
                tx.set_fact(name, b"settled")

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        settler = Settler(store, settle, str, turn=0.05)
        settler.mark_all("edcba")
        other = asyncio.create_task(others())
        await asyncio.sleep(0)
        monkeypatch.setattr(loop, "time", lambda: real() // 1e9 + elapsed)  # only what is settled takes time
        assert await settler.once() == 5
        monkeypatch.undo()
        other.cancel()
        assert [names for _, names in batches] == [["a", "b"], ["c", "d"], ["e"]]
        assert len({turn for turn, _ in batches}) == 3, "between two batches others had their turn"
        await store.close()

    asyncio.run(play())
