"""A new version of a model of which some chunks are here with the one before: only the others are asked for, at each hop."""

import asyncio
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.errors import Unreachable
from cluster_controller.models import chunks, serving, transfer
from cluster_controller.models.blobs import BlobStore
from cluster_controller.models.chunks import CHUNK, Manifest, Tally
from cluster_controller.models.wire import Request
from tests.models.streams import pair
from tests.models.test_blobs import content_of, put
from tests.models.test_transfer import BUDGET, Hop, chain, run

OVERHEAD = 4000  # bytes of heads and manifests


@settings(max_examples=200)
@given(st.sets(st.integers(0, 99)), st.integers(0, 100))
def test_a_bitmap_says_which_chunks_are_wanted(wanted: set[int], count: int) -> None:
    wanted = {index for index in wanted if index < count}
    bits = chunks.bitmap(wanted, count)
    assert len(bits) == chunks.bitmap_bytes(count) and list(chunks.marked(bits, count)) == sorted(wanted)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 5), max_size=20), st.lists(st.integers(0, 9), max_size=20), st.sets(st.integers(0, 19)))
def test_what_is_found_elsewhere_is_missing_here_and_has_the_same_bytes(new: list[int], old: list[int], here: set[int]) -> None:
    def manifest(numbers: list[int]) -> Manifest:
        return Manifest(len(numbers) * CHUNK, b"".join(number.to_bytes(32, "big") for number in numbers))

    tally = Tally(manifest(new))
    for index in here & set(range(len(new))):
        tally.add(index)
    found = set(manifest(old).holds(tally.lacking()))
    assert found == {(a, b) for a in range(len(new)) for b in range(len(old)) if a not in tally and new[a] == old[b]}


@pytest.mark.parametrize(
    ("old", "new", "tail"),
    [
        ([0, 1, 2], [0, 3, 2], 5),  # one in the middle, and a tail that no other has
        ([0, 1], [1, 2, 0, 1], 0),  # moved, doubled, and one more
        ([0, 1, 2], [1], 0),  # all of it is there
        ([0, 1], [2, 3], 0),  # nothing
    ],
)
def test_only_what_no_other_version_has_crosses_each_link(tmp_path: Path, old: list[int], new: list[int], tail: int) -> None:
    letters = [os.urandom(CHUNK) for _ in range(4)]

    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        before = await put(root.store, b"".join(letters[number] for number in old))
        await leaf.fetch(before)
        await region.idle()
        content = b"".join(letters[number] for number in new) + bytes(tail)
        digest = await put(root.store, content)
        await leaf.fetch(digest)
        await region.idle()
        fresh = sum(CHUNK for number in new if number not in old) + tail
        for hop in (root, region):
            assert fresh <= hop.sent[-1].passed <= fresh + OVERHEAD
        for hop in (region, leaf):
            assert await content_of(hop.store, digest) == content
            assert hop.store.shared == len(content) - fresh

    run(scenario())


def test_what_the_disk_spoiled_of_the_version_before_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        old = os.urandom(4 * CHUNK)
        before = await put(root.store, old)
        await leaf.fetch(before)
        path = leaf.store.path(before)
        path.chmod(0o600)
        path.write_bytes(old[:CHUNK] + bytes(CHUNK) + old[2 * CHUNK :])
        content = old + b"more"
        digest = await put(root.store, content)
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content
        assert [pipe.passed for pipe in root.sent[1:]] == [pytest.approx(4, abs=OVERHEAD), pytest.approx(CHUNK, abs=OVERHEAD)]

    run(scenario())


def test_after_a_cut_or_a_crash_the_rest_is_still_looked_for_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        old = os.urandom(3 * CHUNK)
        content = os.urandom(3 * CHUNK) + old
        digest = await put(root.store, content)
        root.plans = [{"cut_after": CHUNK + 1000}] + [{"cut_after": 0}] * 9
        with pytest.raises(Unreachable):
            await leaf.fetch(digest)
        root.plans = []
        await leaf.store.write(await put(root.store, old), len(old), _once(old))
        leaf = Hop(await BlobStore.open(tmp_path / "1", BUDGET), root)
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content and leaf.store.shared == len(old)
        assert root.sent[-1].passed <= 2 * CHUNK + OVERHEAD

    run(scenario())


