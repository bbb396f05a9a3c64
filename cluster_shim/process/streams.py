"""Byte streams into instances and out of their logs, in the shape of `contract.ByteStream`."""

import asyncio
import socket
from contextlib import suppress

from cluster_shim.contract import ShimError

BUFFER = 64 << 10


class SocketStream:
    """A connected socket as a `ByteStream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._heard_end = False
        self._said_end = False

    @classmethod
    async def over(cls, sock: socket.socket) -> "SocketStream":
        if sock.family == socket.AF_UNIX:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=BUFFER)
        else:
            reader, writer = await asyncio.open_connection(sock=sock, limit=BUFFER)
        return cls(reader, writer)

    async def read(self, limit: int = 65536) -> bytes:
        try:
            data = await self._reader.read(limit)
        except OSError as error:
            self._writer.close()
            raise ShimError(f"the instance broke the connection: {error.strerror or error}") from None
        if not data:
            self._heard_end = True
            self._close_when_over()
        return data

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise ShimError(f"the instance broke the connection: {error.strerror or error}") from None

    async def close_write(self) -> None:
        with suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
        self._said_end = True
        self._close_when_over()

    def _close_when_over(self) -> None:
        """Both directions have ended: the descriptor goes, whether or not anybody aborts."""
        if self._heard_end and self._said_end:
            self._writer.close()

    def abort(self, reason: str = "") -> None:
        self._writer.transport.abort()
