"""Requests that come one after the other while answers to earlier ones go back: the same for gRPC's streams and for lines over HTTP/1.1.

Invariants
- Answers go in the order of the requests, each as soon as it is made and those before it are; one request may have several.
- At most `UNDER_WAY` requests of a stream are under way, and as many answers to one of them wait; then nothing more is read.
- Who goes away ends the generator, and with it all that was begun.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

UNDER_WAY = 16

Put = Callable[[bytes], Awaitable[None]]
Answer = Callable[[bytes, Put], Awaitable[None]]
_Answers = asyncio.Queue[bytes | Exception | None]  # None: all answers to that request were given


async def in_order(messages: AsyncIterator[bytes], answer: Answer) -> AsyncGenerator[bytes]:
    """``answer`` is given a message, and puts its answers. What it raises ends the stream in its turn; so does what ``messages`` raises,
    once all that came before is answered."""
    begun: asyncio.Queue[_Answers | None] = asyncio.Queue(UNDER_WAY)
    tasks: set[asyncio.Task[None]] = set()
    reader = asyncio.create_task(_read(messages, answer, begun, tasks), name="stream/read")
    try:
        while (answers := await _next(begun, reader)) is not None:
            while (made := await answers.get()) is not None:
                if isinstance(made, Exception):
                    raise made
                yield made
    finally:
        for task in (reader, *tasks):
            task.cancel()
        await asyncio.wait((reader, *tasks))


async def _read(
    messages: AsyncIterator[bytes],
    answer: Answer,
    begun: "asyncio.Queue[Any]",
    tasks: set[asyncio.Task[None]],
) -> None:
    """Begins each request as it comes."""
    async for message in messages:
        answers: _Answers = asyncio.Queue(UNDER_WAY)
        await begun.put(answers)
        task = asyncio.create_task(_answer(message, answer, answers), name="stream/answer")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await begun.put(None)


async def _answer(message: bytes, answer: Answer, answers: _Answers) -> None:
    try:
        await answer(message, answers.put)
    except Exception as error:  # handed on: whoever reads the answers ends the stream with it
        await answers.put(error)
    await answers.put(None)


async def _next(begun: "asyncio.Queue[Any]", reader: "asyncio.Task[None]") -> "_Answers | None":
    """What was begun next; None when no more comes. Raises what ended the reader, once all that was begun before is answered."""
    if begun.empty() and not reader.done():
        getting = asyncio.ensure_future(begun.get())
        try:
            await asyncio.wait((getting, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not getting.done():
                getting.cancel()
        if getting.done() and not getting.cancelled():
            found: _Answers | None = getting.result()
            return found
    if begun.empty():
        reader.result()
        return None
    waiting: _Answers | None = begun.get_nowait()
    return waiting
