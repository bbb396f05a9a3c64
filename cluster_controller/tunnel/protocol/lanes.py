"""Which stream may fill the next piece of a message.

Start-time fair queueing (Goyal, Vin, Cheng 1996) over the three lanes of data: while several lanes wait each gets its weight's
share of the bytes, so bulk always moves and interactive hardly ever waits; a lane that wakes up is served next, but
has saved up nothing. Within a lane streams take turns. Control, credit and resets do not pass here: they always go first.
"""

from collections import deque

from cluster_controller.tunnel.messages import Lane
from cluster_controller.tunnel.protocol.stream import StreamState

WEIGHTS = {Lane.INTERACTIVE: 16, Lane.SYNC: 6, Lane.BULK: 2}
QUANTUM = 16384  # bytes that one stream sends before the next has its turn


class LaneQueue:
    __slots__ = ("cost", "lane", "streams", "tag")

    def __init__(self, lane: Lane, weight: int) -> None:
        self.lane = lane
        self.cost = 1.0 / weight
        self.streams: deque[StreamState] = deque()
        self.tag = 0.0  # virtual time at which the lane's next piece starts


class Lanes:
    __slots__ = ("_by_lane", "_queues", "_virtual")

    def __init__(self) -> None:
        self._queues = [LaneQueue(lane, weight) for lane, weight in WEIGHTS.items()]  # in order of priority
        self._by_lane = {queue.lane: queue for queue in self._queues}
        self._virtual = 0.0

    def push(self, stream: StreamState) -> None:
        """``stream`` has frames and credit: it waits for its turn."""
        queue = self._by_lane[stream.lane]
        if not queue.streams and queue.tag < self._virtual:
            queue.tag = self._virtual
        queue.streams.append(stream)
        stream.active = True

    def next(self, bulk: bool) -> StreamState | None:
        """The stream whose turn it is, taken out of its queue; streams of the bulk lane only if ``bulk``."""
        while True:
            chosen: LaneQueue | None = None
            for queue in self._queues:
                if queue.streams and (chosen is None or queue.tag < chosen.tag) and (bulk or queue.lane is not Lane.BULK):
                    chosen = queue
            if chosen is None:
                return None
            stream = chosen.streams.popleft()
            stream.active = False
            if not stream.forgotten and stream.out:
                self._virtual = chosen.tag
                return stream

    def served(self, stream: StreamState, size: int, again: bool) -> None:
        """``stream`` has sent ``size`` bytes; ``again``: it has more, and credit for it."""
        queue = self._by_lane[stream.lane]
        queue.tag += size * queue.cost
        if again:
            queue.streams.append(stream)
            stream.active = True

    def waiting(self, bulk: bool = True) -> bool:
        interactive, sync, last = self._queues  # spelled out: this is asked after every message of every link
        return bool(interactive.streams or sync.streams or (bulk and last.streams))

    def bulk_waits(self) -> bool:
        return bool(self._by_lane[Lane.BULK].streams)
