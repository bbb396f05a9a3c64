"""The site ports' listening sockets. They stay open across restarts, swaps and crashes of instances, so a client that connects
meanwhile waits in the kernel's queue and is served by whoever comes next: no connection is refused.

Every revision of a component has a socket of its own on the port; `steering` says which of them gets the connections. Where it cannot
(an IPv6 address, a kernel without it), and for the revisions beyond `MAX_GROUP`, revisions share one socket, and their `view` says so
by having no ``source``.

A socket that stands beside others is not closed when its revision goes: the kernel would rearrange the group, and a connection that
comes before the program has followed would end where nobody accepts. It is kept as a spare, for the next revision.

After the supervisor itself was killed, the same sockets live on in the instances that inherited them. They are taken back with
pidfd_getfd(2); only a port that no living process holds is bound afresh.
"""

from __future__ import annotations

import ctypes
import os
import socket

from cluster_shim.process.supervisor import crash, files, proc, steering

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SPARE = "spare:"  # begins the names of sockets that wait for a revision; no controller sees them
MAX_GROUP = 16  # revisions of one component that stand side by side; further ones share a socket
SETTLE_SECONDS = 0.2  # a handshake that began before the connections were sent elsewhere still ends at the former socket
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
    """One listening socket. ``fd`` and ``order`` matter to a successor: see `Ports._bury`."""

    __slots__ = ("address", "error", "fd", "inode", "left", "name", "order", "port", "slot", "sock", "weight")

    def __init__(self, name: str, address: str, port: int, *, weight: int = 1, inode: int = 0) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.slot = 0  # 0: it is the same socket as another's, or alone; nobody can be steered to it
        self.order = -1  # place in its group as it was last saved
        self.weight = weight  # share of the connections, beside the others of this address and port
        self.left = 0.0  # since when it gets none
        self.inode = inode
        self.fd = -1
        self.sock: socket.socket | None = None
        self.error = ""

    @classmethod
    def of(cls, name: str, entry: dict[str, Any]) -> Port:
        """As it was saved; what a supervisor without steering saved has only the first three."""
        port = cls(name, entry["address"], entry["port"], inode=entry["inode"], weight=entry.get("weight", 1))
        port.slot, port.order, port.fd = entry.get("slot", 0), entry.get("order", -1), entry.get("fd", -1)
        return port

    @property
    def spare(self) -> bool:
        return self.name.startswith(SPARE)

    @property
    def place(self) -> tuple[str, int]:
        return self.address, self.port

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def listens(self) -> bool:
        """A program that inherited it may have shut it down for all."""
        return self.sock is not None and bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def adopt(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.inode = os.fstat(self.fd).st_ino
        self.error = ""

    def bind(self, *, grouped: bool, beside: bool) -> None:
        """``grouped``: others of ours may listen there too; ``beside``: they do already. The first one makes sure that nobody else's
        does: it joins the group only after it got the port for itself."""
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if beside:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((self.address, self.port))
            if grouped:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            sock.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.error = f"port {self.port} on {self.address} cannot be bound: {reason}"
            return
        self.adopt(sock)

    def view(self) -> dict[str, object]:
        return {
            "name": self.name, "address": self.address, "port": self.port, "error": self.error, "weight": self.weight,
            "source": steering.source(self.slot) if self.slot else "",
        }  # fmt: skip

    def record(self) -> dict[str, object]:
        return {
            "address": self.address, "port": self.port, "inode": self.inode, "slot": self.slot, "order": self.order,
            "weight": self.weight, "fd": self.fd,
        }  # fmt: skip


class Ports:
    """The table of ports, mirrored in ``ports.json`` so that a successor knows what to take back."""

    MAX = 1024

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "ports.json")
        self._able: bool | None = None  # whether the kernel steers; None: nobody asked yet
        self.table: dict[str, Port] = {}
        self._groups: dict[tuple[str, int], list[str]] = {}  # names in the kernel's order, of those that have a socket of their own
        for name, entry in (files.read_json(self._path) or {}).items():
            self.table[name] = Port.of(name, entry)
        for port in sorted(self.table.values(), key=lambda each: each.order):
            if port.order >= 0:
                self._groups.setdefault(port.place, []).append(port.name)

    def hold(self, name: str, address: str, number: int) -> Port:
        """Idempotent. Another port under the same name is bound before the former one is let go. What comes beside others gets no
        connections before `direct` gives it some."""
        held = self.table.get(name)
        if held is not None and held.place == (address, number):
            if held.sock is None:
                self._open(held)
                self._save()
            return held
        if held is None and len(self.table) >= self.MAX:
            raise ValueError(f"{self.MAX} site ports are held, no more are taken")
        beside = any(other.place == (address, number) and other.sock is not None for other in self.table.values())
        fresh = Port(name, address, number, weight=0 if beside else 1)
        gone = []
        if held is not None:
            del self.table[name]
            gone = self._leave(held)
        fresh = self._reuse(fresh) or self._open(fresh)
        crash.point("port.bound")
        self.table[name] = fresh
        self._save()
        crash.point("port.recorded")
        self._close(gone)
        if held is not None:
            self._steer(held.place)
        return fresh

    def release(self, name: str) -> None:
        port = self.table.get(name)
        if port is None or port.spare:
            return
        del self.table[name]
        gone = self._leave(port)
        self._save()
        crash.point("release.recorded")
        self._close(gone)
        self._steer(port.place)

    def direct(self, weights: dict[str, int], now: float) -> None:
        """From now on new connections to these ports go to their sockets in these proportions."""
        for name, weight in weights.items():
            port = self.table.get(name)
            if port is not None:
                if port.weight and not weight:
                    port.left = now
                port.weight = weight
        self._save()
        for place in {self.table[name].place for name in weights if name in self.table}:
            self._steer(place)

    def drained(self, name: str, now: float) -> bool:
        """Whether its last user may go: nobody new is sent to it, and nobody waits in its queue."""
        port = self.table.get(name)
        if port is None or port.sock is None or not port.slot or port.weight:
            return True
        if not any(self.table[other].weight for other in self._groups.get(port.place, ()) if other != name):
            return True
        return now - port.left >= SETTLE_SECONDS and not steering.unaccepted(port.sock)

    def _reuse(self, port: Port) -> Port | None:
        spare = next((other for other in self.table.values() if other.spare and other.place == port.place and other.listens), None)
        if spare is None or spare.sock is None:
            return None
        spare.sock.setblocking(True)  # whoever had it before may have had other habits; the flag belongs to the socket
        self._rename(spare, port.name)
        return spare

    def _rename(self, port: Port, name: str) -> None:
        group = self._groups[port.place]
        group[group.index(port.name)] = name
        self.table.pop(port.name, None)
        port.name, port.weight = name, 0
        self.table[name] = port

    def _open(self, port: Port) -> Port:
        """Its own socket beside the others of that place, or, where they cannot be told apart, the very same."""
        beside = next((other for other in self.table.values() if other.place == port.place and other.sock is not None), None)
        grouped = self._steers(port) and (beside is None or self._joins(beside))
        if beside is not None and beside.sock is not None and not grouped:
            port.adopt(beside.sock.dup())
            return port
        port.bind(grouped=grouped, beside=beside is not None)
        if port.sock is not None and grouped:
            self.table[port.name] = port
            self._enter(port)
            self._steer(port.place)
        return port

    def _steers(self, port: Port) -> bool:
        if self._able is None:
            self._able = steering.works()
        return self._able and port.family == socket.AF_INET

    def _joins(self, beside: Port) -> bool:
        """Whether one more may stand beside this one. A socket that was bound when there was no steering becomes the first of a group."""
        if len(self._groups.get(beside.place, ())) >= MAX_GROUP:
            return False
        if beside.place not in self._groups:
            assert beside.sock is not None
            beside.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._enter(beside)
        return True

    def _enter(self, port: Port) -> None:
        group = self._groups.setdefault(port.place, [])
        used = {self.table[name].slot for name in group}
        port.slot = next(slot for slot in range(1, steering.MAX_SLOT) if slot not in used)
        group.append(port.name)

    def _steer(self, place: tuple[str, int]) -> None:
        """Also when there is only one: so that the next one gets nothing in the moment before it is counted in."""
        ports = [self.table[name] for name in self._groups.get(place, ())]
        sock = next((port.sock for port in ports if port.sock is not None), None)
        if sock is None:
            return
        shares: dict[int, int] = {}
        for port in self.table.values():
            shares[port.inode] = shares.get(port.inode, 0) + port.weight
        try:
            steering.attach(sock, steering.program([port.slot for port in ports], [shares[port.inode] for port in ports]))
        except OSError:
            if len(ports) > 1:
                raise
            # One that was bound when there was no steering is a group only when a second one has come.

    def _leave(self, port: Port) -> list[Port]:
        """``port`` was taken out of the table; returns what is to be closed. A socket that another name shares stays under that one."""
        group = self._groups.get(port.place, [])
        if port.name not in group or self._inherit(port, group):
            return [port]
        beside = [name for name in group if name != port.name and not self.table[name].spare]
        if beside and port.listens:
            self._rename(port, f"{SPARE}{port.inode}")
            return []
        self._forget(port, group)
        spares = [] if beside else [self.table.pop(name) for name in list(group)]
        for spare in spares:
            self._forget(spare, group)
        return [port, *spares]

    def _inherit(self, port: Port, group: list[str]) -> bool:
        heir = next((other for other in self.table.values() if other is not port and other.sock and other.inode == port.inode), None)
        if heir is None:
            return False
        group[group.index(port.name)] = heir.name
        heir.slot = port.slot
        return True

    def _forget(self, port: Port, group: list[str]) -> None:
        steering.closed(group, port.name)
        if not group:
            del self._groups[port.place]

    def _close(self, ports: list[Port]) -> None:
        for port in ports:
            if port.sock is not None:
                port.sock.close()

    # After another supervisor

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
        lost = [port for port in self.table.values() if port.sock is None and not self._fetch(port, living)]
        self._bury(lost)
        for port in lost:
            if port.spare:
                del self.table[port.name]
            else:
                self._open(port)
        for place in list(self._groups):
            self._steer(place)
        self._save()

    def also_as(self, name: str) -> None:
        """A supervisor before there was steering held one socket for all revisions, under the name of the component alone. What it
        started is found under the name of its revision too."""
        former = self.table.get(name.rpartition("/")[0])
        if former is None or name in self.table:
            return
        self.table[name] = Port(name, former.address, former.port, inode=former.inode)
        if former.sock is not None:
            self.table[name].adopt(former.sock.dup())

    def _bury(self, lost: list[Port]) -> None:
        """Sockets that died with their holder: the kernel closed them in the order of their descriptors."""
        for port in sorted(lost, key=lambda each: each.fd):
            group = self._groups.get(port.place, [])
            if port.name in group and not self._inherit(port, group):
                self._forget(port, group)
            port.slot, port.order = 0, -1

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
        for names in self._groups.values():
            for order, name in enumerate(names):
                self.table[name].order = order
        files.write_json(self._path, {port.name: port.record() for port in self.table.values()})
