"""Model files for the init steps of pods (`edge_ai.fetch`): by digest, over TLS, to who holds the token of a Work that has them.

    GET /models/sha256/DIGEST      one request per connection; `Range: bytes=N-` resumes

Nothing else is served, and nothing is written. What a token opens follows from what is desired now of its Work; one that this controller
has not been told about yet, because it has just started, is answered 503 and comes again. A connection counts against `CONNECTIONS` from
accept to end, TLS included; what is more waits in the kernel's backlog.

The address that pods are told: `files_url` if the site says one; else this machine's own address on the way to the API server, and a port
that stays the same over restarts. Nothing listens before the first Work that has a model.
"""

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog

from cluster_controller import durable
from cluster_controller.tasks import Tasks
from cluster_shim import contract
from cluster_shim.contract import Desired, ShimError
from cluster_shim.kubernetes.render import Settings, Source
from cluster_shim.kubernetes.settings import Address, files_address, files_listen
from cluster_shim.kubernetes.trust import Trust

log = structlog.get_logger()

CONNECTIONS = 64
BACKLOG = 128
HEAD_BYTES = 8192
HEAD_SECONDS = 15.0  # for TLS and the request's head together
STALL_SECONDS = 60.0  # for a piece that nobody takes
PIECE = 256 * 1024
ADDRESS_FILE = "files-address.json"
RETRY_AFTER = 2
FIRST_SECONDS = 5.0  # for an address, before what is desired goes on without one
ELSEWHERE = ("192.0.2.1", 9)  # RFC 5737: nobody; connecting a UDP socket sends nothing and tells the address of the way out
REQUEST = re.compile(rb"(GET|HEAD) /models/sha256/([0-9a-f]{64}) HTTP/1\.[01]")
RANGE = re.compile(rb"bytes=(\d{1,18})-")


class Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str, *headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class FileServer:
    """``folder`` keeps keys and address. Files are read and written here: make it in a thread."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._api = ""
        self._trust = Trust(folder)
        self._address = self._remembered()
        self._offers: dict[str, dict[str, Path]] = {}  # Work → digest → file
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._tasks = Tasks("shim/kubernetes/files")
        self._needed = asyncio.Event()  # there is a Work with a model
        self._tried = asyncio.Event()  # to listen; it may have failed
        self.listening = asyncio.Event()

    def start(self, api: str) -> None:
        """Listen as soon as a Work has a model, and try again for as long as the address cannot be had: what is in the nodes' caches
        needs no server.

        ``api`` is the API server's URL: this machine's own address is the one on the way there.
        """
        self._api = api
        self._tasks.keep("listen", self._serve)

    async def close(self) -> None:
        await self._tasks.close()

    async def listen(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Desired]:
        """Pass on what is desired, and offer just that: from the moment on that it is known, whatever becomes of applying it."""
        async for change in desired:
            if change.full:
                self._offers.clear()
            for uid in change.removed:
                self._offers.pop(uid, None)
            self._offers.update({work.uid: _files(work) for work in change.works})
            if any(self._offers.values()):
                await self._need()
            yield change

    async def _need(self) -> None:
        """The first time ever, there is an address to tell pods when this returns, unless it takes too long."""
        self._needed.set()
        if self._api and self._address is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._tried.wait()

    def source(self, work: contract.Work) -> Source | None:
        """Where pods of ``work`` read its model files; None when it has none. ShimError while no address is known."""
        if not _files(work):
            return None
        address = self._address
        if address is None:
            raise ShimError(
                "pods cannot be told where this controller's model files are: this machine has no address on the way to the cluster yet;"
                " if it stays so, set kubernetes.files_url"
            )
        return Source(url=address.url, token=self._trust.token(work.uid), ca=self._trust.ca)

    # --- the address ---

    def _remembered(self) -> Address | None:
        """What pods were told before, so that a start without a network changes nothing of theirs."""
        found = files_address(self._settings)
        if found is None:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found = msgspec.json.decode((self._folder / ADDRESS_FILE).read_bytes(), type=Address)
        return found

    def _bind(self) -> tuple[socket.socket, Address]:
        """Listen on every address of this machine, on the port that pods know. Blocks for a name's look-up."""
        stated = files_address(self._settings)
        before = self._address
        host = stated.host if stated is not None else own_address(self._api)
        bind_host, port = files_listen(self._settings) or ("", (stated or before or NOWHERE).port)
        try:
            listener = _listen(bind_host, port)
        except OSError as error:
            where = f"{bind_host or 'every address'}, port {port}"
            raise ShimError(f"model files cannot be served on {where}: {error.strerror}; set kubernetes.files_listen") from None
        address = Address(host, stated.port if stated is not None else int(listener.getsockname()[1]))
        if stated is None and address != before:
            durable.write(self._folder / ADDRESS_FILE, msgspec.json.encode(address))
        return listener, address

    # --- serving ---

    async def _serve(self) -> None:
        await self._needed.wait()
        try:
            listener, address = await asyncio.to_thread(self._bind)
            self._address = address
        finally:
            self._tried.set()
        with listener:
            context = self._trust.context(address.host)
            listener.setblocking(False)
            log.info("files.listening", url=address.url, port=listener.getsockname()[1])
            self.listening.set()
            try:
                await self._accept_from(listener, context)
            finally:
                self.listening.clear()

    async def _accept_from(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                accepted, peer = await loop.sock_accept(listener)
            except BaseException:
                self._slots.release()
                raise
            task = self._tasks.spawn("connection", self._answer_one(accepted, context, str(peer[0]).removeprefix("::ffff:")))
            task.add_done_callback(lambda _: self._slots.release())

    async def _answer_one(self, accepted: socket.socket, context: ssl.SSLContext, peer: str) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                connecting = loop.connect_accepted_socket(lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=HEAD_SECONDS)
                transport, _ = await connecting
                head = await reader.readuntil(b"\r\n\r\n")
            await self._answer(head, asyncio.StreamWriter(transport, protocol, reader, loop), peer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError) as error:
            # Somebody who is no init step, or one that went away; it comes again.
            log.debug("files.connection.ended", peer=peer, error=str(error) or type(error).__name__)
            if transport is not None:
                transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            accepted.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter, peer: str) -> None:
        try:
            uid, digest, offset, body = self._asked(head)
            with await asyncio.to_thread(self._offered(uid, digest).open, "rb") as file:
                await _send(writer, file.fileno(), offset, body)
            log.info("files.served", work=uid, digest=digest, offset=offset, peer=peer)
        except Refused as refusal:
            log.info("files.refused", peer=peer, status=int(refusal.status), reason=str(refusal))
            text = f"{refusal}\n".encode()
            await _write(writer, _head(refusal.status, len(text), "Content-Type: text/plain; charset=utf-8", *refusal.headers) + text)
        writer.close()
        async with asyncio.timeout(STALL_SECONDS):
            await writer.wait_closed()

    def _asked(self, head: bytes) -> tuple[str, str, int, bool]:
        """Work, digest, offset, and whether the file itself is wanted. Refused says what is wrong."""
        first, *lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines if line)}
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        uid = self._trust.holder(token.decode("latin-1").strip()) if scheme.lower() == b"bearer" else ""
        if not uid:
            raise Refused(HTTPStatus.UNAUTHORIZED, "this token opens nothing here", "WWW-Authenticate: Bearer")
        found = REQUEST.fullmatch(first)
        if found is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there are model files here, at /models/sha256/DIGEST, and nothing else")
        asked = fields.get(b"range")
        range_ = RANGE.fullmatch(asked) if asked is not None else None
        return uid, found[2].decode(), int(range_[1]) if range_ is not None else 0, found[1] == b"GET"

    def _offered(self, uid: str, digest: str) -> Path:
        files = self._offers.get(uid)
        if files is None:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "the controller does not know this application, or not yet", f"Retry-After: {RETRY_AFTER}"
            )
        path = files.get(digest)
        if path is None or not path.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, f"the controller has no file {digest} for this application")
        return path


