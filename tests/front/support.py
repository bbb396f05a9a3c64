"""A front on a real TLS port, in a thread with a loop of its own, so that blocking clients can be pointed at it."""

import asyncio
import http.client
import socket
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster_controller.errors import Unauthenticated
from openapi.front.limits import FrontLimits
from openapi.front.server import Front
from openapi.services import Grant, User

T = TypeVar("T")

ADMIN = User(name="admin", groups=("admin",), entry="e" * 26, grants=(Grant(role="admin"),))
VIEWER = User(name="viewer", groups=("view",), entry="e" * 26, grants=(Grant(role="view", namespace="default"),))
EDITOR = User(name="editor", groups=("edit",), entry="e" * 26, grants=(Grant(role="edit", namespace="default"),))
TOKENS = {"t-admin": ADMIN, "t-viewer": VIEWER, "t-editor": EDITOR}


class Accounts:
    """An Authenticator over a few fixed users; ``revoked`` names are refused from then on."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self.chains: list[tuple[bytes, ...]] = []

    def certificate(self, chain: Sequence[bytes], remote: str | None) -> User:
        self.chains.append(tuple(chain))
        name = x509.load_der_x509_certificate(chain[0]).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        for user in TOKENS.values():
            if user.name == name:
                return self.again(user)
        raise Unauthenticated(f"the certificate of {name!r} is not of this tree")

    def bearer(self, token: str) -> User:
        if token not in TOKENS:
            raise Unauthenticated("the bearer token is not known here")
        return self.again(TOKENS[token])

    def again(self, user: User) -> User:
        if user.name in self.revoked:
            raise Unauthenticated(f"{user.name} was revoked")
        return user


class Issued:
    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, above: tuple[x509.Certificate, ...]) -> None:
        self.certificate, self.key, self.above = certificate, key, above

    def write(self, folder: Path, name: str) -> Path:
        """Key and chain (without the root) in one PEM file."""
        pem = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for certificate in (self.certificate, *self.above):
            pem += certificate.public_bytes(serialization.Encoding.PEM)
        path = folder / f"{name}.pem"
        path.write_bytes(pem)
        return path


class Pki:
    """Root → issuing certificate → users; root → server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = self._issue("tree CA", None, ca=True)
        self.issuer = self._issue("region-a issuing", self.root, ca=True)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.root.certificate.public_bytes(serialization.Encoding.PEM))

    def user(self, name: str) -> Path:
        issued = self._issue(name, self.issuer)
        return Issued(issued.certificate, issued.key, (self.issuer.certificate,)).write(self.folder, name)

    def server_context(self, name: str = "server") -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._issue(name, self.root, server=True).write(self.folder, name))
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client_context(self, user: str = "", alpn: Sequence[str] = ()) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if user:
            context.load_cert_chain(self.user(user))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def _issue(self, name: str, by: Issued | None, *, ca: bool = False, server: bool = False) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by.certificate.subject if by else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if by is not None:
            builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False)
        if server:
            import ipaddress

            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Issued(builder.sign(by.key if by else key, hashes.SHA256()), key, ())


_pki: list[Pki] = []
_folder: list[tempfile.TemporaryDirectory[str]] = []


def pki() -> Pki:
    """One for the whole test run: keys cost time."""
    if not _pki:
        _folder.append(tempfile.TemporaryDirectory(prefix="banyan-front-"))
        _pki.append(Pki(Path(_folder[0].name)))
    return _pki[0]


class LoopThread:
    """An event loop in a thread; `run` gives it a coroutine from outside."""

    def __init__(self, loop: str = "uvloop") -> None:
        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        self.errors: list[dict[str, Any]] = []
        self._runner = asyncio.Runner(loop_factory=factory)
        self.loop = self._runner.get_loop()
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, name="front-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def call(self, function: Callable[[], T]) -> T:
        async def inner() -> T:
            return function()

        return self.run(inner())

    def close(self) -> None:
        self.run(asyncio.sleep(0.02))  # aborted transports leave the loop in its next turns
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self._runner.close()
        assert not self.errors, self.errors


class RunningFront:
    """A front with its port; use as a context manager."""

    def __init__(
        self, app: Any, *, routes: Any = None, limits: FrontLimits | None = None, loop: str = "uvloop", accounts: Accounts | None = None
    ) -> None:
        self.accounts = accounts or Accounts()
        self.thread = LoopThread(loop)
        self.context = pki().server_context()

        async def start() -> tuple[Front, int]:
            front = Front(app, self.accounts, routes, limits or FrontLimits())
            return front, await front.serve("127.0.0.1", 0, self.context)

        self.front, self.port = self.thread.run(start())

    def __enter__(self) -> "RunningFront":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.run(self.front.close(0.5))
        self.thread.close()

    def client(self, user: str = "") -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=pki().client_context(user), timeout=20)

    def connect(self, user: str = "", alpn: Sequence[str] = ()) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return pki().client_context(user, alpn).wrap_socket(raw, server_hostname="127.0.0.1")

    def eventually(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Wait until ``condition`` (looked at on the loop) holds."""

        async def wait() -> None:
            async with asyncio.timeout(timeout):
                while not condition():
                    await asyncio.sleep(0.005)

        self.thread.run(wait())


def raw_exchange(connection: ssl.SSLSocket, data: bytes) -> bytes:
    """Send ``data``, read until the other side closes."""
    connection.sendall(data)
    return read_all(connection)


def read_all(connection: ssl.SSLSocket) -> bytes:
    parts = []
    while True:
        try:
            data = connection.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError):
            break
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


Handler = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
AUTH = b"Authorization: Bearer t-admin\r\n"
