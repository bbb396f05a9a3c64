"""Ask instances whether they live and are ready, each in person.

The site port is shared, so a connection to it reaches some instance. Whom a probe asks, in this order: the port that the probe
names; the private socket of the instance (a model worker's ``--control``; a command's LISTEN_FDS descriptor named ``probe``);
the site port. Without a readiness probe a command is ready once it has run for a second.

While no controller runs nobody probes; what exits is restarted by the supervisor all the same.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller.clock import boottime
from cluster_shim.contract import Probe, ShimError
from cluster_shim.process import client
from cluster_shim.process.client import InstanceView, SupervisorClient
from cluster_shim.process.command import CONTROL, PRIVATE, Setting

MODEL_READINESS = Probe(http_path="/v2/health/ready", period_seconds=10.0, timeout_seconds=1.0)
EAGER_SECONDS = 0.2  # between probes of a model worker until it is ready for the first time
STEADY_SECONDS = 1.0  # a command without a readiness probe is ready after this
MAX_CONCURRENT = 16
_HEAD = 4096


class Count(Struct):
    """Consecutive answers of one probe, pure."""

    probe: Probe
    good: bool
    streak: int = 0  # answers in a row that contradict ``good``
    due: float = 0.0

    def observe(self, ok: bool) -> bool:
        """True when this answer turns the verdict."""
        self.streak = 0 if ok == self.good else self.streak + 1
        needed = self.probe.success_threshold if ok else self.probe.failure_threshold
        if ok == self.good or self.streak < needed:
            return False
        self.good, self.streak = ok, 0
        return True


class _Subject:
    """One run of one instance."""

    def __init__(self, view: InstanceView, now: float, age: float) -> None:
        self.view = view
        labels = view.labels
        liveness = _probe(labels.get("liveness"))
        readiness = _probe(labels.get("readiness")) or (MODEL_READINESS if labels.get("model") else None)
        self.readiness = Count(readiness, good=False, due=now + _initial(readiness, age)) if readiness else None
        self.liveness = Count(liveness, good=True, due=now + _initial(liveness, age)) if liveness else None
        self.steady_at = now + max(STEADY_SECONDS - age, 0.0)
        self.eager = bool(labels.get("model"))
        self.steady = self.steady_at <= now

    @property
    def ready(self) -> bool:
        return self.readiness.good if self.readiness else self.steady

    def due(self) -> float:
        times = [count.due for count in (self.readiness, self.liveness) if count]
        if not self.readiness and not self.steady:
            times.append(self.steady_at)
        return min(times, default=float("inf"))


def _probe(document: Any) -> Probe | None:
    return msgspec.convert(document, Probe) if document else None


def _initial(probe: Probe, age: float) -> float:
    return max(probe.initial_delay_seconds - age, 0.0)


class Prober:
    """``changed(id)`` is called when an instance's readiness turns."""

    def __init__(self, setting: Setting, supervisor: SupervisorClient, changed: Callable[[str], None], wall: Callable[[], float]) -> None:
        self._setting = setting
        self._supervisor = supervisor
        self._changed = changed
        self._wall = wall
        self._subjects: dict[str, _Subject] = {}
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def ready(self, name: str) -> bool:
        subject = self._subjects.get(name)
        return subject is not None and subject.ready

    def follow(self, views: Iterable[InstanceView]) -> None:
        """These instances exist. A new pid is a new run and has to prove itself anew."""
        running = {view.id: view for view in views if view.pid and view.phase == "Running"}
        for name in [name for name in self._subjects if name not in running]:
            del self._subjects[name]
        for name, view in running.items():
            known = self._subjects.get(name)
            if known is None or known.view.pid != view.pid:
                age = max(self._wall() - view.started_unix, 0.0)
                self._subjects[name] = _Subject(view, boottime(), age)
                self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            due = min((subject.due() for subject in self._subjects.values()), default=float("inf"))
            if due == float("inf"):
                await self._wake.wait()
            elif (wait := due - boottime()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
            await self.round()

    async def round(self) -> None:
        """Ask everybody who is due, all at once."""
        now = boottime()
        asks: list[Awaitable[None]] = []
        for name, subject in self._subjects.items():
            if not subject.readiness and not subject.steady and subject.steady_at <= now:
                subject.steady = True
                self._changed(name)
            if subject.readiness and subject.readiness.due <= now:
                asks.append(self._ask_ready(name, subject, subject.readiness))
            if subject.liveness and subject.liveness.due <= now:
                asks.append(self._ask_alive(name, subject, subject.liveness))
        await asyncio.gather(*asks)

    async def _ask_ready(self, name: str, subject: _Subject, count: Count) -> None:
        turned = count.observe(await self._ask(subject, count.probe))
        eager = subject.eager and not count.good
        count.due = boottime() + (EAGER_SECONDS if eager else count.probe.period_seconds)
        if turned and self._subjects.get(name) is subject:
            self._changed(name)

    async def _ask_alive(self, name: str, subject: _Subject, count: Count) -> None:
        turned = count.observe(await self._ask(subject, count.probe))
        count.due = boottime() + count.probe.period_seconds
        if turned and not count.good and self._subjects.get(name) is subject:
            message = f"the liveness probe failed {count.probe.failure_threshold} times in a row"
            with suppress(ShimError):  # no supervisor now: the next failures ask again
                await self._supervisor.call("restart", instance=name, reason="Unhealthy", message=message)

    async def _ask(self, subject: _Subject, probe: Probe) -> bool:
        async with self._slots:
            try:
                async with asyncio.timeout(probe.timeout_seconds):
                    if probe.command:
                        return await self._run(subject.view, probe.command)
                    return await self._http(await self._reach(subject.view, probe), probe)
            except (OSError, TimeoutError):
                return False

    async def _reach(self, view: InstanceView, probe: Probe) -> socket.socket:
        """A connection to this instance in person where there is a way, else to its port."""
        home = self._setting.folder / "instances" / view.id
        if probe.port:
            return await dial(self._setting.bind, probe.port)
        if view.labels.get("model"):
            return await client.connect(home / CONTROL)
        if view.labels.get("shared"):
            return await client.connect(home / PRIVATE)
        return await dial(self._setting.bind, int(view.labels["port"]))

    async def _http(self, sock: socket.socket, probe: Probe) -> bool:
        loop = asyncio.get_running_loop()
        try:
            if probe.tcp:
                return True
            await loop.sock_sendall(sock, f"GET {probe.http_path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
            head = b""
            while b"\r\n" not in head and len(head) < _HEAD:
                data = await loop.sock_recv(sock, _HEAD)
                if not data:
                    break
                head += data
            words = head.split(b" ", 2)
            return len(words) > 1 and words[0].startswith(b"HTTP/1.") and b"200" <= words[1] < b"400"
        finally:
            sock.close()

    async def _run(self, view: InstanceView, command: tuple[str, ...]) -> bool:
        """With the instance's own environment, in its folder."""
        home = self._setting.folder / "instances" / view.id
        document = await asyncio.to_thread(_environment, home)
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=home / "work",
            env=document,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                await process.wait()


def _environment(home: Path) -> dict[str, str]:
    document: dict[str, Any] = msgspec.json.decode((home / "spec.json").read_bytes())
    return document["env"]  # type: ignore[no-any-return]


async def dial(bind: str, port: int) -> socket.socket:
    """A TCP connection to a port of this site."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bind, bind)  # noqa: S104 - compared, not bound
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock
