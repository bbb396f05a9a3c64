"""Both directions of sync between a parent and a child, over one stream.

The shell around `Source` and `Target`: it reads and writes bytes, commits, and nothing else. A commit in the sending space
wakes the writer, which sends at once; what has arrived by the time a commit returns goes into the next one together.

Invariants: an acknowledgement is queued only after the commit that it is for has returned; the reader never waits for the
writer, so two ends that both have much to say cannot block each other; what waits to be written is bounded by the window of
the source and by one acknowledgement.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog
from msgspec import Struct

from cluster_controller.errors import ProtocolError
from cluster_controller.store import Store, Tx
from cluster_controller.sync.codec import Decoder, encode
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Chunk, Differ, Message, Pair, Resume, Snapshot, ToReceiver, ToSender
from cluster_controller.sync.source import Plan, Source
from cluster_controller.sync.target import Target
from cluster_shim.contract import ByteStream

log = structlog.get_logger()

READ_BYTES = 256 * 1024
WRITE_BYTES = 64 * 1024  # gathered into one write
CHECK_SECONDS = 3600.0  # between two comparisons of digests on a link that stays up; jittered by half

OpenBulk = Callable[[], Awaitable[ByteStream]]


class Counts(Struct, frozen=True):
    """Objects that came: ``applied``, and ``known``, which came again or too late and were dropped."""

    applied: int = 0
    known: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(self.applied + other.applied, self.known + other.known)


class SyncSession:
    """Sends ``send_space`` of ``store`` and receives into ``receive_space``, with the peer's session doing the reverse. Either may be "":
    nothing is sent, or received. ``answered`` is called at the first word of the peer.

    ``follow``: whether the peer is believed across histories; by default it is in what a child reports (``up/…``) and not in
    what a parent desires. Who wants to know what arrives subscribes to the store, for longer than any session lives: a commit
    that was under way when its session was cancelled is written all the same.
    """

    def __init__(
        self,
        store: Store,
        *,
        send_space: str,
        receive_space: str,
        me: str,
        peer: str,
        follow: bool | None = None,
        compress: bool = True,
        limits: SyncLimits | None = None,
        check_seconds: float = CHECK_SECONDS,
        answered: Callable[[], None] = lambda: None,
        set_back: Callable[[], None] = lambda: None,
        forgotten: Callable[[Pair], None] = lambda cursor: None,
        reported: Callable[[int], None] = lambda start: None,
    ) -> None:
        self._store = store
        self._send_space = send_space
        self._receive_space = receive_space
        self._me = me
        self._peer = peer
        self._follow = receive_space.startswith("up/") if follow is None else follow
        self._compress = compress
        self._limits = limits or SyncLimits()
        self._check_seconds = check_seconds
        self._answered = answered
        self._set_back = set_back
        self._forgotten = forgotten
        self._reported = reported
        self.source: Source | None = None  # while it runs: what has yet to be acknowledged ...
        self.target: Target | None = None  # ... and what is applied
        self.counts = Counts()  # of the runs that have ended

    async def run(self, stream: ByteStream, open_bulk: OpenBulk) -> None:
        """Until the peer ends the stream; safe to run again, on a new stream, and goes on where it was.

        ``open_bulk`` gives the second stream: the child opens it, the parent waits for it. It is called once at most, when a
        large snapshot is announced. Raises what the streams and the store raise. An earlier run has ended before: of two at once
        each would apply what it knows of without the other.
        """
        await self._store.commit(_nothing)
        source = Source(self._send_space, self._store, self._limits)
        target = Target(self._receive_space, self._store, follow=self._follow, limits=self._limits, zstd=self._compress)
        self.source, self.target = source, target
        unsubscribe = self._store.subscribe(lambda _: run.wake.set(), self._send_space)
        run = _Run(
            self._store,
            source,
            target,
            stream,
            open_bulk,
            compress=self._compress,
            answered=self._answered,
            set_back=self._set_back,
            forgotten=self._forgotten,
            reported=self._reported,
        )
        name = f"sync {self._me} {self._peer}"
        log.debug("sync.started", peer=self._peer, send=self._send_space, receive=self._receive_space)
        try:
            await _first_of(name, run.read(stream), run.write(), run.bulk(), run.compare(self._check_seconds))
        finally:
            unsubscribe()
            run.close()
            self.counts = self.counted()
            self.source = self.target = None
            log.debug(
                "sync.ended",
                peer=self._peer,
                applied=target.applied,
                stale=target.stale,
                conflicts=target.conflicts,
                refused=target.refused,
                oversized=source.oversized,
                repairs=source.repairs,
            )

    def counted(self) -> Counts:
        """What was applied of what came, and what was not."""
        return self.counts if self.target is None else self.counts.plus(Counts(self.target.applied, self.target.stale))


def _nothing(_: Tx) -> None:
    """Committed, it waits until what an earlier session left under way is on the disk: a cursor read before that is too old, and
    would ask for changes again whose consequences are about to be there."""


class _Run:
    """One life of a session."""

    def __init__(
        self,
        store: Store,
        source: Source,
        target: Target,
        stream: ByteStream,
        open_bulk: OpenBulk,
        *,
        compress: bool,
        answered: Callable[[], None],
        set_back: Callable[[], None],
        forgotten: Callable[[Pair], None],
        reported: Callable[[int], None],
    ) -> None:
        self.wake = asyncio.Event()
        self._store = store
        self._source = source
        self._target = target
        self._stream = stream
        self._open_bulk = open_bulk
        self._compress = compress
        self._heard = answered
        self._set_back = set_back
        self._forgotten = forgotten
        self._reported = reported
        self._answers: list[ToSender] = [target.resume()] if target.space else []
        self._plan: Plan | None = None  # a snapshot that goes over the second stream
        self._bulk: ByteStream | None = None
        self._bulk_wanted = asyncio.Event()
        self._applied = asyncio.Event()  # something was received on the first stream
        self._ended = False
        self.wake.set()

    # --- writing

    async def write(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            while data := self._gather():
                await self._stream.write(data)

    def _gather(self) -> bytes:
        """What waits, as one write: answers first, then as much of the source as fits."""
        answers, self._answers = self._answers, []
        parts = [encode(answer) for answer in answers]
        size = sum(map(len, parts))
        while size < WRITE_BYTES and (following := self._source.next()) is not None:
            for message in self._unfold(following):
                data = encode(message, compress=self._compress and self._source.zstd)
                parts.append(data)
                size += len(data)
        return b"".join(parts)

    def _unfold(self, following: "Begin | Batch | Check | Plan") -> "Sequence[Message]":
        if not isinstance(following, Plan):
            return (following,)
        if not following.snapshot.bulk:
            return (following.snapshot, *following.chunks)
        self._plan = following
        self._bulk_wanted.set()
        return (following.snapshot,)

    def _answer(self, answers: Sequence[ToSender]) -> None:
        """Queue for the writer. Acknowledgements are cumulative: a later one stands for an earlier one."""
        for answer in answers:
            last = self._answers[-1] if self._answers else None
            if isinstance(answer, Ack) and isinstance(last, Ack) and not last.snapshot:
                self._answers.pop()
            self._answers.append(answer)
        if answers:
            self.wake.set()

    # --- reading

    async def read(self, stream: ByteStream) -> None:
        """Until the stream ends."""
        decoder = Decoder()
        while data := await stream.read(READ_BYTES):
            self._heard()
            received: list[ToReceiver] = []
            for message in decoder.feed(data):
                if isinstance(message, Resume | Ack | Differ):
                    if self._source.space:
                        self._to_source(message)
                elif self._target.space:
                    received.append(message)
            if received:
                await self._receive(received)
        if not decoder.empty:
            raise ProtocolError("the sync stream ended within a message")

    def _to_source(self, message: ToSender) -> None:
        match message:
            case Resume():
                self._source.resume(message)
                if self._source.set_back:
                    self._set_back()
                self._reported(message.start)
            case Ack():
                self._source.acked(message)
            case Differ():
                self._source.differs(message)
        self.wake.set()

    async def _receive(self, received: Sequence[ToReceiver]) -> None:
        if any(isinstance(message, Snapshot) and message.bulk for message in received):
            self._bulk_wanted.set()
        outcomes = await self._store.commit(lambda tx: self._target.apply(tx, received))
        self._answer(self._target.answers(outcomes))
        self._applied.set()
        if self._target.forgotten is not None:
            cursor, self._target.forgotten = self._target.forgotten, None
            self._forgotten(cursor)

    # --- the second stream

    async def bulk(self) -> None:
        """Opened when the first large snapshot is announced, in either direction, and kept."""
        await self._bulk_wanted.wait()
        self._bulk = stream = await self._open_bulk()
        if self._ended:
            stream.abort("the session has ended")
            return
        await _first_of("snapshots", self._read_bulk(stream), self._write_bulk(stream))

    async def _read_bulk(self, stream: ByteStream) -> None:
        decoder = Decoder()
        while data := await stream.read(READ_BYTES):
            chunks = [message for message in decoder.feed(data) if isinstance(message, Chunk)]
            while not all(map(self._target.expects, chunks)):
                self._applied.clear()
                await self._applied.wait()
            if chunks:
                await self._receive(chunks)
        await asyncio.Event().wait()  # the peer sends no more snapshots; the session goes on

    async def _write_bulk(self, stream: ByteStream) -> None:
        while True:
            await self._bulk_wanted.wait()
            self._bulk_wanted.clear()
            plan, self._plan = self._plan, None
            for chunk in plan.chunks if plan is not None else ():
                await stream.write(encode(chunk, compress=self._compress and self._source.zstd))

    # --- anti-entropy

    async def compare(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds * random.uniform(0.5, 1.0))
            self._source.check()
            self.wake.set()

    def close(self) -> None:
        self._ended = True
        if self._bulk is not None:
            self._bulk.abort("the session has ended")


async def _first_of(name: str, *coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, then end the others. Raises what that one raised."""
    tasks = [asyncio.create_task(coroutine, name=name) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()
