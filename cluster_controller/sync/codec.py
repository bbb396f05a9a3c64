"""Messages to bytes and back: protobuf behind a length of four bytes, batches compressed with zstd when the receiver reads it.

Invariants: no frame larger than MAX_FRAME is accepted, nor one that would decompress to more; what does not decode is a
ProtocolError, never half a message.
"""

import sys
from collections.abc import Iterator, Sequence

from banyan.tunnel.v1 import sync_pb2 as pb
from google.protobuf.message import DecodeError

from cluster_controller.errors import ProtocolError
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Chunk, Differ, Item, Message, Pair, Resume, Snapshot

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_FRAME = 4 * 1024 * 1024  # an object of 2 MiB, its neighbours in a batch, and what surrounds them
LENGTH_BYTES = 4
MAX_NUMBER = 2**63 - 1  # what a database column holds
MAX_NAME = 512  # characters of any name or uid
ZSTD_LEVEL = 1
COMPRESS_FROM = 512  # bytes; less is not worth it

_compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)  # one for all frames: to make its tables takes longer than to compress a batch


def encode(message: Message, *, compress: bool = False) -> bytes:
    """One message with its length before it."""
    frame = pb.SyncMessage()
    match message:
        case Batch():
            frame.batch.epoch = message.epoch
            frame.batch.after = message.after
            frame.batch.history, frame.batch.through = message.through
            frame.batch.items, frame.batch.size = _pack(message.items, compress)
        case Ack():
            frame.ack.epoch, frame.ack.revision, frame.ack.snapshot = message.epoch, message.revision, message.snapshot
        case Chunk():
            chunk = frame.chunk
            chunk.epoch, chunk.snapshot, chunk.index, chunk.last = message.epoch, message.snapshot, message.index, message.last
            chunk.items, chunk.size = _pack(message.items, compress)
        case Resume():
            history, revision = message.cursor
            resume = pb.SyncResume(
                epoch=message.epoch,
                history=history,
                revision=revision,
                histories=message.histories,
                zstd=message.zstd,
                start=message.start,
            )
            frame.resume.CopyFrom(resume)
        case Begin():
            spans = [pb.SyncSpan(history=name, first=first, last=last) for name, (first, last) in message.spans.items()]
            frame.begin.CopyFrom(pb.SyncBegin(epoch=message.epoch, history=message.history, spans=spans, known=message.known))
        case Check():
            frame.check.epoch, frame.check.revision, frame.check.digest = message.epoch, message.revision, message.digest
        case Differ():
            frame.differ.epoch, frame.differ.revision, frame.differ.buckets = message.epoch, message.revision, message.buckets
        case Snapshot():
            snapshot = frame.snapshot
            snapshot.epoch, snapshot.id, snapshot.buckets, snapshot.bulk = message.epoch, message.id, message.buckets, message.bulk
            snapshot.history, snapshot.revision = message.cursor
    data = frame.SerializeToString()
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Decoder:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises ProtocolError on what is none."""
        self._buffer += data
        return list(self._messages())

    @property
    def empty(self) -> bool:
        """No half message is left."""
        return not self._buffer

    def _messages(self) -> Iterator[Message]:
        buffer = self._buffer
        at = 0
        while len(buffer) - at >= LENGTH_BYTES:
            length = int.from_bytes(buffer[at : at + LENGTH_BYTES], "big")
            if length > MAX_FRAME:
                raise ProtocolError(f"a sync frame of {length} bytes exceeds the limit of {MAX_FRAME}")
            end = at + LENGTH_BYTES + length
            if len(buffer) < end:
                break
            message = decode(bytes(buffer[at + LENGTH_BYTES : end]))
            at = end
            if message is not None:
                yield message
        del buffer[:at]


def decode(data: bytes) -> Message | None:
    """One message; None when it is of a kind that this version does not know."""
    try:
        frame = pb.SyncMessage.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"a sync frame does not decode: {error}") from error
    match frame.WhichOneof("body"):
        case "batch":
            batch = frame.batch
            return Batch(batch.epoch, batch.after, (batch.history, batch.through), _unpack(batch.items, batch.size))
        case "ack":
            return Ack(frame.ack.epoch, frame.ack.revision, frame.ack.snapshot)
        case "chunk":
            chunk = frame.chunk
            return Chunk(chunk.epoch, chunk.snapshot, chunk.index, _unpack(chunk.items, chunk.size), chunk.last)
        case "resume":
            resume = frame.resume
            return Resume(resume.epoch, (resume.history, resume.revision), tuple(resume.histories), resume.zstd, resume.start)
        case "begin":
            begin = frame.begin
            return Begin(begin.epoch, begin.history, {span.history: (span.first, span.last) for span in begin.spans}, begin.known)
        case "check":
            return Check(frame.check.epoch, frame.check.revision, frame.check.digest)
        case "differ":
            return Differ(frame.differ.epoch, frame.differ.revision, frame.differ.buckets)
        case "snapshot":
            snapshot = frame.snapshot
            return Snapshot(snapshot.epoch, snapshot.id, (snapshot.history, snapshot.revision), snapshot.buckets, snapshot.bulk)
    return None


def _pack(items: tuple[Item, ...], compress: bool) -> tuple[bytes, int]:
    """The items, and their size when they are compressed."""
    histories: dict[str, int] = {}
    packed = pb.SyncItems()
    for item in items:
        history, revision = item.delivered
        packed.items.add(
            deleted=item.deleted,
            kind=item.kind,
            namespace=item.namespace,
            name=item.name,
            uid=item.uid,
            version=item.version,
            revision=revision,
            history=histories.setdefault(history, len(histories)),
            document=item.document,
            source=item.source,
            start=item.start,
            sequence=item.sequence,
        )
    packed.histories.extend(histories)
    data = packed.SerializeToString()
    if compress and len(data) >= COMPRESS_FROM:
        return _compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME), len(data)
    return data, 0


def _unpack(data: bytes, size: int) -> tuple[Item, ...]:
    if size:
        data = _decompress(data, size)
    try:
        packed = pb.SyncItems.FromString(data)
        return tuple(_item(item, packed.histories) for item in packed.items)
    except (DecodeError, IndexError) as error:
        raise ProtocolError(f"sync items do not decode: {error}") from error


def _item(item: pb.SyncItem, histories: Sequence[str]) -> Item:
    delivered: Pair = (histories[item.history], item.revision)
    if max(item.version, item.revision, item.start, item.sequence) > MAX_NUMBER:
        raise ProtocolError(f"a sync item of kind {item.kind[:MAX_NAME]!r} counts beyond what a store can hold")
    if max(map(len, (item.kind, item.namespace, item.name, item.uid, item.source, delivered[0]))) > MAX_NAME:
        raise ProtocolError(f"a sync item has a name of more than {MAX_NAME} characters")
    return Item(
        item.deleted,
        item.kind,
        item.namespace,
        item.name,
        item.uid,
        item.version,
        delivered,
        item.document,
        item.source,
        item.start,
        item.sequence,
    )


def _decompress(data: bytes, size: int) -> bytes:
    if size > MAX_FRAME:
        raise ProtocolError(f"sync items of {size} bytes exceed the limit of {MAX_FRAME}")
    decompressor = zstd.ZstdDecompressor()
    try:
        plain = decompressor.decompress(data, max_length=size)
    except zstd.ZstdError as error:
        raise ProtocolError(f"sync items do not decompress: {error}") from error
    if len(plain) != size or not decompressor.eof:
        raise ProtocolError("sync items are not as long as they say")
    return plain
