"""What is written is whole, private, and on the disk under its name before anybody is told so."""

import os
from pathlib import Path

import pytest

from cluster_controller import durable


def test_the_file_and_then_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "kept" / "address.json", []
    fsync, replace = os.fsync, Path.replace

    def seen(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        synced.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "replace", renamed)
    durable.write(path, b"one")
    assert synced == [".address.json.new", "renamed", "kept"]
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_what_was_left_half_written_is_neither_read_nor_its_mode_kept(tmp_path: Path) -> None:
    path, left = tmp_path / "key", tmp_path / ".key.new"
    left.write_bytes(b"half")
    left.chmod(0o644)
    durable.write(path, b"whole")
    assert path.read_bytes() == b"whole" and path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    durable.write(path, b"before")

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        durable.write(path, b"after")
    assert path.read_bytes() == b"before" and [one.name for one in tmp_path.iterdir()] == ["key"]
