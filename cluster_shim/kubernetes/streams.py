"""Byte streams through a member's API server: a pod's log, and a port of a pod.

Each has a connection of its own, so a reader who stops reading stops what is sent to him and nobody else, and no thread waits for
anything. Ports go by the API server's own port-forward over a WebSocket, the way that needs no route into the cluster's network.
It has no half-close: an application that answers only once its client has ended its direction is not reached that way.
"""

import asyncio
import base64
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlencode, urlsplit

import httptools

from cluster_shim.contract import ByteStream, ShimError
from cluster_shim.kubernetes import websocket
from cluster_shim.kubernetes.api import Api, ApiError, refusal
from cluster_shim.process.streams import SocketStream

ANSWER_SECONDS = 20.0  # until an API server has begun to answer; it may have to wake a kubelet
DIAL_SECONDS = 2.0
MAX_HEAD = 64 << 10
MAX_REFUSAL = 64 << 10
CHUNK = 32 << 10  # of one message; what kubelets send themselves
DATA, ERROR = 0, 1  # channels of the first port
PORT_FORWARD = "v4.channel.k8s.io"
LOG_OPTIONS = ("follow", "tailLines", "sinceSeconds", "sinceTime", "previous", "limitBytes", "timestamps")


class Answer:
    """The answer to one request on ``stream``. `read` brings its body, or after an upgrade whatever follows."""

    def __init__(self, stream: ByteStream) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._stream = stream
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._head_done = self._done = self._upgraded = False

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._head_done = True
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._done = True

    async def head(self) -> None:
        """ApiError when the connection ends before."""
        taken = 0
        while not self._head_done:
            data = await self._stream.read(CHUNK)
            taken += len(data)
            if not data or taken > MAX_HEAD:
                raise ApiError("the API server ended the connection before it answered" if not data else "its answer's head has no end")
            self._feed(data)

    async def read(self, limit: int = 65536) -> bytes:
        while not self._body and not self._done:
            data = await self._stream.read(CHUNK)
            if self._upgraded:
                return data
            if not data:
                if not self._done and self.headers.get("transfer-encoding", "") == "chunked":
                    raise ApiError("the API server broke off in the middle of its answer")
                return b""
            self._feed(data)
        piece = bytes(self._body[:limit])
        del self._body[:limit]
        if not piece and self._upgraded:
            return await self._stream.read(limit)
        return piece

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded = True
            self._body += data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            raise ApiError(f"the API server's answer is no HTTP: {error}") from None


async def ask(api: Api, path: str, query: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> tuple[ByteStream, Answer]:
    """GET on a connection of its own; anything but 101 and 200 is an ApiError. The caller ends the connection."""
    server = urlsplit(api.url)
    target = f"{server.path.rstrip('/')}{path}?{urlencode(query)}"
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {server.netloc}",
        "User-Agent: banyan",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    head = "\r\n".join(lines).encode("latin-1")
    for name, value in await api.credential_headers():
        head += b"\r\n" + name + b": " + value
    stream = await api.connect()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await stream.write(head + b"\r\n\r\n")
            answer = Answer(stream)
            await answer.head()
            if answer.status not in (101, 200):
                raise refusal(answer.status, await _short(answer), answer.headers.get("retry-after"))
    except TimeoutError:
        stream.abort("no answer")
        raise ApiError(f"{api.url} does not answer within {ANSWER_SECONDS:g} s") from None
    except BaseException:
        stream.abort("not opened")
        raise
    return stream, answer


async def _short(answer: Answer) -> bytes:
    said = b""
    while len(said) < MAX_REFUSAL and (more := await answer.read()):
        said += more
    return said


# --- logs ---


class LogStream:
    """Read-only."""

    def __init__(self, stream: ByteStream, answer: Answer) -> None:
        self._stream = stream
        self._answer = answer

    async def read(self, limit: int = 65536) -> bytes:
        data = await self._answer.read(limit)
        if not data:
            self._stream.abort("read to its end")
        return data

    async def write(self, data: bytes) -> None:
        raise ShimError("a log cannot be written to")

    async def close_write(self) -> None:
        """There is nothing to say to a log."""

    def abort(self, reason: str = "") -> None:
        self._stream.abort(reason)


async def open_log(api: Api, namespace: str, pod: str, container: str, options: Mapping[str, str]) -> LogStream:
    """``options`` as the query parameters of a pod's log; those that mean nothing here are passed over."""
    query = [("container", container), *((name, options[name]) for name in LOG_OPTIONS if options.get(name))]
    stream, answer = await ask(api, f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query, {"Connection": "close"})
    return LogStream(stream, answer)


# --- ports ---


class ForwardStream:
    """One connection to a port of a pod, as messages of the API server's WebSocket."""

    def __init__(self, stream: ByteStream, answer: Answer, what: str) -> None:
        self._stream = stream
        self._answer = answer
        self._what = what
        self._messages = websocket.Messages()
        self._skip = {DATA: 2, ERROR: 2}  # each channel begins with the port's number
        self._pending = bytearray()
        self._trouble = ""
        self._ended = False

    async def read(self, limit: int = 65536) -> bytes:
        while not self._pending and not self._ended:
            try:
                data = await self._answer.read()
                self._ended = not data
                for opcode, payload in self._messages.feed(data):
                    await self._take(opcode, payload)
            except websocket.ProtocolError as error:
                self.abort(str(error))
                raise ShimError(f"{self._what}: the API server sent {error}") from None
        if not self._pending and self._trouble:
            raise ShimError(f"{self._what}: {self._trouble}")
        data = bytes(self._pending[:limit])
        del self._pending[:limit]
        return data

    async def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == websocket.PING:
            await self._send(websocket.PONG, payload)
        elif opcode == websocket.CLOSE:
            self._ended = True
        elif opcode == websocket.BINARY and payload:
            channel, rest = payload[0], payload[1:]
            if skip := self._skip.get(channel, 0):
                self._skip[channel] = max(0, skip - len(rest))
                rest = rest[skip:]
            if channel == DATA:
                self._pending += rest
            elif channel == ERROR and rest:
                self._trouble = rest.decode("utf-8", "replace")[:500]

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            await self._send(websocket.BINARY, bytes((DATA,)) + data[start : start + CHUNK])

    async def _send(self, opcode: int, payload: bytes) -> None:
        await self._stream.write(websocket.frame(opcode, payload, os.urandom(4)))

    async def close_write(self) -> None:
        """Cannot be said; what the application still sends is read on."""

    def abort(self, reason: str = "") -> None:
        self._stream.abort(reason)


async def open_port(api: Api, namespace: str, pod: str, port: int, address: str = "") -> ByteStream:
    """A connection to ``port`` of a pod; directly to ``address`` where this controller is inside the cluster and gets through."""
    if api.inside and address:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(DIAL_SECONDS):
                reader, writer = await asyncio.open_connection(address, port)
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return SocketStream(reader, writer)
    key = base64.b64encode(os.urandom(16))
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key.decode(),
        "Sec-WebSocket-Protocol": PORT_FORWARD,
    }
    stream, answer = await ask(api, f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward", [("ports", str(port))], headers)
    if answer.status != 101 or answer.headers.get("sec-websocket-accept", "").encode() != websocket.accept(key):
        stream.abort("no WebSocket")
        raise ApiError(f"{api.url} does not offer port-forward over WebSocket (answer {answer.status}); a proxy before it may forbid that")
    return ForwardStream(stream, answer, f"port {port} of pod {namespace}/{pod}")
