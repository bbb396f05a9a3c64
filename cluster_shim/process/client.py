"""The controller's end of the supervisor: start it when there is none, keep talking to it, mirror what it holds.

The mirror (`instances`, `ports`) is complete whenever `connected` is set: each connection begins with everything, then changes
follow. A supervisor of another version is asked to become ours before anything else; it keeps its sockets and children.
"""

import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.tasks import Tasks, end_task
from cluster_shim.contract import ShimError
from cluster_shim.process.supervisor.core import program_version
from cluster_shim.process.views import Hello, InstanceView, PortView

log = structlog.get_logger()

LAUNCH_SECONDS = 20.0
CALL_SECONDS = 30.0
RECONNECT_SECONDS = (0.02, 5.0)
MAX_LINE = 4 << 20  # one answer names every instance
MAIN = Path(__file__).parent / "supervisor" / "main.py"


class _Message(Struct):
    id: int | str = 0
    ok: msgspec.Raw = msgspec.Raw()
    error: str = ""
    event: str = ""
    instance: msgspec.Raw = msgspec.Raw()


class Lost(ShimError):
    """The supervisor went away with this request unanswered; it may have been carried out."""


class SupervisorClient:
    """``changed(id)`` is called on every change of an instance, ``changed("")`` when the connection comes or goes."""

    def __init__(self, folder: Path, python: str, changed: Callable[[str], None], options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.instances: dict[str, InstanceView] = {}
        self.ports: dict[str, PortView] = {}
        self.hello: Hello | None = None
        self.connected = asyncio.Event()
        self.problem = "the supervisor was not started yet"
        self._argv = [python, "-I", "-S", "-E", str(MAIN), "--folder", str(folder.absolute()), *options]
        self._version = program_version()
        self._changed = changed
        self._pending: dict[int | str, asyncio.Future[msgspec.Raw]] = {}
        self._next = 0
        self._greeting = 0  # number of the request whose answer is everything
        self._asked_to_upgrade = False
        self._writer: asyncio.StreamWriter | None = None
        self._tasks = Tasks("shim/process")

    def start(self) -> None:
        self._tasks.spawn("supervisor", self._keep_connected())

    async def close(self) -> None:
        """Let go of the supervisor; it and everything it runs go on."""
        await self._tasks.close()
        self._disconnect("closed")

    async def call(self, operation: str, **fields: Any) -> msgspec.Raw:
        """One request. Raises ShimError when it is refused, `Lost` when there is no supervisor to answer."""
        if self._writer is None:
            raise Lost(f"{operation}: no supervisor answers in {self.folder}: {self.problem}")
        self._next += 1
        number = self._next
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        self._writer.write(msgspec.json.encode({"id": number, "op": operation, **fields}) + b"\n")
        try:
            async with asyncio.timeout(CALL_SECONDS):
                result: msgspec.Raw = await future
                return result
        except TimeoutError:
            raise Lost(f"{operation}: the supervisor in {self.folder} did not answer within {CALL_SECONDS:g} s") from None
        finally:
            self._pending.pop(number, None)

    async def begin(self, name: str) -> None:
        """Make the staged folder an instance and start it."""
        view = msgspec.json.decode(await self.call("start", instance=name), type=InstanceView)
        self.instances.setdefault(name, view)  # the answer may overtake the event, and the event knows more
        self._changed(name)

    async def hold(self, name: str, address: str, port: int) -> PortView:
        view = msgspec.json.decode(await self.call("hold", name=name, address=address, port=port), type=PortView)
        self.ports[name] = view
        return view

    async def direct(self, weights: Mapping[str, int]) -> None:
        for view in msgspec.json.decode(await self.call("direct", weights=weights), type=list[PortView]):
            self.ports[view.name] = view

    async def release(self, name: str) -> None:
        await self.call("release", name=name)
        self.ports.pop(name, None)

    async def _keep_connected(self) -> None:
        low, high = RECONNECT_SECONDS
        delay = low
        while True:
            try:
                reader = await self._open()
                delay = low
                await self._serve(reader)
                self.problem = "it closed the connection"
            except (OSError, ShimError, msgspec.MsgspecError) as error:
                self.problem = str(error)
                log.warning("supervisor.unreachable", folder=str(self.folder), reason=self.problem)
            self._disconnect(self.problem)
            await asyncio.sleep(delay)
            delay = min(delay * 2, high)

    async def _open(self) -> asyncio.StreamReader:
        """Connect; without anybody to connect to, start a supervisor first."""
        try:
            sock = await connect(self.folder / "supervisor.sock")
        except OSError:
            await launch(self._argv)
            sock = await connect(self.folder / "supervisor.sock")
        reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE)
        return reader

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        receiving = asyncio.create_task(self._receive(reader), name="shim/process/receive")
        try:
            self._greeting = self._next + 1
            await self.call("hello")
            hello = self.hello
            assert hello is not None
            if hello.version != self._version and await self._upgrade(hello):
                return
            self.connected.set()
            log.info("supervisor.connected", pid=hello.pid, instances=len(self.instances), ports=len(self.ports), limits=hello.limits)
            self._changed("")
            await receiving
        finally:
            await end_task(receiving)

    async def _upgrade(self, hello: Hello) -> bool:
        """True: it is on its way, connect again. Asked once only; a supervisor that cannot is better than none."""
        if self._asked_to_upgrade:
            log.warning("supervisor.other_version", pid=hello.pid, version=hello.version, ours=self._version)
            return False
        self._asked_to_upgrade = True
        log.info("supervisor.upgrade", pid=hello.pid, old=hello.version, new=self._version)
        try:
            await self.call("upgrade", argv=self._argv)
        except Lost:
            return True  # nobody is left to answer when it works
        except ShimError as error:
            log.warning("supervisor.upgrade_refused", reason=str(error))
        return False

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(msgspec.json.decode(line, type=_Message))
        finally:
            self._fail_pending("the connection was lost")

    def _take(self, message: _Message) -> None:
        if message.event == "instance":
            view = msgspec.json.decode(message.instance, type=InstanceView)
            self.instances[view.id] = view
            self._changed(view.id)
        elif message.event == "gone":
            gone = str(message.id)
            self.instances.pop(gone, None)
            self._changed(gone)
        elif (future := self._pending.get(message.id)) is not None and not future.done():
            if message.error:
                future.set_exception(ShimError(message.error))
                return
            if message.id == self._greeting:
                # Here, not where the answer is awaited: changes that follow in the same read must not be overwritten by it.
                self._mirror(msgspec.json.decode(message.ok, type=Hello))
            future.set_result(message.ok)

    def _mirror(self, hello: Hello) -> None:
        self.hello = hello
        self.instances = {view.id: view for view in hello.instances}
        self.ports = {view.name: view for view in hello.ports}

    def _disconnect(self, reason: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._fail_pending(reason)
        if self.connected.is_set():
            self.connected.clear()
            self._changed("")

    def _fail_pending(self, reason: str) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(Lost(f"the supervisor in {self.folder} is gone: {reason}"))


async def launch(argv: list[str]) -> None:
    """Start a supervisor outside our life and wait until it answers. It gets nothing of our environment but the PATH.

    No thread waits for it: a controller that is told to stop meanwhile stops, and the supervisor comes up all the same.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    environment.update({name: value for name, value in os.environ.items() if name == "BANYAN_CRASH_AT"})
    starter = await asyncio.create_subprocess_exec(
        *argv, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LAUNCH_SECONDS):
            _, said = await starter.communicate()
    except TimeoutError:
        raise ShimError(f"the supervisor did not come up within {LAUNCH_SECONDS:g} s; see supervisor.log in its folder") from None
    finally:
        if starter.returncode is None:
            with suppress(ProcessLookupError):
                starter.kill()  # it only waits to tell us; what it started is not its child any more
            await starter.wait()
    if starter.returncode:
        detail = said.decode(errors="replace").strip()[-500:]
        raise ShimError(f"the supervisor could not be started: {detail or 'see supervisor.log in its folder'}")


async def connect(path: Path) -> socket.socket:
    """A connected Unix socket; through the folder's descriptor, because the path may be longer than a socket address."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


def end(folder: Path, grace: float | None = None, timeout: float = 60.0) -> bool:
    """Stop every instance below ``folder`` and its supervisor, and wait until they are gone. False when none was running.

    For whoever removes a cluster (leave, tests, demonstrations); blocks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if folder.is_dir() else -1
    if descriptor < 0:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(f"/proc/self/fd/{descriptor}/supervisor.sock")
            pidfd = os.pidfd_open(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
            sock.sendall(msgspec.json.encode({"id": 1, "op": "end", "grace": grace}) + b"\n")
            sock.recv(65536)
    except (FileNotFoundError, ConnectionError, ProcessLookupError):
        return False
    finally:
        os.close(descriptor)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = poll.poll(timeout * 1000)
    os.close(pidfd)
    if not ended:
        raise ShimError(f"the supervisor in {folder} still has instances after {timeout:g} s")
    return True
