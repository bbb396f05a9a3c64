"""HTTP/1.1 on real sockets: in any pieces, within its limits, and until its end."""

import asyncio
import contextlib
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ai.serve.http_parts import Limits, Response
from tests.edge_ai.http_site import Client, run, site


def post(target: str, body: bytes, extra: str = "") -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def get(target: str, extra: str = "", version: str = "1.1") -> bytes:
    return f"GET {target} HTTP/{version}\r\nHost: x\r\n{extra}\r\n".encode()


CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;ext=1\r\ndefgh\r\n0\r\nTrailer: t\r\n\r\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=12), st.booleans())
def test_pipelined_requests_in_any_pieces_are_answered_in_order(cuts: list[int], slowly: bool) -> None:
    stream = get("/a") + post("/b", b"x" * 100) + CHUNKED + post("/d", b"") + b"\r\n" + get("/e")

    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            start = 0
            for cut in [*cuts, len(stream)]:
                client.send(stream[start : start + cut])
                start += cut
                if slowly:
                    await asyncio.sleep(0)
            answers = [(await client.answer())[2] for _ in range(5)]
            assert [(answer["target"], answer["size"]) for answer in answers] == [("/a", 0), ("/b", 100), ("/c", 8), ("/d", 0), ("/e", 0)]

    run(scenario)


def test_a_later_answer_keeps_its_place() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(get("/later") + get("/now") + get("/later") + get("/crash") + get("/last"))
            await here.until(lambda: len(here.app.later) == 1)
            request, future = here.app.later[0]
            assert here.app.seen == 1  # the next one waits its turn
            future.set_result(here.app.answer(request))
            assert [(await client.answer())[2]["target"] for _ in range(2)] == ["/later", "/now"]
            await here.until(lambda: len(here.app.later) == 2)
            here.app.later[1][1].set_result(here.app.answer(request))
            assert (await client.answer())[2]["target"] == "/later"
            assert (await client.answer())[0] == 500
            assert (await client.answer())[2]["target"] == "/last"

    run(scenario)


