"""An instance's log: it writes straight into a file, so that no death of the supervisor breaks a pipe or blocks a write.

Lines carry no time of their own, so ``log.idx`` holds pairs (wall-clock seconds, logical offset): what lies before the offset
was written by then. The kernel wakes us at the first write after a quiet time (inotify, one shot); a quiet log costs nothing.

Rotation keeps ``log.1`` and ``log``. The writer's descriptor cannot be changed from outside, so the front of the file is copied
and then cut out with FALLOC_FL_COLLAPSE_RANGE, which loses not a byte of what is being appended meanwhile (ext4, xfs);
elsewhere the file is copied and truncated, and what is written between the two, microseconds, may be lost.
Logical offsets count from the start of the run; ``log.base`` is the logical offset of the first byte of ``log``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster_shim.process.supervisor.loop import Loop

MAX_BYTES = 8 << 20
INDEX_RECORD = struct.Struct("<dQ")
MAX_INDEX = 64 << 10  # bytes; half is dropped when it is reached
QUIET_SECONDS = 0.25  # at most so late is the time that an index record gives
_BLOCK = 1 << 20  # collapse works on whole file-system blocks; this is a multiple of all of them
_COLLAPSE_RANGE = 0x08
_IN_MODIFY, _IN_ONESHOT = 0x02, 0x8000_0000
_IN_NONBLOCK, _IN_CLOEXEC = 0o4000, 0o2000000
_EVENT = struct.Struct("iIII")
TAIL = 4 << 10  # bytes at the end of a log that are looked at for its last line
MAX_SHOWN = 200  # characters of it that are shown
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")  # ECMA-48: CSI, OSC, two-letter ones


def clean(line: bytes) -> str:
    """Without terminal sequences, control characters, and what turns the direction of text: a log must not forge what frames it."""
    text = _SEQUENCE.sub("", line.decode(errors="replace")).replace("\t", " ")
    return "".join(letter for letter in text if letter.isprintable()).strip()


class LogFile:
    def __init__(self, folder: str, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.path = os.path.join(folder, "log")
        self._index = os.path.join(folder, "log.idx")
        self._max_bytes = max_bytes
        self._seen = -1

    def begin_run(self) -> int:
        """Keep the last run's log as ``previous``, open a new one for appending; the caller closes the descriptor."""
        for suffix in ("", ".idx", ".base"):
            source = self.path + suffix
            target = os.path.join(self.folder, "previous" + suffix)
            if os.path.exists(source):
                os.replace(source, target)
            elif os.path.exists(target):
                os.unlink(target)
        if os.path.exists(self.path + ".1"):
            os.unlink(self.path + ".1")
        self._seen = -1
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self) -> None:
        """Record how far the log reaches by now; rotate when it is too long. A full disk costs times, never the instance."""
        try:
            size = os.stat(self.path).st_size
            if size == self._seen:
                return
            self._seen = size
            self._append(time.time(), self.base() + size)
            if size > self._max_bytes:
                self._rotate(size)
        except OSError:
            return

    def last_line(self) -> str:
        """The last line with something to read in it, safe to be shown anywhere; empty when there is none."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - TAIL, 0))
                data = file.read(TAIL)
        except OSError:
            return ""
        for line in reversed(data.replace(b"\r", b"\n").split(b"\n")):
            if text := clean(line):
                return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
        return ""

    def base(self) -> int:
        try:
            with open(self.path + ".base", encoding="ascii") as file:
                return int(file.read(32))
        except (FileNotFoundError, ValueError):
            return 0

    def _append(self, when: float, offset: int) -> None:
        with open(self._index, "ab") as file:
            os.chmod(self._index, 0o600)
            file.write(INDEX_RECORD.pack(when, offset))
            length = file.tell()
        if length > MAX_INDEX:
            with open(self._index, "rb") as file:
                kept = file.read(MAX_INDEX * 2)[length // 2 // INDEX_RECORD.size * INDEX_RECORD.size :]
            _replace(self._index, kept)

    def _rotate(self, size: int) -> None:
        """Readers hold the shared lock while they look at base and file together."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a reader that was stopped must not stop us: next time
            cut = size // _BLOCK * _BLOCK
            base = self.base()
            cut = self._copy_front(fd, cut)
            if _collapse(fd, cut):
                base += cut
            else:
                end = self._copy_tail(fd, cut)
                os.ftruncate(fd, 0)
                base += end
            _replace(self.path + ".base", str(base).encode())
            self._seen = -1
        finally:
            os.close(fd)

    def _copy_front(self, fd: int, cut: int) -> int:
        """The last ``max_bytes`` before ``cut`` become ``log.1``."""
        start = max(cut - self._max_bytes, 0)
        target = os.open(self.path + ".1.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _copy(fd, target, start, cut)
        finally:
            os.close(target)
        os.rename(self.path + ".1.new", self.path + ".1")
        return cut

    def _copy_tail(self, fd: int, offset: int) -> int:
        target = os.open(self.path + ".1", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            while (end := os.fstat(fd).st_size) > offset:
                _copy(fd, target, offset, end)
                offset = end
        finally:
            os.close(target)
        return offset


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        sent = (
            os.sendfile(target, source, start, min(end - start, 1 << 20))
            if not _appends(target)
            else _write_copy(source, target, start, end)
        )
        if not sent:
            return
        start += sent


def _appends(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)  # sendfile(2) refuses such a target


def _write_copy(source: int, target: int, start: int, end: int) -> int:
    return os.write(target, os.pread(source, min(end - start, 1 << 20), start))


def _replace(path: str, data: bytes) -> None:
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(path + ".new", path)


def _collapse(fd: int, length: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(length) and call(fd, _COLLAPSE_RANGE, 0, length) == 0


class Watcher:
    """Calls back when a log has been written to; not more often than every `QUIET_SECONDS` per log."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        self._watches: dict[int, Callable[[], None]] = {}
        if self._fd >= 0:  # else inotify instances are used up: logs still flow, only their times are unknown
            loop.watch(self._fd, self._readable)

    def watch(self, path: str, callback: Callable[[], None]) -> None:
        if self._fd < 0:
            return
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(_IN_MODIFY | _IN_ONESHOT))
        if number >= 0:
            self._watches[number] = callback

    def _readable(self, _events: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size + length
            callback = self._watches.pop(number, None) if mask & _IN_MODIFY else None
            if callback is not None:
                callback()
