"""The chunk protocol: one blob over one byte stream (service ``blob``, lane BULK).

    asker    {"sha256": DIGEST, "offset": BYTES}\\n                then closes its direction
    holder   {"size": BYTES}\\n and the bytes from offset on       or {"error": TEXT, "code": CODE}\\n

A relay that lacks the blob pulls it from its own upstream, once for all who ask at the same time, and passes bytes on as they
come, so a blob crosses three hops in the time of one. Every hop hashes what it receives; the last byte leaves a relay only after
the whole was right, so nobody below can take a wrong blob for complete. A cut is resumed at the byte where it happened. Memory:
one chunk per stream.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.errors import (
    BanyanError,
    Conflict,
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    ProtocolError,
    StoreFull,
    Unreachable,
)
from cluster_controller.models.blobs import BlobReader, BlobStore, check_digest
from cluster_controller.models.incoming import STEP, Incoming, WrongDigest, uninterrupted
from cluster_shim.contract import ByteStream

log = structlog.get_logger()

CHUNK = STEP
MAX_LINE = 4096  # bytes of a request or a reply's head
MAX_FLIGHTS = 64  # different blobs that are pulled at once
ATTEMPTS = 5  # in a row without one new byte, before the asker is told
WRONG_ATTEMPTS = 2  # whole transfers with a wrong digest: the holder notices and repairs itself on the first
STALL_SECONDS = 60.0
FIRST_DELAY_SECONDS, LAST_DELAY_SECONDS = 0.2, 5.0

T = TypeVar("T")
OpenStream = Callable[[], Awaitable[ByteStream]]
FetchUpstream = Callable[[str], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]
Code = Literal["not_found", "exhausted", "invalid", "unreachable", "failed"]


class Request(Struct, frozen=True):
    sha256: str
    offset: int = 0


class Reply(Struct, frozen=True, omit_defaults=True):
    size: int = -1
    error: str = ""
    code: Code | None = None


class _Cut(Exception):
    """The stream ended early; what came is kept and the rest is asked for again."""


class Flight:
    """One pull from upstream, shared by all who want the blob now. Ends when the last of them has left.

    After a cut the pull goes on in another `Incoming`; followers move over to it with `next`.
    """

    def __init__(self) -> None:
        self.incoming: Incoming | None = None
        self.task: asyncio.Task[None] | None = None
        self.interested = 0
        self.leaving: asyncio.Task[None] | None = None  # the pull, once it was cancelled
        self._changed = asyncio.Event()

    def announce(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self._changed.set()
        self._changed = asyncio.Event()

    async def next(self, seen: Incoming | None) -> Incoming:
        """The `Incoming` that took the place of ``seen``. Waits; the caller also watches the pull itself."""
        while self.incoming is None or self.incoming is seen:
            await self._changed.wait()
        return self.incoming


# --- asking ------------------------------------------------------------------------------------------------------------


async def fetch_blob(open_stream: OpenStream, digest: str, store: BlobStore, *, sleep: Sleep = asyncio.sleep) -> None:
    """Returns when the blob is in ``store``, verified. ``open_stream`` opens a stream to where it may be found.

    Raises `NotFound` when nobody up there has it, `WrongDigest` when what comes is wrong again and again, `Unreachable` after
    several cuts in a row without progress (what came is kept for the next call), `Exhausted` and `StoreFull` for want of room.
    """
    if store.has(check_digest(digest)):
        return
    flight = await _join(store, digest)
    try:
        if flight.task is None:
            flight.task = asyncio.create_task(_pull(open_stream, digest, store, flight, sleep), name=f"blob/{digest[:12]}")
        await asyncio.shield(flight.task)
    finally:
        _leave(store, digest, flight)


async def _join(store: BlobStore, digest: str) -> Flight:
    while (flight := store.flights.get(digest)) is not None and flight.leaving:
        # Everybody left it; its thread may still be writing, and two may not receive one blob.
        await asyncio.wait([flight.leaving])
    if flight is None:
        if len(store.flights) >= MAX_FLIGHTS:
            raise Exhausted(f"{MAX_FLIGHTS} blobs are being fetched already; blob {digest} has to wait", 5.0)
        flight = store.flights[digest] = Flight()
    flight.interested += 1
    return flight


def _leave(store: BlobStore, digest: str, flight: Flight) -> None:
    """The last to leave ends the pull; a pull that has ended makes room for the next at once."""
    flight.interested -= 1
    if flight.task is None or flight.task.done():
        if flight.task is not None or not flight.interested:
            _forget(store, digest, flight)
    elif not flight.interested:
        flight.leaving = flight.task
        flight.task.cancel()
        flight.task.add_done_callback(lambda _: _forget(store, digest, flight))


def _forget(store: BlobStore, digest: str, flight: Flight) -> None:
    if store.flights.get(digest) is flight:
        del store.flights[digest]


async def _pull(open_stream: OpenStream, digest: str, store: BlobStore, flight: Flight, sleep: Sleep) -> None:
    """Ask until the blob is here. What was received never shrinks but for a wrong digest."""
    fruitless, wrong, delay = 0, 0, FIRST_DELAY_SECONDS
    while not store.has(digest):
        before = store.partial_size(digest)
        try:
            await _pull_once(open_stream, digest, store, flight)
            return
        except WrongDigest as error:
            wrong += 1
            log.warning("blob.wrong", digest=digest, attempt=wrong, error=str(error))
            if wrong >= WRONG_ATTEMPTS:
                raise
        except (_Cut, Conflict) as cut:  # Conflict: somebody pushes it to this controller at this moment
            progress = store.partial_size(digest) > before
            fruitless = 0 if progress else fruitless + 1
            log.info("blob.cut", digest=digest, received=store.partial_size(digest), reason=str(cut))
            if fruitless >= ATTEMPTS:
                raise Unreachable(f"blob {digest}: {cut}; {store.partial_size(digest)} bytes are kept for the next attempt") from cut
            delay = FIRST_DELAY_SECONDS if progress else min(delay * 2, LAST_DELAY_SECONDS)
            await sleep(delay)


async def _pull_once(open_stream: OpenStream, digest: str, store: BlobStore, flight: Flight) -> None:
    offset = store.partial_size(digest)
    stream = await _on_stream(open_stream())
    try:
        await _on_stream(stream.write(msgspec.json.encode(Request(digest, offset)) + b"\n"))
        await _on_stream(stream.close_write())
        line, data = await _on_stream(_read_line(stream))
        size = _check_reply(digest, offset, line)
        async with store.receive(digest, size) as incoming:
            if incoming.received != offset:
                raise _Cut(f"{incoming.received} bytes were found on the disk where {offset} were expected")
            flight.announce(incoming)
            while True:
                await incoming.write(data)
                if incoming.received == size:
                    break
                data = await _on_stream(stream.read(CHUNK))
                if not data:
                    raise _Cut(f"the source stopped after {incoming.received} of {size} bytes")
            await incoming.commit()
    finally:
        stream.abort("done")


async def _on_stream(work: Awaitable[T]) -> T:
    """What the stream refuses is a cut: the blob is asked for again. Refusals that asking again cannot heal pass."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            return await work
    except (NotFound, Forbidden, InvalidInput, ProtocolError):
        raise
    except TimeoutError:
        raise _Cut(f"no byte for {STALL_SECONDS:g} s") from None
    except (BanyanError, OSError, EOFError) as error:
        raise _Cut(str(error)) from error


