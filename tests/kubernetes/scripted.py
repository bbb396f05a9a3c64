"""An API server on a real socket that answers what a test tells it to: one that breaks off, forgets, refuses or is another."""

import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SECONDS = 30.0  # within which everything here happens, on the slowest machine


class Exchange:
    """One request, and the means to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._handler = handler
        self.method = handler.command
        self.path, _, query = handler.path.partition("?")
        self.query = {name: values[0] for name, values in parse_qs(query).items()}
        self.body = body
        self.accept = str(handler.headers.get("accept", ""))
        self.token = str(handler.headers.get("authorization", "")).removeprefix("Bearer ")

    @property
    def watching(self) -> bool:
        return "watch" in self.query

    @property
    def socket(self) -> socket.socket:
        return self._handler.connection

    def say(self, document: object, status: int = 200, **headers: str) -> None:
        data = json.dumps(document).encode()
        self._handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def refuse(self, status: int, reason: str = "", **headers: str) -> None:
        self.say({"kind": "Status", "message": reason or str(status), "reason": reason, "code": status}, status, **headers)

    def listed(self, *items: dict[str, Any], version: str = "10") -> None:
        self.say({"kind": "List", "metadata": {"resourceVersion": version}, "items": list(items)})

    def begin(self) -> None:
        """A watch: 200, and nothing yet."""
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", "application/json")
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def tell(self, kind: str, made: dict[str, Any]) -> None:
        line = json.dumps({"type": kind, "object": made}).encode() + b"\n"
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

    def end(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")

    def reset(self) -> None:
        """The connection is torn down in the middle."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.close_connection = True
        self.socket.close()

    def gone(self) -> bool:
        """Whether the client has."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        return bool(readable) and not self.socket.recv(1, socket.MSG_PEEK)

    def wait(self, until: threading.Event | None = None) -> None:
        """Say nothing until then; with nothing to wait for, until the client has gone."""
        if until is not None:
            assert until.wait(SECONDS), "what a test waited for did not happen"
        else:
            self.socket.settimeout(3 * SECONDS)  # longer than any test waits for anything
            while self.socket.recv(1024):
                pass
            self._handler.close_connection = True


Script = Callable[[Exchange], None]


class Scripted:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, str]] = []  # method and path
        self.defects: list[BaseException] = []  # of the script

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(handler) -> None:
                exchange = Exchange(handler, handler.rfile.read(int(handler.headers.get("content-length") or 0)))
                self.asked.append((exchange.method, exchange.path))
                try:
                    self.script(exchange)
                except OSError:
                    handler.close_connection = True  # the client has gone
                except Exception as error:  # the test's, shown where it is looked at
                    self.defects.append(error)
                    handler.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(handler, *words: object) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *request: object) -> None:
                """A client that goes is none."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        assert not self.defects, self.defects


@contextmanager
def scripted(script: Script) -> Iterator[Scripted]:
    server = Scripted(script)
    try:
        yield server
    finally:
        server.close()


def kubeconfig(path: Path, url: str, token: str = "one", **cluster: str) -> str:
    """Written, or written anew."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": url, **cluster}}],
        "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "current-context": "it",
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    assert urlsplit(url).port
    return str(path)


def thing(name: str, version: str = "1", **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": version, **meta}}
