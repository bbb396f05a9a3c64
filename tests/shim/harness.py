"""A process cluster for tests: a real supervisor and real processes below a temporary folder, all gone at the end."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from cluster_shim.contract import Component, Desired, File, Observed, ObservedWork, Shim, Work
from cluster_shim.process import client
from cluster_shim.process.shim import ProcessShim
from tests.shim.programs import COMMAND, SERVER

PATIENCE = 30.0  # seconds until a test gives up; nothing is asserted about time


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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
        **fields,
    )


def work(*components: Component, uid: str = "uid-1", name: str = "app", version: int = 1) -> Work:
    return Work(uid=uid, name=name, namespace="default", origin="root", version=version, components=components)


class Driver:
    """The controller's side of a reconciliation: states what is desired, keeps what was observed."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.works: dict[str, ObservedWork] = {}
        self.history: list[Observed] = []
        self._desired: asyncio.Queue[Desired | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Driver":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._desired.put(None)
        assert self._task is not None
        async with asyncio.timeout(PATIENCE):
            await self._task

    async def _states(self) -> AsyncIterator[Desired]:
        while (desired := await self._desired.get()) is not None:
            yield desired

    async def _run(self) -> None:
        async for observed in self.shim.reconcile(self._states()):
            self.history.append(observed)
            if observed.full:
                self.works.clear()
            self.works.update({work.uid: work for work in observed.works})
            for uid in observed.removed:
                self.works.pop(uid, None)
            self._changed.set()

    def want(self, *works: Work, full: bool = True, removed: tuple[str, ...] = ()) -> None:
        self._desired.put_nowait(Desired(works=works, full=full, removed=removed))

    async def until(self, condition: Callable[[dict[str, ObservedWork]], object]) -> dict[str, ObservedWork]:
        try:
            async with asyncio.timeout(PATIENCE):
                while not (self.history and condition(self.works)):
                    self._changed.clear()
                    assert self._task is not None
                    waiting = asyncio.create_task(self._changed.wait())
                    await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    if self._task.done():
                        self._task.result()
                        raise AssertionError("the reconciliation ended")
        except TimeoutError:
            raise AssertionError(f"did not come: {self.works}") from None
        return self.works

    async def until_ready(self, uid: str = "uid-1", count: int = 1, revision: str = "") -> ObservedWork:
        def condition(works: dict[str, ObservedWork]) -> bool:
            seen = works.get(uid)
            if seen is None:
                return False
            instances = [i for i in seen.instances if not revision or i.revision == revision]
            return len(instances) == len(seen.instances) == count and all(i.ready for i in instances)

        return (await self.until(condition))[uid]


@contextlib.asynccontextmanager
async def cluster(folder: Path, **options: Any) -> AsyncIterator[ProcessShim]:
    shim = ProcessShim(folder / "process", node_name="node-1", **options)
    try:
        yield shim
    finally:
        await shim.close()
        await asyncio.to_thread(client.end, folder / "process", 1.0)


async def ask(port: int, path: str = "/") -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return int(head.split()[1]), (await reader.readexactly(length)).decode()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Asker:
    """A device that asks the site's port all the time, on a new connection each time; counts what failed."""

    def __init__(self, port: int) -> None:
        self._port = port
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
                code, body = await ask(self._port)
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(repr(error))
                await asyncio.sleep(0.01)
            else:
                version = body.split()[0]
                self.answers[version] = self.answers.get(version, 0) + 1
                if code != 200:
                    self.failures.append(str(code))
            await asyncio.sleep(0.002)
