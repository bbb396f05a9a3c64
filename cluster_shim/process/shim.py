"""The shim of a process cluster, in the controller's own process; what it runs lives in the supervisor's care instead.

`ProcessShim` is a view: closing it, or killing the controller, changes nothing that runs. `end` is the one way to stop it all.
"""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from cluster_shim.contract import ByteStream, Description, Desired, Labels, Node, Observed, OpenTarget, ShimError
from cluster_shim.process import client, facts, logs
from cluster_shim.process.client import SupervisorClient
from cluster_shim.process.command import CONTROL, Setting
from cluster_shim.process.facts import Capacity, Reserve
from cluster_shim.process.probes import dial
from cluster_shim.process.session import Session
from cluster_shim.process.streams import SocketStream
from cluster_shim.process.views import InstanceView

__all__ = ["Capacity", "ProcessShim", "Reserve"]

RESERVE = Reserve()
NOTHING: Mapping[str, str] = MappingProxyType({})


def _version() -> str:
    try:
        return metadata.version("banyan-edge")
    except metadata.PackageNotFoundError:
        return "0"


class ProcessShim:
    """``folder``: DATA/process. ``bind``: where site ports listen. ``capacity``: instead of what the machine has.

    ``usage_seconds``: how often usage is measured; 0 for `session.USAGE_SECONDS`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node_name: str,
        reserve: Reserve = RESERVE,
        labels: Labels = NOTHING,
        python: str = sys.executable,
        bind: str = "127.0.0.1",
        capacity: Capacity | None = None,
        usage_seconds: float = 0.0,
        supervisor_options: Mapping[str, str] = NOTHING,
    ) -> None:
        folder = folder.absolute()
        self._setting = Setting(folder=folder, node=node_name, python=python, bind=bind, usage_seconds=usage_seconds)
        self._node = facts.node(node_name, dict(labels), reserve, capacity)
        options = tuple(word for name, value in supervisor_options.items() for word in (f"--{name}", value))
        self._supervisor = SupervisorClient(folder, python, self._changed, options)
        self._session: Session | None = None
        self._started = False

    @property
    def node(self) -> Node:
        """The machine as it was found when the controller started."""
        return self._node

    async def describe(self) -> Description:
        await self._connected()
        assert self._supervisor.hello is not None
        return Description(kind="process", version=_version(), limits=self._supervisor.hello.limits)

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        """See `contract.Shim`. One at a time; when it ends, what runs goes on."""
        if self._session is not None:
            raise ShimError("this cluster is being reconciled already; end that reconciliation first")
        self._start()
        session = self._session = Session(self._setting, self._supervisor, self._node)
        try:
            async with aclosing(session.run(desired)) as news:
                async for observed in news:
                    yield observed
        finally:
            self._session = None

    async def open(self, target: OpenTarget) -> ByteStream:
        """``application``: a connection to a ready instance; ``logs``: an instance's log."""
        await self._connected()
        if target.kind == "application":
            return await self._open_application(target)
        if target.kind == "logs":
            view = self._find(target)
            return logs.open_log(self._setting.folder / "instances" / view.id, target.options)
        raise ShimError(f"a process cluster has no {target.kind!r} to open; it offers application and logs")

    async def close(self) -> None:
        """Let go. Applications run on."""
        if self._started:
            self._started = False
            await self._supervisor.close()

    async def end(self, grace_seconds: float | None = None) -> None:
        """Stop every application and the supervisor; what they keep in volumes stays."""
        await self.close()
        await asyncio.to_thread(client.end, self._setting.folder, grace_seconds)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            staging = self._setting.folder / "staging"
            shutil.rmtree(staging, ignore_errors=True)  # of a controller that died before it said "start"
            staging.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._setting.folder.chmod(0o700)
            self._supervisor.start()

    async def _connected(self) -> None:
        self._start()
        try:
            async with asyncio.timeout(client.LAUNCH_SECONDS):
                await self._supervisor.connected.wait()
        except TimeoutError:
            raise ShimError(f"no supervisor answers in {self._setting.folder}: {self._supervisor.problem}") from None

    def _changed(self, name: str) -> None:
        if self._session is not None:
            self._session.changed(name)

    def _find(self, target: OpenTarget) -> InstanceView:
        """The named instance, or the ready and newest one of the application (and component)."""
        fitting = [
            view
            for view in self._supervisor.instances.values()
            if (not target.instance or view.id == target.instance)
            and (not target.uid or view.labels["uid"] == target.uid)
            and (not target.component or view.labels["component"] == target.component)
        ]
        if not fitting:
            raise ShimError(f"no instance {target.instance or target.component or target.uid} runs here")
        return max(fitting, key=lambda view: (self._ready(view), view.started_unix))

    def _ready(self, view: InstanceView) -> bool:
        return view.phase == "Running" and (self._session is None or self._session.ready(view.id))

    async def _open_application(self, target: OpenTarget) -> ByteStream:
        view = self._find(target)
        if not self._ready(view):
            raise ShimError(f"application {target.uid}: no instance is ready ({view.id} is {view.phase})")
        port = int(view.labels["port"])
        home = self._setting.folder / "instances" / view.id
        try:
            if view.labels["model"] and (target.instance or not port):
                sock = await client.connect(home / CONTROL)  # in person: the port is shared with the other replicas
            elif port:
                sock = await dial(self._setting.bind, port)
            else:
                raise ShimError(f"component {view.labels['component']} exposes no port")
        except OSError as error:
            raise ShimError(f"instance {view.id} cannot be reached: {error.strerror or error}") from None
        return await SocketStream.over(sock)
