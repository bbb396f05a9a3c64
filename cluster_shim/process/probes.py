"""Ask instances whether they live and are ready, each in person.

The site port is shared, so a connection to it reaches some instance. Whom a probe asks, in this order:

- the port that the probe names, or the port that a command without a socket bound by itself;
- the private socket of the instance: a model worker's ``--control``, a command's LISTEN_FDS descriptor named ``probe``;
- for a command that does not serve that one: the site port, from the address that leads to its revision's socket. When other
  instances share that, the answer counts only if the kernel shows that the connection ended up in this instance; an answer of
  another one leaves the verdict as it was.

Without a readiness probe a command is ready once it has run for a second. A TCP probe of a shared or private socket says only
that the process runs, since the kernel completes those connections.

While no controller runs nobody probes; what exits is restarted by the supervisor all the same.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller.clock import boottime
from cluster_shim.contract import Probe, ShimError
from cluster_shim.process import client, facts
from cluster_shim.process.client import SupervisorClient
from cluster_shim.process.command import CONTROL, PRIVATE, Setting
from cluster_shim.process.plan import port_name
from cluster_shim.process.supervisor import proc
from cluster_shim.process.views import InstanceView

MODEL_READINESS = Probe(http_path="/v2/health/ready", period_seconds=10.0, timeout_seconds=1.0)
EAGER_SECONDS = 0.1  # between questions to an instance that is awaited, and the least between any two
STEADY_SECONDS = 1.0  # a command without a readiness probe is ready after this
ACCEPT_POLL_SECONDS = 0.01
ATTEMPTS = 4  # to reach one instance over a shared port
MAX_CONCURRENT = 16
_HEAD = 4096


class _Failed(Exception):
    """An answer that is not good; says which."""


class Count(Struct):
    """Consecutive answers of one probe, pure."""

    probe: Probe
    good: bool
    streak: int = 0  # answers in a row that contradict ``good``
    due: float = 0.0
    asking: bool = False
    trouble: str = ""  # what the last bad answer was

    def observe(self, ok: bool) -> bool:
        """True when this answer turns the verdict."""
        self.streak = 0 if ok == self.good else self.streak + 1
        needed = self.probe.success_threshold if ok else self.probe.failure_threshold
        if ok == self.good or self.streak < needed:
            return False
        self.good, self.streak = ok, 0
        return True


def pause(count: Count, *, waiting: bool, age: float) -> float:
    """Seconds until the next question. An instance that is awaited is asked often at first, ever less often as it ages."""
    period = max(count.probe.period_seconds, EAGER_SECONDS)
    return min(max(age / 10, EAGER_SECONDS), period) if waiting else period


class _Subject:
    """One run of one instance."""

    def __init__(self, view: InstanceView, now: float, age: float) -> None:
        self.view = view
        self.began = now - age
        labels = view.labels
        liveness = _probe(labels.get("liveness"))
        readiness = _probe(labels.get("readiness")) or (MODEL_READINESS if labels.get("model") else None)
        self.readiness = Count(readiness, good=False, due=now + _initial(readiness, age)) if readiness else None
        self.liveness = Count(liveness, good=True, due=now + _initial(liveness, age)) if liveness else None
        self.steady_at = now + max(STEADY_SECONDS - age, 0.0)
        self.steady = self.steady_at <= now
        self.private: bool | None = None  # whether it serves its private socket; None: not found out yet

    @property
    def ready(self) -> bool:
        return self.readiness.good if self.readiness else self.steady

    def overdue(self, now: float) -> bool:
        """It could have failed as often as its readiness probe allows."""
        probe = self.readiness.probe if self.readiness else None
        return probe is not None and now - self.began >= probe.initial_delay_seconds + probe.failure_threshold * probe.period_seconds

    def due(self) -> float:
        times = [count.due for count in (self.readiness, self.liveness) if count and not count.asking]
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
        self._asks: set[asyncio.Task[None]] = set()

    def ready(self, name: str) -> bool:
        subject = self._subjects.get(name)
        return subject is not None and subject.ready

    def trouble(self, name: str) -> str:
        """Why it is not ready, once it has had the time that its probe gives it; empty while it is starting."""
        subject = self._subjects.get(name)
        if subject is None or subject.readiness is None or subject.ready:
            return ""
        return subject.readiness.trouble if subject.overdue(boottime()) else ""

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
        try:
            while True:
                self._wake.clear()
                due = min((subject.due() for subject in self._subjects.values()), default=float("inf"))
                if due == float("inf"):
                    await self._wake.wait()
                elif (wait := due - boottime()) > 0:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._wake.wait()
                self._ask_due()
        finally:
            for ask in self._asks:
                ask.cancel()

    async def round(self) -> None:
        """Ask everybody who is due and wait for the answers."""
        self._ask_due()
        if self._asks:
            await asyncio.wait(self._asks)

    def _ask_due(self) -> None:
        now = boottime()
        for name, subject in self._subjects.items():
            if not subject.readiness and not subject.steady and subject.steady_at <= now:
                subject.steady = True
                self._changed(name)
            for count in (subject.readiness, subject.liveness):
                if count and count.due <= now and not count.asking:
                    count.asking = True
                    ask = asyncio.create_task(self._put(name, subject, count), name=f"shim/process/probe/{name}")
                    self._asks.add(ask)
                    ask.add_done_callback(self._asks.discard)

    async def _put(self, name: str, subject: _Subject, count: Count) -> None:
        before = self.trouble(name)
        try:
            answer = await self._ask(subject, count)
            turned = answer is not None and count.observe(answer)
        finally:
            count.asking = False
            waiting = count is subject.readiness and not count.good
            now = boottime()
            count.due = now + pause(count, waiting=waiting, age=now - subject.began)
            self._wake.set()
        if self._subjects.get(name) is not subject:
            return
        if count is subject.readiness:
            if turned or self.trouble(name) != before:
                self._changed(name)
        elif not turned:
            return
        elif not count.good:
            message = f"the liveness probe failed {count.probe.failure_threshold} times in a row: {count.trouble}"
            with suppress(ShimError):  # no supervisor now: the next failures ask again
                await self._supervisor.call("restart", instance=name, reason="Unhealthy", message=message)

    async def _ask(self, subject: _Subject, count: Count) -> bool | None:
        """None: somebody else answered, nothing is known."""
        probe = count.probe
        async with self._slots:
            try:
                async with asyncio.timeout(probe.timeout_seconds):
                    if probe.command:
                        return await _run(self._setting.folder / "instances" / subject.view.id, probe.command)
                    return await self._connect(subject, probe)
            except TimeoutError:
                count.trouble = f"no answer within {probe.timeout_seconds:g} s"
            except OSError as error:
                count.trouble = error.strerror or str(error)
            except _Failed as error:
                count.trouble = str(error)
            return False

    async def _connect(self, subject: _Subject, probe: Probe) -> bool | None:
        view = subject.view
        home = self._setting.folder / "instances" / view.id
        if view.labels.get("model") and not probe.port:
            return await _http(await client.connect(home / CONTROL), probe)
        if probe.port or not view.labels.get("shared"):
            return await _http(await dial(self._setting.bind, probe.port or int(view.labels["port"])), probe)
        if subject.private is not False and not probe.tcp:
            try:
                # Half of the time: a program that does not serve this socket leaves the question unheard.
                async with asyncio.timeout(None if subject.private else probe.timeout_seconds / 2):
                    answer = await _http(await client.connect(home / PRIVATE), probe)
            except TimeoutError:
                if subject.private:
                    raise  # it has answered there before: now it hangs
            except _Failed:
                subject.private = True
                raise
            else:
                subject.private = True
                return answer
        shared = await self._over_site_port(view, probe)
        if shared and subject.private is None:
            subject.private = False
        return shared

    async def _over_site_port(self, view: InstanceView, probe: Probe) -> bool | None:
        port = self._supervisor.ports.get(port_name(view.labels["uid"], view.labels["component"], view.labels["revision"]))
        source = port.source if port is not None else ""
        same = ("uid", "component", "revision") if source else ("uid", "component")  # without one all revisions share a socket
        sharing = [other for other in self._supervisor.instances.values() if all(other.labels[name] == view.labels[name] for name in same)]
        alone = len(sharing) == 1
        for _ in range(ATTEMPTS):
            sock = await dial(self._setting.bind, int(view.labels["port"]), source)
            if alone or await _accepted_by(view.pid, sock):
                return await _http(sock, probe)
            sock.close()
        return None


async def _http(sock: socket.socket, probe: Probe) -> bool:
    """True; _Failed when it does not answer well."""
    loop = asyncio.get_running_loop()
    with sock:
        if probe.tcp:
            return True
        await loop.sock_sendall(sock, f"GET {probe.http_path} HTTP/1.1\r\nHost: probe\r\n\r\n".encode())
        head = b""
        while b"\r\n" not in head and len(head) < _HEAD:
            data = await loop.sock_recv(sock, _HEAD)
            if not data:
                break
            head += data
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            raise _Failed(f"GET {probe.http_path}: {'no HTTP answer' if head else 'hung up without an answer'}")
        code = words[1][:3].decode("ascii", "replace")
        if not "200" <= code < "400":
            raise _Failed(f"GET {probe.http_path}: answered {code}")
        return True


async def _accepted_by(pid: int, sock: socket.socket) -> bool:
    """Wait until somebody accepts our connection (bounded by the probe's timeout); whether that is ``pid`` or what it started."""
    try:
        while (inode := _peer_inode(sock)) == 0:  # noqa: ASYNC110 - the kernel tells nobody when a connection is accepted
            await asyncio.sleep(ACCEPT_POLL_SECONDS)
    except BaseException:
        sock.close()
        raise
    return any(proc.socket_descriptors(each, inode) for each in facts.tree(pid))


def _peer_inode(sock: socket.socket) -> int:
    """Inode of the other end of a connection within this machine; 0 as long as nobody has accepted it."""
    local, remote = sock.getsockname(), sock.getpeername()
    table = "/proc/net/tcp6" if ":" in local[0] else "/proc/net/tcp"
    ends = (f":{remote[1]:04X}", f":{local[1]:04X}")
    with open(table, encoding="ascii") as file:  # noqa: PTH123 - read line by line
        for line in file:
            words = line.split()
            if words[1].endswith(ends[0]) and words[2].endswith(ends[1]):
                return int(words[9])
    return 0


async def _run(home: Path, command: tuple[str, ...]) -> bool:
    """With the instance's own environment, in its folder."""
    environment = await asyncio.to_thread(_environment, home)
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=home / "work",
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        if code := await process.wait():
            raise _Failed(f"{command[0]} exited with code {code}")
        return True
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()


def _environment(home: Path) -> dict[str, str]:
    document: dict[str, Any] = msgspec.json.decode((home / "spec.json").read_bytes())
    return document["env"]  # type: ignore[no-any-return]


async def dial(bind: str, port: int, source: str = "") -> socket.socket:
    """A TCP connection to a port of this site; ``source``: from this address of the loopback network."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bind, bind)  # noqa: S104 - compared, not bound
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if source:
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock
