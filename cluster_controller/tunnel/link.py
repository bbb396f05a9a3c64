"""One link: the state machine, its wire and its one timer.

A link is born when TLS and WebSocket are through, is *established* when Hello was answered with Welcome, and ends once. What
arrives in one turn of the loop leaves in one write per link: `_flush` runs once per turn, fills a message, and fills the next
when the kernel has taken that one. The timer serves heartbeat, death, a stuck message and bulk that waits for room.
"""

import asyncio
from collections.abc import Callable

import structlog

from cluster_controller.clock import boottime
from cluster_controller.errors import ProtocolError
from cluster_controller.identity import PeerCertificate
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import CloseCode, ControlMessage, GoAway, Hello, Lane, Open, Welcome
from cluster_controller.tunnel.protocol.connection import Connection, LinkStats
from cluster_controller.tunnel.protocol.frames import MAX_PAYLOAD
from cluster_controller.tunnel.protocol.pacing import Pacer
from cluster_controller.tunnel.protocol.stream import StreamState
from cluster_controller.tunnel.stream import Stream
from cluster_controller.tunnel.wire import Wire

log = structlog.get_logger()


class LinkHost:
    """What a link asks of the tunnel it belongs to; each stage of a link's life has its own."""

    def link_control(self, link: "Link", message: ControlMessage) -> None:
        raise NotImplementedError

    def link_stream(self, link: "Link", stream: StreamState, message: Open) -> None:
        raise NotImplementedError

    def link_ready(self, link: "Link") -> None:
        raise NotImplementedError

    def link_lost(self, link: "Link", code: int, reason: str) -> None:
        raise NotImplementedError


