"""gRPC to an application: an HTTP/2 connection led to an instance.

The application is named by the authority (`NAME.NAMESPACE.application…`) or by the metadata `banyan-application: NS/NAME`, the
user by the client's certificate or the metadata `authorization: Bearer …`; both are taken out before the instance sees the
request. A connection belongs to the application and the user of its first request. Each later one is authenticated and checked
again; one for another application or by another user is answered with a status by the front, and the others go on.

The front speaks just enough itself: its own (empty) SETTINGS first, because gRPC clients send no request before them.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError, Forbidden, InvalidInput, NotFound, Unauthenticated, Unreachable
from cluster_shim.contract import ByteStream, ShimError
from openapi.front import http2
from openapi.front.head import RequestHead
from openapi.front.http2 import ClientFrames, Dropped, Event, Http2Error, Pass, Request, ServerFrames
from openapi.front.splice import splice
from openapi.front.status import code_of
from openapi.front.streams import STREAM_ERRORS

if TYPE_CHECKING:
    from openapi.front.connection import CredentialSource, Shared
    from openapi.services import User

log = structlog.get_logger()

METADATA = b"banyan-application"
MAX_OWN_ANSWERS = 65536  # bytes
MAX_BEFORE_REQUEST = 65536  # bytes of frames that may come before the first request

_AUTHORITY = re.compile(
    rb"([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)\.([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)\.application(?:\.[a-z0-9.-]*)?(?::[0-9]+)?\Z"
)
_NAMED = re.compile(rb"([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)/([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)\Z")
_DROP = frozenset({METADATA, b"authorization"})

# gRPC status codes (grpc/status.h)
_INVALID, _NOT_FOUND, _DENIED, _UNAVAILABLE, _UNAUTHENTICATED = 3, 5, 7, 14, 16

OpenApplication = Callable[["User", str, str], Awaitable[ByteStream]]


class Route(Struct, frozen=True):
    """Whose connection this is."""

    user: str
    namespace: str
    name: str


async def serve_grpc(stream: ByteStream, credentials: "CredentialSource", shared: "Shared", open_application: OpenApplication) -> None:
    """Until either side closes."""
    client = ClientSide(stream, credentials)
    metrics = shared.metrics
    try:
        await stream.write(http2.SETTINGS)
        async with asyncio.timeout(shared.limits.idle_seconds):
            first = await client.first()
        if first is None:
            return
        metrics.in_flight += 1
        try:
            await splice(client, await _lead(client, first, open_application))
            metrics.requests["grpc", 200] += 1
        except _Refused as refused:
            metrics.requests["grpc", code_of(refused.error)] += 1
            message = str(refused.error)
            answer = refusal(first.stream, grpc_status(refused.error), message)
            await _send_last(stream, answer + http2.goaway(first.stream, 0, message))
        finally:
            metrics.in_flight -= 1
    except TimeoutError:
        await _send_last(stream, http2.goaway(0, 0, "idle"))
    except Http2Error as error:
        metrics.bad_heads += 1
        await _send_last(stream, http2.goaway(0, 1, str(error)))
    except STREAM_ERRORS as error:
        log.debug("front.grpc.lost", reason=str(error))
        stream.abort(str(error))


class _Refused(Exception):
    def __init__(self, error: BanyanError) -> None:
        super().__init__(str(error))
        self.error = error


async def _lead(client: "ClientSide", first: Request, open_application: OpenApplication) -> ByteStream:
    """The instance's end of the connection that ``first`` opens."""
    try:
        user = client.user(first)
        namespace, name = application_of(first)
        upstream = await open_application(user, namespace, name)
        await client.claim(Route(user.name, namespace, name))
    except BanyanError as error:
        raise _Refused(error) from error
    except ShimError as error:
        raise _Refused(Unreachable(str(error))) from error
    return upstream


