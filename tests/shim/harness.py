"""A process cluster for tests: a real supervisor and real processes below a temporary folder, all gone at the end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cluster_shim import verify
from cluster_shim.contract import Component, File, ObservedWork, Probe, Shim, Work
from cluster_shim.process import client
from cluster_shim.process.shim import ProcessShim
from tests.shim.programs import COMMAND, SERVER

free_port = verify.free_port
READY = Probe(http_path="/ready", period_seconds=0.2, failure_threshold=2)
PATIENCE = 30.0  # seconds until a test gives up; nothing is asserted about time


def server(name: str = "serve", version: str = "v1", *, port: int = 0, replicas: int = 1, **fields: Any) -> Component:
    env = {"VERSION": version, **fields.pop("env", {})}
    return Component(
        name=name,
        replicas=replicas,
        revision=fields.pop("revision", version),
        command=fields.pop("command", COMMAND),
        env=env,
        files=(File(path="server.py", content=SERVER.encode()), *fields.pop("files", ())),
        port=port,
        grace_seconds=fields.pop("grace_seconds", 5.0),
        readiness=fields.pop("readiness", READY if port else None),
        **fields,
    )


def work(*components: Component, uid: str = "uid-1", name: str = "app", version: int = 1) -> Work:
    return Work(uid=uid, name=name, namespace="default", origin="root", version=version, components=components)


class Driver(verify.Driver):
    """The contract suite's controller, with this module's patience and default uid."""

    def __init__(self, shim: Shim) -> None:
        super().__init__(shim, PATIENCE)

    async def until_ready(self, uid: str = "uid-1", count: int = 1, revision: str = "") -> ObservedWork:
        return await super().until_ready(uid, count, revision)


@contextlib.asynccontextmanager
async def cluster(folder: Path, **options: Any) -> AsyncIterator[ProcessShim]:
    shim = ProcessShim(folder / "process", node_name="node-1", **options)
    try:
        yield shim
    finally:
        await shim.close()
        await asyncio.to_thread(client.end, folder / "process", 1.0)


async def ask(port: int, path: str = "/", host: str = "127.0.0.1", body: bytes = b"") -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return int(head.split()[1]), (await reader.readexactly(length)).decode()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Asker:
    """A device that asks the site's port all the time, on a new connection each time; counts what failed."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._port = port
        self._host = host
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._running = True

    async def __aenter__(self) -> "Asker":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running = False
        await self._task

    async def _run(self) -> None:
        while self._running:
            try:
                code, body = await ask(self._port, host=self._host)
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(repr(error))
                await asyncio.sleep(0.01)
            else:
                version = body.split()[0]
                self.answers[version] = self.answers.get(version, 0) + 1
                if code != 200:
                    self.failures.append(str(code))
            await asyncio.sleep(0.002)
