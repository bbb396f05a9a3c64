"""Serve one exchange by an ASGI application (HTTP, specification 3.0 / 2.3).

The scope has two keys of our own: ``banyan.user`` (a `User`; None only for /healthz) and ``banyan.draining`` (an asyncio.Event,
set when the front shuts down: endless responses such as watches should end then). A `send` waits while the client does not read,
and raises OSError once the client has gone; `receive` tells `http.disconnect` as soon as the client goes.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from openapi.front.exchange import Disconnected, Exchange
from openapi.front.streams import STREAM_ERRORS, StreamClosed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_VERSIONS = {"version": "3.0", "spec_version": "2.3"}  # 2.3: streaming responses of Starlette listen for the disconnect


class AsgiRun:
    """`receive` and `send` of one exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.gone = False  # the application was told, or could have been
        self._body_told = False

    async def receive(self) -> Message:
        exchange = self.exchange
        if not (self.gone or exchange.finished or self._body_told):
            try:
                piece = await exchange.read_body()
            except Disconnected:
                self.gone = True
            else:
                self._body_told = exchange.body_done
                return {"type": "http.request", "body": piece, "more_body": not exchange.body_done}
        if not (self.gone or exchange.finished):
            await exchange.disconnected()
            self.gone = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        exchange = self.exchange
        if self.gone:
            raise StreamClosed("the client has gone away")
        if kind == "http.response.start":
            await exchange.start(message["status"], [(bytes(name), bytes(value)) for name, value in message.get("headers", ())])
        elif kind == "http.response.body":
            if not exchange.started:
                raise RuntimeError("http.response.body came before http.response.start")
            if exchange.finished:
                raise RuntimeError("http.response.body came after the response was complete")
            body = bytes(message.get("body", b""))
            if not message.get("more_body", False):
                await exchange.finish(body)
            elif body:
                await exchange.write(body)
            else:
                await exchange.flush()
        else:
            raise RuntimeError(f"an HTTP application must not send {kind!r}")


def scope(exchange: Exchange, server: tuple[str, int] | None) -> dict[str, Any]:
    head = exchange.head
    return {
        "type": "http",
        "asgi": _VERSIONS,
        "http_version": head.version,
        "method": head.method,
        "scheme": "https",
        "path": unquote_to_bytes(head.path).decode("utf-8", "replace"),
        "raw_path": head.path,
        "query_string": head.query,
        "root_path": "",
        "headers": list(head.headers),
        "client": exchange.client,
        "server": server,
        "banyan.user": exchange.user,
        "banyan.draining": exchange.draining,
    }


async def run(app: ASGIApp, exchange: Exchange, server: tuple[str, int] | None) -> None:
    """Call the application. Raises RuntimeError when it returned without a complete response, and what it raised."""
    call = AsgiRun(exchange)
    try:
        await app(scope(exchange, server), call.receive, call.send)
    except STREAM_ERRORS as error:
        if isinstance(error, OSError):
            raise Disconnected(str(error)) from error
        raise
    if call.gone and not exchange.finished:
        raise Disconnected("the client went away")
    if not exchange.finished:
        raise RuntimeError("the application returned without a complete response")
