"""Lanes and credit on real sockets with full kernel buffers."""

import asyncio
import contextlib
import os
import resource
import signal
import time

import pytest

from cluster_controller.errors import Exhausted
from cluster_controller.tunnel import Lane, Limits, Stream, StreamReset, StreamUnreachable
from tests.tunnel.support import Member, chain, echo, identity, root, run

BLOCK = os.urandom(65536)


async def never(stream: Stream) -> None:
    await asyncio.Event().wait()


async def swallow(stream: Stream) -> None:
    while await stream.read():
        pass


async def push(stream: Stream, sent: list[int]) -> None:
    with contextlib.suppress(StreamReset):
        while True:
            await stream.write(BLOCK)
            sent[0] += len(BLOCK)


async def at_rest(sent: list[int]) -> None:
    """Returns when writing has stopped: nothing was taken over for a while."""
    before = -1
    while before != sent[0]:
        before = sent[0]
        await asyncio.sleep(0.2)


async def ping(stream: Stream) -> float:
    started = time.perf_counter()
    await stream.write(b"p" * 64)
    got = 0
    while got < 64:
        got += len(await stream.read())
    return time.perf_counter() - started


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_a_stalled_bulk_reader_costs_its_window_and_neither_heartbeat_nor_sync_waits_for_it(uvloop: bool) -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, region, edge):
            edge.tunnel.handle("never", never)
            edge.tunnel.handle("echo", echo)
            stalled = await top.tunnel.open(edge.uid, "never", lane=Lane.BULK)
            sent = [0]
            pushing = asyncio.create_task(push(stalled, sent))
            await at_rest(sent)
            limits = top.limits
            assert sent[0] <= 2 * limits.max_window + limits.send_buffer
            held = [
                stream
                for link in (region.tunnel.parent, region.tunnel.links[edge.uid])
                if link is not None
                for stream in link.connection.streams.values()
            ]
            assert sum(len(stream.out) for stream in held) <= limits.max_window
            sync = await top.tunnel.open(edge.uid, "echo", lane=Lane.SYNC)
            for _ in range(20):
                await asyncio.wait_for(ping(sync), 5)
            assert await region.tunnel.links[edge.uid].probe(5)
            before = region.tunnel.links[edge.uid].last_heard
            assert await edge.tunnel.parent.probe(5)  # type: ignore[union-attr]
            assert region.tunnel.links[edge.uid].last_heard >= before
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)

    run(main, uvloop=uvloop)


def test_every_stream_but_one_stalled_through_three_hops_and_the_one_goes_on() -> None:
    async def main() -> None:
        async with chain("region", "site", "leaf") as (top, _, _, leaf):
            leaf.tunnel.handle("never", never)
            leaf.tunnel.handle("swallow", swallow)
            sent = [[0] for _ in range(20)]
            tasks = []
            for count in sent:
                stream = await top.tunnel.open(leaf.uid, "never", lane=Lane.SYNC)
                tasks.append(asyncio.create_task(push(stream, count)))
            await asyncio.gather(*map(at_rest, sent))
            moving = await top.tunnel.open(leaf.uid, "swallow", lane=Lane.SYNC)
            for _ in range(400):
                await asyncio.wait_for(moving.write(BLOCK), 10)
            await moving.close_write()
            assert await asyncio.wait_for(moving.read(), 10) == b""
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(main, uvloop=True)


def test_an_interactive_round_trip_goes_between_bulk() -> None:
    """Structure, not time: while bulk is pushed without end, the pings get through, and far fewer bulk bytes than a FIFO would
    have put before each of them."""

    async def main() -> None:
        async with chain("region", "edge") as (top, _region, edge):
            edge.tunnel.handle("swallow", swallow)
            edge.tunnel.handle("echo", echo)
            sent = [0]
            pushing = asyncio.create_task(push(await top.tunnel.open(edge.uid, "swallow", lane=Lane.BULK), sent))
            interactive = await top.tunnel.open(edge.uid, "echo")
            while sent[0] < 4_000_000:
                await asyncio.sleep(0)
            for _ in range(50):
                before = sent[0]
                await asyncio.wait_for(ping(interactive), 10)
                assert sent[0] - before < 16_000_000
            assert sent[0] > 4_000_000
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)

    run(main, uvloop=True)


def test_what_is_for_one_child_puts_no_frame_on_anothers_link() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            port = await region.tunnel.serve("127.0.0.1", 0)
            c2, c3 = Member(identity("c2", "region")), Member(identity("c3", "region"))
            c3.tunnel.handle("echo", echo)
            for child in (c2, c3):
                child.dial(port)
            await top.until(lambda: top.router.next_hop(c2.uid) and top.router.next_hop(c3.uid))
            frames = (0, 0, 0)
            quiet = region.tunnel.links[c2.uid].stats
            while frames != (quiet.frames_out, quiet.messages_out, quiet.bytes_out):  # its first round trip is being measured
                frames = quiet.frames_out, quiet.messages_out, quiet.bytes_out
                await asyncio.sleep(0.2)
                quiet = region.tunnel.links[c2.uid].stats
            busy = region.tunnel.links[c3.uid].stats.frames_out
            stream = await top.tunnel.open(c3.uid, "echo", BLOCK[:1000])
            for _ in range(30):
                await ping(stream)
            stream.abort()
            assert region.tunnel.links[c3.uid].stats.frames_out >= busy + 31
            quiet = region.tunnel.links[c2.uid].stats
            assert (quiet.frames_out, quiet.messages_out, quiet.bytes_out) == frames
            await c2.close()
            await c3.close()

    run(main)


