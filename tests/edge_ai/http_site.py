"""The HTTP side on real sockets, with an application that only echoes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import uvloop

from edge_ai.serve.http import HttpServer
from edge_ai.serve.http_parts import Limits, Request, Response
from edge_ai.serve.http_stream import Answering, InputEnded


class Echo:
    """Answers with what it got; ``/later`` through a future that the test resolves, ``/crash`` with a failed one."""

    def __init__(self) -> None:
        self.later: list[tuple[Request, asyncio.Future[Response]]] = []
        self.seen = 0
        self.streams = 0  # that are open
        self.lines = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.crashes: list[BaseException] = []

    def __call__(self, request: Request) -> "Response | asyncio.Future[Response]":
        self.seen += 1
        if request.target in (b"/later", b"/crash"):
            future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
            if request.target == b"/crash":
                future.set_exception(RuntimeError("a defect"))
            self.later.append((request, future))
            return future
        return self.answer(request)

    def answer(self, request: Request) -> Response:
        document = {"method": request.method.decode(), "target": request.target.decode(), "size": len(request.body)}
        return Response(200, [json.dumps(document).encode()])

    def stream(self, method: bytes, target: bytes) -> "Answering | Response | None":
        """``/lines`` are answered in capitals, ``/endless`` by the first line for ever, ``/defect`` not at all."""
        if target == b"/refused":
            return self.refuse(404, "no such thing")
        return {b"/lines": self.capitals, b"/endless": self.endless, b"/defect": self.defect}.get(target)

    async def capitals(self, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        self.streams += 1
        try:
            async for line in lines:
                self.lines += 1
                await self.go_on.wait()
                yield line.upper()
        except InputEnded as ended:
            yield f"ended: {ended}".encode()
        finally:
            self.streams -= 1

    async def endless(self, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        self.streams += 1
        try:
            async for line in lines:
                while True:
                    self.lines += 1
                    yield line
                    await asyncio.sleep(0)
        finally:
            self.streams -= 1

    async def defect(self, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for line in lines:
            yield line
            raise RuntimeError("a defect")

    def refuse(self, status: int, message: str, headers: bytes = b"") -> Response:
        return Response(status, [json.dumps({"error": message}).encode()], headers=headers)

    def crashed(self, error: BaseException) -> Response:
        self.crashes.append(error)
        return self.refuse(500, str(error))


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, bodiless: bool = False) -> tuple[int, dict[str, str], Any]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = b"" if bodiless else await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body) if body else None

    async def closed(self) -> bool:
        return await self.reader.read() == b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Site:
    def __init__(self, server: HttpServer, app: Echo, port: int) -> None:
        self.server, self.app, self.port = server, app, port
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def site(limits: Limits = Limits(), http2: Any = None) -> AsyncIterator[Site]:  # noqa: B008
    app = Echo()
    server = HttpServer(app, limits, http2)
    listening = await asyncio.get_running_loop().create_server(server.connection, "127.0.0.1", 0)
    made = Site(server, app, listening.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        for client in made.clients:
            await client.close()
        listening.close()
        await server.drain(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    uvloop.run(bounded())
