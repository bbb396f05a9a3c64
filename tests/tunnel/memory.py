"""Links without sockets: state machines joined by queues of messages, in virtual time, moved one message at a time.

A `Node` has connections to its neighbours and relays by the same `join` as the tunnel; the test decides which message moves next,
so it also decides the scheduling.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import ControlMessage, GoAway, Lane, LinkLimits, Open, Reset, ResetCode
from cluster_controller.tunnel.protocol.connection import Connection
from cluster_controller.tunnel.protocol.frames import MAX_PAYLOAD
from cluster_controller.tunnel.protocol.stream import StreamState, join


@dataclass
class Ear:
    """The reader and writer of a stream's end: keeps what it was told."""

    state: StreamState
    reset: Reset | None = None
    received: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.state.handle = self

    def readable(self) -> None: ...

    def writable(self) -> None: ...

    def ended(self, reset: Reset) -> None:
        self.reset = reset

    def write(self, data: bytes) -> int:
        if self.state.forgotten or self.state.end_queued:
            return 0
        taken = self.state.connection.write(self.state, data)
        self.sent += data[:taken]
        return taken

    def read(self, limit: int) -> int:
        data = self.state.connection.read(self.state, limit)
        self.received += data
        return len(data)

    def end(self) -> None:
        self.state.connection.end(self.state)


class Node:
    """One controller: ``onward`` leads to the next hop for streams whose destination is not this node."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.onward: Connection | None = None
        self.ears: dict[bytes, Ear] = {}  # by metadata
        self.controls: list[ControlMessage] = []
        self.drained = False

    def stream_opened(self, stream: StreamState, message: Open) -> None:
        if self.name in message.destination[-1:]:
            self.ears[message.metadata] = Ear(stream)
            return
        if self.onward is None or self.onward.draining:
            stream.connection.reset(stream, ResetCode.UNREACHABLE, "no way on", self.name)
            return
        join(stream, self.onward.open(message))

    def control_received(self, message: ControlMessage) -> None:
        self.controls.append(message)

    def going_away(self, message: GoAway) -> None:
        self.drained = True

    def open(self, over: Connection, destination: str, tag: bytes, lane: Lane) -> Ear:
        return Ear(over.open(Open(destination=(destination,), service="test", metadata=tag, lane=lane)))


class Cable:
    """A link: two connections and the messages under way in each direction."""

    def __init__(self, parent: Node, child: Node, now: float = 0.0) -> None:
        self.now = now
        self.down = Connection(parent.limits, parent, now, dialled=False, wake=lambda: None)
        self.up = Connection(child.limits, child, now, dialled=True, wake=lambda: None)
        self.under_way: dict[Connection, deque[bytes]] = {self.down: deque(), self.up: deque()}
        self.cut = False
        for connection, other in ((self.down, child), (self.up, parent)):
            limits = LinkLimits(initial_window=other.limits.initial_window, max_streams=other.limits.max_streams)
            connection.establish(limits, 5.0, 15.0)

    def other(self, connection: Connection) -> Connection:
        return self.up if connection is self.down else self.down

    def send(self, connection: Connection, bulk: int = MAX_PAYLOAD) -> bool:
        """``connection`` makes its next message."""
        if self.cut:
            return False
        message = connection.message(self.now, bulk)
        assert len(message) <= MAX_PAYLOAD
        if message:
            self.under_way[connection].append(bytes(message))
        return bool(message)

    def deliver(self, connection: Connection) -> bool:
        """The oldest message that ``connection`` made arrives."""
        if self.cut or not self.under_way[connection]:
            return False
        self.other(connection).receive(self.under_way[connection].popleft(), self.now)
        return True

    def lose(self) -> None:
        if not self.cut:
            self.cut = True
            self.down.lost("cut", "cable")
            self.up.lost("cut", "cable")

    def pump(self) -> bool:
        moved = False
        for connection in (self.down, self.up):
            moved |= self.send(connection)
            moved |= self.deliver(connection)
        return moved


def settle(cables: list[Cable], ears: list[Ear], rounds: int = 100_000) -> None:
    """Move everything, reading all that arrives, until nothing moves."""
    for _ in range(rounds):
        moved = False
        for cable in cables:
            moved |= cable.pump()
        for ear in ears:
            moved |= bool(ear.read(1 << 20))
        if not moved:
            return
    raise AssertionError("the links never come to rest")


def check(connection: Connection) -> None:
    """What must hold of a connection at every moment."""
    limits = connection.limits
    windows = 0
    for stream in connection.streams.values():
        windows += stream.window
        assert 0 <= stream.allowance <= stream.window
        assert stream.credit >= 0
        assert len(stream.buffer or b"") <= stream.window
        if stream.onward is None:
            assert len(stream.out) <= limits.send_buffer + 12
        elif not stream.onward.forgotten:
            assert len(stream.out) <= stream.onward.window
    assert windows <= limits.link_budget
    assert len(connection.streams) <= 2 * limits.max_streams
