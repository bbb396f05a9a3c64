"""The control socket: JSON lines between the supervisor and whoever may command it (the same user, or root).

A request is ``{"id": N, "op": NAME, …}`` and is answered once, ``{"id": N, "ok": …}`` or ``{"id": N, "error": TEXT}``; changes
come in between as ``{"event": …}``. A line, a connection's unsent bytes and the number of connections are bounded: whoever
exceeds them is disconnected, comes back, and is told everything again.
"""

from __future__ import annotations

import json
import os
import socket
import struct

from cluster_shim.process.supervisor import loop as loops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cluster_shim.process.supervisor.loop import Loop

MAX_LINE = 64 << 10
MAX_UNSENT = 4 << 20
MAX_CONNECTIONS = 16
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Refused(Exception):
    """The request cannot be carried out; the text goes to whoever asked."""


def listen(path: str) -> socket.socket:
    """Bind through the folder's descriptor: the folder's path may be longer than the 108 bytes of sun_path."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if os.path.lexists(path):
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            sock.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.umask(mask)
        sock.listen(MAX_CONNECTIONS)
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


class Connection:
    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._received = b""
        self._unsent = b""
        self.open = True
        self.subscribed = False
        server.loop.watch(sock.fileno(), self._ready)

    def send(self, message: dict[str, Any]) -> None:
        if not self.open:
            return
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._server.loop.forget(self._sock.fileno())
            self._sock.close()
            self._server.lost(self)

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if len(self._unsent) > MAX_UNSENT:
            self.close()
            return
        self._server.loop.watch(self._sock.fileno(), self._ready, loops.READ | (loops.WRITE if self._unsent else 0))

    def _ready(self, events: int) -> None:
        if events & loops.WRITE:
            self._flush()
        if self.open and events & ~loops.WRITE:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        if not data or len(self._received) > MAX_LINE:
            self.close()
            return
        for line in lines:
            if self.open:
                self._answer(line)

    def _answer(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            number, operation = int(request["id"]), str(request["op"])
        except (ValueError, KeyError, TypeError):
            self.close()  # speaks something else; nothing it says can be answered
            return
        try:
            self.send({"id": number, "ok": self._server.handle(self, operation, request)})
        except Refused as refusal:
            self.send({"id": number, "error": str(refusal)})
        except (KeyError, TypeError, ValueError, OSError) as error:
            self.send({"id": number, "error": f"{operation}: {error!r}"})


class Server:
    def __init__(
        self, loop: Loop, sock: socket.socket, handle: Callable[[Connection, str, dict[str, Any]], Any], idle: Callable[[], None]
    ) -> None:
        self.loop = loop
        self.handle = handle
        self.sock = sock
        self._idle = idle
        self.connections: list[Connection] = []
        loop.watch(sock.fileno(), lambda _events: self._accept())

    def broadcast(self, message: dict[str, Any]) -> None:
        for connection in list(self.connections):
            if connection.subscribed:
                connection.send(message)

    def lost(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self._idle()

    def _accept(self) -> None:
        try:
            sock, _ = self.sock.accept()
        except OSError:
            return
        _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in (0, os.getuid()) or len(self.connections) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        self.connections.append(Connection(self, sock))
