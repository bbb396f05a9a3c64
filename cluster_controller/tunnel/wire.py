"""From a TCP connection to whole messages: proxy, TLS and WebSocket around one `asyncio` transport.

Why the layers are driven here instead of by the event loop: a lane means something only if the kernel holds little and the
transport holds nothing, so every message is handed over alone and the next one is chosen when the kernel has taken it
(`writable`). One read buffer serves all links of a controller, since it is emptied before the loop reads again.
The layers are sans-IO (`tls`, `proxy`, `websockets`), so what can go wrong is an exception in `buffer_updated`, mapped once.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Protocol, cast

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from cluster_controller.errors import ProtocolError
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import CloseCode
from cluster_controller.tunnel.protocol.connection import LinkStats
from cluster_controller.tunnel.protocol.frames import MAX_MESSAGE
from cluster_controller.tunnel.protocol.pacing import Sample
from cluster_controller.tunnel.proxy import Connect
from cluster_controller.tunnel.tls import READ_SIZE, TlsPipe

SUBPROTOCOL = Subprotocol("banyan.tunnel.v1")
PATH = "/tunnel"
TLS_HANDSHAKE = 0x16  # first byte of a TLS record that begins a connection
TCP_NOTSENT_LOWAT = 25
TCP_THIN_LINEAR_TIMEOUTS = 16
TCP_INFO = struct.Struct("=68xI48xQ20xI8xQ")  # struct tcp_info: rtt, bytes_acked, min_rtt, delivery_rate
SILENT = logging.Logger("tunnel.websocket", logging.CRITICAL)  # the link logs its own end, once
MAX_ANSWERS = 65536  # bytes of pongs and the like that wait for a peer that does not read


class WireOwner(Protocol):
    def wire_ready(self) -> None:
        """TLS and WebSocket are through."""

    def wire_received(self) -> None:
        """Bytes came, whatever they are."""

    def wire_message(self, message: bytes) -> None: ...

    def wire_writable(self) -> None: ...

    def wire_lost(self, code: int, reason: str) -> None:
        """Called once; nothing comes after."""


class Wires:
    """What the wires of one controller share: one read buffer, emptied before the loop reads again, and who is still open."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffer = memoryview(bytearray(READ_SIZE))
        self.open: set[Wire] = set()
        self.closing = False  # nobody connects any more, whoever is still dialling
        self._emptied: asyncio.Future[None] | None = None

    def lost(self, wire: "Wire") -> None:
        self.open.discard(wire)
        if not self.open and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def closed(self) -> None:
        """Let nobody in and return when the last connection has gone. The closing ones take `Limits.close_time` at most."""
        self.closing = True
        for wire in list(self.open):
            wire.close(CloseCode.GOING_AWAY, "this controller stops")
        if self.open:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied


