"""Carries an accepted HTTP/2 connection to the private gRPC socket, byte for byte, in both directions.

Backpressure is carried too: when one side does not take its bytes, the other is not read. An end of one direction is passed on,
so that gRPC's own farewell (GOAWAY, then the last answers, then the end) reaches the client whole.
"""

import asyncio
from collections.abc import Callable
from typing import cast

PENDING_BYTES = 1 << 20  # before the inner connection stands; then the client is not read any more


class End(asyncio.Protocol):
    """One end of the pump."""

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
            self.other.transport.write(data)
            return
        self._early += data
        if len(self._early) > PENDING_BYTES and self.transport is not None:
            self.transport.pause_reading()

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
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()
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
        """Both stand: hand over what came early, then let it flow."""
        self.other, other.other = other, self
        if self.transport is None or other.transport is None:  # one is gone already
            self.close()
            other.close()
            return
        other.transport.write(bytes(self._early))
        self._early.clear()
        self.transport.resume_reading()
        if self._eof:
            other.transport.write_eof()
