"""A chart's archive onto the disk, and nothing else with it: no path that climbs out, no link, no device, no bomb.

The archive is read as a stream through a counter, so that what it claims to hold is never believed: neither a member's size nor a
header's. Whatever is odd is refused by name; nothing of a refused archive stays.
"""

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cluster_shim.contract import ShimError

MAX_PACKED = 16 << 20  # bytes of an archive
MAX_UNPACKED = 64 << 20
MAX_RATIO = 200  # unpacked to packed, beyond the first MiB: YAML packs to a tenth
MAX_FILES = 5_000
MAX_PATH = 512
MAX_DEPTH = 32
MAX_NESTED = 3  # charts in charts, each packed
CHUNK = 64 << 10


class Budget:
    """What may still be unpacked, over an archive and those inside it."""

    def __init__(self) -> None:
        self.bytes = MAX_UNPACKED
        self.files = MAX_FILES


def unpack(archive: Path, folder: Path) -> Path:
    """The chart's own folder below ``folder``, which is made and must not be there yet. ShimError says what is wrong with the archive,
    or with the disk.
    """
    try:
        folder.mkdir(mode=0o700)
        try:
            return _unpack(archive, folder, Budget(), 0)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ShimError(f"the chart's archive cannot be unpacked: {error.strerror or error}") from None


def _unpack(archive: Path, folder: Path, budget: Budget, nested: int) -> Path:
    packed = archive.stat().st_size
    if packed > MAX_PACKED:
        raise ShimError(f"the chart's archive has {packed:,} bytes; {MAX_PACKED:,} are the most")
    tops: set[str] = set()
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_Inflated(file, packed, budget), mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                path = _checked(member, folder)
                budget.files -= 1
                if budget.files < 0:
                    raise ShimError(f"the chart's archive holds more than {MAX_FILES:,} files")
                tops.add(path.parts[0])
                _write(tar, member, folder / path)
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:  # ValueError: numbers in headers that are none
        raise ShimError(f"the chart's archive cannot be read: {error}; is it what `helm package` makes?") from None
    found = [folder / top for top in sorted(tops) if (folder / top / "Chart.yaml").is_file()]
    if len(tops) != 1 or not found:
        raise ShimError("the chart's archive holds no single folder with a Chart.yaml; is it what `helm package` makes?")
    _unpack_nested(found[0], budget, nested)
    return found[0]


def _checked(member: tarfile.TarInfo, folder: Path) -> PurePosixPath:
    """Where it goes, below the folder. ShimError for whatever a chart has no use for."""
    name = member.name
    path = PurePosixPath(name)
    # A sparse file is made of holes that the archive does not hold, so that no budget would count them.
    if not (member.isreg() or member.isdir()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no ordinary file"
        raise ShimError(f"the chart's archive holds {name[:MAX_PATH]!r}, which is {kind}; a chart has files and folders")
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise ShimError(f"the chart's archive holds {name[:MAX_PATH]!r}, which climbs out of its folder")
    if len(name) > MAX_PATH or len(path.parts) > MAX_DEPTH:
        raise ShimError(f"the chart's archive holds a path that is too long or too deep: {name[:80]!r}…")
    try:
        tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        raise ShimError(f"the chart's archive holds {name[:MAX_PATH]!r}: {error}") from None
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    try:
        if member.isdir():
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            return
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ShimError(f"the chart's archive holds {member.name!r} twice, or below a file of that name") from None
    source = tar.extractfile(member)
    assert source is not None
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


def _unpack_nested(chart: Path, budget: Budget, nested: int) -> None:
    """Packed charts that this one depends on, so that everything that is rendered has been looked at."""
    if nested > MAX_NESTED:
        raise ShimError(f"the chart's archive holds packed charts more than {MAX_NESTED} levels deep")
    for archive in sorted(chart.rglob("charts/*.tgz")):
        if not archive.is_file():
            raise ShimError(f"the chart's archive holds a folder that is called like an archive, {archive.name!r}")
        inside = Path(tempfile.mkdtemp(dir=chart.parent))  # beside the chart, where none of its own names can be in the way
        top = _unpack(archive, inside, budget, nested + 1)
        target = archive.parent / top.name
        if target.exists():
            raise ShimError(f"the chart's archive holds {top.name} both packed and unpacked")
        top.rename(target)
        inside.rmdir()
        archive.unlink()


class _Inflated:
    """A gzip stream as bytes, of which not more come out than the budget allows."""

    def __init__(self, file: BinaryIO, packed: int, budget: Budget) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(31)  # gzip alone
        self._budget = budget
        self._left = (1 << 20) + packed * MAX_RATIO
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        while len(self._ready) < size and not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(CHUNK)
            if not data:
                raise EOFError("it ends in the middle")
            made = self._inflate.decompress(data, CHUNK)
            self._budget.bytes -= len(made)
            self._left -= len(made)
            if self._budget.bytes < 0 or self._left < 0:
                raise ShimError(
                    f"the chart's archive unpacks to more than {MAX_UNPACKED >> 20} MiB or {MAX_RATIO} times its size; it is not unpacked"
                )
            self._ready += made
        found = bytes(self._ready[:size])
        del self._ready[:size]
        return found
