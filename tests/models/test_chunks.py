"""Chunks and their marks, for any blob, any pieces and any order."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.models import chunks, manifests
from cluster_controller.models.chunks import CHUNK, MAX_RANGES, Digester, Manifest, Tally, check_ranges, count_of, indexes


def manifest_of(count: int, last: int = CHUNK) -> Manifest:
    """Of no real content: the digests are not looked at."""
    return Manifest((count - 1) * CHUNK + last if count else 0, os.urandom(32 * count))


@settings(max_examples=20, deadline=None)
@given(size=st.integers(0, 3 * CHUNK + 5), piece=st.integers(CHUNK // 3, 2 * CHUNK))
def test_the_manifest_is_that_of_the_bytes_whatever_the_pieces(size: int, piece: int) -> None:
    content = os.urandom(1000) * (size // 1000 + 1)
    content = content[:size]
    digester = Digester()
    for start in range(0, size, piece):
        digester.update(content[start : start + piece])
    manifest = digester.manifest()
    parts = [content[start : start + CHUNK] for start in range(0, size, CHUNK)]
    assert manifest.size == size and manifest.count == len(parts) == count_of(size)
    assert manifest.digests == b"".join(hashlib.sha256(part).digest() for part in parts)
    for index, part in enumerate(parts):
        assert manifest.right(index, part) and manifest.length(index) == len(part)
        assert not manifest.right(index, part[:-1] + bytes([part[-1] ^ 1]))
    assert Manifest.of(hashlib.sha256(content).hexdigest(), size, manifest.digests) == manifest


@settings(max_examples=200)
@given(count=st.integers(1, 300), order=st.randoms(use_true_random=False), taken=st.integers(0, 300), last=st.integers(1, CHUNK))
def test_what_is_missing_and_what_is_here_is_all_and_nothing_twice(count: int, order: "st.DataObject", taken: int, last: int) -> None:
    tally = Tally(manifest_of(count, last))
    sequence = list(range(count))
    order.shuffle(sequence)  # type: ignore[attr-defined]
    here = set(sequence[:taken])
    for index in sequence[:taken]:
        tally.add(index)
        tally.add(index)
    ranges = tally.missing()
    check_ranges(ranges)
    asked = list(indexes(ranges, count)) if ranges else []
    absent = set(range(count)) - here
    assert absent <= set(asked) and len(ranges) <= MAX_RANGES
    assert set(asked) == absent or len(ranges) == MAX_RANGES
    assert tally.bytes == sum(tally.manifest.length(index) for index in here)
    assert tally.prefix == min(absent, default=count) and tally.complete == (not absent)
    assert all((index in tally) == (index in here) for index in range(count))
    assert tally.prefix_bytes <= tally.bytes or taken == 0


def test_a_manifest_that_cannot_be_is_refused() -> None:
    name = hashlib.sha256(b"x").hexdigest()
    for size, digests in ((1, b""), (1, bytes(32)), (CHUNK + 1, bytes(32)), (0, bytes(32)), ((chunks.MAX_CHUNKS + 1) * CHUNK, b"")):
        with pytest.raises(InvalidInput):
            Manifest.of(name, size, digests)
    assert Manifest.of(name, 1, bytes.fromhex(name)).count == 1


@pytest.mark.parametrize(
    "want", [((1, 1),), ((2, 1),), ((-1, 2),), ((3, 5), (4, 6)), ((5, 6), (1, 2)), tuple((n, n + 1) for n in range(65))]
)
def test_ranges_that_cannot_be_are_refused(want: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(InvalidInput):
        check_ranges(want)


def test_nothing_named_is_all_and_what_lies_behind_the_end_is_nothing() -> None:
    assert list(indexes((), 3)) == [0, 1, 2]
    assert list(indexes(((1, 2), (2, 1 << 40)), 4)) == [1, 2, 3]
    assert list(indexes(((7, 9),), 4)) == []


def test_a_manifest_file_that_the_disk_spoiled_is_as_good_as_none(tmp_path: Path) -> None:
    name = "a" * 64
    manifest = manifest_of(3, 17)
    manifests.write(tmp_path / name, manifest)
    assert manifests.read(tmp_path / name, name, manifest.size) == manifest == manifests.read(tmp_path / name, name, None)
    assert manifests.read(tmp_path / name, name, manifest.size + 1) is None
    assert manifests.read(tmp_path / "none", name, None) is None
    content = (tmp_path / name).read_bytes()
    for spoiled in (b"", content[:-1], content + b"x", bytes([content[0] ^ 1]) + content[1:], content[:40]):
        (tmp_path / name).write_bytes(spoiled)
        assert manifests.read(tmp_path / name, name, None) is None
    one = manifest_of(1, 5)
    manifests.write(tmp_path / name, one)  # sealed, but not what the blob's name says
    assert manifests.read(tmp_path / name, name, 5) is None
    (tmp_path / ".half").write_bytes(b"x")
    manifests.clean(tmp_path, {"b" * 64})
    assert list(tmp_path.iterdir()) == []
