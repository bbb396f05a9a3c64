"""What is said on a stream of the benchmark of tunnels: all bytes are counted, and a wrong one is an error."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import tunnels
from benchmarks.tunnels import Pipe


class End:
    """One end of a stream in memory that splits and joins what is written as a link may."""

    def __init__(self, dice: random.Random, harm: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.reader, self.dice, self.harm = asyncio.StreamReader(), dice, harm
        self.other: Any = None

    async def read(self, limit: int) -> bytes:
        return await self.reader.read(self.dice.randint(1, limit))

    async def write(self, data: bytes) -> None:
        self.other.reader.feed_data(self.harm(data))
        await asyncio.sleep(0)


def played(work: str, harm: Callable[[bytes], bytes] = lambda data: data) -> Any:
    """A source and a sink that is connected by streams in memory; ``harm``: what becomes of what the source sends."""

    async def main() -> Any:
        dice, sinks = random.Random(3), []

        async def dial(_: str) -> Pipe:
            here, there = End(dice, harm), End(dice)
            here.other, there.other = there, here
            sinks.append(asyncio.create_task(tunnels.serve(there)))
            return here

        try:
            async with asyncio.timeout(30):
                return await tunnels.WORK[work](dial, 0.05, 4)
        finally:
            for sink in sinks:
                sink.cancel()
            await asyncio.gather(*sinks, return_exceptions=True)

    return asyncio.run(main())


@pytest.mark.parametrize("work", ["bulk", "echo"])
def test_whatever_the_pieces_everything_is_counted(work: str) -> None:
    assert played(work) > 0


def test_a_ping_pong_is_timed_while_bulk_flows_and_that_is_counted_too() -> None:
    found = played("ping")
    assert 0 < found["p50"] <= found["p99"]
    assert found["bulk"] > 0


def test_bytes_too_many_are_an_error() -> None:
    def doubled(data: bytes) -> bytes:
        return data * 2 if len(data) == tunnels.BLOCK and data[0] else data

    with pytest.raises(EOFError, match="were sent"):
        played("bulk", doubled)


def test_an_echo_that_differs_is_an_error() -> None:
    with pytest.raises(EOFError, match="not what was sent"):
        played("echo", lambda data: data if len(data) == 1 else bytes(len(data)))
