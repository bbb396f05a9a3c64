"""One link's state machine: bytes of a message in, bytes of a message out, no socket and no clock.

Invariants it keeps:
- A message holds whole frames; frames of one stream leave in the order in which they came.
- A stream's unsent frames never exceed the window that was granted for them, and the sum of windows never exceeds the link's
  budget: a stalled reader costs that and nothing more, and stops only its own stream.
- Stream ids are used once per link, in rising order, odd ones by the side that dialled. A frame for a stream that has ended is
  ignored (it was under way when the stream was reset); one for a stream that never began is a violation.
- Control, credit and RESET need no credit and go first. They are bounded by count and bytes: a peer that makes us answer
  but does not read loses the link.
- A relayed run of frames is copied with its stream ids replaced; its payload is not looked at.

A violation raises `ProtocolError` with the close code; the connection is of no further use then.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from cluster_controller.errors import Exhausted, InvalidInput, ProtocolError
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import CloseCode, ControlMessage, GoAway, Heartbeat, Lane, LinkLimits, Open, Reset, ResetCode
from cluster_controller.tunnel.protocol import codec, frames
from cluster_controller.tunnel.protocol.frames import DATA, END, HEADER_SIZE, MAX_FRAME, MAX_PAYLOAD, MORE
from cluster_controller.tunnel.protocol.lanes import QUANTUM, Lanes
from cluster_controller.tunnel.protocol.liveness import Liveness
from cluster_controller.tunnel.protocol.stream import StreamState

_unpack = frames.HEADER.unpack_from
_pack_header = frames.HEADER.pack_into
_pack_u32 = frames.U32.pack_into

MIN_FRAGMENT = HEADER_SIZE + 64  # a frame is not cut for less
MAX_REASON = 512  # bytes of a reason that goes over the wire
FINISHED = Reset(code=ResetCode.CANCELLED, reason="the other side has finished")
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


class Owner(Protocol):
    """What a connection tells the link it belongs to, from inside `receive`. Must not block."""

    def stream_opened(self, stream: StreamState, message: Open) -> None: ...

    def control_received(self, message: ControlMessage) -> None: ...

    def going_away(self, message: GoAway) -> None: ...


class Connection:
    """The state of one link. ``dialled``: this side made the connection."""

    def __init__(self, limits: Limits, owner: Owner, now: float, *, dialled: bool, wake: Callable[[], None]) -> None:
        self.limits = limits
        self.owner = owner
        self.wake = wake  # called once when there is something to send after there was nothing
        self.stats = LinkStats()
        self.liveness = Liveness(dialled, limits.heartbeat, limits.dead_after, now, now)
        self.established = False  # Hello and Welcome are through: streams may begin
        self.failure: ProtocolError | None = None  # set when the link must be closed, perhaps on behalf of another one
        self.draining = False  # GO_AWAY was sent or received: no new streams
        self.streams: dict[int, StreamState] = {}
        self._now = now
        self._next_id = 1 if dialled else 2
        self._peer_parity = 0 if dialled else 1
        self._peer_last_id = 0
        self._peer_streams = 0
        self._peer_limits = LinkLimits(initial_window=limits.initial_window, max_streams=limits.max_streams)
        self._budget = limits.link_budget
        self._lanes = Lanes()
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._credits: deque[StreamState] = deque()
        self._answer = 0  # the heartbeat to answer
        self._ask = False
        self._partial = bytearray()  # a control message in fragments
        self._dirty = False

    # -- what the link does with it -----------------------------------------------------------------------------------------

    def establish(self, peer: LinkLimits | None, heartbeat: float, dead_after: float) -> None:
        if peer is not None:
            self._peer_limits = peer
        self.liveness.heartbeat = heartbeat
        self.liveness.dead_after = dead_after
        self.established = True

    def send_control(self, message: ControlMessage) -> None:
        data = codec.encode_control(message)
        step = MAX_FRAME - HEADER_SIZE
        for start in range(0, max(len(data), 1), step):
            more = MORE if start + step < len(data) else 0
            self._queue_control(frames.frame(frames.CONTROL, 0, data[start : start + step], more))

    def probe(self) -> None:
        """Ask for a sign of life now."""
        self._ask = True
        self._touch()

    def go_away(self, message: GoAway) -> None:
        self.draining = True
        self._queue_control(frames.frame(frames.GO_AWAY, 0, codec.encode_payload(message)))

    def open(self, message: Open) -> StreamState:
        """Begin a stream. Data may be written at once, within the window that the peer grants to every new stream."""
        if message.lane is Lane.CONTROL:
            raise InvalidInput("the control lane is the link's own; open the stream in the interactive lane", "lane")
        if not self.established or self.draining:
            raise Exhausted("the link is going away; try again when it has reconnected", 1.0)
        if len(self.streams) - self._peer_streams >= self._peer_limits.max_streams:
            raise Exhausted(f"the link carries {self._peer_limits.max_streams} streams already; close one first", 1.0)
        window = self.limits.initial_window
        if window > self._budget:
            raise Exhausted("the byte budget of the link is spent; close a stream first", 1.0)
        if self._next_id > frames.MAX_STREAM_ID:
            self.draining = True
            raise Exhausted("the stream ids of the link are used up; try again when it has reconnected", 1.0)
        payload = codec.encode_payload(message)
        if HEADER_SIZE + len(payload) > MAX_FRAME:
            raise InvalidInput(f"the metadata of a stream is limited to about {MAX_FRAME - 1024} bytes", "metadata")
        stream = self._add(self._next_id, message.lane, window)
        self._next_id += 2
        self._queue_control(frames.frame(frames.OPEN, stream.id, payload))
        return stream

    def write(self, stream: StreamState, data: bytes | memoryview) -> int:
        """Queue what fits into the stream's send buffer; how many bytes were taken. 0: wait for `Handle.writable`."""
        taken = 0
        limit = self.limits.send_buffer
        out = stream.out
        while taken < len(data):
            size = min(len(data) - taken, MAX_FRAME - HEADER_SIZE, limit - len(out) - HEADER_SIZE)
            if size <= 0:
                break
            out += frames.HEADER.pack(DATA, 0, 0, stream.id, size)
            out += data[taken : taken + size]
            stream.out_frames += 1
            taken += size
        if taken:
            self._activate(stream)
        return taken

    def end(self, stream: StreamState) -> None:
        """No more data from this side. Half closed; the other direction goes on."""
        if stream.end_queued or stream.forgotten:
            return
        stream.end_queued = True
        stream.out += frames.frame(DATA, stream.id, b"", END)
        stream.out_frames += 1
        self._activate(stream)

    def abandon(self, stream: StreamState, parting: Reset = FINISHED) -> None:
        """This side is through: what was written still leaves, what comes in is dropped, then ``parting`` is said."""
        if stream.forgotten:
            return
        stream.parting = parting
        stream.handle = stream.onward = stream.buffer = None
        self.end(stream)
        if stream.end_sent:
            self.reset(stream, parting.code, parting.reason, parting.hop)

    def read(self, stream: StreamState, limit: int) -> bytes:
        """Up to ``limit`` bytes of what has arrived; reading is what gives the peer new credit."""
        buffer = stream.buffer
        if not buffer:
            return b""
        if len(buffer) <= limit:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:limit])
            del buffer[:limit]
        self._consumed(stream, len(data))
        return data

    def reset(self, stream: StreamState, code: ResetCode, reason: str, hop: str = "") -> None:
        """End the stream in both directions, now; what waits is dropped."""
        if stream.forgotten:
            return
        self._forget(stream)
        self._send_reset(stream.id, code, reason, hop)

    def lost(self, reason: str, hop: str = "") -> None:
        """The link is gone: every stream of it ends, here and at its other ends."""
        message = Reset(code=ResetCode.LINK_LOST, reason=reason, hop=hop)
        for stream in list(self.streams.values()):
            self._end_by_reset(stream, message)
        self._control.clear()
        self._credits.clear()
        self.draining = True

    # -- sending ------------------------------------------------------------------------------------------------------------

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

    def has_output(self, bulk: bool = True) -> bool:
        return bool(self._control or self._credits or self._answer or self._ask or self._lanes.waiting(bulk))

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
        if self.has_output():
            self._dirty = True
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
            size = frames.walk(out, limit)
            if size:
                message += memoryview(out)[:size]
                count = frames.count(out, size)
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

    def _add(self, id: int, lane: Lane, window: int) -> StreamState:
        self._budget -= window
        stream = StreamState(self, id, lane, self._peer_limits.initial_window, window)
        stream.granted_at = self._now
        self.streams[id] = stream
        self.stats.streams_opened += 1
        return stream

    def _forget(self, stream: StreamState) -> None:
        if stream.forgotten:
            return
        stream.forgotten = True
        del self.streams[stream.id]
        self._budget += stream.window
        if stream.id & 1 == self._peer_parity:
            self._peer_streams -= 1
        stream.out.clear()

    # -- receiving ----------------------------------------------------------------------------------------------------------

    def receive(self, message: bytes, now: float) -> None:
        """One whole WebSocket message."""
        self._now = self.liveness.last_heard = now
        stats = self.stats
        stats.messages_in += 1
        view = memoryview(message)
        size = len(message)
        position = 0
        count = 0
        while position < size:
            if position + HEADER_SIZE > size:
                raise ProtocolError("a message ends inside a frame header", CloseCode.PROTOCOL)
            kind, flags, _, id, length = _unpack(message, position)
            end = position + HEADER_SIZE + length
            if end > size:
                raise ProtocolError(f"a frame of {length} bytes does not fit its message", CloseCode.TOO_BIG)
            run = 1
            if kind == DATA:
                while not flags & END and end + HEADER_SIZE <= size:
                    kind, flags, _, other, length = _unpack(message, end)
                    following = end + HEADER_SIZE + length
                    if kind != DATA or other != id or following > size:
                        flags = 0
                        break
                    end = following
                    run += 1
                self._receive_data(id, view[position:end], run, flags & END)
            else:
                self._receive_other(kind, flags, id, bytes(view[position + HEADER_SIZE : end]))
            count += run
            position = end
        stats.frames_in += count

    def _receive_data(self, id: int, run: memoryview, count: int, end: int) -> None:
        stream = self.streams.get(id)
        if stream is None:
            self._check_ended(id)
            self.stats.ignored += count
            return
        size = len(run)
        if size > stream.allowance or stream.end_received:
            raise ProtocolError(f"stream {id}: {size} bytes beyond what was granted", CloseCode.FLOW_CONTROL)
        stream.allowance -= size
        if end:
            stream.end_received = True
        onward = stream.onward
        if onward is not None:
            self.stats.relayed += count
            self._relay(onward, run, count, end)
        else:
            self._deliver(stream, run, count)
        if end and stream.end_sent:
            self._forget(stream)

    def _relay(self, onward: StreamState, run: memoryview, count: int, end: int) -> None:
        if onward.forgotten:
            return
        out = onward.out
        position = len(out)
        out += run
        id = onward.id
        if count == 1:
            _pack_u32(out, position + 4, id)
        else:
            size = len(out)
            unpack = frames.U32.unpack_from
            while position < size:
                _pack_u32(out, position + 4, id)
                position += HEADER_SIZE + unpack(out, position + 8)[0]
        onward.out_frames += count
        if end:
            onward.end_queued = True
        if not onward.active:
            onward.connection._activate(onward)

    def _deliver(self, stream: StreamState, run: memoryview, count: int) -> None:
        if stream.parting is not None:
            return
        buffer = stream.buffer
        if buffer is None:
            buffer = stream.buffer = bytearray()
        position = 0
        for _ in range(count):
            length = frames.U32.unpack_from(run, position + 8)[0]
            position += HEADER_SIZE
            buffer += run[position : position + length]
            position += length
        self._consumed(stream, count * HEADER_SIZE)  # headers are not kept
        if stream.handle is not None:
            stream.handle.readable()

    def _receive_other(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if kind == frames.CREDIT:
            self._receive_credit(id, payload)
        elif kind == frames.OPEN:
            self._receive_open(id, codec.decode_payload(Open, payload))
        elif kind == frames.RESET:
            self._receive_reset(id, codec.decode_payload(Reset, payload))
        elif kind == frames.HEARTBEAT:
            self._receive_heartbeat(codec.decode_payload(Heartbeat, payload))
        elif kind == frames.CONTROL:
            self._receive_control(payload, bool(flags & MORE))
        elif kind == frames.GO_AWAY:
            self.draining = True
            self.owner.going_away(codec.decode_payload(GoAway, payload))
        else:
            self.stats.ignored += 1

    def _receive_credit(self, id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(f"stream {id}: credit of {len(payload)} bytes instead of 4", CloseCode.PROTOCOL)
        stream = self.streams.get(id)
        if stream is None:
            self._check_ended(id)
            self.stats.ignored += 1
            return
        stream.credit += frames.U32.unpack(payload)[0]
        if stream.credit > frames.MAX_CREDIT:
            raise ProtocolError(f"stream {id}: more than {frames.MAX_CREDIT} bytes of credit", CloseCode.FLOW_CONTROL)
        if stream.out:
            self._activate(stream)

    def _receive_open(self, id: int, message: Open) -> None:
        if not self.established:
            raise ProtocolError("a stream before Welcome", CloseCode.PROTOCOL)
        if id & 1 != self._peer_parity or id <= self._peer_last_id:
            raise ProtocolError(f"stream id {id} is not the peer's next", CloseCode.PROTOCOL)
        self._peer_last_id = id
        window = self.limits.initial_window
        refusal = ""
        if self._peer_streams >= self.limits.max_streams:
            refusal = f"{self.limits.max_streams} streams are open; close one first"
        elif window > self._budget:
            refusal = "the byte budget of the link is spent; close a stream first"
        elif message.lane is Lane.CONTROL:
            refusal = "the control lane is the link's own"
        if refusal or self.draining:
            self.stats.streams_refused += 1
            code = ResetCode.EXHAUSTED if refusal else ResetCode.GOING_AWAY
            self._send_reset(id, code, refusal or "the link is going away", "")
            return
        self._peer_streams += 1
        self.owner.stream_opened(self._add(id, message.lane, window), message)

    def _receive_reset(self, id: int, message: Reset) -> None:
        stream = self.streams.get(id)
        if stream is None:
            self._check_ended(id)
            self.stats.ignored += 1
            return
        self._end_by_reset(stream, message)

    def _end_by_reset(self, stream: StreamState, message: Reset) -> None:
        self._forget(stream)
        onward = stream.onward
        if onward is not None and stream.end_received:
            onward.connection.abandon(onward, message)  # its data came whole: only the other direction is cut
        elif onward is not None:
            onward.connection.reset(onward, message.code, message.reason, message.hop)
        elif stream.handle is not None:
            stream.handle.ended(message)

    def _receive_heartbeat(self, message: Heartbeat) -> None:
        if message.answer:
            self.liveness.answered(message.answer, self._now)
        if message.id:
            self._answer = message.id  # only the newest question is answered: a flood of them costs nothing
            self._touch()

    def _receive_control(self, payload: bytes, more: bool) -> None:
        if len(self._partial) + len(payload) > self.limits.max_control:
            raise ProtocolError(f"a control message of more than {self.limits.max_control} bytes", CloseCode.TOO_BIG)
        if more or self._partial:
            self._partial += payload
            if more:
                return
            payload, self._partial = bytes(self._partial), bytearray()
        message = codec.decode_control(payload)
        if message is None:
            self.stats.ignored += 1
        else:
            self.owner.control_received(message)

    def _check_ended(self, id: int) -> None:
        """A frame for a stream that is not in the table: under way when the stream ended, or a violation."""
        began = id <= self._peer_last_id if id & 1 == self._peer_parity else id < self._next_id
        if not began or id == 0:
            raise ProtocolError(f"a frame for stream {id}, which never began", CloseCode.PROTOCOL)
