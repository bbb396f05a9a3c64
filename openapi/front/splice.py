"""Copy bytes between two streams, both ways, until both directions have ended.

Back-pressure is the streams' own: a piece is read only when the one before it was taken over, so one splice holds at most one
piece per direction. The end of one direction is passed on as a half-close and leaves the other running, for as long as bytes
move in it; a failure on either side aborts both, with the reason. So a peer that vanished never holds the other side for ever.
"""

import asyncio

from msgspec import Struct

from cluster_shim.contract import ByteStream
from openapi.front.streams import STREAM_ERRORS

PIECE = 65536
HALF_CLOSED_SECONDS = 60.0  # how long one direction may be silent after the other has ended


class Spliced(Struct, frozen=True):
    """Bytes copied each way, and why it ended early ("" when both directions ended by themselves)."""

    a_to_b: int
    b_to_a: int
    reason: str = ""


class Count:
    """Bytes copied so far."""

    def __init__(self) -> None:
        self.bytes = 0


async def copy(source: ByteStream, sink: ByteStream, count: Count | None = None) -> int:
    """One direction: everything from ``source`` to ``sink``, then a half-close. Returns the number of bytes."""
    count = count or Count()
    while data := await source.read(PIECE):
        await sink.write(data)
        count.bytes += len(data)
    await sink.close_write()
    return count.bytes


async def splice(a: ByteStream, b: ByteStream, *, half_closed_seconds: float = HALF_CLOSED_SECONDS) -> Spliced:
    """Both directions. Returns when both have ended or one has failed; cancelling it aborts both streams."""
    there, back = Count(), Count()
    directions = {
        asyncio.create_task(copy(a, b, there), name="splice/there"): there,
        asyncio.create_task(copy(b, a, back), name="splice/back"): back,
    }
    reason = "cancelled"
    try:
        reason = await _until_both_ended(directions, half_closed_seconds)
    finally:
        if reason:
            a.abort(reason)
            b.abort(reason)
        for task in directions:
            task.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
    return Spliced(there.bytes, back.bytes, reason)


async def _until_both_ended(directions: dict[asyncio.Task[int], Count], half_closed_seconds: float) -> str:
    """The reason why it failed, "" when both directions ended by themselves."""
    running = set(directions)
    timeout = None
    seen = -1
    while running:
        done, running = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if failure := _failure(task):
                return failure
        if timeout is not None and not done:
            moved = sum(directions[task].bytes for task in running)
            if moved == seen:
                return f"one side closed and the other was silent for {half_closed_seconds:g} s"
            seen = moved
        timeout = half_closed_seconds
    return ""


def _failure(task: asyncio.Task[int]) -> str:
    try:
        task.result()
    except STREAM_ERRORS as error:
        return str(error) or type(error).__name__
    return ""
