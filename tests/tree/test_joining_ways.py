"""What stands between a site and its parent while it joins: a proxy that helps or refuses, and somebody who only listens."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster_controller.identity import create_root, token
from cluster_controller.identity.join import (
    ParentUnreachable,
    ProxyRefused,
    WrongAuthority,
)
from tests.tree.site import Clock, altered, join, nothing_left, root, run, until


@contextlib.asynccontextmanager
async def proxy(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A CONNECT proxy on loopback that answers with ``answer`` and connects when that is a 200."""
    asked: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        writer.write(answer)
        if b" 200 " not in answer:
            writer.close()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        upstream = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://user:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


def test_a_site_joins_through_a_proxy(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent, proxy(b"HTTP/1.1 200 OK\r\n\r\n") as (url, asked):
            assert (await join(await parent.token(), tmp_path / "a", "a", clock, proxy=url)).fresh
            assert asked[0].startswith(f"CONNECT 127.0.0.1:{parent.port} ".encode())

    run(main())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"])
def test_a_proxy_that_refuses_is_named_without_its_password(tmp_path: Path, answer: bytes) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as parent, proxy(answer) as (url, _):
            with pytest.raises(ProxyRefused) as caught:
                await join(await parent.token(), tmp_path / "a", "a", clock, proxy=url)
            assert "pass@" not in str(caught.value) and "127.0.0.1" in str(caught.value)
            assert nothing_left(tmp_path / "a")
        with pytest.raises(ProxyRefused):
            await join(await _token(tmp_path / "other", clock), tmp_path / "a", "a", clock, proxy="http://127.0.0.1:1")

    run(main())


async def _token(data: Path, clock: Clock) -> str:
    async with root(data, clock) as parent:
        return await parent.token()


def test_the_secret_goes_to_nobody_else(tmp_path: Path) -> None:
    """A server with a certificate of its own gets a TLS connection, and not one byte of the request."""

    async def main() -> None:
        clock = Clock()
        received: list[bytes] = []

        async def eavesdrop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                received.append(await reader.read(65536))
            writer.close()

        stranger = create_root(tmp_path / "x" / "identity", "root", clock())
        async with (
            root(tmp_path / "root", clock) as parent,
            await asyncio.start_server(eavesdrop, "127.0.0.1", 0, ssl=stranger.server_context()) as server,
        ):
            text = altered(await parent.token(), addresses=(f"127.0.0.1:{server.sockets[0].getsockname()[1]}",))
            with pytest.raises((WrongAuthority, ParentUnreachable)):
                await join(text, tmp_path / "a", "a", clock)
            secret = token.decode(text).secret
            await until(lambda: received)
            assert all(secret not in data and text.encode() not in data for data in received)

    run(main())
