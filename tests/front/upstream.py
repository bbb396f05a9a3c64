"""A small application of its own kind: a threaded HTTP/1.1 server with a few paths, and the services that lead to it."""

import asyncio
import hashlib
import http.server
import json
import shutil
import socketserver
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cluster_controller.errors import NotFound, Unreachable
from cluster_controller.resources.policy import DEFAULT_ENTRY, Entry
from cluster_controller.resources.tables import Heard
from cluster_controller.store import Key
from openapi.audit import AuditLog
from openapi.front.auth import decode_user
from openapi.front.raw import ProxyRoutes
from openapi.front.server import Front
from openapi.front.splice import splice
from openapi.front.streams import SocketStream, pair
from openapi.services import Route

ME, EDGE, DEAD = "m" * 26, "e" * 26, "d" * 26
APP = "11111111-1111-4111-8111-111111111111"


class Application(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ApplicationServer"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers.items())))
        if self.path == "/slow":
            self.server.reached.set()
            self.connection.settimeout(20)
            try:
                self.server.left = not self.connection.recv(1)
            except OSError:
                self.server.left = True
            self.server.gone.set()
            self.close_connection = True
        elif self.path.startswith("/events"):
            self._events()
        elif self.path.startswith("/big"):
            self._big(int(self.path.partition("=")[2]))
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif self.path == "/garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            self.close_connection = True
        elif self.path == "/close":
            self.close_connection = True
        elif self.path == "/once":  # promises to go on, and does not
            self._json({})
            self.close_connection = True
        elif self.path == "/extra":  # an answer that nobody asked for, behind the one that was
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        elif self.path == "/leaving":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._json({"method": self.command, "path": self.path, "headers": dict(self.headers.items())})

    do_HEAD = do_DELETE = do_GET

    def do_POST(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers.items())))
        if self.path == "/close":
            self.close_connection = True
            return
        if self.path == "/early":  # answers without having read the body
            self._json({})
            return
        digest, length = hashlib.sha256(), 0
        for piece in self._body():
            digest.update(piece)
            length += len(piece)
            if self.path == "/slowly":
                time.sleep(0.001)
        self._json({"length": length, "sha256": digest.hexdigest(), "headers": dict(self.headers.items())})

    def _body(self) -> Any:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def _json(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("Banyan-Route", "a lie")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _events(self) -> None:
        """The head at once, then an event whenever the test says so, without a length."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number in range(3):
            self.server.next_event.acquire(timeout=20)
            self.wfile.write(b"data: %d\n\n" % number)
        self.close_connection = True

    def _big(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        block = bytes(range(256)) * 256
        try:
            while size > 0:
                piece = block[: min(size, len(block))]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                size -= len(piece)
                self.server.sent += len(piece)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.gone.set()


class ApplicationServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Application)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.reached, self.gone = threading.Event(), threading.Event()
        self.next_event = threading.Semaphore(0)
        self.left = False
        self.sent = 0
        self.connections = 0  # accepted so far
        self.open = 0
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        self.open += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.open -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    @property
    def port(self) -> int:
        return self.server_address[1]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join(10)


class StoredCluster:
    """As controllers write it: what was set at the site and above is merged in the status."""

    def __init__(self, uid: str, name: str, labels: Mapping[str, str]) -> None:
        self.uid = uid
        self.key = Key("own", "Cluster", "", name)
        self.document = msgspec.json.encode({"metadata": {"name": name}, "status": {"labels": dict(labels)}})


class ListStore:
    def __init__(self, clusters: list[StoredCluster]) -> None:
        self.clusters = clusters

    def list(self, space: str, kind: str, namespace: str | None = None) -> list[Any]:
        return list(self.clusters) if (space, kind) == ("own", "Cluster") else []


class Services:
    """`openapi.services.RouteServices` for one application that listens on ``port``, on this cluster or on edge-1."""

    def __init__(self, port: int, *, local: bool = True) -> None:
        self.uid = ME
        self.port = port
        self.local = local
        self.edge: Front | None = None  # the front of edge-1, in the same loop
        self.edge_routes: ProxyRoutes | None = None
        self.store = ListStore(
            [
                StoredCluster(ME, "root", {}),
                StoredCluster(EDGE, "edge-1", {"tier": "edge"}),
                StoredCluster(DEAD, "edge-2", {"tier": "edge"}),
            ]
        )
        self.tasks: set[asyncio.Task[Any]] = set()
        self.opened: list[tuple[str, str, bytes]] = []
        self.refuse_first = 0  # opens that fail
        self.answers_once_more = False
        self.name = "root"
        folder = tempfile.mkdtemp(prefix="banyan-audit-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.audit = AuditLog(Path(folder) / "audit.log")

    def entry(self) -> Entry:
        return DEFAULT_ENTRY

    def no_member_api(self) -> str:
        return "runs applications as processes; it has no Kubernetes API"

    def heard(self, uid: str) -> Heard | None:
        return Heard(41.72, True, "root → edge-2") if uid == DEAD else None

    def cluster_uid(self, name: str) -> str:
        for cluster in self.store.clusters:
            if cluster.key.name == name:
                return cluster.uid
        raise NotFound(f"no cluster {name} in the subtree of root")

    def application_routes(self, namespace: str, name: str) -> list[Route]:
        if (namespace, name) != ("default", "emotion"):
            return [self.application_route(namespace, name)]
        where, path = (ME, ("root",)) if self.local else (EDGE, ("root", "region-a", "edge-1"))
        return [Route(cluster=where, component="", application=APP, path=path, answers_once_more=self.answers_once_more)] * 2

    def application_route(self, namespace: str, name: str) -> Route:
        if name == "asleep":
            raise Unreachable(f"no instance of {namespace}/{name} is ready and in reach")
        if (namespace, name) != ("default", "emotion"):
            raise NotFound(f"no application {namespace}/{name} at root")
        return self.application_routes(namespace, name)[0]

    async def open_local(self, target: Any) -> SocketStream:
        assert (target.kind, target.uid) == ("application", APP)
        return await self._dial()

    async def open(self, uid: str, service: str, metadata: bytes, lane: int) -> Any:
        self.opened.append((uid, service, metadata))
        if uid == DEAD:
            raise Unreachable("edge-2 is out of reach: root → edge-2 is cut")
        ours, theirs = pair()
        if service in ("http", "member"):
            assert self.edge is not None and self.edge_routes is not None
            routes = self.edge_routes.from_above(metadata) if service == "member" else None
            self._spawn(self.edge.adopt(theirs, decode_user(metadata), routes))
        else:
            assert msgspec.json.decode(metadata) == {"uid": APP, "component": ""}
            self._spawn(splice(theirs, await self._dial()))
        return ours

    async def _dial(self) -> SocketStream:
        if self.refuse_first:
            self.refuse_first -= 1
            raise ConnectionRefusedError("the instance does not listen")
        stream = SocketStream()
        await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", self.port)
        return stream

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
