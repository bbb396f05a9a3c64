"""One request to many clusters: POST /apis/banyan.dev/v1alpha1/invoke.

    {"labelSelector": "tier=edge", "clusters": ["edge-1"],            which (both may be given; neither: all)
     "method": "POST", "path": "/apis/…/applications/emotion/proxy/v2/health/ready", "headers": {"content-type": "…"},
     "body": "text" or "bodyBase64": "…", "timeoutSeconds": 10, "maxBodyBytes": 65536}

Each cluster's own API gets the request as the same user, so each decides by itself what that user may. The answer is one JSON
document whose items are written as they come:

    {"kind": "InvokeResult", "apiVersion": "banyan.dev/v1alpha1", "items": [
      {"cluster": "edge-1", "uid": "…", "code": 200, "contentType": "…", "body": "…" or "bodyBase64": "…", "truncated": false,
       "age": 0.0, "milliseconds": 12.3},
      {"cluster": "edge-2", "uid": "…", "code": 503, "message": "…", "age": 41.7, "ageAtLeast": true, "brokenHop": "…", …}]}

``age`` says how old the knowledge in that row is, in seconds: 0 for a cluster that answered, the time since it was last heard of
for one that did not. Invariants: at most `AT_ONCE` clusters are asked at a time and at most their bodies are held; what goes
wrong at one is that row's message and nothing else.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, field

from cluster_controller.errors import BanyanError, InvalidInput, NotFound
from cluster_controller.resources.selectors import parse_labels
from cluster_shim.contract import ByteStream
from openapi.front import body as bodies
from openapi.front.exchange import Exchange
from openapi.front.forward import read_piece, read_response_head
from openapi.front.head import ResponseHead
from openapi.front.status import code_of
from openapi.front.streams import STREAM_ERRORS, PushbackStream
from openapi.present import labels_of

if TYPE_CHECKING:
    from openapi.front.raw import Services
    from openapi.services import User

MAX_REQUEST = 4 * 1024 * 1024
MAX_CLUSTERS = 1000
MAX_BODY = 1024 * 1024  # of one answer
AT_ONCE = 16
MAX_SECONDS = 300.0

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*\Z")
_PATH = re.compile(r"/[!-~]*\Z")
_RESERVED = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "authorization", "expect", "te", "trailer"})

Open = Callable[[str, "User"], Awaitable[ByteStream]]


class Call(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What is asked of each cluster."""

    path: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    body_base64: str = ""
    label_selector: str = ""
    clusters: tuple[str, ...] = ()
    timeout_seconds: float = 10.0
    max_body_bytes: int = 65536


class Chosen(Struct, frozen=True):
    uid: str
    name: str


async def serve(exchange: Exchange, user: "User", services: "Services", open_api: Open) -> None:
    if exchange.head.method != "POST":
        await exchange.refuse(405, "invoke takes POST with a document that names clusters and a request", [(b"allow", b"POST")])
        return
    call = decode(await _read(exchange))
    fanout = Fanout(call, user, services, open_api)
    chosen = choose(call, services)
    await exchange.start(200, [(b"content-type", b"application/json")])
    await exchange.write(b'{"kind":"InvokeResult","apiVersion":"banyan.dev/v1alpha1","items":[')
    separator = b""
    async for row in fanout.rows(chosen):
        await exchange.write(separator + msgspec.json.encode(row))
        separator = b","
    await exchange.finish(b"]}")


def decode(document: bytes) -> Call:
    """InvalidInput names what is wrong."""
    try:
        call = msgspec.json.decode(document, type=Call)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the invocation cannot be read: {error}") from error
    if not _PATH.match(call.path):
        raise InvalidInput("path must begin with / and be percent-encoded ASCII", "path")
    if call.body and call.body_base64:
        raise InvalidInput("give body or bodyBase64, not both", "body")
    if not 0 < call.timeout_seconds <= MAX_SECONDS:
        raise InvalidInput(f"timeoutSeconds must be above 0 and at most {MAX_SECONDS:g}", "timeoutSeconds")
    if not 0 <= call.max_body_bytes <= MAX_BODY:
        raise InvalidInput(f"maxBodyBytes must be between 0 and {MAX_BODY}", "maxBodyBytes")
    for name, value in call.headers.items():
        lower = name.lower()
        if lower in _RESERVED or lower.startswith("impersonate-") or not _HEADER_NAME.match(name) or not _HEADER_VALUE.match(value):
            raise InvalidInput(f"header {name!r} cannot be given here", "headers")
    return call


