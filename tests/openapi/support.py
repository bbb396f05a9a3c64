"""A controller's API on the real store, asked in process or, for kubectl and client-go, through the real front over TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster_controller.errors import InvalidInput, NotFound, Unauthenticated, Unreachable
from cluster_controller.resources.tables import Heard
from cluster_controller.store import Key, Limits, Store
from cluster_controller.tunnel.messages import Lane
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from openapi.app import Api, create_app
from openapi.front.connection import RawRoutes
from openapi.front.server import Front
from openapi.services import Ask, Blob, Grant, KindHooks, NoHooks, User, Write

T = TypeVar("T")
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
ADMIN = User("ada", ("banyan:admin",), "entry", (Grant("admin"),))
EDITOR = User("eve", ("banyan:edit",), "entry", (Grant("edit", "team"),))
VIEWER = User("vic", ("banyan:view",), "entry", (Grant("view"),))
TOKENS = {"admin-token": ADMIN, "edit-token": EDITOR, "view-token": VIEWER}
GROUP = "/apis/banyan.dev/v1alpha1"


class Lines:
    """A byte stream that yields pieces and then, if it follows, waits until it is aborted."""

    def __init__(self, pieces: Sequence[bytes], follow: bool) -> None:
        self.pieces = list(pieces)
        self.follow = follow
        self.aborted = asyncio.Event()

    async def read(self, limit: int = 65536) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if self.follow:
            await self.aborted.wait()
        return b""

    async def write(self, data: bytes) -> None:
        raise AssertionError("nobody writes to a log")

    async def close_write(self) -> None:
        pass

    def abort(self, reason: str = "") -> None:
        self.aborted.set()


class Hooks(NoHooks):
    """Records what it is asked; some kinds show something once, some refuse."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.calls: list[tuple[str, str]] = []

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        self.calls.append(("create", write.name))
        if write.resource.kind == "JoinToken":
            write.document["status"] = {"phase": "Open", "digest": sha256(b"secret").hexdigest()}
            return {"status": {"token": "banyan-secret"}}
        if write.resource.kind == "Application" and write.name == "held":
            write.document["metadata"].setdefault("finalizers", []).append("banyan.dev/withdraw")
        if write.name == "refused":
            raise InvalidInput("this hook refuses it", "spec.why")
        return None

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        self.calls.append(("update", write.name))
        return None

    def prepare_delete(self, write: Write) -> None:
        self.calls.append(("delete", write.name))

    async def subresource(self, ask: Ask) -> Mapping[str, Any]:
        self.asked.append(ask)
        if ask.subresource == "clusters":
            return {"kind": "ClusterRowList", "items": [{"name": f"edge-{number}"} for number in range(1200)]}
        return {"kind": "Answer", "subresource": ask.subresource, "name": ask.name}