async def _once(content: bytes):  # type: ignore[no-untyped-def]
    yield content


def test_more_holes_than_ranges_can_say_are_asked_for_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunks, transfer):
        monkeypatch.setattr(module, "MAX_RANGES", 2)

    async def scenario() -> None:
        root, leaf = await chain(tmp_path, 2)
        count = 8
        content = os.urandom(count * CHUNK)
        digest = await put(root.store, content)
        manifest = await root.store.manifest(digest)
        growth = await leaf.store.grow(digest, manifest)
        growth.compared = True
        async with leaf.store.receive(digest, len(content), growth) as incoming:
            for index in range(0, count, 2):
                await incoming.put(index, bytearray(content[index * CHUNK : (index + 1) * CHUNK]))
        await leaf.fetch(digest)
        assert await content_of(leaf.store, digest) == content
        assert root.sent[-1].passed <= len(content) // 2 + 32 * count + OVERHEAD

    run(scenario())


def test_a_holder_that_does_not_know_how_to_wait_sends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = serving.decode_request

    def before(line: bytes) -> Request:
        return msgspec.structs.replace(known(line), select=False)

    monkeypatch.setattr(serving, "decode_request", before)

    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        old = os.urandom(3 * CHUNK)
        await leaf.fetch(await put(root.store, old))
        await region.idle()
        digest = await put(root.store, old + b"more")
        await leaf.fetch(digest)
        await region.idle()
        assert await content_of(leaf.store, digest) == old + b"more" and leaf.store.shared == 0

    run(scenario())


@pytest.mark.parametrize("where", ["disk", "above"])
def test_an_asker_that_never_says_what_it_wants_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(serving, "SELECT_SECONDS", 0.01)

    async def scenario() -> None:
        root, region = await chain(tmp_path, 2)
        digest = await put(root.store, os.urandom(2 * CHUNK))
        hop = root if where == "disk" else region
        near, far = pair()
        await near.write(json.dumps({"sha256": digest, "chunks": True, "select": True}).encode() + b"\n")
        fetch = region.fetch if where == "above" else None
        await asyncio.wait_for(serving.serve_blob(far, hop.store, fetch), 30)
        head = b""
        with pytest.raises(Unreachable, match="which chunks it wants"):
            while part := await near.read():
                head += part
        assert json.loads(head.partition(b"\n")[0])["select"] is True
        while hop.store.flights:  # what its last asker has left ends
            await asyncio.sleep(0.01)

    run(scenario())


def model(body: int, head: int) -> bytes:
    """A classifier of 8 MB: two hidden layers and a head, each from its own seed."""
    shapes = {"one": (64, 1024), "two": (1024, 1900), "head": (1900, 10)}
    weights = {
        name: np.random.default_rng(head if name == "head" else body).standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
        for name, shape in shapes.items()
    }
    nodes, last = [], "x"
    for name in shapes:
        nodes.append(onnx.helper.make_node("MatMul", [last, name], [f"{name}-sum"]))
        nodes.append(onnx.helper.make_node("Relu", [f"{name}-sum"], [f"{name}-out"]))
        last = f"{name}-out"
    graph = onnx.helper.make_graph(
        nodes,
        "classifier",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 64])],
        [onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, [None, 10])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def answer(content: bytes) -> bytes:
    (found,) = onnxruntime.InferenceSession(content).run(None, {"x": np.ones((1, 64), np.float32)})
    return bytes(found.tobytes())


def test_a_model_whose_head_was_trained_again_costs_its_head(tmp_path: Path) -> None:
    one, two = model(1, 2), model(1, 3)
    assert len(one) == len(two) > 8 * CHUNK - CHUNK // 2 and answer(one) != answer(two)

    async def scenario() -> None:
        root, region, leaf = await chain(tmp_path, 3)
        await leaf.fetch(await put(root.store, one))
        await region.idle()
        digest = await put(root.store, two)
        await leaf.fetch(digest)
        await region.idle()
        assert answer(await content_of(leaf.store, digest)) == answer(two)
        for hop in (root, region):
            assert hop.sent[-1].passed <= CHUNK + OVERHEAD

    run(scenario())
