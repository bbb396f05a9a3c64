"""Images written without an engine: the same bytes each time, and every digest is of what it names. That they run: e2e/test_testbed.py."""

import gzip
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tools import image
from tools.image import Entry, Image


def content(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None}


def example(folder: Path) -> Image:
    if not (folder / "app").exists():
        (folder / "app").mkdir()
        (folder / "app/program").write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / "app/program").chmod(0o755)
        (folder / "app/link").symlink_to("program")
    base = [Entry("etc/name", b"one\n", 0o644), Entry("tmp", mode=0o1777)]
    return Image(
        "example:1", [base, image.tree(folder / "app", "opt/app")], entrypoint=["/opt/app/program"], environment={"B": "2", "A": "1"}
    )


@pytest.mark.parametrize("compress", [False, True])
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, compress: bool) -> None:
    first = image.write(example(tmp_path), tmp_path / "1.tar", compress=compress)
    for path in (tmp_path / "app").iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)
    assert image.write(example(tmp_path), tmp_path / "2.tar", compress=compress) == first
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    (tmp_path / "app/program").chmod(0o700)
    assert image.write(example(tmp_path), tmp_path / "3.tar", compress=compress) != first


@pytest.mark.parametrize("compress", [False, True])
def test_every_digest_is_of_what_it_names(tmp_path: Path, compress: bool) -> None:
    digest = image.write(example(tmp_path), tmp_path / "image.tar", compress=compress)
    files = content(tmp_path / "image.tar")

    def blob(descriptor: dict[str, Any]) -> bytes:
        found = files["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]
        assert hashlib.sha256(found).hexdigest() == descriptor["digest"].removeprefix("sha256:")
        assert len(found) == descriptor["size"]
        return found

    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == digest
    assert entry["annotations"]["io.containerd.image.name"] == "docker.io/library/example:1"
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert config["config"] == {"Entrypoint": ["/opt/app/program"], "Env": ["A=1", "B=2"]}
    layers = [blob(layer) for layer in manifest["layers"]]
    plain = [gzip.decompress(layer) if compress else layer for layer in layers]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in plain]
    (docker,) = json.loads(files["manifest.json"])
    assert docker["RepoTags"] == ["example:1"]
    assert [files[path] for path in docker["Layers"]] == layers
    assert files[docker["Config"]] == blob(manifest["config"])


def test_a_layer_has_folders_first_and_nothing_of_this_machine(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with layer.open("wb") as file:
        image.write_layer(file, [Entry("b/c/file", b"old", 0o640, user=7), Entry("a", link="b"), Entry("b/c/file", b"new", 0o600)])
    with tarfile.open(layer) as archive:
        members = archive.getmembers()
        assert [(member.name, member.mode) for member in members] == [("a", 0o777), ("b", 0o755), ("b/c", 0o755), ("b/c/file", 0o600)]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
        assert members[0].linkname == "b"
        found = archive.extractfile("b/c/file")
        assert found is not None
        assert found.read() == b"new"


def test_a_write_that_fails_leaves_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image.write(Image("broken:1", [[Entry("file", tmp_path / "absent")]]), tmp_path / "out" / "image.tar")
    assert list((tmp_path / "out").iterdir()) == []
