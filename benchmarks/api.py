"""A small HTTP/1.1 client for load: many requests in flight, many watches, one process.

Only what a controller's own API answers with is understood: a content length, or chunks. Each `Connection` carries one request at a
time; `Pool` keeps as many as there are requests at once.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import msgspec

from banyanctl.client import tls_context
from banyanctl.credential import Endpoint

ANSWER_SECONDS = 120.0
REUSED_SECONDS = 30.0  # of a connection that nothing was asked on
LINE_LIMIT = 16 * 1024 * 1024


class Refused(Exception):
    """The API answered with 400 or above; the message has its body."""


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: tuple[str, int], context: ssl.SSLContext) -> "Connection":
        host, port = address
        return cls(*await asyncio.open_connection(host, port, ssl=context, limit=LINE_LIMIT))

    def send(self, method: str, path: str, body: bytes = b"", content: str = "application/json") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: banyan\r\nAccept: application/json\r\n"
        if body:
            head += f"Content-Type: {content}\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw.split("\r\n")
        fields = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    async def body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return b"".join([chunk async for chunk in self.chunks()])
        return await self._reader.readexactly(int(headers.get("content-length", "0")))

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            data = await self._reader.readexactly(size + 2)
            yield data[:-2]
        await self._reader.readuntil(b"\r\n")

    def close(self) -> None:
        self._writer.transport.abort()


class Pool:
    """Asks one controller, as its on-site admin."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._address = endpoint.address
        self._context = tls_context(endpoint)
        self._context.check_hostname = False  # the address is this machine's; whose certificate it is, the tree's authority says
        self._free: list[tuple[float, Connection]] = []
        self._all: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._free.clear()

    async def connect(self) -> Connection:
        connection = await Connection.open(self._address, self._context)
        self._all.append(connection)
        return connection

    def _fresh(self) -> Connection | None:
        """One that the controller has not closed for being idle."""
        while self._free:
            used, connection = self._free.pop()
            if time.monotonic() - used < REUSED_SECONDS:
                return connection
            connection.close()
        return None

    async def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        """The answer's JSON; Refused when it is an error."""
        connection = self._fresh() or await self.connect()
        data = b"" if body is None else msgspec.json.encode(body)
        async with asyncio.timeout(ANSWER_SECONDS):
            connection.send(method, path, data, content)
            status, headers = await connection.head()
            answer = await connection.body(headers)
        self._free.append((time.monotonic(), connection))
        if status >= 400:
            raise Refused(f"{method} {path}: {status} {answer[:500].decode(errors='replace')}")
        return msgspec.json.decode(answer) if answer[:1] in b"{[" and answer else answer

    async def watch(self, path: str) -> AsyncIterator[tuple[float, bytes]]:
        """(when it arrived, one event as JSON), for ever. The watch stands once this returns; what is there already comes first."""
        connection = await self.connect()
        connection.send("GET", f"{path}{'&' if '?' in path else '?'}watch=1&timeoutSeconds=3600")
        status, headers = await connection.head()
        if status >= 400:
            raise Refused(f"watch {path}: {status} {(await connection.body(headers))[:500].decode(errors='replace')}")
        return _lines(connection)


async def _lines(connection: Connection) -> AsyncIterator[tuple[float, bytes]]:
    with contextlib.closing(connection):
        rest = b""
        async for chunk in connection.chunks():
            now = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield now, line
