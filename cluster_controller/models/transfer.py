"""Fetch blobs from above, in chunks; one pull for all who want the same (`fetch_blob`). The holder's side is `serving`.

Invariants
- A chunk is kept when its digest is right, and then at once; whoever follows the pull (`serving`) may have it from that moment on. So
  a blob crosses three hops in the time of one, and no wrong byte crosses more than one.
- What is here is never asked for again: not after a cut, not after a power loss, not when the next attempt asks somebody else, and
  not when it came with another version (`sharing`).
- A blob counts as here only when all of it has its sha256 and the disk holds it.
- Sources are asked nearest first. One that refuses, or that gives nothing again and again, is passed over for the next ancestor.
- Memory: two chunks for each pull, one that arrives while the other is verified and written.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from cluster_controller import memory
from cluster_controller.errors import BanyanError, Conflict, Exhausted, Forbidden, InvalidInput, NotFound, ProtocolError, Unreachable
from cluster_controller.models import sharing
from cluster_controller.models.blobs import BlobStore, check_digest
from cluster_controller.models.chunks import CHUNK, DIGEST_BYTES, MAX_RANGES, Manifest, bitmap, count_of, indexes
from cluster_controller.models.incoming import STEP, Growth, Incoming, WrongChunk, WrongDigest
from cluster_controller.models.pace import FREE, Pace
from cluster_controller.models.wire import Reading, Reply, Request, decode_reply, encode
from cluster_shim.contract import ByteStream

log = structlog.get_logger()

MAX_FLIGHTS = 64  # different blobs that are pulled at once
ATTEMPTS = 5  # of one source in a row without one new byte, before the next one is asked, or the asker is told
FURTHER_ATTEMPTS = 2  # the same, of each source but the nearest
WRONG_ATTEMPTS = 2  # whole transfers with a wrong digest: the holder notices and repairs itself on the first
STALL_SECONDS = 60.0
FIRST_DELAY_SECONDS, LAST_DELAY_SECONDS = 0.2, 5.0

T = TypeVar("T")
OpenStream = Callable[[], Awaitable[ByteStream]]
Sleep = Callable[[float], Awaitable[None]]


class _Cut(Exception):
    """The stream ended early; what came is kept and the rest is asked for again."""


class _Refused(Exception):
    """This source does not give it; ``error`` says why, to the asker when no other does."""

    def __init__(self, error: BanyanError) -> None:
        super().__init__(str(error))
        self.error = error


class Flight:
    """One pull from upstream, shared by all who want the blob now. Ends when the last of them has left.

    After a cut the pull goes on in another `Incoming`; followers move over to it with `next`.
    """

    def __init__(self) -> None:
        self.incoming: Incoming | None = None
        self.task: asyncio.Task[None] | None = None
        self.interested = 0
        self.leaving: asyncio.Task[None] | None = None  # the pull, once it was cancelled
        self.source = 0  # how many nearer ones were passed over
        self.came = 0  # bytes from above since `since`
        self.since = time.monotonic()
        self.waiting = ""  # for what, while nothing comes
        self._changed = asyncio.Event()

    def announce(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.waiting = ""
        self._changed.set()
        self._changed = asyncio.Event()

    async def next(self, seen: Incoming | None) -> Incoming:
        """The `Incoming` that took the place of ``seen``. Waits; the caller also watches the pull itself."""
        while self.incoming is None or self.incoming is seen:
            await self._changed.wait()
        return self.incoming


async def fetch_blob(
    sources: OpenStream | Sequence[OpenStream], digest: str, store: BlobStore, *, pace: Pace = FREE, sleep: Sleep = asyncio.sleep
) -> None:
    """Returns when the blob is in ``store``, verified. ``sources`` open streams to where it may be found, nearest first.

    Raises what the nearest said when none gives it: `NotFound` when nobody up there has it, `WrongDigest` when what comes is wrong again
    and again, `Unreachable` after several cuts in a row without progress (what came is kept for the next call), `Exhausted` and
    `StoreFull` for want of room, and `Unreachable` while ``pace`` lets nothing pass.
    """
    if store.has(check_digest(digest)):
        return
    flight = await join(store, digest)
    try:
        if flight.task is None:
            opening = (sources,) if callable(sources) else tuple(sources)
            flight.task = asyncio.create_task(
                _Pull(opening, digest, store, flight, pace=pace, sleep=sleep).run(), name=f"blob/{digest[:12]}"
            )
        await asyncio.shield(flight.task)
    finally:
        leave(store, digest, flight)


async def join(store: BlobStore, digest: str) -> Flight:
    """Become one of those who want that pull, the first perhaps; `leave` it in the end."""
    while (flight := store.flights.get(digest)) is not None and flight.leaving:
        # Everybody left it; its thread may still be writing, and two may not receive one blob.
        await asyncio.wait([flight.leaving])
    if flight is None:
        if len(store.flights) >= MAX_FLIGHTS:
            raise Exhausted(f"{MAX_FLIGHTS} blobs are being fetched already; blob {digest} has to wait", 5.0)
        flight = store.flights[digest] = Flight()
    flight.interested += 1
    return flight


def leave(store: BlobStore, digest: str, flight: Flight) -> None:
    """The last to leave ends the pull, unless all came and only this disk has to take it; one that has ended makes room at once."""
    flight.interested -= 1
    if flight.task is None or flight.task.done():
        if flight.task is not None or not flight.interested:
            _forget(store, digest, flight)
    elif not flight.interested:
        if flight.incoming is None or not flight.incoming.right:
            flight.leaving = flight.task
            flight.task.cancel()
        flight.task.add_done_callback(lambda task: _ended(task, store, digest, flight))


def _ended(task: "asyncio.Task[None]", store: BlobStore, digest: str, flight: Flight) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("blob.not_kept", digest=digest, reason=str(error))  # nobody waits for it any more
    if not flight.interested:
        _forget(store, digest, flight)


def _forget(store: BlobStore, digest: str, flight: Flight) -> None:
    if store.flights.get(digest) is flight:
        del store.flights[digest]
        if not store.flights and flight.incoming is not None:
            asyncio.get_running_loop().run_in_executor(None, memory.trim)  # buffers of a whole model, by the megabyte


class _Pull:
    """Ask until the blob is here. What was received never shrinks but for a wrong digest."""

    def __init__(self, sources: tuple[OpenStream, ...], digest: str, store: BlobStore, flight: Flight, *, pace: Pace, sleep: Sleep) -> None:
        self._sources, self._digest, self._store, self._flight = sources, digest, store, flight
        self._pace, self._sleep = pace, sleep

    async def run(self) -> None:
        first: BanyanError | None = None
        for number, source in enumerate(self._sources):
            self._flight.source = number
            try:
                await self._from(source, ATTEMPTS if number == 0 else FURTHER_ATTEMPTS)
                return
            except _Refused as refused:
                first = first or refused.error
                log.info("blob.refused", digest=self._digest, source=number, reason=str(refused))
        raise first or NotFound(f"blob {self._digest}: there is nobody above to ask")

    async def _from(self, source: OpenStream, attempts: int) -> None:
        """`_Refused` when this source does not give it."""
        fruitless, wrong, delay = 0, 0, FIRST_DELAY_SECONDS
        while not self._store.has(self._digest):
            before = self._store.partial_size(self._digest)
            try:
                await self._once(source)
                return
            except WrongDigest as error:
                wrong += 1
                log.warning("blob.wrong", digest=self._digest, attempt=wrong, error=str(error))
                if wrong >= WRONG_ATTEMPTS:
                    raise _Refused(error) from None
            except (_Cut, Conflict) as cut:  # Conflict: somebody pushes it to this controller at this moment
                kept = self._store.partial_size(self._digest)
                fruitless = 0 if kept > before else fruitless + 1
                log.info("blob.cut", digest=self._digest, received=kept, reason=str(cut))
                self._flight.waiting = str(cut)
                self._store.cuts += 1
                if fruitless >= attempts:
                    text = f"blob {self._digest}: {cut}; {kept} bytes are kept for the next attempt"
                    raise _Refused(Unreachable(text)) from None
                delay = FIRST_DELAY_SECONDS if kept > before else min(delay * 2, LAST_DELAY_SECONDS)
                await self._sleep(delay)

    async def _once(self, source: OpenStream) -> None:
        digest, store = self._digest, self._store
        self._pace.require_open()
        growth = await store.growing(digest)
        if growth is not None and growth.tally.complete:  # a crash, or a full disk, came between the last byte and the name
            await self._finish(growth)
            return
        offset = store.partial_size(digest) if growth is None else growth.tally.prefix_bytes
        want = tuple(growth.tally.missing()) if growth is not None else ()
        # The manifest is worth waiting for where other blobs may hold some of it, or ranges cannot say all that is missing.
        select = len(want) == MAX_RANGES or (not (growth is not None and growth.compared) and bool(store.recent(CHUNK, 1)))
        request = Request(digest, offset, chunks=True, want=want, select=select)
        stream = await _on_stream(source())
        try:
            await _on_stream(stream.write(encode(request)))
            if not select:
                await _on_stream(stream.close_write())
            reading = Reading(stream)
            reply = _check_reply(digest, request.offset, await _on_stream(reading.line()))
            if reply.seal or reply.size == 0:
                await self._chunks(stream, reading, reply, request, growth)
            else:
                await self._bytes(reading, reply, request, growth)
        finally:
            stream.abort("done")

    async def _chunks(self, stream: ByteStream, reading: Reading, reply: Reply, request: Request, growth: Growth | None) -> None:
        digests = await _on_stream(reading.exactly(DIGEST_BYTES * count_of(reply.size))) if reply.size else bytearray()
        manifest = _manifest(self._digest, reply, digests)
        if growth is None or growth.tally.manifest != manifest:
            fresh = await self._store.grow(self._digest, manifest)
            if growth is not None and not reply.select:  # what was asked for leaves gaps by this one
                raise _Cut("the source's chunks are others than those that came before; all are asked for")
            growth = fresh
        async with self._store.receive(self._digest, reply.size, growth) as incoming:
            self._flight.announce(incoming)
            if reply.select:
                wanted = await self._select(stream, incoming, growth)
            else:
                wanted = list(indexes(request.want, manifest.count))
            await self._gather(reading, incoming, growth, wanted)
            if not growth.tally.complete:
                raise _Cut(f"{incoming.received} of {reply.size} bytes came")
            await incoming.commit()

    async def _select(self, stream: ByteStream, incoming: Incoming, growth: Growth) -> list[int]:
        """Ask for what is neither here nor in another blob; those chunks come while the others are copied."""
        copies = await sharing.find(self._store, growth.tally) if not growth.compared else []
        growth.compared = True
        known = {one.index for one in copies}
        wanted = [index for index in range(growth.tally.manifest.count) if index not in growth.tally and index not in known]
        await _on_stream(stream.write(bitmap(wanted, growth.tally.manifest.count)))
        await _on_stream(stream.close_write())
        if copies:
            copied = await sharing.copy(self._store, incoming, copies)
            self._store.shared += copied
            log.info("blob.shared", digest=self._digest, copied=copied, asked=len(wanted))
        return wanted

    async def _gather(self, reading: Reading, incoming: Incoming, growth: Growth, wanted: list[int]) -> None:
        """One chunk arrives while the one before it is verified and written."""
        keeping: asyncio.Task[None] | None = None
        try:
            for index in wanted:
                data = await self._paced(reading, growth.tally.manifest.length(index))
                if keeping is not None:
                    await _kept(keeping)
                keeping = asyncio.create_task(incoming.put(index, data), name=f"chunk/{self._digest[:12]}")
            if keeping is not None:
                await _kept(keeping)
        finally:
            if keeping is not None:  # never leave a thread writing to a file that is being closed
                await asyncio.gather(keeping, return_exceptions=True)

    async def _paced(self, reading: Reading, length: int) -> bytearray:
        data = bytearray()
        while len(data) < length:
            self._pace.require_open()
            part = await _on_stream(reading.some(min(length - len(data), self._pace.part)))
            if not part:
                raise _Cut(f"the source stopped {length - len(data)} bytes before the end of a chunk")
            data += part
            self._flight.came += len(part)
            self._store.pulled += len(part)
            await self._pace.spend(len(part))
        return data

    async def _bytes(self, reading: Reading, reply: Reply, request: Request, growth: Growth | None) -> None:
        """From a holder that knows no manifest: in order, from the offset on."""
        if growth is not None:
            self._store.forget_growth(self._digest, request.offset)
        async with self._store.receive(self._digest, reply.size) as incoming:
            if incoming.received != request.offset:
                raise _Cut(f"{incoming.received} bytes were found on the disk where {request.offset} were expected")
            self._flight.announce(incoming)
            while incoming.received < reply.size:
                self._pace.require_open()
                data = await _on_stream(reading.some(STEP))
                if not data:
                    raise _Cut(f"the source stopped after {incoming.received} of {reply.size} bytes")
                self._flight.came += len(data)
                self._store.pulled += len(data)
                await incoming.write(data)
                await self._pace.spend(len(data))
            await incoming.commit()

    async def _finish(self, growth: Growth) -> None:
        async with self._store.receive(self._digest, growth.tally.manifest.size, growth) as incoming:
            self._flight.announce(incoming)
            await incoming.commit()


async def _kept(keeping: "asyncio.Task[None]") -> None:
    try:
        await asyncio.shield(keeping)
    except WrongChunk as error:
        raise _Cut(str(error)) from None


async def _on_stream(work: Awaitable[T]) -> T:
    """What the stream refuses is a cut: the blob is asked for again. Refusals that asking again cannot heal end this source."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            return await work
    except (NotFound, Forbidden, InvalidInput, ProtocolError) as error:
        raise _Refused(error) from None
    except TimeoutError:
        raise _Cut(f"no byte for {STALL_SECONDS:g} s") from None
    except (BanyanError, OSError, EOFError) as error:
        raise _Cut(str(error)) from error


def _check_reply(digest: str, offset: int, line: bytes) -> Reply:
    try:
        reply = decode_reply(digest, line)
    except ProtocolError as error:
        raise _Refused(error) from None
    match reply.code:
        case None if reply.size >= offset and not reply.error:
            return reply
        case "not_found":
            raise _Refused(NotFound(reply.error))
        case "exhausted":
            raise _Refused(Exhausted(reply.error))
        case "unreachable":
            raise _Cut(reply.error)
    raise _Refused(ProtocolError(reply.error or f"blob {digest}: a size of {reply.size} bytes for offset {offset}"))


def _manifest(digest: str, reply: Reply, digests: bytearray) -> Manifest:
    try:
        manifest = Manifest.of(digest, reply.size, bytes(digests))
    except InvalidInput as error:
        raise _Cut(str(error)) from None
    if reply.seal and manifest.seal != reply.seal:
        raise _Cut("the manifest was spoiled on the way")
    return manifest
