"""The half of a link that makes messages: control first, then the lanes by their shares, within credit.

It holds what both halves share: the streams, the byte budget and the queues. `Connection` adds opening and receiving. What it
promises is in `connection`'s docstring.
"""

from collections import deque
from collections.abc import Callable

from msgspec import Struct

from cluster_controller.errors import ProtocolError
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import CloseCode, Heartbeat, Lane, LinkLimits, Reset, ResetCode
from cluster_controller.tunnel.protocol import codec, frames
from cluster_controller.tunnel.protocol.frames import END, HEADER_SIZE, MAX_PAYLOAD
from cluster_controller.tunnel.protocol.lanes import QUANTUM, Lanes
from cluster_controller.tunnel.protocol.liveness import Liveness
from cluster_controller.tunnel.protocol.stream import StreamState

_unpack = frames.HEADER.unpack_from
_pack_header = frames.HEADER.pack_into

MIN_FRAGMENT = HEADER_SIZE + 64  # a frame is not cut for less
MAX_REASON = 512  # bytes of a reason that goes over the wire
INSTANT = 0.001  # seconds; a shorter round trip is taken for this one when windows grow


class LinkStats(Struct):
    """Counters of one link since it came up; bytes are those of the socket, TLS and WebSocket included."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    frames_in: int = 0
    frames_out: int = 0
    relayed: int = 0  # DATA frames that went on over another link
    ignored: int = 0  # frames of ended streams and of unknown types
    streams_opened: int = 0
    streams_refused: int = 0


class Sending:
    """Attributes with a leading underscore are shared with `Connection` and with nobody else."""

    def __init__(self, limits: Limits, now: float, *, dialled: bool, wake: Callable[[], None]) -> None:
        self.limits = limits
        self.wake = wake  # called once when there is something to send after there was nothing
        self.stats = LinkStats()
        self.liveness = Liveness(dialled, limits.heartbeat, limits.dead_after, now, now)
        self.failure: ProtocolError | None = None  # set when the link must be closed, perhaps on behalf of another one
        self.streams: dict[int, StreamState] = {}
        self._now = now
        self._peer_parity = 0 if dialled else 1
        self._peer_streams = 0
        self._peer_limits = LinkLimits(initial_window=limits.initial_window, max_streams=limits.max_streams)
        self._budget = limits.link_budget
        self._lanes = Lanes()
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._credits: deque[StreamState] = deque()
        self._answer = 0  # the heartbeat to answer
        self._ask = False
        self._dirty = False  # `wake` was called and no message was made since

    def reset(self, stream: StreamState, code: ResetCode, reason: str, hop: str = "") -> None:
        """End the stream in both directions, now; what waits is dropped."""
        if stream.forgotten:
            return
        self._forget(stream)
        self._send_reset(stream.id, code, reason, hop)

    def deadline(self) -> float:
        return self.liveness.deadline()

    def tick(self, now: float) -> bool:
        """The timer fired. True: the other side is dead. Otherwise a heartbeat may be due, see `has_output`."""
        if self.liveness.tick(now):
            return True
        question = self.liveness.question(now)
        if question:
            self._ask = False
            self._queue_control(self._heartbeat(Heartbeat(id=question)))
        return False

    @property
    def control_waits(self) -> int:
        """Bytes of control frames that nobody has taken yet."""
        return self._control_bytes

    def has_output(self, bulk: bool = True) -> bool:
        return bool(self._control or self._credits or self._answer or self._ask or self._lanes.waiting(bulk))

    @property
    def more(self) -> bool:
        """Whether the last message left anything that another could take at once."""
        return self._dirty

    def bulk_waits(self) -> bool:
        """Only the bulk lane's own bound holds it back."""
        return self._lanes.bulk_waits()

    def message(self, now: float, bulk: int = MAX_PAYLOAD) -> bytearray:
        """The next message, empty when there is none: control first, then the lanes by their shares. ``bulk``: bytes of the bulk
        lane that may be in it, which also bounds a frame of that lane."""
        self._now = now
        self._dirty = False
        message = bytearray()
        if self._control or self._credits or self._answer or self._ask:
            self._take_control(message)
        count = 0
        lanes = self._lanes
        while len(message) < MAX_PAYLOAD - MIN_FRAGMENT:
            stream = lanes.next(bulk > 0)
            if stream is None:
                break
            room = min(MAX_PAYLOAD - len(message), QUANTUM)
            is_bulk = stream.lane is Lane.BULK
            if is_bulk:
                room = min(room, max(bulk, MIN_FRAGMENT))
            before = len(message)
            count += self._take(stream, room, message)
            size = len(message) - before
            lanes.served(stream, size, bool(stream.out) and stream.credit >= min(MIN_FRAGMENT, len(stream.out)))
            if is_bulk:
                bulk -= size
        if message:
            self.liveness.last_sent = now
            self.stats.frames_out += count
            self.stats.messages_out += 1
        self._dirty = self.has_output(bulk > 0)  # bulk that must wait keeps nobody from waking the link
        return message

    def _take(self, stream: StreamState, room: int, message: bytearray) -> int:
        """Move whole frames, or a piece of one, from ``stream`` to ``message``; how many."""
        out = stream.out
        limit = min(room, stream.credit)
        if len(out) <= limit:
            size = len(out)
            message += out
            out.clear()
            count, stream.out_frames = stream.out_frames, 0
        else:
            size, count = frames.walk(out, limit)
            if size:
                message += memoryview(out)[:size]
                stream.out_frames -= count
            elif limit >= MIN_FRAGMENT:
                return self._take_piece(stream, limit, message)
            else:
                return 0
            del out[:size]
        stream.credit -= size
        self._sent(stream, size)
        return count

    def _take_piece(self, stream: StreamState, limit: int, message: bytearray) -> int:
        """The first frame is larger than what may go: send its front and leave the rest as a frame of its own."""
        out = stream.out
        kind, flags, reserved, id, length = _unpack(out)
        piece = limit - HEADER_SIZE
        message += frames.HEADER.pack(kind, flags & ~END, reserved, id, piece)
        message += memoryview(out)[HEADER_SIZE:limit]
        _pack_header(out, piece, kind, flags, reserved, id, length - piece)
        del out[:piece]
        stream.credit -= limit
        self._sent(stream, piece)
        return 1

    def _sent(self, stream: StreamState, size: int) -> None:
        onward = stream.onward
        if onward is not None:
            onward.connection._consumed(onward, size)
        if not stream.out and stream.end_queued:
            stream.end_sent = True
            if stream.end_received:
                self._forget(stream)
            elif stream.parting is not None:
                self.reset(stream, stream.parting.code, stream.parting.reason, stream.parting.hop)
        elif onward is None and stream.handle is not None and not stream.end_queued:
            stream.handle.writable()

    def _take_control(self, message: bytearray) -> None:
        if self._answer:
            message += self._heartbeat(Heartbeat(answer=self._answer))
            self._answer = 0
            self.stats.frames_out += 1
        if self._ask:
            message += self._heartbeat(Heartbeat(id=self.liveness.ask(self._now)))
            self._ask = False
            self.stats.frames_out += 1
        control = self._control
        while control and len(message) + len(control[0]) <= MAX_PAYLOAD:
            frame = control.popleft()
            self._control_bytes -= len(frame)
            message += frame
            self.stats.frames_out += 1
        credits = self._credits
        while credits and len(message) + HEADER_SIZE + 4 <= MAX_PAYLOAD:
            stream = credits.popleft()
            stream.crediting = False
            if not stream.forgotten and not stream.end_received:
                message += frames.frame(frames.CREDIT, stream.id, frames.U32.pack(self._grant(stream)))
                self.stats.frames_out += 1

    def _heartbeat(self, message: Heartbeat) -> bytes:
        return frames.frame(frames.HEARTBEAT, 0, codec.encode_payload(message))

    def _queue_control(self, frame: bytes) -> None:
        if self._control_bytes + len(frame) > self.limits.control_queue:
            waiting = f"the peer has left {self._control_bytes} bytes of control frames unread"
            self.failure = ProtocolError(waiting, CloseCode.OVERLOADED)
            self.wake()
            return
        self._control.append(frame)
        self._control_bytes += len(frame)
        self._touch()

    def _send_reset(self, id: int, code: ResetCode, reason: str, hop: str) -> None:
        reason = reason.encode()[:MAX_REASON].decode(errors="ignore")
        self._queue_control(frames.frame(frames.RESET, id, codec.encode_payload(Reset(code=code, reason=reason, hop=hop))))

    def _touch(self) -> None:
        if not self._dirty:
            self._dirty = True
            self.wake()

    def _activate(self, stream: StreamState) -> None:
        if not stream.active and stream.credit >= min(MIN_FRAGMENT, len(stream.out)):
            self._lanes.push(stream)
            if not self._dirty:
                self._dirty = True
                self.wake()

    # -- credit -------------------------------------------------------------------------------------------------------------

    def _consumed(self, stream: StreamState, size: int) -> None:
        """``size`` bytes that the peer sent have left this controller's memory."""
        stream.owed += size
        if stream.owed * 2 >= stream.window and not stream.crediting and not stream.end_received and not stream.forgotten:
            stream.crediting = True
            self._credits.append(stream)
            self._touch()

    def _grant(self, stream: StreamState) -> int:
        """What is owed, and more where half a window lasts less than a round trip: there the window is the bottleneck."""
        amount = stream.owed
        stream.owed = 0
        if self._now - stream.granted_at < max(self.liveness.rtt or 0.0, INSTANT) and stream.window < self.limits.max_window:
            growth = min(stream.window, self._budget, self.limits.max_window - stream.window)
            self._budget -= growth
            stream.window += growth
            amount += growth
        stream.granted_at = self._now
        stream.allowance += amount
        return amount

    def _forget(self, stream: StreamState) -> None:
        if stream.forgotten:
            return
        stream.forgotten = True
        del self.streams[stream.id]
        self._budget += stream.window
        if stream.id & 1 == self._peer_parity:
            self._peer_streams -= 1
        stream.out.clear()