class Link:
    """The connection to one neighbour. Attributes of the peer are set before `Membership.link_up`."""

    def __init__(self, host: LinkHost, limits: Limits, *, dialled: bool) -> None:
        self.peer_uid = ""
        self.peer_name = ""
        self.peer: PeerCertificate | None = None
        self.is_parent = dialled
        self.hello: Hello | None = None  # what the child said
        self.welcome: Welcome | None = None  # what the parent answered
        self.host = host
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self.connection = Connection(limits, self, boottime(), dialled=dialled, wake=self._wake)
        self._scheduled = False
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # of the loop's clock; uvloop's handle of what is due at once does not say it
        self._pacer = Pacer()
        self._bulk_at = 0.0  # loop time at which bulk may go on
        self._ended = False
        self.on_first_byte: Callable[[], None] | None = None  # called once, when anything at all has come from the other side
        self._heard: list[asyncio.Future[None]] = []
        self._gone: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Link {'parent' if self.is_parent else 'child'} {self.peer_name or self.address}>"

    # -- for everybody ------------------------------------------------------------------------------------------------------

    @property
    def rtt(self) -> float | None:
        """Round trip in seconds, smoothed; None until it was measured."""
        return self.connection.liveness.rtt

    @property
    def last_heard(self) -> float:
        """When anything came from the peer, on the boot-time clock."""
        return self.connection.liveness.last_heard

    @property
    def stats(self) -> LinkStats:
        stats = self.connection.stats
        if self._wire is not None:
            stats.bytes_in, stats.bytes_out = self._wire.stats.bytes_in, self._wire.stats.bytes_out
        return stats

    @property
    def address(self) -> str:
        return self._wire.address if self._wire is not None else ""

    @property
    def closed(self) -> bool:
        return self._ended or (self._wire is not None and self._wire.closing)

    @property
    def streams(self) -> int:
        """How many streams the link carries now."""
        return len(self.connection.streams)

    async def open(self, destination: str, service: str, metadata: bytes = b"", lane: Lane = Lane.INTERACTIVE) -> Stream:
        """A stream to ``destination`` by way of this link. Raises `Exhausted` when a bound of the link is reached."""
        message = Open(destination=(destination,), service=service, metadata=metadata, lane=lane)
        return Stream(self.connection.open(message), message, self._loop)

    def send_control(self, message: ControlMessage) -> None:
        """Queue a control message; it goes before all else. A peer that does not read loses the link."""
        if not self.closed:
            self.connection.send_control(message)

    def go_away(self, reason: str, reconnect_after: float = 0.0) -> None:
        """Let open streams finish, begin none."""
        if not self.closed:
            self.connection.go_away(GoAway(code=CloseCode.GOING_AWAY, reason=reason, reconnect_after=reconnect_after))

    def close(self, code: int, reason: str) -> None:
        """Close now; the peer is told ``code`` and ``reason``. `Membership.link_down` follows."""
        if self._wire is not None:
            self._flush()
            self._wire.close(code, reason)
        self._end(code, reason)

    async def probe(self, timeout: float) -> bool:
        """Does the other side answer within ``timeout`` seconds? Any byte counts."""
        if self.closed:
            return False
        heard = self._loop.create_future()
        self._heard.append(heard)
        self.connection.probe()
        try:
            async with asyncio.timeout(timeout):
                await heard
        except TimeoutError:
            return False
        finally:
            if heard in self._heard:
                self._heard.remove(heard)
        return not self.closed

    async def gone(self) -> None:
        """Returns when the link has ended."""
        if not self._ended:
            gone = self._loop.create_future()
            self._gone.append(gone)
            await gone

    # -- life ---------------------------------------------------------------------------------------------------------------

    def attach_wire(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def wire(self) -> Wire:
        assert self._wire is not None
        return self._wire

    def established(self, welcome: Welcome, hello: Hello) -> None:
        """Hello was answered: streams may begin."""
        self.hello, self.welcome = hello, welcome
        peer = welcome.limits if self.is_parent else hello.limits
        heartbeat = welcome.heartbeat_seconds or self._limits.heartbeat
        dead_after = welcome.dead_after_seconds or self._limits.dead_after
        self.connection.establish(peer, max(0.1, heartbeat), max(0.3, dead_after))
        sample = self.wire.sample()
        if sample is not None and sample.rtt > 0:
            self.connection.liveness.rtt = sample.rtt
        self._arm()

    def _end(self, code: int, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        for waiting in (*self._heard, *self._gone):
            if not waiting.done():
                waiting.set_result(None)
        self.connection.lost(f"the link to {self.peer_name or self.address} was lost: {reason}", self.peer_uid)
        self.host.link_lost(self, code, reason)

    # -- sending ------------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        wire, connection = self._wire, self.connection
        if wire is None:
            return
        if connection.failure is not None:
            failure, connection.failure = connection.failure, None
            wire.close(failure.code, str(failure))
            self._end(failure.code, str(failure))
            return
        if not (connection.more or connection.bulk_waits()):
            return
        while wire.writable:
            now = boottime()
            bulk = self._bulk_allowance() if connection.bulk_waits() else MAX_PAYLOAD
            message = connection.message(now, bulk)
            if not message:
                break
            self._send(message)
            if not (connection.more or connection.bulk_waits()):
                break

    def _send(self, message: bytearray) -> None:
        try:
            self.wire.send(message)
        except ProtocolError as error:
            self.wire.close(error.code, str(error))
            self._end(error.code, str(error))

    def _bulk_allowance(self) -> int:
        sample = self.wire.sample()
        if sample is None:
            return MAX_PAYLOAD
        now = self._loop.time()
        allowance = self._pacer.allowance(now, sample)
        if not allowance:
            self._bulk_at = now + self._pacer.retry_after()
            self._arm()
        return allowance

    # -- the one timer ------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._ended:
            return
        delay = max(0.0, self.connection.deadline() - boottime())
        when = self._loop.time() + delay
        if self._bulk_at:
            when = min(when, self._bulk_at)
        if self._timer is not None:
            if self._timer_at <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(when, self._tick), when

    def _tick(self) -> None:
        self._timer = None
        if self._ended:
            return
        self._bulk_at = 0.0
        stuck = self.wire.stuck_since()
        scheduled, self._scheduled = self._scheduled, True  # what the tick has to say is flushed below, and needs no turn of its own
        dead = self.connection.tick(boottime())
        self._scheduled = scheduled
        if dead:
            self.close(CloseCode.SILENT, f"nothing was heard for {self.connection.liveness.dead_after:g} s")
        elif stuck is not None and self._loop.time() - stuck > self._limits.message_time:
            self.close(CloseCode.PROTOCOL, f"one message took longer than {self._limits.message_time:g} s")
        else:
            self._flush()
            self._arm()

    # -- called by the wire -------------------------------------------------------------------------------------------------

    def wire_ready(self) -> None:
        self.host.link_ready(self)

    def wire_received(self) -> None:
        self.connection.liveness.last_heard = boottime()
        if self.on_first_byte is not None:
            first, self.on_first_byte = self.on_first_byte, None
            first()
        if self._heard:
            for heard in self._heard:
                if not heard.done():
                    heard.set_result(None)

    def wire_message(self, message: bytes) -> None:
        if not self._ended:
            self.connection.receive(message, self.connection.liveness.last_heard)

    def wire_writable(self) -> None:
        self._flush()

    def wire_lost(self, code: int, reason: str) -> None:
        self._end(code, reason)

    # -- called by the state machine ----------------------------------------------------------------------------------------

    def stream_opened(self, stream: StreamState, message: Open) -> None:
        self.host.link_stream(self, stream, message)

    def control_received(self, message: ControlMessage) -> None:
        self.host.link_control(self, message)

    def going_away(self, message: GoAway) -> None:
        log.info("link.draining", peer=self.peer_name, reason=message.reason)
