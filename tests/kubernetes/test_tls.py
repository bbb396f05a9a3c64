"""TLS to an API server over real sockets: nothing is lost when the server closes behind its last byte, and nobody else is spoken to."""

import asyncio
import ssl

import pytest
import uvloop

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes.tls import TlsStream
from tests.front.support import pki

SIZE = 3_000_000
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    line = await reader.readline()
    writer.write(line + b"x" * SIZE)
    await writer.drain()
    writer.close()


async def dial(port: int, context: ssl.SSLContext, name: str = "127.0.0.1") -> TlsStream:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
    return await TlsStream.over(reader, writer, context, name)


@LOOPS
def test_a_slow_reader_gets_everything_before_the_end(loop: object) -> None:
    async def main() -> None:
        server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=pki().server_context())
        stream = await dial(server.sockets[0].getsockname()[1], pki().client_context())
        await stream.write(b"hello\n")
        received = bytearray()
        while data := await stream.read(30_000):
            received += data
            if len(received) < 200_000:
                await asyncio.sleep(0.02)  # meanwhile the server has sent the rest, and gone
        assert received.startswith(b"hello\n")
        assert len(received) == SIZE + 6
        assert await stream.read() == b""
        stream.abort()
        with pytest.raises(ShimError, match="broken off"):
            await stream.write(b"x")
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(main())


@LOOPS
def test_a_server_that_is_somebody_else_is_not_spoken_to(loop: object) -> None:
    async def main() -> None:
        server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=pki().server_context())
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(port, ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(port, pki().client_context(), "elsewhere.example.com")
        plain = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        with pytest.raises(OSError):
            await dial(plain.sockets[0].getsockname()[1], pki().client_context())
        plain.close()
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(main())
