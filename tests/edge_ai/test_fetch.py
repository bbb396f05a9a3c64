"""The node's cache of model files: what it keeps, what it lets go when the disk is full, and what it never touches."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_ai import fetch
from edge_ai.fetch import Cache, Failed, Wanted
from edge_ai.serve import __main__ as serve

MIB = 1 << 20
DISK = 10 * MIB
LONG_AGO = (time.time() - 7 * 86400,) * 2
EMOTION = Path(__file__).parents[2] / "examples" / "emotion" / "model-1"


def wanted(content: bytes, path: str = "model.onnx") -> Wanted:
    return Wanted(path, hashlib.sha256(content).hexdigest(), len(content))


class Node:
    """A cache on a disk of its own size, and a controller beside it that is a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "cache"
        self.said: list[str] = []
        self.contents: dict[str, bytes] = {}
        self.cache = Cache(self.root, self.said.append)
        monkeypatch.setattr(Cache, "_free", lambda _: DISK - self.used())
        monkeypatch.setattr(Cache, "_spare", lambda _: MIB)
        monkeypatch.setattr(fetch, "download", self.download)

    def used(self) -> int:
        return sum({found.st_ino: found.st_size for path in self.root.rglob("*") if (found := path.lstat()) and path.is_file()}.values())

    def download(self, source: Path, file: Wanted, part: int, offset: int) -> None:
        os.pwrite(part, self.contents[file.sha256][offset:], offset)

    def model(self, name: str, size: int, *, old: bool = False) -> Path:
        """A folder with one file, asked for just now or long ago."""
        content = hashlib.sha256(name.encode()).digest() * (size // 32)
        file = wanted(content)
        self.contents[file.sha256] = content
        self.cache.provide(file, self.root)
        self.cache.link([file], self.root / name)
        if old:
            for path in (self.root / name, self.root / fetch.IN_USE / name, self.cache.blobs / file.sha256):
                os.utime(path, LONG_AGO)
        return self.root / name

    def folders(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if path.is_dir()} - {"sha256", fetch.IN_USE}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_the_longest_unused_goes_when_the_disk_is_full_and_only_then(node: Node) -> None:
    for number in range(3):
        folder = node.model(f"old-{number}", 2 * MIB, old=True)
        for path in (folder, node.root / fetch.IN_USE / folder.name):
            os.utime(path, (time.time() - (9 - number) * 86400,) * 2)
    node.model("fits", 2 * MIB)
    assert node.folders() == {"old-0", "old-1", "old-2", "fits"}
    node.model("more", 2 * MIB)
    assert node.folders() == {"old-1", "old-2", "fits", "more"}
    assert any("old-0 goes" in line for line in node.said)
    assert node.used() <= DISK - MIB


def test_what_a_server_reads_stays_and_what_does_not_fit_is_said(node: Node) -> None:
    served = node.model("served", 4 * MIB, old=True)
    node.model("old", 2 * MIB, old=True)
    descriptor = os.open(served, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with pytest.raises(Failed, match="bytes left, and 8388608 are needed"):
            node.model("big", 8 * MIB)
        assert node.folders() == {"served"}
    finally:
        os.close(descriptor)
    node.model("big", 8 * MIB)
    assert node.folders() == {"big"}


def test_a_file_that_two_models_share_stays_as_long_as_one_of_them(node: Node) -> None:
    content = b"x" * (4 * MIB)
    file = wanted(content)
    node.contents[file.sha256] = content
    node.cache.provide(file, node.root)
    for name in ("one", "two"):
        node.cache.link([file], node.root / name)
    for path in (node.root / "one", node.root / fetch.IN_USE / "one", node.cache.blobs / file.sha256):
        os.utime(path, LONG_AGO)
    with pytest.raises(Failed, match="are needed"):
        node.model("big", 8 * MIB)
    assert node.folders() == {"two"}
    assert (node.root / "two" / "model.onnx").read_bytes() == content
    assert node.cache._has(file)


def test_a_beginning_that_nobody_goes_on_with_is_cleared_and_a_young_one_is_not(node: Node) -> None:
    node.model("old", 6 * MIB, old=True)
    stale, young = (node.cache.blobs / f"{digit * 64}.part" for digit in "ab")
    for path in (stale, young):
        path.write_bytes(b"begun")
    os.utime(stale, LONG_AGO)
    node.model("next", 6 * MIB)
    assert not stale.exists()
    assert young.exists()


def test_what_is_in_no_folder_goes_although_every_folder_is_used(node: Node) -> None:
    node.model("used", 4 * MIB)
    stale, unlinked = node.cache.blobs / f"{'a' * 64}.part", node.cache.blobs / ("b" * 64)
    for path in (stale, unlinked):
        path.write_bytes(bytes(2 * MIB))
        os.utime(path, LONG_AGO)
    node.model("next", 4 * MIB)
    assert node.folders() == {"used", "next"}
    assert not stale.exists() and not unlinked.exists()
    assert not any("goes" in line for line in node.said)


def test_a_file_that_was_wanted_just_now_waits_for_the_others_of_its_model(node: Node) -> None:
    content = bytes(2 * MIB)
    first = wanted(content)
    node.contents[first.sha256] = content
    node.cache.provide(first, node.root)
    os.utime(node.cache.blobs / first.sha256, LONG_AGO)  # of a pod that was given up before it had everything
    node.cache.provide(first, node.root)
    with pytest.raises(Failed, match="are needed"):
        node.model("big", 9 * MIB)
    assert node.cache._has(first)


def test_a_server_that_is_being_restarted_keeps_its_model(node: Node) -> None:
    """No lock is held at that moment, and the init step of its pod does not run again."""
    folder = node.model("served", 4 * MIB, old=True)
    os.utime(node.root / fetch.IN_USE / folder.name)  # as `edge_ai.serve` did some minutes ago
    with pytest.raises(Failed, match="are needed"):
        node.model("big", 8 * MIB)
    assert node.folders() == {"served"}
    os.utime(node.root / fetch.IN_USE / folder.name, LONG_AGO)
    node.model("big", 8 * MIB)
    assert node.folders() == {"big"}
    assert [path.name for path in (node.root / fetch.IN_USE).iterdir()] == ["big"]


def test_a_folder_of_a_server_that_makes_no_mark_goes_by_its_own_time(node: Node) -> None:
    node.model("before", 4 * MIB, old=True)
    (node.root / fetch.IN_USE / "before").unlink()
    node.model("big", 8 * MIB)
    assert node.folders() == {"big"}


def test_a_folder_is_locked_until_it_is_gone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = node.model("old", 4 * MIB, old=True)
    remove, seen = shutil.rmtree, []

    def while_it_goes(path: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        seen.append(path)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", while_it_goes)
    node.model("big", 8 * MIB)
    assert seen == [folder]


def test_a_folder_of_several_files_below_it(tmp_path: Path, node: Node) -> None:
    files = []
    for path in ("model.onnx", "data/weights.bin", "data/more/words.txt"):
        content = path.encode() * 100
        files.append(wanted(content, path))
        node.contents[files[-1].sha256] = content
        node.cache.provide(files[-1], tmp_path)
    folder = node.root / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "weights.bin").write_bytes(b"of another time")
    for _ in range(2):
        node.cache.link(files, folder)
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {file.path for file in files}
        assert (folder / "data" / "weights.bin").read_bytes() == b"data/weights.bin" * 100


def test_a_volume_without_hard_links_gets_copies(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    folder = node.model("copied", MIB)
    before = (folder / "model.onnx").stat().st_ino
    node.model("copied", MIB)  # already there: not copied again
    assert (folder / "model.onnx").stat().st_ino == before
    assert (folder / "model.onnx").stat().st_nlink == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Failed, match=r"model\.onnx: (Not a directory|File exists) .*cache"):
        Cache(tmp_path / "cache", print).provide(wanted(b"x"), tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    folder = tmp_path / "served"
    shutil.copytree(EMOTION, folder)
    mark = tmp_path / "mark"
    mark.touch()
    os.utime(mark, LONG_AGO)
    argv = [
        sys.executable,
        "-m",
        "edge_ai.serve",
        "--name",
        "m",
        "--version",
        "1",
        "--model-folder",
        str(folder),
        "--listen",
        "127.0.0.1:0",
        "--in-use",
        str(mark),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and b"model.serving" not in line:
            pass
        assert line, "the worker ended"
        yield folder, process
        process.kill()


def test_the_worker_holds_the_folder_that_it_serves(server: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    folder, process = server
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_the_worker_says_that_the_folder_is_in_use_where_it_stays(server: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    folder, _ = server
    assert (folder.parent / "mark").stat().st_mtime > time.time() - fetch.UNUSED_SECONDS / 2


def test_a_mark_that_cannot_be_set_is_said_once_and_served_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "IN_USE_SECONDS", 0.0)
    tried, utime = threading.Event(), os.utime
    paths: list[Path] = []

    def seen(path: Path) -> None:
        paths.append(path)
        if len(paths) == 5:
            tried.set()
        utime(path)

    async def play() -> None:
        using = asyncio.create_task(serve._use(tmp_path / "none"))
        assert await asyncio.to_thread(tried.wait, 30)
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)

    monkeypatch.setattr(os, "utime", seen)
    asyncio.run(play())
    out = capfd.readouterr()
    assert (out.out + out.err).count("worker.mark_not_set") == 1
