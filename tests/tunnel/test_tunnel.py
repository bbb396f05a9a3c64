"""Tunnels over real sockets and real TLS: routed streams, relays, and what ends them."""

import asyncio

import pytest

from cluster_controller.tunnel import ResetCode, Stream, StreamNotServed, StreamReset
from tests.tunnel.support import chain, echo, read_all, run

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
