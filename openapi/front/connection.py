"""One HTTP/1 connection: head after head, each parsed once, authenticated, and given to a raw route or to the application.

It runs over any `ByteStream`: a TLS socket, or a stream that the parent opened through the tree. One request is served at a
time; pipelined ones wait in the (bounded) read-ahead. Each way in which a request can end leaves the connection either exactly
at the next request or closed.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import structlog

from cluster_controller.errors import BanyanError
from cluster_shim.contract import ByteStream, ShimError
from openapi.front import asgi
from openapi.front.exchange import Disconnected, Exchange
from openapi.front.head import HeadError, RequestHead, find_head_end, parse_request
from openapi.front.kept import Kept, KeptTotal
from openapi.front.limits import FrontLimits
from openapi.front.metrics import FrontMetrics
from openapi.front.streams import STREAM_ERRORS, PushbackStream

if TYPE_CHECKING:
    from openapi.services import User

log = structlog.get_logger()

CLIENT_GONE = 499  # counted for a request whose client left before an answer (nginx's code for it; never sent)
SILENCE_SECONDS = 0.1


class RawRoute(Protocol):
    """Serves an exchange outside ASGI. Raises BanyanError (answered as a Status while nothing was sent)."""

    kind: str  # for the counters

    async def __call__(self, exchange: Exchange) -> None: ...


class RawRoutes(Protocol):
    def match(self, head: RequestHead) -> RawRoute | None:
        """The raw route that this request belongs to; None: the application's. Cheap, and free of effects."""
        ...

    def attach(self, adopt: "Callable[[ByteStream, User], Awaitable[None]]") -> None:
        """Told once by the front: the way to serve a stream by this front itself."""
        ...

    async def http2(self, stream: ByteStream, credentials: "CredentialSource", shared: "Shared") -> None:
        """Serve a connection that speaks HTTP/2, until it closes."""
        ...

    async def close(self) -> None: ...


class CredentialSource(Protocol):
    def user(self, head: RequestHead) -> "User | None": ...


class State(Enum):
    IDLE = "idle"  # between two requests: may be closed at any time
    HEAD = "head"
    SERVING = "serving"


