"""What is sent is what arrives; what is broken is refused, bounded."""

import asyncio
from pathlib import Path

import pytest
from banyan.tunnel.v1 import sync_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.errors import ProtocolError
from cluster_controller.store import Store
from cluster_controller.sync import SyncSession
from cluster_controller.sync.codec import MAX_FRAME, Decoder, decode, encode
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Chunk, Differ, Item, Message, Resume, Snapshot
from tests.sync.streams import MemoryStream, pair

counts = st.integers(0, 2**63 - 1)
texts = st.text(max_size=8)
pairs = st.tuples(texts, counts)
items = st.lists(
    st.builds(Item, st.booleans(), texts, texts, texts, texts, counts, pairs, st.binary(max_size=600), texts, counts, counts), max_size=5
).map(tuple)
messages = st.one_of(
    st.builds(Resume, counts, pairs, st.lists(texts, max_size=3).map(tuple), st.booleans(), counts),
    st.builds(Begin, counts, texts, st.dictionaries(texts, st.tuples(counts, counts), max_size=3), st.booleans()),
    st.builds(Batch, counts, counts, pairs, items),
    st.builds(Ack, counts, counts, counts),
    st.builds(Check, counts, counts, st.binary(max_size=16)),
    st.builds(Differ, counts, counts, st.binary(max_size=50)),
    st.builds(Snapshot, counts, counts, pairs, st.binary(max_size=32), st.booleans()),
    st.builds(Chunk, counts, counts, st.integers(0, 2**31), items, st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(messages, max_size=5), st.booleans(), st.data())
def test_messages_arrive_whole_however_they_are_cut(sent: list[Message], compress: bool, data: st.DataObject) -> None:
    stream = b"".join(encode(message, compress=compress) for message in sent)
    decoder = Decoder()
    received: list[Message] = []
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        received += decoder.feed(stream[at : at + size])
        at += size
    assert received == sent and decoder.empty


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_means_something_harmless(noise: bytes) -> None:
    try:
        decode(noise)
    except ProtocolError as error:
        assert "sync" in str(error)


def test_an_unknown_kind_of_message_is_passed_over() -> None:
    unknown = b"\xfa\x06\x02\x08\x01"  # field 111
    assert Decoder().feed(len(unknown).to_bytes(4, "big") + unknown + encode(Ack(1, 2))) == [Ack(1, 2)]


def test_what_is_too_large_is_refused_before_it_is_held() -> None:
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        Decoder().feed((MAX_FRAME + 1).to_bytes(4, "big"))
    good = encode(Batch(1, 0, ("h", 1), (Item(False, "k", "", "n", "u", 1, ("h", 1), b"x" * 5000),)), compress=True)
    for size, match in ((MAX_FRAME + 1, "exceed the limit"), (100, "not as long as they say"), (5_000_000 // 2, "not as long as they say")):
        frame = pb.SyncMessage.FromString(good[4:])
        frame.batch.size = size
        with pytest.raises(ProtocolError, match=match):
            decode(frame.SerializeToString())
    frame.batch.items = b"no zstd"
    with pytest.raises(ProtocolError, match="do not decompress"):
        decode(frame.SerializeToString())
    frame.batch.size = 0
    frame.batch.items = pb.SyncItems(items=[pb.SyncItem(history=3)]).SerializeToString()
    with pytest.raises(ProtocolError, match="do not decode"):
        decode(frame.SerializeToString())
    for bad in (pb.SyncItem(version=2**63), pb.SyncItem(name="x" * 513), pb.SyncItem(sequence=2**64 - 1)):
        frame.batch.items = pb.SyncItems(histories=["h"], items=[bad]).SerializeToString()
        with pytest.raises(ProtocolError, match="sync item"):
            decode(frame.SerializeToString())


@pytest.mark.parametrize("noise", [b"\xff" * 100, b"\0\0\0\x04\xff\xff\xff\xff", b"\0\0\0\x05half"])
def test_a_session_with_a_peer_that_talks_nonsense_ends_with_an_error(tmp_path: Path, noise: bytes) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path)
        ours, theirs = pair()

        async def no_bulk() -> MemoryStream:
            raise AssertionError("nothing large was announced")

        session = SyncSession(store, send_space="report", receive_space="desired", me="kid", peer="parent")
        running = asyncio.create_task(session.run(ours, no_bulk))
        await theirs.write(noise)
        await theirs.close_write()
        with pytest.raises(ProtocolError):
            await asyncio.wait_for(running, 30)
        await store.close()

    asyncio.run(scenario())
