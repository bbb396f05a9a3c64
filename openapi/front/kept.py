"""A stream to the other side that waits for the next request of the same client connection.

A stream through the tree costs a frame and a task at every hop, and a connection at its end; a client that asks again and again
pays for that once. Invariants: a kept stream stands exactly between an answer and the next request; it is used again only on
the client connection that opened it, for the same place, by the same user with the same rights; it lives no longer than
`KEEP_SECONDS` without a request, or until the first byte that nobody asked for; a front keeps no more than `MOST` of them, so
that idle ones never use up the streams of a link (`tunnel.limits.max_streams`).
"""

import asyncio
from typing import TYPE_CHECKING

from openapi.front.streams import STREAM_ERRORS, PushbackStream

if TYPE_CHECKING:
    from openapi.services import User

KEEP_SECONDS = 2.0  # less than a worker that ends waits for one more request (5 s), and than the patience of usual servers
MOST = 256  # of one front; beyond it each request has a stream of its own

UNASKED = "it ended, or sent what nobody asked for, or no further request came"

Place = tuple[str, ...]


class KeptTotal:
    """How many streams all connections of one front keep."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.count = 0


class Kept:
    """At most one stream, of one client connection. The connection calls `let_go` at its end."""

    def __init__(self, total: KeptTotal) -> None:
        self._total = total
        self._stream: PushbackStream | None = None
        self._place: Place = ()
        self._user: User | None = None
        self._watch: asyncio.Task[None] | None = None

    def keep(self, stream: PushbackStream, place: Place, user: "User") -> bool:
        """False when there is no room for it; then it is still the caller's."""
        self.let_go()
        if self._total.count >= self._total.most:
            return False
        self._total.count += 1
        self._stream, self._place, self._user = stream, place, user
        self._watch = asyncio.create_task(self._idle(stream), name="front/kept")
        return True

    async def take(self, place: Place, user: "User | None") -> PushbackStream | None:
        """The kept stream, when it leads to ``place`` as ``user`` and still stands; any other one is let go."""
        if not place or place != self._place or user != self._user:
            self.let_go()
            return None
        watch, stream = self._watch, self._forget()
        if watch is None or stream is None:
            return None
        watch.cancel()
        await asyncio.wait({watch})
        if watch.cancelled():  # else it read something in this very moment
            return stream
        stream.abort(UNASKED)
        return None

    def let_go(self) -> None:
        stream, watch = self._stream, self._watch
        self._forget()
        if watch is not None:
            watch.cancel()
        if stream is not None:
            stream.abort("no further request came")

    def _forget(self) -> PushbackStream | None:
        stream, self._stream, self._watch = self._stream, None, None
        self._place, self._user = (), None
        if stream is not None:
            self._total.count -= 1
        return stream

    async def _idle(self, stream: PushbackStream) -> None:
        """Whatever happens on a stream that nobody asked anything ends it: its end, its failure, or a byte."""
        try:
            async with asyncio.timeout(KEEP_SECONDS):
                await stream.read()
        except (TimeoutError, *STREAM_ERRORS):
            pass
        if self._stream is stream:
            self._forget()
            stream.abort(UNASKED)
