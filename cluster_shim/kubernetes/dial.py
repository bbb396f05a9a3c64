"""A connection of one's own to a member's API server: what upgrades, follows a log or carries a person's request goes over one.

Such connections take the same way as the official client's requests: the same trust and certificate, and the kubeconfig's proxy where
these go through it. Whatever ends a dial that is under way, nothing of it stays open.
"""

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

from msgspec import Struct

from cluster_shim.contract import ByteStream
from cluster_shim.kubernetes.tls import TlsStream
from cluster_shim.process.streams import SocketStream

CHUNK = 64 << 10
IDLE_SECONDS = 30  # before the first probe; often enough for what translates addresses on the way to remember the connection
PROBE_SECONDS = 10
PROBES = 3
UNANSWERED_SECONDS = 60  # after which what was sent and not acknowledged ends a connection

# A peer whose machine lost its power says nothing: the kernel has to ask.
SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_SECONDS * 1000),
)


class Route(Struct, frozen=True):
    """Where an API server is, and what leads there."""

    url: str
    context: ssl.SSLContext | None  # None: not TLS
    name: str  # that its certificate must have
    proxy: str = ""
    proxy_headers: dict[str, str] = {}


async def dial(route: Route) -> ByteStream:
    """Connected and secured; nothing is sent on it yet. OSError says why not."""
    server = urlsplit(route.url)
    host, port = server.hostname or "", server.port or (443 if server.scheme == "https" else 80)
    through = urlsplit(route.proxy) if route.proxy else None
    if through is None:
        reader, writer = await asyncio.open_connection(host, port, limit=CHUNK)
    elif through.scheme not in ("http", "https"):
        raise ConnectionError(f"logs, ports and people's requests do not go through a {through.scheme} proxy; name an http one")
    else:
        tls = True if through.scheme == "https" else None
        reader, writer = await asyncio.open_connection(through.hostname or "", through.port or 3128, ssl=tls, limit=CHUNK)
    try:
        for option in SOCKET_OPTIONS:
            writer.get_extra_info("socket").setsockopt(*option)
        if through is not None:
            await _ask_proxy(reader, writer, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", route)
        if route.context is None:
            return SocketStream(reader, writer)
        return await TlsStream.over(reader, writer, route.context, route.name or host)
    except BaseException:
        writer.transport.abort()
        raise


async def _ask_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, route: Route) -> None:
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{key}: {value}" for key, value in route.proxy_headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        head = b""
    if head.split(b" ", 2)[1:2] != [b"200"]:
        proxy = urlsplit(route.proxy)
        said = head.split(b"\r\n", 1)[0].decode("latin-1") or "it closed the connection"
        raise ConnectionError(f"proxy {proxy.hostname}:{proxy.port} does not lead to {authority}: {said}")