def _check_reply(digest: str, offset: int, line: bytes) -> int:
    try:
        reply = msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"blob {digest}: the reply's head is not understood: {error}") from None
    match reply.code:
        case None if reply.size >= offset and not reply.error:
            return reply.size
        case "not_found":
            raise NotFound(reply.error)
        case "exhausted":
            raise Exhausted(reply.error)
        case "unreachable":
            raise _Cut(reply.error)
    raise ProtocolError(reply.error or f"blob {digest}: a size of {reply.size} bytes for offset {offset}")


# --- answering ---------------------------------------------------------------------------------------------------------


async def serve_blob(stream: ByteStream, store: BlobStore, fetch_upstream: FetchUpstream | None) -> None:
    """Answer one asker. ``fetch_upstream(digest)`` brings a blob that is not here into ``store`` (`fetch_blob`); None: nobody above.

    Returns when the asker has it, or is gone; every refusal is told to the asker.
    """
    try:
        request = await _read_request(stream)
        if store.has(request.sha256):
            await _send_stored(stream, store, request)
        elif fetch_upstream is None:
            raise NotFound(f"blob {request.sha256} is not here, and there is nobody above to ask")
        else:
            await _relay(stream, store, request, fetch_upstream)
        await stream.close_write()
    except _Gone as gone:
        log.debug("blob.asker_gone", reason=str(gone))
        stream.abort(str(gone))
    except _Spoiled as spoiled:
        log.warning("blob.spoiled", reason=str(spoiled))
        stream.abort(str(spoiled))
    except BanyanError as error:
        await _refuse(stream, error)


class _Gone(Exception):
    """The asker does not take any more."""


class _Spoiled(Exception):
    """What was sent so far is wrong: the asker must start again, and is told by a reset."""


async def _read_request(stream: ByteStream) -> Request:
    try:
        line, _ = await _read_line(stream)
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, EOFError) as error:
        raise InvalidInput(f"not a request for a blob: {error}") from None
    except (BanyanError, OSError) as error:
        raise _Gone(str(error)) from error
    check_digest(request.sha256)
    if request.offset < 0:
        raise InvalidInput(f"blob {request.sha256}: an offset of {request.offset}")
    return request


