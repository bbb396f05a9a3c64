"""Tunnels over real sockets and real TLS: routed streams, relays, and what ends them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from cluster_controller.errors import Conflict, Exhausted, InvalidInput, Unreachable
from cluster_controller.tunnel import (
    CloseCode,
    ControlMessage,
    Path,
    RenewReply,
    RenewRequest,
    ResetCode,
    Stream,
    StreamForbidden,
    StreamNotServed,
    StreamReset,
    Welcome,
)
from tests.tunnel.support import Member, chain, echo, identity, read_all, record_of, run


@contextlib.asynccontextmanager
async def held_open(accepted: Callable[[], None]) -> AsyncIterator[int]:
    """A port that takes connections and says nothing; whoever connects is told to ``accepted``."""
    writers: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        accepted()
        await reader.read()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for writer in writers:
            writer.close()


LOOPS = pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])


@LOOPS
def test_a_stream_goes_through_two_hops_and_back(uvloop: bool) -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, region, edge):
            edge.tunnel.handle("echo", echo)
            stream = await top.tunnel.open(edge.uid, "echo", b"some metadata")
            payload = bytes(range(256)) * 4096

            async def send() -> None:
                await stream.write(payload)
                await stream.close_write()

            sending = asyncio.create_task(send())
            assert await read_all(stream) == payload
            await sending
            assert stream.closed
            assert region.tunnel.links[edge.uid].streams == 0
            assert region.tunnel.parent is not None
            assert region.tunnel.parent.streams == 0
            assert region.tunnel.parent.stats.relayed > 0

    run(main, uvloop=uvloop)


def test_the_handler_sees_who_opened_the_stream_and_what_it_said() -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, region, edge):
            seen = []

            async def keep(stream: Stream) -> None:
                seen.append((stream.service, stream.metadata, stream.source))

            edge.tunnel.handle("look", keep)
            stream = await top.tunnel.open(edge.uid, "look", b"m")
            assert await stream.read() == b""
            assert seen == [("look", b"m", (region.uid, top.uid))]

    run(main)


def test_a_service_that_is_not_there_is_named() -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, _, edge):
            stream = await top.tunnel.open(edge.uid, "nothing")
            with pytest.raises(StreamNotServed, match="nothing") as caught:
                await stream.read()
            assert (caught.value.code, caught.value.hop) == (ResetCode.NO_SERVICE, edge.uid)

    run(main)


def test_abort_reaches_the_other_end_with_its_reason() -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, _, edge):
            failed = asyncio.get_running_loop().create_future()

            async def wait(stream: Stream) -> None:
                try:
                    await stream.read()
                except StreamReset as error:
                    failed.set_result(error)

            edge.tunnel.handle("wait", wait)
            stream = await top.tunnel.open(edge.uid, "wait")
            await asyncio.sleep(0)
            stream.abort("no longer wanted")
            error = await failed
            assert (str(error), error.code) == ("no longer wanted", ResetCode.CANCELLED)

    run(main)


def test_a_parent_whose_path_leads_through_the_child_is_left() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            link = top.tunnel.links[region.uid]
            link.send_control(Path(uids=("other", region.uid, top.uid)))
            await link.gone()
            assert "loop" in top.downs[-1]

    run(main)


@pytest.mark.parametrize("message", [Path(uids=("x",)), RenewReply(), Welcome()])
def test_a_child_that_says_what_only_a_parent_may_say_loses_its_link(message: ControlMessage) -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            assert region.tunnel.parent is not None
            link = top.tunnel.links[region.uid]
            region.tunnel.parent.send_control(message)
            await link.gone()
            assert "not the child's to send" in top.downs[-1]

    run(main)


def test_a_renewal_over_a_live_link_is_answered_there() -> None:
    async def main() -> None:
        async with chain("region") as (_, region):
            assert region.tunnel.parent is not None
            region.tunnel.parent.send_control(RenewRequest(csr=b"x"))
            await region.until(lambda: region.controls)
            assert region.controls == [RenewReply(certificate_chain=(region.uid.encode(),))]

    run(main)


def test_what_is_not_in_reach_is_said_at_once_where_it_is_known() -> None:
    async def main() -> None:
        async with chain("region") as (top, _region):
            with pytest.raises(Unreachable, match="not in the subtree"):
                await top.tunnel.open("nobody", "x")
            with pytest.raises(InvalidInput, match="itself"):
                await top.tunnel.open(top.uid, "x")
            top.router.attach(record_of(identity("other"), top.uid, 1))
            with pytest.raises(Unreachable, match="no link to this controller now"):
                await top.tunnel.open(identity("other").uid, "x")

    run(main)


def test_streams_leave_the_subtree_upwards_only_if_the_policy_says_so() -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, region, edge):
            top.tunnel.handle("echo", echo)
            with pytest.raises(Unreachable, match="ask a controller above"):
                await edge.tunnel.open(top.uid, "echo")
            edge.tunnel.policy = lambda source, destination, service: True
            refused = await edge.tunnel.open(top.uid, "echo")
            with pytest.raises(StreamForbidden, match="do not leave its subtree") as caught:
                await refused.read()
            assert caught.value.hop == region.uid
            region.tunnel.policy = lambda source, destination, service: (source, destination) == (edge.uid, top.uid)
            stream = await edge.tunnel.open(top.uid, "echo")
            await stream.write(b"up")
            assert await stream.read() == b"up"

    run(main)


def test_a_draining_link_finishes_what_it_carries_and_takes_nothing_new() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            region.tunnel.handle("echo", echo)
            stream = await top.tunnel.open(region.uid, "echo")
            await stream.write(b"one")
            assert await stream.read() == b"one"
            assert region.tunnel.parent is not None
            region.tunnel.parent.go_away("upgrade")
            assert await top.tunnel.links[region.uid].probe(5)
            with pytest.raises(Exhausted, match="going away"):
                await top.tunnel.open(region.uid, "echo")
            await stream.write(b"two")
            assert await stream.read() == b"two"

    run(main)


def test_a_handler_that_fails_resets_its_stream_with_the_reason() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):

            async def fail(stream: Stream) -> None:
                raise Exhausted("no room for more")

            region.tunnel.handle("fail", fail)
            stream = await top.tunnel.open(region.uid, "fail")
            with pytest.raises(StreamReset, match="no room for more") as caught:
                await stream.read()
            assert caught.value.code is ResetCode.INTERNAL

    run(main)


def test_misuse_of_a_stream_is_an_error_where_it_happens() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            region.tunnel.handle("echo", echo)
            stream = await top.tunnel.open(region.uid, "echo")
            reading = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="read already"):
                await stream.read()
            await stream.close_write()
            with pytest.raises(RuntimeError, match="after close_write"):
                await stream.write(b"x")
            assert await reading == b""
            stream.abort()  # both directions have ended: nothing happens
            assert await stream.read() == b""

    run(main)


def test_a_probe_of_a_link_that_has_ended_is_false() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            link = top.tunnel.links[region.uid]
            assert await link.probe(5)
            link.close(CloseCode.NORMAL, "enough")
            assert not await link.probe(5)
            await link.gone()

    run(main)


def test_it_closes_though_somebody_goes_on_dialling_a_parent_that_does_not_answer() -> None:
    """The parent's kernel takes the connection, the parent says nothing: each new dial would keep the closing tunnel open."""

    async def main() -> None:
        child, dialled = Member(identity("child")), asyncio.Event()
        async with held_open(dialled.set) as port:
            child.dial(port)
            await dialled.wait()
            async with asyncio.timeout(5):
                await child.tunnel.close()
            assert child.dialling is not None
            assert not child.dialling.done()
            dialled.clear()
            await dialled.wait()  # it is dialled again, and let go at once
            await asyncio.sleep(0)
            assert not child.tunnel._wires.open
        await child.close()

    run(main)


def test_a_port_that_is_taken_is_named() -> None:
    async def main() -> None:
        async with chain() as (top,):
            port = await top.tunnel.serve("127.0.0.1", 0)
            with pytest.raises(Conflict, match=f"127.0.0.1:{port} is in use"):
                await top.tunnel.serve("127.0.0.1", port)
            with pytest.raises(Unreachable, match="cannot be listened on"):
                await top.tunnel.serve("192.0.2.1", 0)

    run(main)
