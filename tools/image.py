"""Write container images without a container engine: an OCI image as one tar file, from files and folders.

    python -m tools.image build -o build/banyan-edge.tar      the project's own image, from the wheel and Debian packages

Reproducible: the same content gives the same bytes. Entries are sorted, times are SOURCE_DATE_EPOCH (else 1970), owners are numbers, and
nothing of the machine that builds gets in. The tar is an OCI layout that also has Docker's manifest.json, so `ctr images import`,
`podman load` and `docker load` all take it.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}  # what Linux says → what images say
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
REGISTRY = "docker.io/library"  # what every engine puts before a name that has no registry
CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file, folder or symbolic link of a layer."""

    path: str
    """Inside the image, without a leading slash."""
    source: Path | bytes | None = None
    """A file's content; None for a folder or a link."""
    mode: int = 0o755
    link: str = ""
    """Where a symbolic link points."""
    user: int = 0


@dataclass(frozen=True)
class Image:
    """What an image runs, and how it is called."""

    name: str
    """With its tag: `banyan-edge:1.0`."""
    layers: Sequence[Sequence[Entry]]
    """From the lowest; each is a blob of its own, so that what changes seldom is shared."""
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    """As images say it; empty for this machine's."""


def epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def tree(source: Path, prefix: str = "", *, user: int = 0) -> list[Entry]:
    """Everything under a folder, as it is on the disk, under `prefix` in the image. Devices and sockets are left out."""
    found = []
    for folder, names, files in os.walk(source):
        for name in [*names, *files]:
            path = Path(folder) / name
            inside = str(PurePosixPath(prefix) / path.relative_to(source).as_posix())
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                found.append(Entry(inside, link=str(path.readlink()), user=user))
            elif stat.S_ISDIR(mode):
                found.append(Entry(inside, mode=stat.S_IMODE(mode), user=user))
            elif stat.S_ISREG(mode):
                found.append(Entry(inside, path, stat.S_IMODE(mode), user=user))
    return found


def with_folders(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in the order of their paths, each after the folders above it. Of two with one path the later counts."""
    known = {entry.path: entry for entry in entries}
    for path in list(known):
        for parent in PurePosixPath(path).parents:
            if str(parent) != "." and str(parent) not in known:
                known[str(parent)] = Entry(str(parent))
    return [known[path] for path in sorted(known)]


def write_layer(output: IO[bytes], entries: Iterable[Entry]) -> None:
    """One layer as a tar."""
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in with_folders(entries):
            member = tarfile.TarInfo(entry.path)
            member.mode, member.mtime, member.uid, member.gid = entry.mode, epoch(), entry.user, entry.user
            if entry.link:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.link, 0o777
                archive.addfile(member)
            elif entry.source is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            elif isinstance(entry.source, bytes):
                member.size = len(entry.source)
                archive.addfile(member, io.BytesIO(entry.source))
            else:
                member.size = entry.source.stat().st_size
                with entry.source.open("rb") as file:
                    archive.addfile(member, file)


class _Blobs:
    """Files named by their digests, until they are put into the image's tar."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def add_layer(self, entries: Iterable[Entry], *, compress: bool) -> tuple[dict[str, Any], str]:
        """Its descriptor, and the digest of the layer before compression."""
        plain, packed = self.folder / "plain", self.folder / "packed"
        with plain.open("wb") as file:
            write_layer(file, entries)
        diff = _digest(plain)
        if compress:
            with plain.open("rb") as source, packed.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                while block := source.read(CHUNK):
                    file.write(block)
            plain.unlink()
        made = packed if compress else plain
        digest = _digest(made)
        size = made.stat().st_size
        made.rename(self.folder / digest)
        return {"mediaType": LAYER + ("+gzip" if compress else ""), "digest": f"sha256:{digest}", "size": size}, f"sha256:{diff}"


def write(image: Image, output: Path, *, compress: bool = False) -> str:
    """Write an image's tar, whole or not at all; the digest of its manifest."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".image-") as name:
        folder = Path(name)
        blobs = _Blobs(folder)
        layers = [blobs.add_layer(layer, compress=compress) for layer in image.layers]
        config = blobs.add(_json(_config(image, [diff for _, diff in layers])))
        manifest_document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG} | config,
            "layers": [descriptor for descriptor, _ in layers],
        }
        manifest = blobs.add(_json(manifest_document))
        full = image.name if "/" in image.name else f"{REGISTRY}/{image.name}"
        names = {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": image.name.rpartition(":")[2]}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": MANIFEST} | manifest | {"annotations": names}]}
        paths = ["blobs/sha256/" + descriptor["digest"].partition(":")[2] for descriptor, _ in layers]
        docker = [{"Config": "blobs/sha256/" + config["digest"].partition(":")[2], "RepoTags": [image.name], "Layers": paths}]
        entries = [
            Entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644),
            Entry("index.json", _json(index), 0o644),
            Entry("manifest.json", _json(docker), 0o644),
            *(Entry(f"blobs/sha256/{path.name}", path, 0o644) for path in folder.iterdir()),
        ]
        temporary = folder / "image.tar"
        with temporary.open("wb") as file:
            write_layer(file, entries)
        temporary.rename(output)
    return str(manifest["digest"])


def _config(image: Image, diffs: list[str]) -> dict[str, Any]:
    run = {
        "Entrypoint": list(image.entrypoint),
        "Cmd": list(image.command),
        "Env": [f"{key}={value}" for key, value in sorted(image.environment.items())],
        "User": image.user,
        "WorkingDir": image.folder,
        "Labels": dict(sorted(image.labels.items())),
    }
    return {
        "created": datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "architecture": image.architecture or ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.image", description="Write the project's container image without an engine.")
    parser.add_argument("command", choices=["build"])
    parser.add_argument("-o", "--output", type=Path, default=Path("build/banyan-edge.tar"), help="the image's tar")
    parser.add_argument("--wheel", type=Path, help="a wheel that is already built; else one is built")
    given = parser.parse_args(arguments)
    from tools import edge_image

    try:
        print(edge_image.build(given.output, given.wheel))
    except edge_image.CannotBuild as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
