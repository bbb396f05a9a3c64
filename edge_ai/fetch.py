"""The init step of a pod that serves a model: put its files, verified, into the node's cache and into its model folder.

    python -m edge_ai.fetch --folder CACHE/FOLDER --file=PATH=SHA256:SIZE … [--source FOLDER]

The site's controller is asked only for what the cache lacks, so a node that starts while no controller runs serves again. Every file is
verified at every start of a pod, because what a disk has spoiled is mended here and nowhere else. Nothing but the standard library.

    CACHE/sha256/DIGEST         a whole, verified file, 0644; its name is given by one rename
    CACHE/sha256/DIGEST.part    one that is being fetched; who writes it holds its lock (flock), and the next goes on where the last stopped
    CACHE/FOLDER/PATH           hard links to the former: what a server reads
    CACHE/in-use/FOLDER         its time says when a server last had that folder; the one place of the cache that servers write to

Several steps on one node at once wait for each other's downloads instead of repeating them. What a server reads is not removed: it holds a
shared lock on its folder. A lock ends with its process, and this step does not run again when a container is restarted: so the server
(`edge_ai.serve --in-use`) also sets the time of its mark, at its start and every few minutes, and what was in use within the last hour
stays too. Other folders go, longest unused first, when the disk gets full; files that are in no folder go before them.

``--source`` is a folder with the files `url`, `token` and `ca.pem`. It is read anew at every attempt: a pod that waits sees the changes
that the kubelet brings. The step gives up after a while, so that its last words stand in the pod's status; the kubelet starts it again.
"""

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import os
import random
import re
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

CHUNK = 1 << 20
IN_USE = "in-use"
PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = (0.5, 10.0)
SILENCE_SECONDS = 30.0  # without a byte from the controller
SPARE = 0.15  # of the disk; with less left a kubelet begins to evict pods
UNUSED_SECONDS = 3600.0  # what was used since stays: its server may be about to start; a kubelet waits 5 minutes at most to restart one
STALE_PART_SECONDS = 86400.0
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: a site's clock may be wrong, its model is wanted all the same
DIGEST = re.compile(r"[0-9a-f]{64}")
WORDS = 300  # of what a controller says about a refusal


class Failed(Exception):
    """It cannot be done now; the message is for a person."""


class Wanted(NamedTuple):
    """One file of the model."""

    path: str
    sha256: str
    size: int


