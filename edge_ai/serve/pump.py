"""Carries an accepted HTTP/2 connection to the private gRPC socket, byte for byte, in both directions.

Backpressure is carried too: when one side does not take its bytes, the other is not read. An end of one direction is passed on.

`retire` is how a connection ends without losing a call. grpc's own shutdown refuses what arrives while its GOAWAY is on the way;
so the pump says GOAWAY itself, between two of the server's frames, with the highest stream id there is (RFC 9113, 6.8): the client
opens no more streams here, the server goes on answering those that are on their way, and the client closes when the last is done.
"""

import asyncio
from collections.abc import Callable
from typing import cast

PENDING_BYTES = 1 << 20  # before the inner connection stands; then the client is not read any more
FRAME_HEADER = 9
CONTINUED = frozenset({0x1, 0x5, 0x9})  # HEADERS, PUSH_PROMISE, CONTINUATION: nothing may come between them and their rest
END_HEADERS = 0x4
GOAWAY = b"\x00\x00\x08" + b"\x07\x00" + b"\x00\x00\x00\x00" + b"\x7f\xff\xff\xff" + b"\x00\x00\x00\x00"


class FrameEdges:
    """Where, in one direction of HTTP/2, another frame may be put in. Pure: fed with the bytes as they pass."""

    def __init__(self) -> None:
        self._header = bytearray()  # of the next frame, while it is incomplete
        self._left = 0  # bytes of the current frame's payload
        self._bound = True  # to what follows: the first frame must be SETTINGS, headers must stay together

    @property
    def open(self) -> bool:
        return not self._bound and not self._left and not self._header

    def feed(self, data: bytes, stop: bool) -> int:
        """How many bytes were taken: all of them, or with ``stop`` up to the first place where a frame may be put in."""
        position = 0
        while position < len(data) and not (stop and self.open):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
            else:
                step = min(FRAME_HEADER - len(self._header), len(data) - position)
                self._header += data[position : position + step]
                if len(self._header) == FRAME_HEADER:
                    self._begin()
            position += step
        return position

    def _begin(self) -> None:
        kind, flags = self._header[3], self._header[4]
        self._left = int.from_bytes(self._header[:3], "big")
        self._bound = kind in CONTINUED and not flags & END_HEADERS
        self._header.clear()


class End(asyncio.Protocol):
    """One end of the pump; as it is, the one towards the client."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None
        self._closed: Callable[[], None] | None = None
        self._eof = False
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.pass_on(self.other.transport, data)
            return
        self._early += data
        if len(self._early) > PENDING_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def pass_on(self, transport: asyncio.Transport, data: bytes) -> None:
        transport.write(data)

    def eof_received(self) -> bool:
        self._eof = True
        other = self.other
        if other is None or other.transport is None:
            return True
        if other._eof:  # both directions ended
            other.close()
            return False
        if not other.transport.is_closing():
            other.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None:
            self.other.close()
        if self._closed is not None:
            self._closed()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def on_closed(self, callback: Callable[[], None]) -> None:
        self._closed = callback

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def join(self, other: "End") -> None:
        """Both stand: hand over what came early on either side (a server speaks first, too), then let it flow."""
        self.other, other.other = other, self
        if self.transport is None or other.transport is None:  # one is gone already
            self.close()
            other.close()
            return
        self._flow(other, other.transport)
        other._flow(self, self.transport)

    def _flow(self, other: "End", transport: asyncio.Transport) -> None:
        self.pass_on(transport, bytes(self._early))
        self._early.clear()
        if self.transport is not None:
            self.transport.resume_reading()
        if self._eof:
            transport.write_eof()


class Inner(End):
    """Towards the gRPC server: sees its frames pass, and can add the farewell."""

    def __init__(self) -> None:
        super().__init__()
        self._edges = FrameEdges()
        self._retiring = False

    def pass_on(self, transport: asyncio.Transport, data: bytes) -> None:
        taken = self._edges.feed(data, stop=self._retiring)
        transport.write(data[:taken])
        if self._retiring and self._edges.open:
            self._retiring = False
            transport.write(GOAWAY)
        if taken < len(data):
            self.pass_on(transport, data[taken:])

    def retire(self) -> None:
        """Tell the client to take its next calls elsewhere."""
        self._retiring = True
        if self.other is not None and self.other.transport is not None:
            self.pass_on(self.other.transport, b"")
