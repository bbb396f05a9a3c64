"""TLS to an API server, run by ourselves over a plain connection, so that nothing that was sent is lost when it ends.

asyncio's and uvloop's own TLS throw away what they hold when the other side closes while their reader is paused; an API server closes right
behind the last byte of an answer or of a command's output. Here a plain connection is what is paused, and that loses nothing: what arrives
is decrypted only as it is read, so no more is held than one read-ahead.
"""

import asyncio
import ssl

from cluster_shim.contract import ShimError

PIECE = 65536


class TlsStream:
    """Implements `contract.ByteStream`. TLS has no half-close here: whoever is done aborts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext, name: str | None) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._aborted = False

    @classmethod
    async def over(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext, name: str | None
    ) -> "TlsStream":
        """After the handshake. OSError when the other side is not who it should be, or ends it."""
        stream = cls(reader, writer, context, name)
        try:
            while not stream._shaken():
                await stream._flush()
                await stream._fill()
            await stream._flush()
        except BaseException:
            writer.transport.abort()
            raise
        return stream

    async def read(self, limit: int = PIECE) -> bytes:
        try:
            while not self._aborted:
                try:
                    return self._tls.read(limit)
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except OSError as error:
            raise ShimError(f"the member's API server broke the connection: {error.strerror or error}") from None
        return b""

    async def write(self, data: bytes) -> None:
        if self._aborted:
            raise ShimError("the connection to the member's API server was broken off")
        try:
            self._tls.write(data)
            await self._flush()
        except OSError as error:
            raise ShimError(f"the member's API server broke the connection: {error.strerror or error}") from None

    async def close_write(self) -> None:
        return

    def abort(self, reason: str = "") -> None:
        self._aborted = True
        self._writer.transport.abort()

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def _fill(self) -> None:
        data = await self._reader.read(PIECE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            self._writer.write(data)
            await self._writer.drain()