class Cache:
    """The node's folder of model files. ``say`` tells a person what happens."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self.blobs = root / "sha256"
        self.marks = root / IN_USE
        self._say = say

    def provide(self, file: Wanted, source: Path | None) -> None:
        """``file`` is in the cache, whole, when this returns. Failed says why it is not."""
        try:
            self.blobs.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not self._has(file):
                with self._part(file) as part:
                    if not self._has(file):  # another step was quicker
                        self._fetch(file, part, source)
        except OSError as error:
            raise Failed(f"{file.path}: {error.strerror or error} ({error.filename or self.root})") from error

    def link(self, files: Sequence[Wanted], folder: Path) -> None:
        """``folder`` holds ``files``; others there are left alone."""
        try:
            with self._locked():
                for file in files:
                    self._link(self.blobs / file.sha256, folder / file.path, folder)
                os.utime(folder)  # used just now
                _sync(folder)
                self._mark(folder)
        except OSError as error:
            raise Failed(f"{folder}: {error.strerror or error} ({error.filename})") from error

    # --- one file ---

    def _has(self, file: Wanted) -> bool:
        path = self.blobs / file.sha256
        if not path.exists():
            return False
        found = path.stat()
        if found.st_size == file.size and _digest(path) == file.sha256:
            if found.st_nlink == 1:
                os.utime(path)  # wanted just now: it is not to go as unused before it is linked
            return True
        self._say(f"{file.path}: the copy in the cache is spoiled; it is fetched again")
        path.unlink(missing_ok=True)
        return False

    @contextlib.contextmanager
    def _part(self, file: Wanted) -> Iterator[int]:
        """The file that becomes the wanted one, locked for as long as it takes."""
        path = self._part_path(file)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _wait_for_lock(descriptor, lambda: self._say(f"{file.path}: another pod of this node is fetching it"))
                if _is(path, descriptor) or self._has(file):  # not renamed by another step while this waited, or renamed and whole
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _part_path(self, file: Wanted) -> Path:
        return self.blobs / f"{file.sha256}.part"

    def _fetch(self, file: Wanted, part: int, source: Path | None) -> None:
        if source is None:
            raise Failed(f"{file.path} is not in this node's cache, and no controller is named that has it")
        offset = os.fstat(part).st_size
        if offset > file.size:
            os.ftruncate(part, 0)
            offset = 0
        self._make_room(file.size - offset)
        if offset < file.size:
            started = time.monotonic()
            download(source, file, part, offset)
            seconds = time.monotonic() - started
            self._say(f"{file.path}: {file.size - offset} bytes in {seconds:.1f} s" + (f", after {offset} from before" if offset else ""))
        path = self._part_path(file)
        if _digest(path) != file.sha256:
            os.ftruncate(part, 0)
            raise Failed(f"{file.path}: what the controller sent is not the file with sha256 {file.sha256}")
        os.fchmod(part, 0o644)
        os.fsync(part)
        path.rename(self.blobs / file.sha256)
        _sync(self.blobs)

    def _link(self, blob: Path, target: Path, folder: Path) -> None:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if target.exists() and (target.samefile(blob) or _digest(target) == blob.name):
            return
        fresh = folder / ".new"  # one at a time: the cache is locked
        fresh.unlink(missing_ok=True)
        try:
            fresh.hardlink_to(blob)
        except OSError:  # not every file system of a volume has hard links
            shutil.copyfile(blob, fresh)
            with fresh.open("rb") as copied:
                os.fsync(copied.fileno())
        fresh.replace(target)
        _sync(target.parent)

    def _mark(self, folder: Path) -> None:
        """A server is another user, often, and may write just this."""
        self.marks.mkdir(mode=0o755, exist_ok=True)
        descriptor = os.open(self.marks / folder.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                os.fchmod(descriptor, 0o666)  # whatever the umask
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    # --- room ---

    def _make_room(self, needed: int) -> None:
        """Failed when ``needed`` bytes do not fit, whatever goes."""
        if self._has_room(needed):
            return
        with self._locked():
            self._drop_unlinked()
            for folder in self._unused():
                if self._has_room(needed):
                    break
                self._remove(folder)
        if self._free() < needed:
            raise Failed(f"the disk of {self.root} has {self._free()} bytes left, and {needed} are needed; free some on this node")

    def _has_room(self, needed: int) -> bool:
        return self._free() - needed >= self._spare()

    def _unused(self) -> list[Path]:
        """Model folders that nobody has used lately, the longest unused first."""
        now = time.time()
        used = {folder: self._used(folder) for folder in self.root.iterdir() if folder.is_dir() and folder not in (self.blobs, self.marks)}
        return sorted((folder for folder in used if now - used[folder] > UNUSED_SECONDS), key=lambda folder: used[folder])

    def _used(self, folder: Path) -> float:
        """When it was put there, or its server last said that it has it."""
        try:
            return max(folder.stat().st_mtime, (self.marks / folder.name).stat().st_mtime)
        except FileNotFoundError:  # of a server that makes no mark
            return folder.stat().st_mtime

    def _remove(self, folder: Path) -> None:
        """Unless a server holds it. None gets hold of it while it goes: the lock is kept until then."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._say(f"the disk is full: the model folder {folder.name} goes, which no pod reads")
            shutil.rmtree(folder)
            (self.marks / folder.name).unlink(missing_ok=True)
            self._drop_unlinked()
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)

    def _drop_unlinked(self) -> None:
        """Files in no folder, and beginnings of files that nobody goes on with."""
        now = time.time()
        for path in self.blobs.iterdir():
            found = path.stat()
            age = now - found.st_mtime
            if found.st_nlink == 1 and age > (STALE_PART_SECONDS if path.suffix else UNUSED_SECONDS):
                path.unlink()

    def _free(self) -> int:
        found = os.statvfs(self.blobs)
        return found.f_bavail * found.f_frsize

    def _spare(self) -> int:
        found = os.statvfs(self.blobs)
        return int(found.f_blocks * found.f_frsize * SPARE)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """For links and removals: milliseconds, but as long as it takes to copy a model where a volume has no hard links."""
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def download(source: Path, file: Wanted, part: int, offset: int) -> None:
    """Append what is missing to ``part``. Failed names the controller's address and what it said."""
    url, token, context = _read_source(source)
    place = urlsplit(url)
    if place.scheme != "https" or not place.hostname:
        raise Failed(f"{source}/url holds {url!r}, which is no https:// address")
    connection = http.client.HTTPSConnection(place.hostname, place.port or 443, timeout=SILENCE_SECONDS, context=context)
    headers = {"Authorization": f"Bearer {token}"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        connection.request("GET", f"{place.path.rstrip('/')}/models/sha256/{file.sha256}", headers=headers)
        answer = connection.getresponse()
        if answer.status not in (200, 206):
            said = answer.read(WORDS).decode(errors="replace").strip()
            raise Failed(f"{file.path}: {url} answers {answer.status}: {said or answer.reason}")
        if answer.status == 200 and offset:  # it does not resume
            os.ftruncate(part, 0)
            offset = 0
        while chunk := answer.read(min(CHUNK, file.size - offset + 1)):
            if offset + len(chunk) > file.size:
                os.ftruncate(part, 0)
                raise Failed(f"{file.path}: {url} sends more than {file.size} bytes")
            _write(part, chunk, offset)
            offset += len(chunk)
        if offset < file.size:
            raise Failed(f"{file.path}: {url} ended after {offset} of {file.size} bytes; what came is kept")
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{file.path}: {url}: {_reason(error)}") from error
    finally:
        connection.close()


def _read_source(source: Path) -> tuple[str, str, ssl.SSLContext]:
    try:
        url, token = ((source / name).read_text(encoding="ascii").strip() for name in ("url", "token"))
        context = ssl.create_default_context(cafile=str(source / "ca.pem"))
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise Failed(f"{source} does not say where model files are: {_reason(error)}") from error
    context.verify_flags |= NO_CHECK_TIME
    return url, token, context


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {SILENCE_SECONDS:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"it is not the controller of this site ({error.verify_message})"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _wait_for_lock(descriptor: int, waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel lets go when its holder dies; a silent controller is left after a while


def _is(path: Path, descriptor: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(files: Sequence[Wanted], folder: Path, source: Path | None, patience: float, say: Callable[[str], None]) -> None:
    """Try until ``folder`` holds ``files``. Failed with the last reason after ``patience`` seconds."""
    cache = Cache(folder.parent, say)
    deadline = time.monotonic() + patience
    pause, told = PAUSE_SECONDS[0], ""
    while True:
        try:
            for file in files:
                cache.provide(file, source)
            cache.link(files, folder)
        except Failed as failure:
            if source is None or time.monotonic() + pause > deadline:
                raise
            if str(failure) != told:
                told = str(failure)
                say(f"{told}; trying on")
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, PAUSE_SECONDS[1])
        else:
            return


def _file(text: str) -> Wanted:
    path, _, rest = text.rpartition("=")
    digest, _, size = rest.partition(":")
    inside = PurePosixPath(path)
    if not path or inside.is_absolute() or ".." in inside.parts or not DIGEST.fullmatch(digest) or not size.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH=SHA256:SIZE with a path below the folder")
    return Wanted(path, digest, int(size))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_ai.fetch", description="Put a model's files, verified, into a node's cache.")
    parser.add_argument("--folder", type=Path, required=True, help="the model folder, directly below the cache")
    parser.add_argument("--file", type=_file, action="append", required=True, metavar="PATH=SHA256:SIZE", help="may be repeated")
    parser.add_argument("--source", type=Path, help="folder with url, token and ca.pem of the controller that has the files")
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, metavar="SECONDS", help="before giving up (default 120)")
    options = parser.parse_args(arguments)
    try:
        put(options.file, options.folder, options.source, options.patience, lambda text: print(text, flush=True))
    except Failed as failure:
        print(f"fetch: {failure}", file=sys.stderr)
        return 1
    print(f"{options.folder} holds {len(options.file)} files, verified", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