class Services:
    """The controller that the API stands on, as far as the API can tell."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uid = "a" * 26
        self.name = "root"
        self.version = "0.1.0"
        self.hooks = Hooks()
        self.kinds: KindHooks = self.hooks
        self.failing: dict[str, str] = {"store": "", "link": ""}
        self.heards: dict[str, Heard] = {}
        self.logs: dict[str, list[bytes]] = {}
        self.opened: list[OpenTarget] = []
        self.streams: list[Lines] = []
        self.blobs: dict[str, bytes] = {}
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def heard(self, uid: str) -> Heard | None:
        return self.heards.get(uid)

    def ready(self) -> Mapping[str, str]:
        return self.failing

    def metrics(self) -> bytes:
        return b"banyan_up 1\n"

    async def open(self, uid: str, service: str, metadata: bytes, lane: Lane) -> ByteStream:
        raise Unreachable(f"the way to {uid} is cut")

    async def open_local(self, target: OpenTarget) -> ByteStream:
        self.opened.append(target)
        if target.instance not in self.logs:
            raise ShimError(f"no log of {target.instance}")
        self.streams.append(Lines(self.logs[target.instance], target.options.get("follow") == "true"))
        return self.streams[-1]

    async def put_blob(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        content = b"".join([chunk async for chunk in chunks])
        if len(content) != size or sha256(content).hexdigest() != digest:
            raise InvalidInput(f"the bytes are not those of sha256:{digest}")
        self.blobs[digest] = content

    async def get_blob(self, digest: str, offset: int = 0) -> Blob:
        if digest not in self.blobs:
            raise NotFound(f"no blob sha256:{digest} is here")
        content = self.blobs[digest]

        async def chunks() -> AsyncIterator[bytes]:
            yield content[offset:]

        return Blob(len(content), chunks())


class Server:
    """The API with clients of three users."""

    def __init__(self, services: Services, api: Api) -> None:
        self.services = services
        self.store = services.store
        self.api = api
        self.draining = asyncio.Event()  # of the front that would carry it
        self.admin = self.client(ADMIN)

    def client(self, user: User | None) -> httpx.AsyncClient:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.api({**scope, "banyan.user": user}, receive, send)

        return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, raise_app_exceptions=False), base_url="https://banyan")

    async def put(self, space: str, kind: str, name: str, namespace: str = "", **document: Any) -> int:
        """Write as a controller does, past the API."""
        uid = document.pop("uid", f"uid-{name}")
        metadata = {"name": name, "uid": uid, "creationTimestamp": "2026-11-21T11:00:00Z", **document.pop("metadata", {})}
        body = msgspec.json.encode({"metadata": metadata, **document})
        stored = await self.store.commit(lambda tx: tx.put(Key(space, kind, namespace, name), body, uid=uid))
        return stored.revision


@asynccontextmanager
async def serving(folder: Path, limits: Limits | None = None) -> AsyncIterator[Server]:
    store = await Store.open(folder, limits)
    services = Services(store)
    api = create_app(services)
    await api.start()
    server = Server(services, api)
    try:
        yield server
    finally:
        await server.admin.aclose()
        await api.close()
        await store.close()


def run(folder: Path, body: Callable[[Server], Awaitable[T]]) -> T:
    async def main() -> T:
        async with serving(folder) as server:
            return await body(server)

    return asyncio.run(main())


class Tokens:
    """The front's authenticator, for three fixed tokens."""

    def certificate(self, chain: Sequence[bytes], remote: str | None) -> User:
        raise Unauthenticated("no certificates here")

    def bearer(self, token: str) -> User:
        if token not in TOKENS:
            raise Unauthenticated("this token is not known")
        return TOKENS[token]

    def again(self, user: User) -> User:
        return user


@asynccontextmanager
async def fronted(server: Server, folder: Path, port: int = 0, routes: RawRoutes | None = None) -> AsyncIterator[int]:
    """The same API on a port of 127.0.0.1; writes `ca.pem` and one kubeconfig per token into ``folder``."""
    context = _server_context(folder)
    front = Front(server.api, Tokens(), routes)
    bound = await front.serve("127.0.0.1", port, context)
    for token in TOKENS:
        write_kubeconfig(folder, bound, token)
    try:
        yield bound
    finally:
        await front.close(1.0)


def kubeconfig(folder: Path, token: str = "admin-token") -> Path:
    return folder / f"{token}.kubeconfig"


def write_kubeconfig(folder: Path, port: int, token: str) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(folder / "ca.pem")}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    kubeconfig(folder, token).write_bytes(msgspec.json.encode(document))


def _server_context(folder: Path) -> ssl.SSLContext:
    certificate_path, key_path = folder / "ca.pem", folder / "key.pem"
    if not certificate_path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.now(UTC)
        import ipaddress

        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_path, key_path)
    return context


def application(name: str = "emotion", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    component = {"name": "serve", "command": ["/bin/true"], "replicas": 2, **spec.pop("component", {})}
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"components": [component], **spec},
    }


def config_map(name: str, namespace: str = "default", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}
