"""Streams of lines over HTTP/1.1, on real sockets: answered while they come, in bounds, and ended with whoever asked."""

import asyncio
import json
import socket
import struct
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ai.serve.http_parts import Limits
from edge_ai.serve.http_stream import UNREAD
from tests.edge_ai.http_site import Client, run, site

HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def head(client: Client) -> str:
    return (await client.reader.readuntil(b"\r\n\r\n")).decode()


async def answer(client: Client) -> bytes | None:
    """The next chunk; None at the end."""
    size = int(await client.reader.readline(), 16)
    data = await client.reader.readexactly(size + 2)
    return data[:-2] if size else None


async def answers(client: Client) -> list[bytes]:
    found = []
    while (one := await answer(client)) is not None:
        found.append(one)
    return found


def test_the_first_answer_comes_before_the_input_ends_and_the_connection_goes_on() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(HEAD % b"/lines" + chunk(b"one\n"))
            assert "Transfer-Encoding: chunked" in await head(client)
            assert await answer(client) == b"ONE\n"
            client.send(chunk(b"two\nthr"))
            assert await answer(client) == b"TWO\n"
            client.send(chunk(b"ee") + LAST + GET)  # the last line has no end
            assert await answers(client) == [b"THREE\n"]
            assert (await client.answer())[2]["target"] == "/after"
            assert here.app.streams == 0 and here.server._bodies == 0

    run(scenario)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=12), st.booleans())
def test_lines_in_any_pieces_are_answered_in_order(cuts: list[int], counted: bool) -> None:
    text = b"\n\na\n" + b"b" * 40 + b"\r\n\nc"

    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if counted:
                stream = b"POST /lines HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text) + text
            else:
                stream = HEAD % b"/lines" + b"".join(chunk(text[at : at + 3]) for at in range(0, len(text), 3)) + LAST
            stream += GET
            start = 0
            for cut in [*cuts, len(stream)]:
                client.send(stream[start : start + cut])
                start += cut
                await asyncio.sleep(0)
            await head(client)
            assert await answers(client) == [b"A\n", b"B" * 40 + b"\n", b"C\n"]
            assert (await client.answer())[2]["target"] == "/after"

    run(scenario)


def test_a_stream_waits_its_turn_and_what_comes_behind_it_waits_too() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD % b"/lines" + chunk(b"a\n") + LAST + GET)
            await here.until(lambda: len(here.app.later) == 1)
            assert here.app.lines == 0
            request, future = here.app.later[0]
            future.set_result(here.app.answer(request))
            assert (await client.answer())[2]["target"] == "/later"
            await head(client)
            assert await answers(client) == [b"A\n"]
            assert (await client.answer())[2]["target"] == "/after"

    run(scenario)


@pytest.mark.parametrize("how", ["reset", "close", "close in the middle"])
def test_who_goes_away_ends_what_was_begun(how: str) -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(HEAD % b"/endless" + chunk(b"a\n") + (LAST if how == "close" else b""))
            await head(client)
            assert await answer(client) == b"a\n" and here.app.streams == 1
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.writer.close()
            await here.until(lambda: here.app.streams == 0 and not here.server.connections)
            assert here.server._bodies == 0 and not here.app.crashes

    run(scenario)


def test_who_takes_nothing_is_not_read_from_and_holds_no_more_than_it_may() -> None:
    async def scenario() -> None:
        async with site() as here:
            here.app.go_on.clear()
            client = await here.connect()
            line = chunk(b"x" * 8191 + b"\n")
            client.send(HEAD % b"/lines" + line * 4000)  # 32 MB
            await here.until(lambda: here.server._bodies > UNREAD)
            for _ in range(50):
                await asyncio.sleep(0.002)
            assert here.server._bodies < 2 * UNREAD + 262144 and here.app.lines == 1  # beyond it, what one read may bring
            here.app.go_on.set()
            client.send(LAST)
            await head(client)
            assert len(await answers(client)) == 4000 == here.app.lines
            assert here.server._bodies == 0

    run(scenario)