def test_a_lost_hop_is_named_to_whoever_reads() -> None:
    async def main() -> None:
        async with chain("region", "edge") as (top, region, edge):
            edge.tunnel.handle("echo", echo)
            stream = await top.tunnel.open(edge.uid, "echo")
            await ping(stream)
            link = region.tunnel.links[edge.uid]
            link.wire._transport.abort()  # type: ignore[union-attr]
            with pytest.raises(StreamUnreachable, match="the link to edge was lost") as caught:
                await stream.read()
            assert caught.value.hop == edge.uid
            await top.until(lambda: top.router.next_hop(edge.uid))  # it comes back by itself
            await ping(await top.tunnel.open(edge.uid, "echo"))

    run(main)


@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("lane", [Lane.SYNC, Lane.BULK])
def test_a_frozen_peer_is_found_dead_and_the_streams_end(lane: Lane, uvloop: bool) -> None:
    """A peer whose process is stopped keeps its TCP connection; only the heartbeat tells, also behind buffers that are full."""

    async def main() -> None:
        quick = Limits(heartbeat=0.2, dead_after=0.6, backoff_first=0.01, backoff_cap=0.05)
        parent = Member(root(), quick)
        port = await parent.tunnel.serve("127.0.0.1", 0)
        pid = os.fork()
        if pid == 0:
            child_main(port)
        try:
            await parent.until(lambda: parent.tunnel.links)
            (uid,) = parent.tunnel.links
            stream = await parent.tunnel.open(uid, "echo")
            await ping(stream)
            os.kill(pid, signal.SIGSTOP)
            link = parent.tunnel.links[uid]
            pushing = [asyncio.create_task(push(await parent.tunnel.open(uid, "swallow", lane=lane), [0])) for _ in range(32)]
            with pytest.raises(StreamUnreachable, match=r"nothing was heard for 0\.6 s"):
                await stream.read()
            assert not parent.tunnel.links
            assert link.connection.control_waits < 4096
            await asyncio.gather(*pushing)
            os.kill(pid, signal.SIGCONT)
            await parent.until(lambda: parent.tunnel.links)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            await parent.close()

    identity("frozen")
    run(main, uvloop=uvloop)


def child_main(port: int) -> None:
    """In a forked process: one child that echoes until it is killed."""

    async def serve() -> None:
        child = Member(identity("frozen"))
        child.tunnel.handle("echo", echo)
        child.tunnel.handle("swallow", swallow)
        child.dial(port)
        await asyncio.sleep(30)

    try:
        asyncio.events._set_running_loop(None)
        asyncio.new_event_loop().run_until_complete(serve())
    finally:
        os._exit(0)


def test_opening_more_streams_than_the_link_carries_is_an_error_at_once() -> None:
    async def main() -> None:
        async with chain("region", limits=Limits(max_streams=3, backoff_first=0.01)) as (top, region):
            region.tunnel.handle("never", never)
            streams = [await top.tunnel.open(region.uid, "never") for _ in range(3)]
            with pytest.raises(Exhausted, match="3 streams"):
                await top.tunnel.open(region.uid, "never")
            streams[0].abort()
            assert await top.tunnel.open(region.uid, "never")

    run(main)


def test_a_link_and_a_stream_cost_little_memory() -> None:
    """Bounds with room to spare; docs/performance has the figures."""

    async def main() -> None:
        async with chain("region") as (top, region):
            region.tunnel.handle("never", never)

            def used() -> int:
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

            await top.tunnel.open(region.uid, "never")
            before = used()
            streams = [await top.tunnel.open(region.uid, "never") for _ in range(900)]
            await asyncio.sleep(0.2)
            assert used() - before < 900 * 32 * 1024  # both ends, and a task each
            assert len(streams) == 900

    run(main)


def test_what_the_kernel_measures_is_read_from_the_right_places() -> None:
    async def main() -> None:
        async with chain("region") as (top, region):
            region.tunnel.handle("swallow", swallow)
            stream = await top.tunnel.open(region.uid, "swallow", lane=Lane.BULK)
            for _ in range(50):
                await stream.write(BLOCK)
            await stream.close_write()
            assert await stream.read() == b""
            wire = top.tunnel.links[region.uid].wire
            sample = wire.sample()
            assert sample is not None
            assert 0 < sample.min_rtt <= sample.rtt < 1.0
            assert 50 * len(BLOCK) < sample.acknowledged <= wire.stats.bytes_out + 1
            assert sample.unacknowledged == max(0, wire.stats.bytes_out - sample.acknowledged)
            assert 1e5 < sample.rate < 1e12

    run(main)
