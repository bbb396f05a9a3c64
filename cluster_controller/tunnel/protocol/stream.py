"""One end of a stream on one link: its credit, its window and the bytes that wait.

What waits to be sent is kept as whole frames in one bytearray, so a relay adds a run of frames with one copy and the cost in
memory is what the window says. A stream ends either at this controller (`handle` is told) or goes on over another link
(`onward` is the stream there); it is never both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cluster_controller.tunnel.messages import Lane, Reset

if TYPE_CHECKING:
    from cluster_controller.tunnel.protocol.connection import Connection


class Handle(Protocol):
    """Who reads and writes a stream that ends here. Called from inside the state machine: must neither block nor raise."""

    def readable(self) -> None: ...

    def writable(self) -> None: ...

    def ended(self, reset: Reset) -> None: ...


class StreamState:
    """Attributes are the state machine's own; the shell uses `Connection`'s methods."""

    __slots__ = (
        "active", "allowance", "buffer", "connection", "credit", "crediting", "end_queued", "end_received", "end_sent",
        "forgotten", "granted_at", "handle", "id", "lane", "onward", "out", "out_frames", "owed", "parting", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection, id: int, lane: Lane, credit: int, window: int) -> None:
        self.connection = connection
        self.id = id
        self.lane = lane
        self.credit = credit  # bytes of frames that may still be sent
        self.out = bytearray()  # whole frames that wait for credit and for their turn
        self.out_frames = 0  # how many
        self.active = False  # stands in its lane's queue
        self.end_queued = False  # the last frame in `out`, or the last sent, carries END
        self.end_sent = False
        self.window = window  # bytes of frames that the peer may have under way or waiting here
        self.allowance = window  # of those, what it has not used
        self.owed = 0  # consumed, but not yet granted again
        self.crediting = False  # stands in the queue of credits to send
        self.granted_at = 0.0
        self.end_received = False
        self.parting: Reset | None = None  # nobody reads here any more: said once what was written has left
        self.buffer: bytearray | None = None  # payload that waits for a local reader
        self.handle: Handle | None = None
        self.onward: StreamState | None = None
        self.forgotten = False  # no longer in its connection's table

    def __repr__(self) -> str:
        return f"<stream {self.id} {self.lane.name.lower()} credit={self.credit} out={len(self.out)} allowance={self.allowance}>"


def join(one: StreamState, other: StreamState) -> None:
    """From now on what arrives on either goes out on the other."""
    one.onward = other
    other.onward = one