@pytest.mark.parametrize(
    ("limits", "body", "says"),
    [
        (Limits(body=1000), chunk(b"a\n" + b"x" * 1001), "over 1000 bytes"),
        (Limits(body=1000), chunk(b"a\n" + b"x" * 1001 + b"\nb\n"), "over 1000 bytes"),
        (Limits(body=5000, bodies=1000), chunk(b"a\n") + chunk(b"x" * 2000), "too many large requests"),
    ],
)
def test_what_cannot_go_on_says_why_after_all_that_came_before(limits: Limits, body: bytes, says: str) -> None:
    async def scenario() -> None:
        async with site(limits) as here:
            client = await here.connect()
            client.send(HEAD % b"/lines" + body)
            await head(client)
            found = await answers(client)
            assert found[0] == b"A\n" and says in found[-1].decode()
            assert await client.closed() and here.server._bodies == 0

    run(scenario)


def test_who_says_nothing_for_long_is_let_go_with_a_word() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(HEAD % b"/lines" + chunk(b"a\n"))
            await head(client)
            assert await answer(client) == b"A\n"
            (connection,) = here.server.connections
            now = asyncio.get_running_loop().time()
            connection.expire(now + Limits().idle_seconds - 60)  # not yet
            assert here.app.streams == 1
            connection.expire(now + Limits().idle_seconds + 60)
            assert await answers(client) == [b"ended: nothing came for 120 s\n"]
            assert await client.closed()

    run(scenario)


def test_a_refused_stream_is_answered_at_once() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(HEAD % b"/refused" + chunk(b"a\n"))
            status, headers, _ = await client.answer()
            assert status == 404 and headers["connection"] == "close" and await client.closed()

    run(scenario)


def test_a_defect_breaks_the_answer_off_and_is_told() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(HEAD % b"/defect" + chunk(b"a\n"))
            await head(client)
            assert await answer(client) == b"a\n"
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError, ValueError)):
                await answer(client)
            assert [str(error) for error in here.app.crashes] == ["a defect"]

    run(scenario)


@pytest.mark.parametrize("body", [b"not a chunk\r\n", b"5\r\nabc"])
def test_a_body_that_breaks_off_ends_the_stream(body: bytes) -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(HEAD % b"/lines" + chunk(b"a\n") + body)
            await head(client)
            assert await answer(client) == b"A\n"
            if client.writer.can_write_eof():
                client.writer.write_eof()
            await client.reader.read()
            await here.until(lambda: here.app.streams == 0 and not here.server.connections)

    run(scenario)


def test_at_the_end_what_was_received_is_answered_and_the_client_is_told() -> None:
    async def scenario() -> None:
        async with site(Limits(idle_drain_seconds=0.02)) as here:
            here.app.go_on.clear()
            client = await here.connect()
            client.send(HEAD % b"/lines" + chunk(b"a\nb\n"))
            await here.until(lambda: here.app.lines == 1)
            draining = asyncio.create_task(here.server.drain(20))
            await head(client)
            await here.until(lambda: here.server.connections != set())
            await asyncio.sleep(0.05)
            here.app.go_on.set()
            assert await answers(client) == [b"A\n", b"B\n", b"ended: the worker ends; ask again\n"]
            assert await client.closed()
            await client.close()
            await draining

    run(scenario)


def test_an_ordinary_client_of_the_standard_library_reads_a_stream() -> None:
    """Not our own reading of the chunks: `http.client`, in a process of its own."""
    code = """
import http.client, json, sys
made = http.client.HTTPConnection(sys.argv[1], timeout=30)
made.request("POST", "/lines", iter([b"a\\n", b"b\\n"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
answer = made.getresponse()
print(json.dumps([answer.status, answer.headers["Content-Type"], [line.decode() for line in answer]]))
"""

    async def scenario() -> None:
        async with site() as here:
            done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, f"127.0.0.1:{here.port}", stdout=-1)
            said: Any = json.loads((await done.communicate())[0])
            assert said == [200, "application/x-ndjson", ["A\n", "B\n"]]

    run(scenario)
