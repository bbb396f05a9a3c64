"""The wires of the demo: one HTTP CONNECT proxy per link, which counts what passes and can be cut.

Sites reach their parent through a proxy as many real sites do, so nothing in the product knows that it is being watched. A cut
wire breaks every connection and refuses new ones, like an unplugged cable with an attentive router.
"""

import asyncio
import contextlib

CHUNK = 65536
HEAD_LIMIT = 8192
HEAD_SECONDS = 5.0


class Wire:
    """Between one child and its parent; ``up`` and ``down`` count bytes as TCP carried them (TLS included)."""

    def __init__(self, child: str, parent: str) -> None:
        self.child = child
        self.parent = parent
        self.up = 0
        self.down = 0
        self.is_cut = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> str:
        """Listen on loopback; returns the proxy's URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_LIMIT)
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def cut(self) -> None:
        self.is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        self.is_cut = False

    async def close(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.partition(b" ")
                host, _, port = rest.partition(b" ")[0].decode("ascii").rpartition(":")
                if method != b"CONNECT" or host.strip("[]") not in {"127.0.0.1", "localhost", "::1"}:
                    writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    return
                answers, upstream = await asyncio.open_connection(host.strip("[]"), int(port))
            self._writers.add(upstream)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(self._pump(reader, upstream, up=True), self._pump(answers, writer, up=False))
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a wire carries or does not; whoever uses it notices and tries again
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        while data := await source.read(CHUNK):
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()
