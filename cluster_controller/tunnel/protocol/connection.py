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

from collections.abc import Callable
from typing import Protocol

from cluster_controller.errors import Exhausted, InvalidInput, ProtocolError
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import CloseCode, ControlMessage, GoAway, Heartbeat, Lane, LinkLimits, Open, Reset, ResetCode
from cluster_controller.tunnel.protocol import codec, frames
from cluster_controller.tunnel.protocol.frames import DATA, END, HEADER_SIZE, MAX_FRAME, MORE
from cluster_controller.tunnel.protocol.sending import LinkStats, Sending
from cluster_controller.tunnel.protocol.stream import StreamState

_unpack = frames.HEADER.unpack_from
_pack_u32 = frames.U32.pack_into

FINISHED = Reset(code=ResetCode.CANCELLED, reason="the other side has finished")


class Owner(Protocol):
    """What a connection tells the link it belongs to, from inside `receive`. Must not block."""

    def stream_opened(self, stream: StreamState, message: Open) -> None: ...

    def control_received(self, message: ControlMessage) -> None: ...

    def going_away(self, message: GoAway) -> None: ...


class Connection(Sending):
    """The state of one link. ``dialled``: this side made the connection."""

    def __init__(self, limits: Limits, owner: Owner, now: float, *, dialled: bool, wake: Callable[[], None]) -> None:
        super().__init__(limits, now, dialled=dialled, wake=wake)
        self.owner = owner
        self.established = False  # Hello and Welcome are through: streams may begin
        self.draining = False  # GO_AWAY was sent or received: no new streams
        self._next_id = 1 if dialled else 2
        self._peer_last_id = 0
        self._partial = bytearray()  # a control message in fragments

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

    def lost(self, reason: str, hop: str = "") -> None:
        """The link is gone: every stream of it ends, here and at its other ends."""
        message = Reset(code=ResetCode.LINK_LOST, reason=reason, hop=hop)
        for stream in list(self.streams.values()):
            self._end_by_reset(stream, message)
        self._control.clear()
        self._credits.clear()
        self.draining = True

    def _add(self, id: int, lane: Lane, window: int) -> StreamState:
        self._budget -= window
        stream = StreamState(self, id, lane, self._peer_limits.initial_window, window)
        stream.granted_at = self._now
        self.streams[id] = stream
        self.stats.streams_opened += 1
        return stream

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


__all__ = ["Connection", "LinkStats", "Owner"]
