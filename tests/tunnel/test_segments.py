"""Which size of packet is tried next on the way to an address, and that the kernel is told before it connects."""

import asyncio
import socket

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import Unreachable
from cluster_controller.tunnel import Limits, Link
from cluster_controller.tunnel.dialer import _Knock, connect
from cluster_controller.tunnel.proxy import Address
from cluster_controller.tunnel.segments import FULL, MOST, REPROBE, SEQUENCE, SMALL, Segments
from cluster_controller.tunnel.wire import TCP_THIN_LINEAR_TIMEOUTS, Wires
from tests.tunnel.support import Member, identity, root, run


def test_after_two_silences_smaller_packets_are_tried_and_full_ones_in_between() -> None:
    segments = Segments()
    tried = []
    for _ in range(2 * len(SEQUENCE)):
        tried.append(segments.size("a", 0.0))
        segments.silent("a")
    assert tried == [*SEQUENCE, *SEQUENCE]
    assert tried.index(SMALL) == 2 and segments.size("b", 0.0) == FULL


def test_a_size_that_worked_is_kept_for_a_while_and_then_full_packets_are_tried_again() -> None:
    segments = Segments()
    segments.silent("a")
    segments.silent("a")
    segments.answered("a", 100.0)
    assert segments.size("a", 100.0 + REPROBE - 1) == SMALL
    assert segments.size("a", 100.0 + REPROBE) == FULL
    segments.silent("a")
    assert segments.size("a", 800.0) == FULL, "all over again"


def test_an_answer_to_full_packets_ends_the_doubt() -> None:
    segments = Segments()
    segments.silent("a")
    segments.answered("a", 0.0)
    segments.silent("a")
    assert segments.size("a", 0.0) == FULL


@given(st.lists(st.tuples(st.sampled_from(["silent", "answered", "size"]), st.integers(0, 2 * MOST), st.floats(0, 2000))))
def test_whatever_happens_it_stays_bounded_and_names_a_size_of_the_sequence(steps: list[tuple[str, int, float]]) -> None:
    segments = Segments()
    for what, number, now in steps:
        address = str(number)
        if what == "silent":
            segments.silent(address)
        elif what == "answered":
            segments.answered(address, now)
        assert segments.size(address, now) in SEQUENCE
        assert len(segments._ways) <= MOST


def test_both_ends_send_no_larger_segments_than_the_dialling_one_says() -> None:
    async def main() -> None:
        parent = Member(root())
        port = await parent.tunnel.serve("127.0.0.1", 0)
        limits = Limits()
        wires, knock = Wires(limits), _Knock()
        link = Link(knock, limits, dialled=True)
        try:
            context = identity("narrow").client_context()
            await connect(link, context, Address("127.0.0.1", port), proxy="", wires=wires, segment=SMALL)
            assert await knock.answered == parent.uid
            sock = link.wire._transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= SMALL
            assert sock.getsockopt(socket.IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS) == 1
            accepted = next(iter(parent.tunnel._wires.open))._transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= SMALL
        finally:
            link.close(1000, "asked")
            await wires.closed()
            await parent.close()

    run(main)


def test_with_small_segments_too_nobody_there_is_unreachable() -> None:
    async def main() -> None:
        limits = Limits()
        wires = Wires(limits)
        link = Link(_Knock(), limits, dialled=True)
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = Address("127.0.0.1", nobody.getsockname()[1])
            try:
                await connect(link, identity("narrow").client_context(), address, proxy="", wires=wires, segment=SMALL)
            except Unreachable as error:
                assert str(address) in str(error)
            else:
                raise AssertionError("somebody was there")

    asyncio.run(main())


class Swallowing:
    """A parent behind a black hole: whoever comes with full segments is connected, and hears nothing."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.met: list[int] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        self.met.append(size)
        self._writers.append(writer)
        if size > SMALL:
            return
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(onward)
        await asyncio.gather(self._copy(reader, onward), self._copy(onward_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def test_a_child_behind_a_black_hole_finds_the_size_that_gets_through() -> None:
    """Handshakes that take long are given up after a second here; in life after ten."""

    async def main() -> None:
        parent = Member(root())
        child = Member(identity("far"), limits=Limits(handshake_time=1.1, backoff_first=0.01, backoff_cap=0.02))
        hole = Swallowing(await parent.tunnel.serve("127.0.0.1", 0))
        server = await asyncio.start_server(hole.serve, "127.0.0.1", 0)
        try:
            child.dial(server.sockets[0].getsockname()[1])
            await parent.until(lambda: child.uid in parent.tunnel.links)
            assert [size > SMALL for size in hole.met] == [True, True, False]
        finally:
            await child.close()
            await parent.close()
            hole.close()
            server.close()
            await asyncio.sleep(0.05)  # the copies end

    run(main)