class Connection:
    """``shared`` is what all connections of a front have in common."""

    def __init__(
        self,
        stream: ByteStream,
        credentials: CredentialSource,
        shared: "Shared",
        client: tuple[str, int] | None = None,
        server: tuple[str, int] | None = None,
    ) -> None:
        self.state = State.IDLE
        self.served = 0
        self.used: Callable[[], None] = lambda: None  # called as each request begins
        self._stream = PushbackStream(stream)
        self._credentials = credentials
        self._shared = shared
        self._client = client
        self._server = server
        self._kept = Kept(shared.kept)

    async def run(self) -> None:
        """Until either side closes. The caller closes the stream."""
        try:
            while not self._shared.draining.is_set():
                head = await self._next_head()
                if head is None or not await self._serve(head):
                    return
        except STREAM_ERRORS as error:
            log.debug("front.connection.lost", client=self._client, reason=str(error))
            self._stream.abort(str(error))  # a clean close would make half an answer look whole
        finally:
            self._kept.let_go()

    async def _next_head(self) -> RequestHead | None:
        limits = self._shared.limits
        self.state = State.IDLE
        try:
            async with asyncio.timeout(limits.idle_seconds if self.served else limits.head_seconds):
                data = await self._stream.read()
        except TimeoutError:
            return None
        self.state = State.HEAD
        try:
            async with asyncio.timeout(limits.head_seconds):
                raw = await self._collect_head(data)
            return None if raw is None else parse_request(raw, max_headers=limits.headers, max_line=limits.line_bytes)
        except TimeoutError:
            await self._refuse_head(HeadError(408, f"the request's head did not come within {limits.head_seconds:g} s"))
        except HeadError as error:
            await self._refuse_head(error)
        return None

    async def _collect_head(self, data: bytes) -> bytes | None:
        """Bytes up to and with the blank line; what follows is given back. None when the client closes before."""
        buffer = bytearray(data.lstrip(b"\r\n"))  # empty lines before a request line are allowed (RFC 9112, section 2.2)
        scanned = 0
        while True:
            end = find_head_end(buffer, scanned)
            if end > self._shared.limits.head_bytes or (end < 0 and len(buffer) > self._shared.limits.head_bytes):
                raise HeadError(431, f"the request's head has more than {self._shared.limits.head_bytes} bytes")
            if end >= 0:
                self._stream.unread(bytes(buffer[end:]))
                return bytes(buffer[:end])
            scanned = len(buffer)
            data = await self._stream.read()
            if not data:
                return None
            buffer += data if buffer else data.lstrip(b"\r\n")

    async def _refuse_head(self, error: HeadError) -> None:
        self._shared.metrics.bad_heads += 1
        exchange = self._exchange(_UNREADABLE, None)
        exchange.keep_alive = False
        await exchange.refuse(error.status, str(error))
        self._shared.metrics.requests["bad", error.status] += 1
        await self._linger()

    def _exchange(self, head: RequestHead, user: "User | None") -> Exchange:
        exchange = Exchange(self._stream, head, user, self._shared.limits, draining=self._shared.draining, kept=self._kept)
        exchange.client = self._client
        return exchange

    async def _serve(self, head: RequestHead) -> bool:
        """True when the connection stands exactly at the next request."""
        self.state = State.SERVING
        self.used()
        metrics = self._shared.metrics
        metrics.in_flight += 1
        exchange = self._exchange(head, None)
        try:
            await self._dispatch(exchange)
        finally:
            metrics.in_flight -= 1
            metrics.requests[exchange.route, exchange.status or CLIENT_GONE] += 1
        self.served += 1
        if exchange.hijacked or not exchange.finished:
            return False
        if not await exchange.drain():
            await self._linger()
            return False
        return exchange.keep_alive and not self._stream.reading  # a stray reader of the application would eat the next request

    async def _dispatch(self, exchange: Exchange) -> None:
        try:
            exchange.user = self._credentials.user(exchange.head)
            route = self._shared.routes.match(exchange.head)
            if route is not None:
                exchange.route = route.kind
                await route(exchange)
            else:
                await asgi.run(self._shared.app, exchange, self._server)
        except BanyanError as error:
            await self._refuse(exchange, error)
        except ShimError as error:
            await exchange.refuse(503, str(error))
        except HeadError as error:  # of the body's framing
            exchange.keep_alive = False
            await exchange.refuse(error.status, str(error))
        except Disconnected:
            raise
        except Exception:
            # The guard of one request: whatever an application raises costs its own request and is seen.
            log.exception("front.request.crashed", method=exchange.head.method, path=exchange.head.path.decode("latin-1"))
            exchange.keep_alive = False
            await exchange.refuse(500, "the request failed for a reason that is ours; the controller's log says more")

    async def _refuse(self, exchange: Exchange, error: BanyanError) -> None:
        log.debug("front.request.refused", path=exchange.head.path.decode("latin-1"), reason=str(error))
        await exchange.refuse_error(error)

    async def _linger(self) -> None:
        """Read on until the client is silent: bytes that nobody read would turn the close into a reset and eat the answer."""
        limits = self._shared.limits
        read = 0
        try:
            async with asyncio.timeout(limits.drain_seconds):
                while read < limits.drain_bytes:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        data = await self._stream.read()
                    if not data:
                        return
                    read += len(data)
        except (TimeoutError, *STREAM_ERRORS):
            return


class Shared:
    """What the connections of one front share."""

    def __init__(self, app: asgi.ASGIApp, routes: RawRoutes, limits: FrontLimits, metrics: FrontMetrics) -> None:
        self.app = app
        self.routes = routes
        self.limits = limits
        self.metrics = metrics
        self.kept = KeptTotal()
        self.draining = asyncio.Event()

    def leading_to(self, routes: RawRoutes) -> "Shared":
        """The same front with other routes."""
        other = copy.copy(self)
        other.routes = routes
        return other


_UNREADABLE = RequestHead(
    method="GET",
    path=b"/",
    query=b"",
    version="1.1",
    headers=(),
    length=0,
    keep_alive=False,
    expect_continue=False,
    upgrade=b"",
)


class NoRoutes:
    """Everything belongs to the application."""

    def match(self, head: RequestHead) -> RawRoute | None:
        return None

    def attach(self, adopt: "Callable[[ByteStream, User], Awaitable[None]]") -> None:
        return

    async def http2(self, stream: ByteStream, credentials: CredentialSource, shared: Shared) -> None:
        stream.abort("HTTP/2 is not spoken here")

    async def close(self) -> None:
        return