def encode(call: Call) -> bytes:
    """The request as each cluster's API gets it."""
    try:
        body = base64.b64decode(call.body_base64, validate=True) if call.body_base64 else call.body.encode()
    except ValueError as error:
        raise InvalidInput(f"bodyBase64 is not base64: {error}", "bodyBase64") from error
    lines = [f"{call.method} {call.path} HTTP/1.1", "host: banyan", "connection: close"]
    lines += [f"{name}: {value}" for name, value in call.headers.items()]
    if body or call.method in ("POST", "PUT", "PATCH"):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def choose(call: Call, services: "Services") -> list[Chosen]:
    """The clusters, by name. NotFound when there is none, InvalidInput when there are too many."""
    selector = parse_labels(call.label_selector)
    wanted = set(call.clusters)
    chosen: list[Chosen] = []
    for stored in services.store.list("own", "Cluster"):
        if wanted and stored.key.name not in wanted and stored.uid not in wanted:
            continue
        if selector.matches(labels_of(stored)):
            chosen.append(Chosen(stored.uid, stored.key.name))
    if not chosen:
        raise NotFound("no cluster of this subtree has these labels or names; `banyan tree -o wide` shows both")
    if len(chosen) > MAX_CLUSTERS:
        raise InvalidInput(f"{len(chosen)} clusters are meant, at most {MAX_CLUSTERS} can be asked at once; narrow labelSelector")
    return sorted(chosen, key=lambda each: each.name)


class Fanout:
    """One invocation: the same request to many clusters."""

    def __init__(self, call: Call, user: "User", services: "Services", open_api: Open) -> None:
        self._call = call
        self._request = encode(call)
        self._user = user
        self._services = services
        self._open_api = open_api

    async def rows(self, chosen: Sequence[Chosen]) -> AsyncIterator[dict[str, Any]]:
        """As they come. Each ends by its own timeout, so this ends too."""
        waiting = iter(chosen)
        running: set[asyncio.Task[dict[str, Any]]] = set()
        try:
            while True:
                while len(running) < AT_ONCE and (cluster := next(waiting, None)) is not None:
                    running.add(asyncio.create_task(self._row(cluster), name=f"invoke/{cluster.name}"))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()

    async def _row(self, cluster: Chosen) -> dict[str, Any]:
        """Every way to fail is in it."""
        started = monotonic()
        row: dict[str, Any] = {"cluster": cluster.name, "uid": cluster.uid}
        try:
            async with asyncio.timeout(self._call.timeout_seconds):
                head, body, truncated = await self._once(cluster)
            content_type = head.get(b"content-type").decode("latin-1")
            row |= {"code": head.status, "contentType": content_type, **_text(body), "truncated": truncated, "age": 0.0}
        except TimeoutError:
            message = f"cluster {cluster.name} did not answer within {self._call.timeout_seconds:g} s"
            row |= {"code": 504, "message": message, **self._age(cluster)}
        except STREAM_ERRORS as error:
            code = code_of(error) if isinstance(error, BanyanError) else 502
            row |= {"code": code, "message": str(error), **self._age(cluster)}
        return row | {"milliseconds": round((monotonic() - started) * 1000, 1)}

    async def _once(self, cluster: Chosen) -> tuple[ResponseHead, bytes, bool]:
        """Head, at most ``max_body_bytes`` of the body, and whether there was more."""
        name, most = f"cluster {cluster.name}", self._call.max_body_bytes
        stream = PushbackStream(await self._open_api(cluster.uid, self._user))
        sending = asyncio.create_task(_send(stream, self._request), name=f"invoke/{cluster.name}/request")
        try:
            head = await read_response_head(stream, self._call.method, name)
            decoder = bodies.decoder(head.length)
            body = bytearray()
            while not decoder.done and len(body) <= most:
                body += await read_piece(stream, decoder, name)
            return head, bytes(body[:most]), len(body) > most
        finally:
            sending.cancel()
            stream.abort("the answer was read")

    def _age(self, cluster: Chosen) -> dict[str, Any]:
        heard = self._services.heard(cluster.uid)
        if heard is None:
            return {"age": 0.0 if cluster.uid == self._services.uid else None}
        return {"age": round(heard.seconds, 1), "ageAtLeast": heard.at_least, "brokenHop": heard.broken_hop}


async def _send(stream: ByteStream, request: bytes) -> None:
    try:
        await stream.write(request)
    except STREAM_ERRORS:
        return  # whoever reads the answer finds out why


async def _read(exchange: Exchange) -> bytes:
    document = bytearray()
    while piece := await exchange.read_body():
        document += piece
        if len(document) > MAX_REQUEST:
            raise InvalidInput(f"the invocation has more than {MAX_REQUEST} bytes")
    return bytes(document)


def _text(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"bodyBase64": base64.b64encode(body).decode("ascii")}
