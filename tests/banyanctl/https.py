"""A real HTTPS server on loopback whose answers a test writes down, and a tree CA's worth of certificates for it."""

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509

from banyanctl.credential import Endpoint
from cluster_controller.clock import wall
from cluster_controller.identity import certificates, keys

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Answerer = Callable[["Asked"], Reply | None]
DAY = timedelta(days=1)


class Asked:
    """One request as it arrived."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes, peer: bytes | None) -> None:
        self.method = handler.command
        self.path = handler.path
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = body
        self.peer = peer  # the client's certificate, DER
        self.connection = id(handler)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Authority:
    """A CA, a certificate for 127.0.0.1 and localhost, and one for a person, as PEM."""

    def __init__(self) -> None:
        now = wall()
        key = keys.generate()
        self.signer = certificates.site_ca("test", keys.uid_of(key.public_key()), key, now - DAY)
        self.ca = certificates.pem(self.signer.certificate).decode()

    def server(self) -> tuple[bytes, bytes]:
        key = keys.generate()
        names, lifetime = ["127.0.0.1", "localhost"], 2 * DAY
        certificate = certificates.api_server(self.signer, "test", names, key.public_key(), now=wall() - DAY, lifetime=lifetime)
        return certificates.pem(certificate), keys.to_pem(key)

    def person(self) -> tuple[str, str]:
        key = keys.generate()
        uid = keys.uid_of(self.signer.key.public_key())
        certificate: x509.Certificate = certificates.admin(self.signer, uid, key.public_key(), wall() - DAY)
        return certificates.pem(certificate).decode(), keys.to_pem(key).decode()


@contextlib.contextmanager
def serving(authority: Authority, answer: Answerer, folder: Path) -> Iterator[tuple[str, list[Asked]]]:
    """The server's URL and what it was asked. ``answer`` returning None closes the connection without a word."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(size) if size else b""
            one = Asked(self, body, self.connection.getpeercert(binary_form=True))  # type: ignore[attr-defined]
            asked.append(one)
            reply = answer(one)
            if reply is None:
                self.close_connection = True
                return
            data = reply[1] if isinstance(reply[1], bytes) else json.dumps(reply[1]).encode()
            headers = reply[2] if len(reply) > 2 else {}
            self.send_response(reply[0])
            for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

        def log_message(self, *arguments: object) -> None:
            pass

    certificate, key = authority.server()
    (folder / "server.pem").write_bytes(certificate + key)
    (folder / "ca.pem").write_text(authority.ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that refuses the handshake is one of the tests
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def endpoint(url: str, authority: Authority, **more: str) -> Endpoint:
    return Endpoint(server=url, ca=authority.ca, source="test", **more)