async def _read_line(stream: ByteStream) -> tuple[bytes, bytes]:
    """A line without its end, and what came behind it. `EOFError` when the other side sends none within `MAX_LINE` bytes."""
    data = b""
    while b"\n" not in data:
        part = await stream.read(MAX_LINE)
        data += part
        if not part or (len(data) > MAX_LINE and b"\n" not in data):
            raise EOFError(f"no line within {len(data)} bytes")
    line, _, rest = data.partition(b"\n")
    return line, rest


async def _refuse(stream: ByteStream, error: BanyanError) -> None:
    code: Code = "failed"
    match error:
        case NotFound():
            code = "not_found"
        case Exhausted() | StoreFull():
            code = "exhausted"
        case Unreachable() | Conflict():  # what asking again may heal
            code = "unreachable"
        case InvalidInput():
            code = "invalid"
    with contextlib.suppress(BanyanError, OSError):
        await stream.write(msgspec.json.encode(Reply(error=str(error), code=code)) + b"\n")
        await stream.close_write()


async def _send(stream: ByteStream, data: bytes) -> None:
    try:
        await stream.write(data)
    except (BanyanError, OSError) as error:
        raise _Gone(str(error)) from error


async def _send_head(stream: ByteStream, request: Request, size: int) -> None:
    if request.offset > size:
        raise InvalidInput(f"blob {request.sha256} has {size} bytes; there is nothing at {request.offset}")
    await _send(stream, msgspec.json.encode(Reply(size=size)) + b"\n")


async def _send_stored(stream: ByteStream, store: BlobStore, request: Request) -> None:
    """From this disk, hashed on the way: a disk that spoiled the blob is found before the last byte leaves."""
    reader = store.reader(request.sha256)
    try:
        await _send_head(stream, request, reader.size)
        position, seen = request.offset, hashlib.sha256()
        while position < reader.size:
            chunk = await uninterrupted(asyncio.to_thread(_read_and_hash, reader, position, seen))
            position += len(chunk)
            whole = position == reader.size and request.offset == 0
            if not chunk or (whole and seen.hexdigest() != request.sha256):
                store.remove(request.sha256)
                raise _Spoiled(f"blob {request.sha256} was spoiled on the disk; it was removed")
            await _send(stream, chunk)
    finally:
        reader.close()


def _read_and_hash(reader: BlobReader, position: int, seen: "hashlib._Hash") -> bytes:
    chunk = reader.pread(position, CHUNK)
    seen.update(chunk)
    return chunk


async def _relay(stream: ByteStream, store: BlobStore, request: Request, fetch_upstream: FetchUpstream) -> None:
    """Pull it from above and pass it on as it comes, together with everybody else who asks."""
    flight = await _join(store, request.sha256)
    fetching = asyncio.ensure_future(fetch_upstream(request.sha256))
    try:
        incoming = await _next_incoming(flight, fetching, None)
        if incoming is None:
            await fetching  # raises why not
            await _send_stored(stream, store, request)
        else:
            await _follow(stream, request, flight, fetching, incoming)
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        _leave(store, request.sha256, flight)


async def _next_incoming(flight: Flight, fetching: "asyncio.Future[None]", seen: Incoming | None) -> Incoming | None:
    """None when the pull ended without another one."""
    coming = asyncio.ensure_future(flight.next(seen))
    either: set[asyncio.Future[Any]] = {coming, fetching}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else None
    finally:
        coming.cancel()


async def _follow(stream: ByteStream, request: Request, flight: Flight, fetching: "asyncio.Future[None]", first: Incoming) -> None:
    size, position = first.size, request.offset
    await _send_head(stream, request, size)
    incoming: Incoming | None = first
    while incoming is not None:
        if incoming.size != size:
            raise _Spoiled(f"blob {request.sha256}: the source changed its size from {size} to {incoming.size} bytes")
        position = await _follow_one(stream, incoming, position)
        if incoming.verified and position == size:
            return
        if incoming.spoiled:
            raise _Spoiled(f"blob {request.sha256}: the source sent wrong bytes")
        incoming = await _next_incoming(flight, fetching, incoming)
    raise _Spoiled(f"blob {request.sha256}: the source is out of reach")


async def _follow_one(stream: ByteStream, incoming: Incoming, position: int) -> int:
    """Pass on what arrives until no more does; returns how far it went."""
    fd = -1
    try:
        while await incoming.wait_beyond(position):
            if fd < 0:
                fd = incoming.reader()
            limit = min(CHUNK, incoming.available - position)
            chunk = await uninterrupted(asyncio.to_thread(os.pread, fd, limit, position))
            if not chunk:
                break
            position += len(chunk)
            await _send(stream, chunk)
    except FileNotFoundError:
        pass  # it was dropped between two attempts; the next one tells
    finally:
        if fd >= 0:
            os.close(fd)
    return position