class ClientSide:
    """The client as the instance may see it: every request checked, every credential taken out. A ByteStream once claimed."""

    def __init__(self, inner: ByteStream, credentials: "CredentialSource") -> None:
        self._inner = inner
        self._credentials = credentials
        self._frames = ClientFrames()
        self._held: list[Event] = []
        self._route: Route | None = None
        self._ready = b""
        self._sent = ServerFrames()
        self._writing = asyncio.Lock()
        self._own_answers = b""  # refusals that wait for a place between two frames of the instance

    async def first(self) -> Request | None:
        """The first request; what comes with it is held until `claim`. None when the client closes before it."""
        size = 0
        while data := await self._inner.read():
            self._frames.receive(data)
            while (event := self._frames.next_event()) is not None:
                self._held.append(event)
                if isinstance(event, Request):
                    return event
            size += len(data)
            if size > MAX_BEFORE_REQUEST:
                raise Http2Error(f"more than {MAX_BEFORE_REQUEST} bytes came before the first request")
        return None

    async def claim(self, route: Route) -> None:
        """From now on this connection belongs to ``route``."""
        self._route = route
        held, self._held = self._held, []
        for event in held:
            self._ready += await self._translate(event)

    def user(self, request: Request) -> "User":
        user = self._credentials.user(_head(request))
        if user is None:
            raise Unauthenticated("no credential was given")
        return user

    async def read(self, limit: int = 65536) -> bytes:
        try:
            while not self._ready:
                data = await self._inner.read(limit)
                if not data:
                    return b""
                self._frames.receive(data)
                pieces = []
                while (event := self._frames.next_event()) is not None:
                    pieces.append(await self._translate(event))
                self._ready = b"".join(pieces)
        except Http2Error as error:
            raise ConnectionAbortedError(str(error)) from error
        data, self._ready = self._ready[:limit], self._ready[limit:]
        return data

    async def write(self, data: bytes) -> None:
        """From the instance; answers of our own go in where they fit."""
        async with self._writing:
            position = 0
            if self._own_answers:
                position = self._sent.advance(data, stop=True)
                await self._inner.write(data[:position])
                await self._put_own_answers()
            self._sent.advance(data[position:])
            await self._inner.write(data[position:])

    async def close_write(self) -> None:
        await self._inner.close_write()

    def abort(self, reason: str = "") -> None:
        self._inner.abort(reason)

    async def _translate(self, event: Event) -> bytes:
        if isinstance(event, Pass):
            return event.data
        if isinstance(event, Dropped):
            await self._answer(http2.window_update(event.length))
            return b""
        try:
            if not event.trailers:
                self._check(event)
        except BanyanError as error:
            self._frames.refuse(event.stream)
            await self._answer(refusal(event.stream, grpc_status(error), str(error)) + http2.reset(event.stream))
            return b""
        return self._frames.encode(event, _DROP)

    async def _answer(self, frames: bytes) -> None:
        self._own_answers += frames
        if len(self._own_answers) > MAX_OWN_ANSWERS:
            raise Http2Error("too many requests were refused while an answer is on its way")
        async with self._writing:
            await self._put_own_answers()

    async def _put_own_answers(self) -> None:
        if self._sent.between and self._own_answers:
            answers, self._own_answers = self._own_answers, b""
            await self._inner.write(answers)

    def _check(self, request: Request) -> None:
        mine = self._route
        assert mine is not None
        if Route(self.user(request).name, *application_of(request)) != mine:
            raise Forbidden(
                f"this connection belongs to application {mine.namespace}/{mine.name} and user {mine.user}; open another one for others "
                "(in Python the channel option grpc.use_local_subchannel_pool)"
            )


def application_of(request: Request) -> tuple[str, str]:
    """Namespace and name. InvalidInput says how to name an application."""
    if found := _NAMED.match(request.get(METADATA)):
        return found[1].decode(), found[2].decode()
    if found := _AUTHORITY.match(request.get(b":authority").lower()):
        return found[2].decode(), found[1].decode()
    raise InvalidInput(
        "HTTP/2 is spoken here for gRPC to applications only: name one by the authority NAME.NAMESPACE.application "
        "or by the metadata banyan-application: NAMESPACE/NAME; the REST API is served over HTTP/1.1"
    )


def _head(request: Request) -> RequestHead:
    """As the credentials want to see it."""
    return RequestHead(
        method=request.get(b":method").decode("latin-1"),
        path=request.get(b":path"),
        query=b"",
        version="1.1",
        headers=tuple(request.fields),
        length=0,
        keep_alive=True,
        expect_continue=False,
        upgrade=b"",
    )


def grpc_status(error: Exception) -> int:
    by_kind: tuple[tuple[type[Exception], int], ...] = (
        (Unauthenticated, _UNAUTHENTICATED),
        (Forbidden, _DENIED),
        (NotFound, _NOT_FOUND),
        (InvalidInput, _INVALID),
    )
    return next((code for kind, code in by_kind if isinstance(error, kind)), _UNAVAILABLE)


def refusal(stream: int, code: int, message: str) -> bytes:
    """A whole gRPC answer that is only a status (gRPC over HTTP/2, "Trailers-Only")."""
    fields = [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % code),
        (b"grpc-message", quote(message[:1024], safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~").encode("ascii")),
    ]
    return http2.headers_frames(stream, http2.literal_block(fields), end_stream=True)


async def _send_last(stream: ByteStream, data: bytes) -> None:
    try:
        async with asyncio.timeout(5.0):
            await stream.write(data)
            await stream.close_write()
    except (TimeoutError, *STREAM_ERRORS):
        stream.abort("refused")