NOWHERE = Address("", 0)


def _files(work: contract.Work) -> dict[str, Path]:
    """By digest, where they are on this machine."""
    models = [component.model for component in work.components if component.model is not None]
    return {file.sha256: Path(model.folder) / file.path for model in models for file in model.files}


def own_address(api: str) -> str:
    """This machine's address as the cluster's nodes should see it: where the way to ``api`` begins, or the way out if that is loopback."""
    place = urlsplit(api)
    targets = [(place.hostname or "", place.port or 443), ELSEWHERE]
    for target in targets:
        with contextlib.suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                found = str(probe.getsockname()[0])
            if not ipaddress.ip_address(found.partition("%")[0]).is_loopback:
                return found
    raise ShimError(f"this machine has no address that pods of {api} could reach; set kubernetes.files_url to one that leads here")


def _listen(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a machine may have IPv6 and none of its addresses
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


async def _send(writer: asyncio.StreamWriter, descriptor: int, offset: int, body: bool) -> None:
    size = os.fstat(descriptor).st_size
    if offset and offset >= size:  # RFC 9110, section 14.1.2: satisfiable is what begins before the end
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {size} bytes", f"Content-Range: bytes */{size}")
    status, extra = HTTPStatus.OK, ["Content-Type: application/octet-stream", "Accept-Ranges: bytes"]
    if offset:
        status = HTTPStatus.PARTIAL_CONTENT
        extra.append(f"Content-Range: bytes {offset}-{size - 1}/{size}")
    await _write(writer, _head(status, size - offset, *extra))
    read: Callable[[int, int, int], bytes] = os.pread
    while body and offset < size:
        piece = await asyncio.to_thread(partial(read, descriptor, min(PIECE, size - offset), offset))
        if not piece:
            raise ConnectionAbortedError("the file became shorter while it was read")
        await _write(writer, piece)
        offset += len(piece)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    async with asyncio.timeout(STALL_SECONDS):
        await writer.drain()


def _head(status: HTTPStatus, length: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Length: {length}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
