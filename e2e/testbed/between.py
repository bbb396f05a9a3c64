"""What stands between a controller and its member's API server, and does what load balancers, proxies and sick servers do.

The API server behind it is a real one, and every request reaches it unless a fault says otherwise; faults can be set and lifted at any
time. A thread per connection, and one connection to the API server for each.
"""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from e2e.testbed.machine import API_PORT
from e2e.testbed.member import Member
from e2e.testbed.pki import write_kubeconfig

MASTERS = "system:masters"
HOST = "127.0.0.1"
CHUNK = 1 << 16
UPSTREAM_SECONDS = 900.0  # longer than any watch
BEATS = 20  # a second, in which repeated events are sent
HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length"}
Which = Callable[[str, str], bool]


def every(method: str, path: str) -> bool:
    return True


def writes(method: str, path: str) -> bool:
    return method in {"POST", "PATCH", "PUT", "DELETE"} and "selfsubjectaccessreviews" not in path


@dataclass(frozen=True)
class Fault:
    """What happens to the requests for which `which(method, path)` is true."""

    which: Which = every
    delay: float = 0.0
    """Seconds before a request is passed on."""
    answer: tuple[int, str, bytes] | None = None
    """Status, content type and body, instead of asking anybody."""
    lose: bool = False
    """The request is carried out, and its answer lost with the connection."""
    hang: bool = False
    """No byte goes either way, and every connection stays open, until the fault is lifted."""
    count: int = 1 << 30
    """How many requests it meets."""


class Between:
    """`with Between(member, folder) as it:` a controller joins by `it.kubeconfig`; a fault lasts for `with it.doing(Fault(...)):`."""

    def __init__(self, member: Member, folder: Path, group: str = MASTERS) -> None:
        """``group``: whose rights the controller has."""
        self.member = member
        self.met = 0
        """Requests that the fault has met since it was set."""
        self.repeated = 0
        """Events that were sent once more."""
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._calm = threading.Event()  # set while nothing hangs
        self._calm.set()
        self._repeat: tuple[bytes, int] | None = None
        self._ended = False
        authority = member.authority
        certificate, key = authority.issue("between", "between", hosts=[HOST])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.upstream = ssl.create_default_context(cafile=str(authority.certificate))
        client_certificate, client_key = authority.issue("between-client", "between", [group])
        self.upstream.load_cert_chain(client_certificate, client_key)
        self._server = _Server(self)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        url = f"https://{HOST}:{self._server.server_address[1]}"
        self.kubeconfig = write_kubeconfig(
            folder / "between.kubeconfig", url, authority.certificate, client_certificate, client_key, member.name
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "Between":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._calm.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    # --- faults ---

    @contextlib.contextmanager
    def doing(self, fault: Fault) -> Iterator[None]:
        with self._lock:
            self._fault, self.met = fault, 0
        if fault.hang:
            self._calm.clear()
        try:
            yield
        finally:
            with self._lock:
                self._fault = None
            self._calm.set()

    @contextlib.contextmanager
    def repeating(self, mark: bytes, per_second: int) -> Iterator[None]:
        """Every watch that has brought an event with `mark` brings its last such events again and again, so many a second."""
        self.repeated = 0
        self._repeat = mark, per_second
        try:
            yield
        finally:
            self._repeat = None

    # --- for the connections' threads ---

    def meet(self, method: str, path: str) -> Fault | None:
        with self._lock:
            fault = self._fault
            if fault is None or self.met >= fault.count or not fault.which(method, path):
                return None
            self.met += 1
            return fault

    def wait(self) -> None:
        self._calm.wait()

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def repeat(self) -> tuple[bytes, int] | None:
        return self._repeat


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, between: Between) -> None:
        self.between = between
        super().__init__((HOST, 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of something is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._behind: HTTPSConnection | None = None

    def finish(self) -> None:
        if self._behind is not None:
            self._behind.close()
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def _pass(self) -> None:
        between = self.server.between
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        between.wait()
        fault = between.meet(self.command, self.path)
        if fault is not None:
            deadline = time.monotonic() + fault.delay
            while time.monotonic() < deadline and not between.ended:
                time.sleep(0.05)
            if fault.answer is not None:
                status, kind, text = fault.answer
                self._say(status, {"Content-Type": kind, "Content-Length": str(len(text))})
                self.wfile.write(text)
                return
        try:
            answer = self._ask(body)
            if fault is not None and fault.lose:
                answer.read()
                self.close_connection = True
                return
            self._relay(answer)
        except (HTTPException, OSError):
            self.close_connection = True  # whoever asked sees the connection break, as it did for us

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass  # the names that it looks for

    def _ask(self, body: bytes) -> HTTPResponse:
        between = self.server.between
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS | {"host"}}
        if self._behind is None:
            address = between.member.machine.address
            self._behind = HTTPSConnection(address, API_PORT, timeout=UPSTREAM_SECONDS, context=between.upstream)
        self._behind.request(self.command, self.path, body or None, headers)
        return self._behind.getresponse()

    def _say(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _relay(self, answer: HTTPResponse) -> None:
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS}
        if "watch=1" not in self.path:
            text = answer.read()
            self.server.between.wait()
            self._say(answer.status, headers | {"Content-Length": str(len(text))})
            self.wfile.write(text)
            return
        self._say(answer.status, headers | {"Transfer-Encoding": "chunked"})
        _Watch(self.server.between, self._chunk).carry(answer)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *words: Any) -> None:
        """Nobody reads it."""


class _Watch:
    """One watch on its way: its lines, and those that are said again."""

    def __init__(self, between: Between, send: Callable[[bytes], None]) -> None:
        self._between = between
        self._send = send
        self._lock = threading.Lock()
        self._lines: dict[bytes, bytes] = {}  # uid → the last event of that object
        self._over = threading.Event()

    def carry(self, answer: HTTPResponse) -> None:
        repeater = threading.Thread(target=self._repeat, daemon=True)
        repeater.start()
        try:
            while line := answer.readline():
                self._between.wait()
                with self._lock:
                    self._keep(line)
                    self._send(line)
        finally:
            self._over.set()
            repeater.join(10)

    def _keep(self, line: bytes) -> None:
        meta = json.loads(line)["object"].get("metadata", {})
        if uid := meta.get("uid", ""):
            self._lines[uid.encode()] = line.replace(b'"type":"ADDED"', b'"type":"MODIFIED"', 1)

    def _repeat(self) -> None:
        while not self._over.wait(1 / BEATS):
            repeat = self._between.repeat
            if repeat is None:
                continue
            mark, per_second = repeat
            with self._lock:
                lines = [line for line in self._lines.values() if mark in line]
                if lines:
                    wanted = per_second // BEATS
                    data = b"".join(lines[number % len(lines)] for number in range(wanted))
                    with contextlib.suppress(OSError):
                        self._send(data)
                        self._between.repeated += wanted
