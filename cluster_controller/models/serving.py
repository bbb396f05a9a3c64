"""Answer askers of blobs (`serve_blob`): from this disk, or as the blob comes from above, chunk by chunk.

A relay that lacks the blob pulls it once for all who ask at the same time (`transfer`) and passes each chunk on as soon as it is
verified. The last one leaves only when the whole was right, so nobody below can take a wrong blob for complete. What leaves this disk
is verified on the way: one that spoiled a blob is found out by the first who asks for it. Memory: one chunk for each asker.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from cluster_controller.errors import BanyanError, InvalidInput, NotFound, StoreCorrupt
from cluster_controller.models.blobs import BlobReader, BlobStore, check_digest
from cluster_controller.models.chunks import CHUNK, Manifest, bitmap_bytes, indexes, marked
from cluster_controller.models.incoming import Incoming, uninterrupted
from cluster_controller.models.transfer import Flight, join, leave
from cluster_controller.models.wire import Reading, Reply, Request, decode_request, encode, refusal
from cluster_shim.contract import ByteStream

log = structlog.get_logger()

SELECT_SECONDS = 60.0  # in which an asker that wants to see the manifest first says what it wants
FetchUpstream = Callable[[str], Awaitable[None]]


class _Gone(Exception):
    """The asker does not take any more."""


class _Spoiled(Exception):
    """What was sent so far is wrong, or the rest does not come: the asker must start again, and is told by a reset."""


async def serve_blob(stream: ByteStream, store: BlobStore, fetch_upstream: FetchUpstream | None) -> None:
    """Answer one asker. ``fetch_upstream(digest)`` brings a blob that is not here into ``store`` (`fetch_blob`); None: nobody above.

    Returns when the asker has it, or is gone; every refusal is told to the asker.
    """
    try:
        reading = Reading(stream)
        request = await _read_request(reading)
        if store.has(request.sha256):
            await _send_stored(stream, reading, store, request)
        elif fetch_upstream is None:
            raise NotFound(f"blob {request.sha256} is not here, and there is nobody above to ask")
        else:
            await _relay(stream, reading, store, request, fetch_upstream)
        await _end(stream)
    except _Gone as gone:
        log.debug("blob.asker_gone", reason=str(gone))
        stream.abort(str(gone))
    except _Spoiled as spoiled:
        log.warning("blob.spoiled", reason=str(spoiled))
        stream.abort(str(spoiled))
    except BanyanError as error:
        with contextlib.suppress(BanyanError, OSError):
            await stream.write(encode(refusal(error)))
            await stream.close_write()


async def _read_request(reading: Reading) -> Request:
    try:
        line = await reading.line()
    except EOFError as error:
        raise InvalidInput(f"not a request for a blob: {error}") from None
    except (BanyanError, OSError) as error:
        raise _Gone(str(error)) from error
    request = decode_request(line)
    check_digest(request.sha256)
    return request


async def _send(stream: ByteStream, data: bytes) -> None:
    try:
        await stream.write(data)
    except (BanyanError, OSError) as error:
        raise _Gone(str(error)) from error


async def _end(stream: ByteStream) -> None:
    """No more is sent; again does nothing."""
    try:
        await stream.close_write()
    except (BanyanError, OSError) as error:
        raise _Gone(str(error)) from error


async def _send_head(stream: ByteStream, request: Request, size: int, manifest: Manifest | None) -> None:
    if request.offset > size:
        raise InvalidInput(f"blob {request.sha256} has {size} bytes; there is nothing at {request.offset}")
    if manifest is None:
        await _send(stream, encode(Reply(size=size)))
    else:
        await _send(stream, encode(Reply(size=size, seal=manifest.seal, select=request.select)) + manifest.digests)


async def _wanted(reading: Reading, request: Request, manifest: Manifest) -> list[int]:
    """Which chunks to send, in order."""
    if not request.select:
        return list(indexes(request.want, manifest.count))
    try:
        async with asyncio.timeout(SELECT_SECONDS):
            return list(marked(await reading.exactly(bitmap_bytes(manifest.count)), manifest.count))
    except TimeoutError:
        raise _Gone(f"it has not said within {SELECT_SECONDS:g} s which chunks it wants") from None
    except (BanyanError, OSError, EOFError) as error:
        raise _Gone(str(error)) from error


# --- from this disk ------------------------------------------------------------------------------------------------------


async def _send_stored(stream: ByteStream, reading: Reading, store: BlobStore, request: Request) -> None:
    manifest = await store.manifest(request.sha256) if request.chunks else None
    reader = store.reader(request.sha256)
    try:
        await _send_head(stream, request, reader.size, manifest)
        if manifest is None:
            await _send_bytes(stream, store, request, reader)
        else:
            todo = await _wanted(reading, request, manifest)
            await _send_chunks(stream, store, reader, manifest=manifest, todo=todo)
    finally:
        reader.close()


async def _send_chunks(stream: ByteStream, store: BlobStore, reader: BlobReader, *, manifest: Manifest, todo: Iterable[int]) -> None:
    for index in todo:
        chunk = await uninterrupted(asyncio.to_thread(_read_right, reader, manifest, index))
        if chunk is None:
            with contextlib.suppress(StoreCorrupt):
                await store.verify(reader.digest)  # removes it, so that it comes from above again
            raise _Spoiled(f"blob {reader.digest}: chunk {index} was spoiled on the disk")
        await _send(stream, chunk)


def _read_right(reader: BlobReader, manifest: Manifest, index: int) -> bytes | None:
    chunk = reader.pread(index * CHUNK, CHUNK)
    return chunk if manifest.right(index, chunk) else None


async def _send_bytes(stream: ByteStream, store: BlobStore, request: Request, reader: BlobReader) -> None:
    """To an asker that knows no chunks."""
    position, seen = request.offset, hashlib.sha256()
    while position < reader.size:
        chunk = await uninterrupted(asyncio.to_thread(_read_and_hash, reader, position, seen))
        position += len(chunk)
        whole = position == reader.size and request.offset == 0
        if not chunk or (whole and seen.hexdigest() != request.sha256):
            store.remove(request.sha256)
            raise _Spoiled(f"blob {request.sha256} was spoiled on the disk; it was removed")
        await _send(stream, chunk)


def _read_and_hash(reader: BlobReader, position: int, seen: "hashlib._Hash") -> bytes:
    chunk = reader.pread(position, CHUNK)
    seen.update(chunk)
    return chunk


# --- as it comes from above ----------------------------------------------------------------------------------------------


async def _relay(stream: ByteStream, reading: Reading, store: BlobStore, request: Request, fetch_upstream: FetchUpstream) -> None:
    """Pull it from above and pass it on as it comes, together with everybody else who asks."""
    flight = await join(store, request.sha256)
    fetching = asyncio.ensure_future(fetch_upstream(request.sha256))
    try:
        incoming = await _next_incoming(flight, fetching, None)
        if incoming is None:
            await fetching  # raises why not
            await _send_stored(stream, reading, store, request)
        else:
            await _Follower(stream, reading, request, flight, fetching).run(incoming)
            await _end(stream)  # the asker need not wait until this disk has it, too
            await asyncio.wait([fetching])
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        leave(store, request.sha256, flight)


async def _next_incoming(flight: Flight, fetching: "asyncio.Future[None]", seen: Incoming | None) -> Incoming | None:
    """None when the pull ended without another one."""
    coming = asyncio.ensure_future(flight.next(seen))
    either: set[asyncio.Future[Any]] = {coming, fetching}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else None
    finally:
        coming.cancel()


class _Follower:
    """Passes on what one pull brings, over all of its attempts."""

    def __init__(self, stream: ByteStream, reading: Reading, request: Request, flight: Flight, fetching: "asyncio.Future[None]") -> None:
        self._stream, self._reading, self._request = stream, reading, request
        self._flight, self._fetching = flight, fetching
        self._position = request.offset

    async def run(self, first: Incoming) -> None:
        manifest = first.growth.tally.manifest if self._request.chunks and first.growth is not None else None
        await _send_head(self._stream, self._request, first.size, manifest)
        todo = await _wanted(self._reading, self._request, manifest) if manifest is not None else []
        incoming: Incoming | None = first
        while incoming is not None:
            self._same(incoming, first, manifest)
            if manifest is None:
                await self._bytes(incoming)
                done = self._position == first.size
            else:
                await self._chunks(incoming, todo)
                done = not todo
            if done and incoming.right:
                return
            if incoming.spoiled:
                raise _Spoiled(f"blob {self._request.sha256}: the source sent wrong bytes")
            incoming = await _next_incoming(self._flight, self._fetching, incoming)
        raise _Spoiled(f"blob {self._request.sha256}: the source is out of reach")

    def _same(self, incoming: Incoming, first: Incoming, manifest: Manifest | None) -> None:
        if incoming.size != first.size:
            what = f"the source changed its size from {first.size} to {incoming.size} bytes"
            raise _Spoiled(f"blob {self._request.sha256}: {what}")
        if manifest is not None and (incoming.growth is None or incoming.growth.tally.manifest != manifest):
            raise _Spoiled(f"blob {self._request.sha256}: the source changed its chunks")

    async def _chunks(self, incoming: Incoming, todo: list[int]) -> None:
        """Takes from ``todo`` what was sent."""
        with _Descriptor(incoming) as read:
            while todo and await incoming.wait_chunk(todo[0]):
                chunk = await read(todo[0] * CHUNK, CHUNK)
                if not chunk:
                    break
                await _send(self._stream, chunk)
                del todo[0]
            if not todo:
                await incoming.wait_right()

    async def _bytes(self, incoming: Incoming) -> None:
        with _Descriptor(incoming) as read:
            while self._position < incoming.size and await incoming.wait_beyond(self._position):
                chunk = await read(self._position, min(CHUNK, incoming.available - self._position))
                if not chunk:
                    break
                self._position += len(chunk)
                await _send(self._stream, chunk)


class _Descriptor:
    """Opens what arrives when it is first read. A file that was dropped between two attempts reads as empty; the next one tells."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._fd = -1

    def __enter__(self) -> Callable[[int, int], Awaitable[bytes]]:
        return self._read

    async def _read(self, position: int, limit: int) -> bytes:
        if self._fd < 0:
            try:
                self._fd = self._incoming.reader()
            except FileNotFoundError:
                return b""
        return await uninterrupted(asyncio.to_thread(os.pread, self._fd, limit, position))

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
