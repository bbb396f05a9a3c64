"""The site ports' listening sockets. They stay open across restarts, swaps and crashes of instances, so a client that connects
meanwhile waits in the kernel's queue and is served by whoever comes next: no connection is refused.

After the supervisor itself was killed, the same sockets live on in the instances that inherited them. They are taken back with
pidfd_getfd(2); only a port that no living process holds is bound afresh.
"""

from __future__ import annotations

import ctypes
import os
import socket

from cluster_shim.process.supervisor import crash, files, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BACKLOG = 4096  # the kernel caps it at net.core.somaxconn
_PR_SET_PTRACER = 0x59616D61
_PIDFD_GETFD = 438  # the same number on every architecture (asm-generic)


def fetch_descriptor(pid: int, fd: int) -> int:
    """A duplicate of ``fd`` of process ``pid``. Raises OSError; EPERM when the kernel forbids ptrace of it."""
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        got: int = libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if got < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        os.set_inheritable(got, False)
        return got
    finally:
        os.close(pidfd)


def allow_fetching() -> None:
    """In a child before exec: let a successor of the supervisor take the sockets back where Yama forbids it to strangers.

    With ptrace_scope 1 only a parent may; a supervisor that comes after a crash is none. Root needs no permission.
    """
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            restricted = file.read().strip() == "1"
    except OSError:
        return
    if restricted and os.getuid():
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


class Port:
    __slots__ = ("address", "error", "inode", "name", "port", "sock")

    def __init__(self, name: str, address: str, port: int, inode: int = 0) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.inode = inode
        self.sock: socket.socket | None = None
        self.error = ""

    def adopt(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inode = os.fstat(sock.fileno()).st_ino
        self.error = ""

    def bind(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.address, self.port))
            sock.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            sock.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.error = f"port {self.port} on {self.address} cannot be bound: {reason}"
            return
        self.adopt(sock)

    def view(self) -> dict[str, object]:
        return {"name": self.name, "address": self.address, "port": self.port, "error": self.error}


class Ports:
    """The table of ports, mirrored in ``ports.json`` so that a successor knows what to take back."""

    MAX = 1024

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "ports.json")
        self.table: dict[str, Port] = {}
        for name, entry in (files.read_json(self._path) or {}).items():
            self.table[name] = Port(name, entry["address"], entry["port"], entry["inode"])

    def hold(self, name: str, address: str, number: int) -> Port:
        """Idempotent. Another port under the same name is bound before the former one is let go."""
        held = self.table.get(name)
        if held is not None and (held.address, held.port) == (address, number):
            if held.sock is None:
                held.bind()
                self._save()
            return held
        if held is None and len(self.table) >= self.MAX:
            raise ValueError(f"{self.MAX} site ports are held, no more are taken")
        fresh = Port(name, address, number)
        fresh.bind()
        crash.point("port.bound")
        self.table[name] = fresh
        self._save()
        crash.point("port.recorded")
        if held is not None and held.sock is not None:
            held.sock.close()
        return fresh

    def release(self, name: str) -> None:
        port = self.table.pop(name, None)
        if port is None:
            return
        self._save()
        crash.point("release.recorded")
        if port.sock is not None:
            port.sock.close()

    def resume(self, descriptors: dict[str, int]) -> None:
        """Take over the sockets that came through exec."""
        for name, fd in descriptors.items():
            os.set_inheritable(fd, False)
            port = self.table.get(name)
            if port is None:
                os.close(fd)
            else:
                port.adopt(socket.socket(fileno=fd))

    def recover(self, pids: Iterable[int]) -> None:
        """Take missing sockets back from living processes, else bind them. A port that stays lost keeps its error."""
        living = list(pids)
        for port in self.table.values():
            if port.sock is None and not self._fetch(port, living):
                port.bind()
        self._save()

    def _fetch(self, port: Port, pids: list[int]) -> bool:
        for pid in pids:
            for fd in proc.socket_descriptors(pid, port.inode):
                try:
                    got = fetch_descriptor(pid, fd)
                except OSError:
                    continue
                sock = socket.socket(fileno=got)
                # The inode was seen before the descriptor was fetched; it must still be that socket.
                if os.fstat(got).st_ino == port.inode:
                    port.adopt(sock)
                    return True
                sock.close()
        return False

    def _save(self) -> None:
        files.write_json(
            self._path,
            {port.name: {"address": port.address, "port": port.port, "inode": port.inode} for port in self.table.values()},
        )
