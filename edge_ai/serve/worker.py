"""The worker's life: load, listen, serve, swap, drain, end.

Order is the promise here. The control socket opens first, so that whoever started this can see "not ready yet"; then the model
is verified, loaded and warmed up; only then does the public socket accept, so no client ever meets a worker without a model.
At the end the public socket stops accepting (inherited, it stays open in its owner and in other replicas), what was received is
answered, keep-alive connections are told to go, gRPC says GOAWAY, and the process exits with 0.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from edge_ai.serve import events
from edge_ai.serve.engine import How
from edge_ai.serve.errors import LoadFailed
from edge_ai.serve.http import HttpServer
from edge_ai.serve.http_parts import Limits
from edge_ai.serve.inference import Inference
from edge_ai.serve.lane import Lane
from edge_ai.serve.metrics import Metrics
from edge_ai.serve.repository import Repository, Source
from edge_ai.serve.rest import ControlApp, RestApp

if TYPE_CHECKING:
    from edge_ai.serve.grpc_service import Service

BACKLOG = 1024
LOADING_THREADS = 2  # models are loaded one after the other; asyncio's own number grows with the processors


class Settings(Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    name: str
    version: str
    folder: Path
    digests: Mapping[str, str] = {}
    control: Path | None = None
    threads: int = 1  # of one run inside onnxruntime
    runs: int  # at once
    queue: int = 64
    max_batch: int = 64
    budget: int | None = None  # for all models together
    python_steps: bool = False
    batching: bool = True
    logged: int = 1000  # each so many requests, one is logged
    grace: float = 25.0
    limits: Limits = Limits()


class Worker:
    def __init__(self, settings: Settings, listening: socket.socket | None, inherited: bool) -> None:
        """``listening``: bound; ``inherited`` when somebody else holds it open too. None: asked on the control socket alone."""
        self._settings = settings
        self._socket = listening
        self._inherited = inherited
        self._version = _version()
        self._metrics = Metrics()
        self._inference = Inference(self._metrics, settings.logged)
        how = How(settings.threads, settings.max_batch, settings.python_steps, settings.batching)
        self._repository = self._inference.repository = Repository(settings.name, how, self._lane, settings.budget)
        self._public = HttpServer(RestApp(self._inference, self._version, self._expose), settings.limits, self._http2)
        self._control = HttpServer(ControlApp(self._inference, self._version, self._expose), settings.limits)
        self._service: Service | None = None
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT. The exit code: 0, or 3 when the model cannot be loaded."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(LOADING_THREADS, "load"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        control = await self._open_control()
        try:
            if not await self._load():
                return 0 if self._stop.is_set() else 3
            server = None
            if self._socket is not None:
                server = await loop.create_server(self._public.connection, sock=self._socket, backlog=BACKLOG)
            address = _address(self._socket) if self._socket is not None else f"unix:{self._settings.control}"
            events.info("worker.ready", model=self._settings.name, version=self._settings.version, address=address)
            await self._stop.wait()
            await self._drain(server)
        finally:
            if control is not None:
                control.close()
                assert self._settings.control is not None
                self._settings.control.unlink(missing_ok=True)
            await self._control.drain(0.0)
            self._repository.close()
            if self._socket is not None:
                self._socket.close()
        events.info("worker.ended")
        return 0

    async def _load(self) -> bool:
        """False when the model cannot be loaded, or when the end was asked for first."""
        settings = self._settings
        loading = asyncio.ensure_future(self._repository.load(settings.name, settings.version, Source(settings.folder, settings.digests)))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return False
            await loading
        except LoadFailed:
            return False
        finally:
            stopping.cancel()
            loading.cancel()
        self._metrics.loads["loaded"] += 1
        return True

    async def _open_control(self) -> asyncio.Server | None:
        path = self._settings.control
        if path is None:
            return None
        path.unlink(missing_ok=True)  # of a worker that was killed; the folder is ours alone
        server = await asyncio.get_running_loop().create_unix_server(self._control.connection, str(path))
        path.chmod(0o600)
        return server

    def _lane(self, name: str) -> Lane:
        return self._inference.lane(name, self._settings.runs, self._settings.queue)

    def _expose(self) -> bytes:
        return self._metrics.expose(self._repository, self._public)

    def _http2(self, transport: asyncio.Transport, first: bytes) -> asyncio.Protocol:
        """An HTTP/2 connection came: the protocol that takes it over. What it needs is loaded with the first of them."""
        from edge_ai.serve import grpc_door, grpc_service

        if self._service is None:
            self._service = grpc_service.Service(self._inference, self._version)
            events.info("grpc.started")
        return grpc_door.take_over(self._public, self._service, self._settings.limits.body, transport, first)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _drain(self, server: asyncio.Server | None) -> None:
        events.info("worker.draining", connections=len(self._public.connections))
        self._repository.draining = True
        if server is None or self._socket is None:
            await self._control.drain(self._settings.grace)
            return
        if not self._inherited:
            await self._accept_rest(self._socket)
        server.close()
        await self._public.drain(self._settings.grace)

    async def _accept_rest(self, listening: socket.socket) -> None:
        """Nobody else holds this socket: who waits in its queue would be reset, so they are let in first."""
        loop = asyncio.get_running_loop()
        for _ in range(BACKLOG):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, OSError):
                return
            accepted.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._public.connection, accepted)


def _version() -> str:
    try:
        return metadata.version("banyan-edge")
    except metadata.PackageNotFoundError:
        return "unknown"


def _address(listening: socket.socket) -> str:
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