REFUSED: dict[str, tuple[bytes, int]] = {
    "not HTTP": (b"hello there\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a long head": (get("/", "X-Long: " + "x" * 20_000 + "\r\n"), 431),
    "a long target": (get("/" + "x" * 20_000), 431),
    "an endless head": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000, 431),
    "a large body": (b"POST / HTTP/1.1\r\nContent-Length: 100001\r\n\r\n", 413),
    "a large chunked body": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(5)),
        413,
    ),
    "an absurd length": (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999\r\n\r\n", 413),
    "a negative length": (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
    "a length and chunks": (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "HTTP/2 where nobody speaks it": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_after_what_came_before_and_the_connection_ends(name: str) -> None:
    data, status = REFUSED[name]

    async def scenario() -> None:
        async with site(Limits(body=100_000, linger_seconds=0.1)) as here:
            first = b"" if name.startswith("HTTP/2") else get("/first")
            client = await here.connect()
            client.send(first + data)
            if first:
                assert (await client.answer())[2]["target"] == "/first"
            answered, headers, document = await client.answer()
            assert (answered, headers["connection"]) == (status, "close") and document["error"]
            assert await client.closed()
            assert here.server._bodies == 0

    run(scenario)


def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    async def scenario() -> None:
        async with site(Limits(body=100_000)) as here:
            client = await here.connect()
            client.send(b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
            for _ in range(90):
                client.send(b"x" * 100_000)
            assert (await client.answer())[0] == 413

    run(scenario)


def test_all_bodies_together_have_a_budget() -> None:
    async def scenario() -> None:
        async with site(Limits(body=1000, bodies=2500)) as here:
            clients = [await here.connect() for _ in range(3)]
            for number, client in enumerate(clients):
                client.send(post("/", b"x" * 1000)[:-1])
                await here.until(lambda count=number: here.server._bodies == 1000 * min(count + 1, 2))  # type: ignore[misc]
            status, headers, _ = await clients[2].answer()
            assert status == 429 and headers["retry-after"] == "1"
            for client in clients[:2]:
                client.send(b"x")
                assert (await client.answer())[2]["size"] == 1000
            again = await here.connect()
            again.send(post("/", b"x" * 1000))
            assert (await again.answer())[0] == 200
            assert here.server._bodies == 0

    run(scenario)


def test_a_body_that_is_cut_gives_its_room_back() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(post("/", b"x" * 1000)[:-1])
            await here.until(lambda: here.server._bodies == 1000)
            await client.close()
            await here.until(lambda: here.server._bodies == 0 and not here.server.connections)

    run(scenario)


def test_connections_and_pipelined_requests_are_bounded() -> None:
    async def scenario() -> None:
        async with site(Limits(connections=2, pipelined=3)) as here:
            first, _ = [await here.connect() for _ in range(2)]
            await here.until(lambda: len(here.server.connections) == 2)
            third = await here.connect()
            assert (await third.answer())[0] == 503
            first.send(get("/later") + get("/b") * 10)
            await here.until(lambda: bool(here.app.later))
            here.app.later[0][1].set_result(Response(200, [b"{}"]))
            statuses = [(await first.answer())[0] for _ in range(4)]
            assert statuses == [200, 200, 200, 503]

    run(scenario)


def test_old_clients_heads_and_upgrades() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n" + get("/after"))
            status, headers, _ = await client.answer(bodiless=True)
            assert status == 200 and int(headers["content-length"]) > 0
            assert (await client.answer())[2]["target"] == "/after"

            for extra, version in (("Connection: keep-alive\r\n", "1.0"), ("", "1.0"), ("Connection: close\r\n", "1.1")):
                client = await here.connect()
                client.send(get("/old", extra, version))
                assert (await client.answer())[1]["connection"] == "close" and await client.closed()

            client = await here.connect()
            client.send(get("/up", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"))
            status, headers, document = await client.answer()
            assert (status, document["target"], headers["connection"]) == (200, "/up", "close")

            client = await here.connect()
            client.send(post("/e", b"abc", "Expect: 100-continue\r\n")[:-3])
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
            assert (await client.answer())[2]["size"] == 3

    run(scenario)


def test_a_client_that_closes_its_direction_still_gets_its_answers() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(get("/later") + get("/b"))
            client.writer.write_eof()
            await here.until(lambda: bool(here.app.later))
            here.app.later[0][1].set_result(Response(200, [b"{}"]))
            assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
            assert await client.closed()

    run(scenario)


def test_a_client_that_leaves_takes_its_request_out_of_the_queue() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.send(get("/later"))
            await here.until(lambda: bool(here.app.later))
            linger = struct.pack("ii", 1, 0)  # a reset; a plain end might be of a client that still reads
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.writer.transport.abort()
            await here.until(here.app.later[0][1].cancelled)

    run(scenario)


def test_slow_and_silent_clients_are_let_go() -> None:
    async def scenario() -> None:
        limits = Limits(receive_seconds=10, request_seconds=100, idle_seconds=50, linger_seconds=0.1)
        async with site(limits) as here:
            now = asyncio.get_running_loop().time

            async def connected() -> tuple[Client, Any]:
                before = set(here.server.connections)
                client = await here.connect()
                await here.until(lambda: len(here.server.connections) > len(before))
                return client, next(iter(here.server.connections - before))

            silent, connection = await connected()
            connection.expire(now() + 49)
            assert not connection._closing
            connection.expire(now() + 51)
            assert await silent.closed()

            trickler, connection = await connected()  # a byte now and then does not buy time for a head
            trickler.send(b"GET / HTTP/1.1\r\nA: ")
            await here.until(lambda: connection._receiving)
            connection._since = now() + 20
            connection.expire(now() + 21)
            assert (await trickler.answer())[0] == 408

            uploader, connection = await connected()  # but for a body it does, up to a bound
            uploader.send(post("/", b"x" * 1000)[:-10])
            await here.until(lambda: connection._receiving and not connection._in_head)
            connection._since = now() + 90
            connection.expire(now() + 99)
            assert not connection._closing
            connection.expire(now() + 101)
            assert (await uploader.answer())[0] == 408

            waiting, connection = await connected()  # who waits for us is never too slow
            waiting.send(get("/later"))
            await here.until(lambda: bool(here.app.later))
            connection.expire(now() + 1000)
            here.app.later[0][1].set_result(Response(200, [b"{}"]))
            assert (await waiting.answer())[0] == 200

    run(scenario)


def test_a_client_that_does_not_read_is_paused_then_dropped() -> None:
    async def scenario() -> None:
        async with site() as here:
            client = await here.connect()
            client.writer.transport.pause_reading()
            client.send(get("/later") + get("/next"))
            await here.until(lambda: bool(here.app.later))
            (connection,) = here.server.connections
            here.app.later[0][1].set_result(Response(200, [b"x" * 30_000_000]))
            await here.until(lambda: not connection._writable)
            assert here.app.seen == 1  # nothing more is begun for it
            connection.expire(asyncio.get_running_loop().time() + 61)
            await here.until(lambda: not here.server.connections)

    run(scenario)


def test_draining_answers_everything_and_closes_politely() -> None:
    async def scenario() -> None:
        async with site(Limits(idle_drain_seconds=20)) as here:
            working, idle, half, piped = [await here.connect() for _ in range(4)]
            working.send(get("/later"))
            half.send(post("/half", b"x" * 100)[:-1])
            await here.until(lambda: len(here.app.later) == 1 and sum(c._receiving for c in here.server.connections) == 1)
            draining = asyncio.create_task(here.server.drain(25))
            await asyncio.sleep(0)
            assert here.server.draining

            here.app.later[0][1].set_result(Response(200, [b"{}"]))  # in flight: finished, and told to go
            assert (await working.answer())[1]["connection"] == "close" and await working.closed()
            half.send(b"x")  # in the middle of arriving: taken whole
            status, headers, document = await half.answer()
            assert (status, headers["connection"], document["size"]) == (200, "close", 100) and await half.closed()
            piped.send(get("/1") + get("/2") + get("/3"))  # several at once: all of them, and only then the end
            closes = [(await piped.answer())[1].get("connection") for _ in range(3)]
            assert closes == [None, None, "close"] and await piped.closed()
            idle.send(get("/race"))  # the request that was on its way to an idle connection
            status, headers, _ = await idle.answer()
            assert (status, headers["connection"]) == (200, "close") and await idle.closed()
            for client in (working, idle, half, piped):
                await client.close()
            await draining

    run(scenario)


def test_draining_is_bounded_for_the_silent_and_for_the_stuck() -> None:
    async def scenario() -> None:
        async with site(Limits(idle_drain_seconds=0.05)) as here:
            silent, stuck = await here.connect(), await here.connect()
            stuck.send(get("/later"))
            await here.until(lambda: bool(here.app.later))
            await here.server.drain(0.2)
            assert await silent.closed()
            with contextlib.suppress(ConnectionResetError):
                assert await stuck.closed()
            assert not here.server.connections and here.app.later[0][1].cancelled()

    run(scenario)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=6))
def test_http2_in_any_pieces_is_handed_over_whole(cuts: list[int]) -> None:
    stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(100))

    async def scenario() -> None:
        taken: list[tuple[asyncio.Transport, bytearray]] = []

        class Taker(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                taken[0][1].extend(data)

        def http2(transport: asyncio.Transport, first: bytes) -> asyncio.Protocol:
            taken.append((transport, bytearray(first)))
            return Taker()

        async with site(http2=http2) as here:
            client = await here.connect()
            start = 0
            for cut in [*cuts, len(stream)]:
                client.send(stream[start : start + cut])
                start += cut
                await asyncio.sleep(0)
            await here.until(lambda: bool(taken) and bytes(taken[0][1]) == stream)
            assert not here.server.connections
            taken[0][0].close()

            posting = await here.connect()  # P and PR are the beginning of other words, too
            posting.send(b"P")
            await asyncio.sleep(0)
            posting.send(post("/p", b"")[1:])
            assert (await posting.answer())[2]["target"] == "/p"

    run(scenario)
