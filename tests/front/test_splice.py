"""Two streams joined: bytes, ends and breaks pass from one to the other, and nothing piles up between them."""

import asyncio
import socket
from collections.abc import Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openapi.front.splice import splice
from openapi.front.streams import PushbackStream, SocketStream, StreamClosed, pair


async def drain(stream) -> bytes:
    parts = []
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


async def send(stream, pieces: list[bytes]) -> None:
    for piece in pieces:
        await stream.write(piece)
    await stream.close_write()


def run(work: Awaitable[object]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(bounded())


pieces = st.lists(st.binary(min_size=1, max_size=3000), max_size=10)


@settings(max_examples=50, deadline=None)
@given(pieces, pieces, st.integers(1, 5000))
def test_both_ways_with_half_close(there: list[bytes], back: list[bytes], bound: int) -> None:
    async def work() -> None:
        a, near_a = pair(bound)
        near_b, b = pair(bound)
        async with asyncio.TaskGroup() as group:
            done = group.create_task(splice(near_a, near_b))
            group.create_task(send(a, there))
            received_b = group.create_task(drain(b))
            group.create_task(send(b, back))
            received_a = group.create_task(drain(a))
        assert received_b.result() == b"".join(there)
        assert received_a.result() == b"".join(back)
        result = done.result()
        assert (result.a_to_b, result.b_to_a, result.reason) == (len(b"".join(there)), len(b"".join(back)), "")

    run(work())


def test_answer_after_the_request_side_has_ended() -> None:
    async def work() -> None:
        a, near_a = pair()
        near_b, b = pair()
        task = asyncio.create_task(splice(near_a, near_b))
        await send(a, [b"question"])
        assert await drain(b) == b"question"
        await send(b, [b"answer"])
        assert await drain(a) == b"answer"
        assert (await task).reason == ""

    run(work())


def test_failure_of_one_side_aborts_the_other() -> None:
    async def work() -> None:
        a, near_a = pair()
        near_b, b = pair()
        task = asyncio.create_task(splice(near_a, near_b))
        await a.write(b"x")
        assert await b.read() == b"x"
        b.abort("out of order")
        with pytest.raises(StreamClosed, match="out of order"):
            await a.read()
        assert (await task).reason == "out of order"

    run(work())


def test_cancelling_aborts_both() -> None:
    async def work() -> None:
        a, near_a = pair()
        near_b, b = pair()
        task = asyncio.create_task(splice(near_a, near_b))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for stream in (a, b):
            with pytest.raises(StreamClosed):
                await stream.read()

    run(work())


def test_a_side_that_is_silent_after_the_other_has_gone_is_given_up() -> None:
    async def work() -> None:
        a, near_a = pair()
        near_b, _b = pair()
        await a.close_write()
        result = await splice(near_a, near_b, half_closed_seconds=0.01)
        assert "silent" in result.reason

    run(work())


def test_a_stalled_reader_holds_the_writer_back() -> None:
    async def work() -> None:
        a, near_a = pair(1000)
        near_b, _b = pair(1000)
        task = asyncio.create_task(splice(near_a, near_b))
        written = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                while True:
                    await a.write(b"x" * 100)
                    written += 100
        assert written <= 1000 + 1000 + 1000, "two bounds and one piece between them"
        task.cancel()
        await asyncio.wait({task})

    run(work())


async def connected() -> tuple[SocketStream, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    stream = SocketStream(read_buffer=10_000)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, ours)
    return stream, theirs


def test_socket_stream_stops_reading_when_full() -> None:
    async def work() -> None:
        stream, peer = await connected()
        sent = 0
        while sent < 50_000_000:
            try:
                sent += peer.send(b"x" * 100_000)
            except BlockingIOError:
                before = stream.bytes_in
                await asyncio.sleep(0.01)
                if stream.bytes_in == before:
                    break
        assert sent < 5_000_000
        assert stream.bytes_in < 1_000_000
        received = 0
        while received < stream.bytes_in or received < sent:
            received += len(await stream.read(777))
        assert received == sent
        stream.abort()
        await stream.closed
        peer.close()

    run(work())


def test_socket_stream_write_waits_for_the_reader() -> None:
    async def work() -> None:
        stream, peer = await connected()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stream.write(b"x" * 50_000_000)
        assert stream.bytes_out < 5_000_000
        peer.close()
        with pytest.raises(StreamClosed):
            await stream.write(b"x" * 1_000_000)
        await stream.closed

    run(work())


def test_socket_stream_closes_once_both_directions_have_ended() -> None:
    async def work() -> None:
        for ours_first in (True, False):
            stream, peer = await connected()
            if ours_first:
                await stream.close_write()
                await asyncio.sleep(0)
                assert await asyncio.get_running_loop().sock_recv(peer, 10) == b""
            peer.shutdown(socket.SHUT_WR)
            assert await stream.read() == b""
            if not ours_first:
                await stream.write(b"late")
                await stream.close_write()
                assert await asyncio.get_running_loop().sock_recv(peer, 10) == b"late"
            await stream.closed
            peer.close()

    run(work())


def test_pushback_gives_back_in_order() -> None:
    async def work() -> None:
        inner, peer = pair()
        stream = PushbackStream(inner)
        await peer.write(b"abcdef")
        data = await stream.read()
        stream.unread(data[4:])
        stream.unread(data[2:4])
        assert stream.pending == 4
        assert await stream.read(1) == b"c"
        watch = asyncio.create_task(stream.peek_end(100))
        await peer.write(b"gh")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watch.cancel()
        await asyncio.wait({watch})
        assert await stream.read() + await stream.read() + await stream.read() == b"defgh"

    run(work())


def test_peek_end_sees_the_end_behind_what_it_reads_ahead() -> None:
    async def work() -> None:
        inner, peer = pair()
        stream = PushbackStream(inner)
        await send(peer, [b"next request"])
        await stream.peek_end(1000)
        assert await stream.read() == b"next request"

    run(work())
