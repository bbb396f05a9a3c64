"""The supervisor: the table of instances and ports, and the operations that a controller may ask for.

It decides nothing about what should run. It keeps what it was told to keep, through its own death too, and says what it sees;
all policy (placement, swaps, probes) is the controller's, so this program seldom has to change.
"""

from __future__ import annotations

import os
import sys
import zlib

from cluster_shim.process.supervisor import control, crash, files, loop
from cluster_shim.process.supervisor.instance import BACKOFF, Instance
from cluster_shim.process.supervisor.limits import CgroupLimits
from cluster_shim.process.supervisor.logfile import Watcher
from cluster_shim.process.supervisor.record import RUN, BadSpec, Folder, Spec, State, valid_id
from cluster_shim.process.supervisor.sockets import Ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from cluster_shim.process.supervisor.limits import Limits

MAX_INSTANCES = 1000
IDLE_EXIT_SECONDS = 60.0  # with nothing to hold and nobody connected there is no reason to live


def program_version() -> str:
    """A checksum of this package's source: another one on disk means that another program is installed.

    CRC-32, because hashlib would load OpenSSL into a process that must stay small.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    checksum = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), "rb") as file:
                checksum = zlib.crc32(name.encode() + b"\0" + file.read(), checksum)
    return f"{checksum:08x}"


class Supervisor:
    def __init__(self, folder: Folder, boot: str, sock: socket.socket, lock: int, *, log_bytes: int, limits: Limits) -> None:
        self.folder = folder
        self.boot = boot
        self.log_bytes = log_bytes
        self.version = program_version()
        self.loop = loop.Loop()
        self.watcher = Watcher(self.loop)
        self.limits = limits
        self.ports = Ports(folder.path)
        self.instances: dict[str, Instance] = {}
        self._lock = lock
        self._ending = False
        self._idle_timer: loop.Timer | None = None
        self._server = control.Server(self.loop, sock, self._handle, self._maybe_idle)

    # Life

    def resume(self, descriptors: dict[str, int]) -> None:
        """Take over what an earlier supervisor left: first the sockets, since an instance that starts needs them."""
        for name in os.listdir(self.folder.trash):
            files.remove_tree(os.path.join(self.folder.trash, name))
        for name in self.folder.names():
            try:
                spec = self.folder.spec(name)
            except BadSpec as error:
                print(error, file=sys.stderr)
                files.remove_tree(self.folder.discard(name))
                continue
            self.instances[name] = Instance(self, spec, self.folder.state(name))
        if isinstance(self.limits, CgroupLimits):
            self.limits.sweep(set(self.instances))
        self.ports.resume(descriptors)
        for instance in self.instances.values():
            for _, port_name in instance.spec.sockets:
                self.ports.also_as(port_name)
        states = [instance.state for instance in self.instances.values()]
        self.ports.recover([state.pid for state in states if state.pid and state.boot == self.boot])
        for instance in list(self.instances.values()):
            instance.resume()
        self._maybe_idle()

    def run(self) -> None:
        self.loop.run()

    def close_in_child(self) -> None:
        """The lock is freed by the last copy of its descriptor; a child at the gate must not keep a successor waiting."""
        os.close(self._lock)

    def _maybe_idle(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self.instances or self._server.connections:
            return
        if self._ending:
            self.loop.running = False
        elif not self.ports.table:
            self._idle_timer = self.loop.call_at(loop.now() + IDLE_EXIT_SECONDS, self._idle_exit)

    def _idle_exit(self) -> None:
        if not (self.instances or self.ports.table or self._server.connections):
            self.loop.running = False

    # What instances need

    def sockets_of(self, spec: Spec) -> tuple[list[str], list[int]]:
        """Names and fresh duplicates of the sockets that this instance is to inherit."""
        names, descriptors = [], []
        try:
            for label, port_name in spec.sockets:
                port = self.ports.table.get(port_name)
                if port is None or port.sock is None:
                    raise OSError(0, port.error if port else f"port {port_name} is not held")
                descriptors.append(os.dup(port.sock.fileno()))
                names.append(label)
            if spec.private:
                sock = control.listen(spec.private)
                sock.setblocking(True)
                descriptors.append(sock.detach())
                names.append("probe")
        except OSError:
            for fd in descriptors:
                os.close(fd)
            raise
        return names, descriptors

    def may_go(self, instance: Instance) -> bool:
        """Whether nobody waits for this instance alone: its sockets have other users, or nobody is in their queues."""
        for _, name in instance.spec.sockets:
            shared = any(
                other is not instance and other.state.wanted == RUN and any(name == held for _, held in other.spec.sockets)
                for other in self.instances.values()
            )
            if not shared and not self.ports.drained(name, loop.now()):
                return False
        return True

    def changed(self, instance: Instance) -> None:
        if instance.spec.id in self.instances:
            self._server.broadcast({"event": "instance", "instance": instance.view()})

    def gone(self, instance: Instance) -> None:
        self.instances.pop(instance.spec.id, None)
        self._server.broadcast({"event": "gone", "id": instance.spec.id})
        self._maybe_idle()

    # What a controller asks

    def _handle(self, connection: control.Connection, operation: str, request: dict[str, Any]) -> Any:
        method = getattr(self, f"_op_{operation}", None)
        if method is None:
            raise control.Refused(f"{operation}: this supervisor (version {self.version}) does not know that operation")
        return method(connection, request)

    def _op_hello(self, connection: control.Connection, _request: dict[str, Any]) -> dict[str, Any]:
        connection.subscribed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        return {
            "pid": os.getpid(),
            "version": self.version,
            "boot": self.boot,
            "limits": self.limits.mode,
            "instances": [instance.view() for instance in self.instances.values()],
            "ports": [port.view() for port in self.ports.table.values() if not port.spare],
        }

    def _op_start(self, _connection: control.Connection, request: dict[str, Any]) -> dict[str, Any]:
        name = str(request["instance"])
        if not valid_id(name):
            raise control.Refused(f"instance {name!r}: not a DNS label")
        existing = self.instances.get(name)
        if existing is not None:
            return existing.view()
        if len(self.instances) >= MAX_INSTANCES or self._ending:
            raise control.Refused(f"instance {name}: {MAX_INSTANCES} instances are running, or the supervisor is ending")
        try:
            self.folder.admit(name)
            crash.point("start.moved")
            spec = self.folder.spec(name)
        except FileNotFoundError:
            raise control.Refused(f"instance {name}: nothing is staged under that name") from None
        except BadSpec as error:
            files.remove_tree(self.folder.discard(name))
            raise control.Refused(str(error)) from None
        instance = self.instances[name] = Instance(self, spec, State())
        instance.start()
        return instance.view()

    def _op_stop(self, _connection: control.Connection, request: dict[str, Any]) -> bool:
        instance = self.instances.get(str(request["instance"]))
        if instance is not None:
            grace = request.get("grace")
            instance.stop(None if grace is None else float(grace))
        return instance is not None

    def _op_restart(self, _connection: control.Connection, request: dict[str, Any]) -> bool:
        instance = self.instances.get(str(request["instance"]))
        if instance is not None:
            instance.restart(str(request["reason"]), str(request["message"])[:512], at_once=bool(request.get("at_once")))
        return instance is not None

    def _op_hold(self, _connection: control.Connection, request: dict[str, Any]) -> dict[str, object]:
        port = self.ports.hold(str(request["name"]), str(request["address"]), int(request["port"]))
        if not port.error:
            self._retry_waiting(port.name)
        return port.view()

    def _op_direct(self, _connection: control.Connection, request: dict[str, Any]) -> list[dict[str, object]]:
        weights = {str(name): max(int(weight), 0) for name, weight in request["weights"].items()}
        self.ports.direct(weights, loop.now())
        return [self.ports.table[name].view() for name in weights if name in self.ports.table]

    def _retry_waiting(self, port_name: str) -> None:
        for instance in self.instances.values():
            if instance.phase == BACKOFF and any(held == port_name for _, held in instance.spec.sockets):
                instance.start_soon()

    def _op_release(self, _connection: control.Connection, request: dict[str, Any]) -> bool:
        self.ports.release(str(request["name"]))
        self._maybe_idle()
        return True

    def _op_upgrade(self, _connection: control.Connection, request: dict[str, Any]) -> bool:
        """Become another program, with the same pid, sockets and children. Does not return when it works."""
        argv = [str(word) for word in request["argv"]]
        if not os.access(argv[0], os.X_OK):
            raise control.Refused(f"upgrade: {argv[0]} cannot be executed")
        held = {port.name: port.sock.fileno() for port in self.ports.table.values() if port.sock is not None}
        handed = [*held.values(), self._lock, self._server.sock.fileno()]
        files.write_json(self.folder.upgrade, {"ports": held, "lock": self._lock, "control": self._server.sock.fileno()})
        crash.point("upgrade.written")
        for fd in handed:
            os.set_inheritable(fd, True)
        crash.point("upgrade.exec")
        try:
            os.execv(argv[0], [*argv, "--resume"])  # noqa: S606 - no shell is the point
        except OSError as error:
            for fd in handed:
                os.set_inheritable(fd, False)
            os.unlink(self.folder.upgrade)
            raise control.Refused(f"upgrade: {argv[0]}: {error.strerror}") from None

    def _op_end(self, _connection: control.Connection, request: dict[str, Any]) -> bool:
        """Stop every instance, close every port, and exit when all are gone and the last connection has closed."""
        self._ending = True
        grace = request.get("grace")
        for instance in list(self.instances.values()):
            instance.stop(None if grace is None else float(grace))
        for name in list(self.ports.table):
            self.ports.release(name)
        self._maybe_idle()
        return True
