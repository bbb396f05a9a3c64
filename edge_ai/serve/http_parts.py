"""What `http` and those who stand on it hand to each other: requests, responses, limits, and what an application is."""

import asyncio
from typing import Protocol

from msgspec import Struct

from edge_ai.serve.http_stream import Answering

JSON = b"application/json"
_MIB = 1 << 20


class Limits(Struct, frozen=True):
    """Sizes in bytes, times in seconds."""

    head: int = 16 * 1024  # 431 beyond
    body: int = 16 * _MIB  # 413 beyond
    bodies: int = 64 * _MIB  # of all connections together while they are received; 429 beyond
    connections: int = 1024  # 503 beyond
    pipelined: int = 64  # 503 beyond
    receive_seconds: float = 30.0  # for the whole head, and without a byte in the middle of a body: 408
    request_seconds: float = 300.0  # for one whole request to arrive: 408
    idle_seconds: float = 120.0  # between requests: closed
    stalled_seconds: float = 60.0  # peer does not take its answer: dropped
    idle_drain_seconds: float = 5.0
    linger_seconds: float = 2.0  # after a refusal, so that the peer reads it before the connection is reset


class Request:
    """``headers``: only those in `KEPT_HEADERS`, lower-case names. ``target``: as sent, percent-encoded."""

    __slots__ = ("body", "headers", "keep_alive", "method", "target")

    def __init__(self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes | bytearray, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive


class Response:
    """``body``: parts, written one after the other; ``headers``: complete lines, each with its line end."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, status: int, body: list[bytes], content_type: bytes = JSON, headers: bytes = b"") -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


class Application(Protocol):
    """Answers at once, or later through a future, which the caller cancels when the peer is gone."""

    def __call__(self, request: Request) -> "Response | asyncio.Future[Response]": ...

    def stream(self, method: bytes, target: bytes) -> "Answering | Response | None":
        """Asked as soon as a request's head is whole. What answers its lines while they come; a refusal; None: it is a request like any
        other."""
        ...

    def refuse(self, status: int, message: str, headers: bytes = b"") -> Response:
        """The answer to what is no valid request: the application's own form of an error."""
        ...

    def crashed(self, error: BaseException) -> Response:
        """The answer to a request whose future failed: a defect, which the application logs."""
        ...


class Client(Protocol):
    """One connection, as the server of its socket knows it: HTTP/1.1 here, HTTP/2 in `grpc_door`."""

    def retire(self) -> None:
        """The end is near: ask the client to go elsewhere next time."""
        ...

    def close_if_idle(self) -> None: ...

    def abort(self) -> None: ...

    def expire(self, now: float) -> None:
        """Called now and then with the loop's time."""
        ...


class Upgrade(Protocol):
    """Takes a connection over whose first bytes are HTTP/2's, registered with `HttpServer.admit` before it is told of them."""

    def __call__(self, transport: asyncio.Transport, first: bytes) -> asyncio.Protocol: ...