class Wire(asyncio.BufferedProtocol):
    """One end of one TCP connection. ``name`` is the server's name when this side dials, None when it accepted."""

    def __init__(
        self,
        owner: WireOwner,
        context: ssl.SSLContext,
        wires: Wires,
        *,
        name: str | None,
        connect: Connect | None = None,
    ) -> None:
        self._owner = owner
        self._context = context
        self._wires = wires
        self._limits = wires.limits
        self._name = name
        self._connect = connect  # the proxy's part, until it is through
        self._outer: TlsPipe | None = None  # TLS to the proxy
        self._tls: TlsPipe | None = None
        self._websocket: ClientProtocol | ServerProtocol = self._make_websocket()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._fragments = bytearray()
        self._partial_since: float | None = None
        self._written = 0  # bytes handed to the transport
        self._lost = False
        self._reported = False
        self._code = 0  # why this side closes
        self._reason = ""
        self._close_timer: asyncio.TimerHandle | None = None
        self.stats = LinkStats()
        self.address = ""

    # -- what the link does -------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """The kernel has taken everything so far, and neither side is closing."""
        return not self._paused and not self._lost and not self._code and self._websocket.state is State.OPEN

    @property
    def closing(self) -> bool:
        return self._lost or bool(self._code)

    @property
    def behind(self) -> Connect | None:
        """The proxy that has not yet connected this side to its peer; None when none is in the way."""
        return self._connect

    @property
    def tls(self) -> TlsPipe:
        """Only once the wire is ready."""
        assert self._tls is not None
        return self._tls

    def send(self, message: bytes | bytearray) -> None:
        self._websocket.send_binary(message)
        self._flush()

    def close(self, code: int, reason: str) -> None:
        """Tell the peer why, and be gone within `Limits.close_time`, whatever it does."""
        if self.closing:
            return
        self._code, self._reason = code, reason
        transport = self._transport
        if transport is None:
            return
        if self._websocket.state is State.OPEN and not (self._tls is not None and self._tls.failed):
            self._websocket.send_close(code, _short(reason))
            self._flush()
            self._abort_later()
        else:
            transport.close()
            self._abort_later()

    def sample(self) -> Sample | None:
        """What the kernel measures; None when it does not tell."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is None:
            return None
        try:
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        except OSError:
            return None
        if len(raw) < TCP_INFO.size:
            return None
        rtt, acknowledged, min_rtt, rate = TCP_INFO.unpack(raw)
        return Sample(max(0, self._written - acknowledged), rtt / 1e6, min(rtt, min_rtt) / 1e6, float(rate), acknowledged)

    def stuck_since(self) -> float | None:
        """Loop time since which a message is incomplete; None when none is."""
        return self._partial_since

    # -- asyncio.BufferedProtocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._wires.open.add(self)
        if self._code or self._wires.closing:  # closed before it was connected
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "")
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _tune(sock, self._limits)
        if self._name is None:
            return
        with self._guard():
            if self._connect is not None:
                self._outer = self._connect.pipe()
                self._send_outer(b"" if self._outer else self._connect.request())
            else:
                self._start_tls()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wires.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._lost:
            return
        self.stats.bytes_in += nbytes
        self._owner.wire_received()
        with self._guard():
            self._received(self._wires.buffer[:nbytes])

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self.closing:
            self._owner.wire_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wires.lost(self)
        self._tls = self._outer = None  # their buffers are large, and a link that is lost may wait long for the garbage collector
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._lost:
            return
        self._lost = True
        code, reason = self._code, self._reason
        if not code:
            close = self._websocket.close_rcvd
            if self._connect is not None:
                failure = self._connect.failed("closed the connection before it had connected")
                code, reason = failure.code, str(failure)
            elif close is not None:
                code, reason = close.code, close.reason or f"the peer closed with code {close.code}"
            else:
                code, reason = 1006, f"the connection broke: {exc}" if exc else "the peer closed the connection"
        self._report(code, reason)

    # -- layers -------------------------------------------------------------------------------------------------------------

    def _received(self, data: memoryview | bytes) -> None:
        if self._outer is not None:
            data = self._outer.feed(data)
            if self._connect is not None and self._outer.ready and not self._connect.requested:
                self._outer.write(self._connect.request())
            self._send_raw(self._outer.ciphertext())
        if self._connect is not None:
            rest = self._connect.feed(data)
            if rest is None:
                return
            self._connect = None
            self._start_tls()
            data = rest
        if self._tls is None:
            self._tls = self._accept_tls(data)
        was_ready = self._tls.ready
        try:
            plain = self._tls.feed(data)
        finally:
            self._send_outer(self._tls.ciphertext())  # also the alert that says why
        if self._tls.ready and not was_ready and isinstance(self._websocket, ClientProtocol):
            self._websocket.send_request(self._websocket.connect())
        if plain:
            self._websocket.receive_data(plain)
            self._handle_events()
            self._note_partial()
        if self._tls.ended:
            self._websocket.receive_eof()
        self._flush()
        self._after_events()

    def _handle_events(self) -> None:
        events = self._websocket.events_received()
        for event in events:
            if isinstance(event, Frame):
                self._handle_frame(event)
            elif isinstance(event, Request):
                if len(events) > 1 or self._websocket.reader.buffer or self._websocket.parser_exc is not None:
                    raise ProtocolError("the peer sent more than its request before that was answered", CloseCode.PROTOCOL)
                self._handle_request(event)
            elif isinstance(event, Response) and self._websocket.state is State.OPEN:
                self._handle_response()

    def _note_partial(self) -> None:
        if not self._websocket.reader.buffer and not self._fragments:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = asyncio.get_running_loop().time()

    def _handle_frame(self, event: Frame) -> None:
        if event.opcode is Opcode.BINARY and event.fin:
            if not self._code:
                self._partial_since = None
                self._owner.wire_message(bytes(event.data))
        elif event.opcode in (Opcode.BINARY, Opcode.CONT):  # allowed by RFC 6455 section 5.4, never sent by this implementation
            self._fragments += event.data
            if event.fin and not self._code:
                message, self._fragments = bytes(self._fragments), bytearray()
                self._partial_since = None
                self._owner.wire_message(message)
        elif event.opcode is Opcode.TEXT:
            raise ProtocolError("a text message; tunnels carry binary messages only", CloseCode.PROTOCOL)

    def _handle_request(self, request: Request) -> None:
        assert isinstance(self._websocket, ServerProtocol)
        response = self._websocket.accept(request)
        self._websocket.send_response(response)
        if self._websocket.state is State.OPEN:
            self._flush()
            self._owner.wire_ready()

    def _handle_response(self) -> None:
        if self._websocket.subprotocol != SUBPROTOCOL:
            raise ProtocolError(
                f"the other side does not speak {SUBPROTOCOL}; is this the tunnel port of a controller?", CloseCode.PROTOCOL
            )
        self._owner.wire_ready()

    def _after_events(self) -> None:
        websocket = self._websocket
        error = websocket.handshake_exc
        if error is not None:
            raise ProtocolError(f"the WebSocket handshake failed: {error}", CloseCode.PROTOCOL)
        if websocket.state is not State.OPEN and (websocket.parser_exc is not None or websocket.close_rcvd is not None):
            self._finish()

    def _finish(self) -> None:
        """The WebSocket is closed on both sides, or closing: no message follows."""
        if self._websocket.parser_exc is not None and not self._code and self._websocket.close_rcvd is None:
            sent = self._websocket.close_sent
            self._code = sent.code if sent is not None else CloseCode.PROTOCOL
            self._reason = f"the peer broke the WebSocket protocol: {self._websocket.parser_exc}"
        if self._tls is not None:
            self._tls.close()
            self._send_outer(self._tls.ciphertext())
        if self._transport is not None:
            self._transport.close()  # when the kernel has taken what is left, which a peer that does not read can prevent
            self._abort_later()

    def _abort_later(self) -> None:
        if self._close_timer is None and self._transport is not None:
            self._close_timer = asyncio.get_running_loop().call_later(self._limits.close_time, self._transport.abort)

    def _flush(self) -> None:
        """Hand what the WebSocket layer has to send to TLS and the kernel."""
        tls = self._tls
        if tls is None or not tls.ready:
            return
        chunks = self._websocket.data_to_send()
        if chunks:
            for chunk in chunks:
                if chunk:
                    tls.write(chunk)
            self._send_outer(tls.ciphertext())

    def _send_outer(self, data: bytes) -> None:
        if self._outer is not None:
            if data:
                self._outer.write(data)
            data = self._outer.ciphertext()
        self._send_raw(data)

    def _send_raw(self, data: bytes) -> None:
        transport = self._transport
        if not data or transport is None or transport.is_closing():
            return
        self._written += len(data)
        self.stats.bytes_out += len(data)
        transport.write(data)
        if self._paused and transport.get_write_buffer_size() > MAX_MESSAGE * 2 + MAX_ANSWERS:
            if self._code:
                transport.abort()  # who does not read is not told why, and may not make the farewell grow
            else:
                raise ProtocolError("the peer makes this side answer but does not read", CloseCode.OVERLOADED)

    def _start_tls(self) -> None:
        self._tls = TlsPipe(self._context, server_side=False, server_hostname=self._name or None)
        self._send_outer(self._tls.ciphertext())

    def _accept_tls(self, data: memoryview | bytes) -> TlsPipe:
        if data[0] != TLS_HANDSHAKE:
            raise ProtocolError("the peer does not speak TLS; this port serves Banyan tunnels only", CloseCode.PROTOCOL)
        return TlsPipe(self._context, server_side=True)

    def _make_websocket(self) -> ClientProtocol | ServerProtocol:
        if self._name is None:
            return ServerProtocol(subprotocols=[SUBPROTOCOL], max_size=MAX_MESSAGE, logger=SILENT)
        uri = WebSocketURI(secure=True, host=self._name or "controller", port=443, path=PATH, query="")
        return ClientProtocol(uri, subprotocols=[SUBPROTOCOL], max_size=MAX_MESSAGE, logger=SILENT)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """The one place where what a layer raises becomes the end of the link."""
        try:
            yield
        except ProtocolError as error:
            self._fail(error.code, str(error))
        except (WebSocketException, ssl.SSLError, ValueError) as error:
            self._fail(CloseCode.PROTOCOL, f"the peer broke the protocol: {error}")

    def _fail(self, code: int, reason: str) -> None:
        self.close(code, reason)
        self._report(code, reason)

    def _report(self, code: int, reason: str) -> None:
        if not self._reported:
            self._reported = True
            self._owner.wire_lost(code, reason)


def _tune(sock: socket.socket, limits: Limits) -> None:
    """Little in the kernel, at once on the wire. A socket that is not TCP (a test's socket pair) has nothing to tune.

    What a link carries mostly fits into a few packets, so no later packet tells that one was lost, only time does; where a tenth is lost,
    waiting twice as long after each loss in a row makes a small change wait for seconds. Such a stream asks again at an even pace instead,
    six times, and then ever more slowly (Linux, Documentation/networking/tcp-thin.rst).
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, limits.not_sent_low_water)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.receive_buffer)


def _short(reason: str) -> str:
    """RFC 6455 section 5.5: the body of a close frame is 125 bytes, two of them the code."""
    return reason.encode()[:123].decode(errors="ignore")
