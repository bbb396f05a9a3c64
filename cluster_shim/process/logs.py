"""Read an instance's log: from the last lines, from a time on, of the previous run, followed until the run ends.

The supervisor's `logfile` says how the files are laid out. Positions are logical (bytes since the run began), so a rotation
while somebody reads neither repeats nor skips; base and file are looked at under the lock that a rotation takes.
"""

import asyncio
import bisect
import fcntl
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from cluster_shim.contract import ShimError
from cluster_shim.process.supervisor.logfile import INDEX_RECORD, MAX_INDEX

POLL_SECONDS = 0.25
CHUNK = 64 << 10
MAX_LINE = 16 << 10  # a longer line is handed out in pieces, as container runtimes do
LOCK_TRIES, LOCK_PAUSE_SECONDS = 100, 0.02
_TRUE = ("true", "1", "t")


class LogOptions(Struct, frozen=True):
    """As the query parameters of Kubernetes' pod log."""

    follow: bool = False
    tail_lines: int | None = None
    since_seconds: float | None = None
    previous: bool = False
    limit_bytes: int | None = None
    timestamps: bool = False


def parse(options: Mapping[str, str]) -> LogOptions:
    """Raises ShimError that names the option; ones that mean nothing here (container, pretty) are passed over."""

    def number(name: str, least: int) -> int | None:
        text = options.get(name)
        if text is None or text == "":
            return None
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ShimError(f"log option {name}={text!r}: a whole number, at least {least}, is wanted")
        return value

    def flag(name: str) -> bool:
        return options.get(name, "").lower() in _TRUE

    since = number("sinceSeconds", 1)
    if since is None and options.get("sinceTime"):
        try:
            since = max(int(time.time() - datetime.fromisoformat(options["sinceTime"]).timestamp()), 0)
        except ValueError:
            raise ShimError(f"log option sinceTime={options['sinceTime']!r}: an RFC 3339 time is wanted") from None
    return LogOptions(
        follow=flag("follow"),
        tail_lines=number("tailLines", 0),
        since_seconds=since,
        previous=flag("previous"),
        limit_bytes=number("limitBytes", 1),
        timestamps=flag("timestamps"),
    )


class Log:
    """The files of one run. Blocking; used in a thread."""

    def __init__(self, folder: Path, previous: bool) -> None:
        name = "previous" if previous else "log"
        self._path = folder / name
        self._base = folder / f"{name}.base"
        self._index = folder / f"{name}.idx"
        self._older = folder / "log.1" if not previous else None
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            what = "has no previous run" if previous else "has written nothing yet"
            raise ShimError(f"instance {folder.name} {what}") from None
        self._inode = os.fstat(self._fd).st_ino

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def ended(self) -> bool:
        """Whether another run has begun or the instance is gone: nothing more will be written here."""
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def bounds(self) -> tuple[int, int]:
        """(first, end) of what can be read, as logical positions."""
        with self._locked():
            base = self._read_base()
            return base - self._older_size(), base + os.fstat(self._fd).st_size

    def read(self, position: int, limit: int) -> tuple[int, bytes]:
        """(where it starts, bytes): later than ``position`` when that was rotated away."""
        with self._locked():
            base = self._read_base()
            if position >= base:
                return position, os.pread(self._fd, limit, position - base)
            size = self._older_size()
            if size == 0 or self._older is None:
                return base, os.pread(self._fd, limit, 0)
            position = max(position, base - size)
            with self._older.open("rb") as file:
                return position, os.pread(file.fileno(), min(limit, base - position), position - (base - size))

    def index(self) -> list[tuple[float, int]]:
        """(time, position): what lies before the position was written by then."""
        try:
            with self._index.open("rb") as file:
                data = file.read(MAX_INDEX * 2)
        except FileNotFoundError:
            return []
        return [(when, offset) for when, offset in INDEX_RECORD.iter_unpack(data[: len(data) // INDEX_RECORD.size * INDEX_RECORD.size])]

    def _read_base(self) -> int:
        try:
            return int(self._base.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0

    def _older_size(self) -> int:
        try:
            return self._older.stat().st_size if self._older is not None else 0
        except FileNotFoundError:
            return 0

    def _locked(self) -> "_Locked":
        return _Locked(self._fd)


class _Locked:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        """Bounded: a supervisor that stands still in the middle of a rotation must not keep our thread for ever."""
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_SECONDS)
            else:
                return
        raise ShimError(f"the log has been in rotation for {LOCK_TRIES * LOCK_PAUSE_SECONDS:g} s; does the supervisor run? Ask again")

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


def start_of(log: Log, options: LogOptions) -> int:
    """Where reading begins: the later one of what the lines and the time ask for."""
    first, end = log.bounds()
    start = first
    if options.since_seconds is not None:
        oldest = time.time() - options.since_seconds
        start = max(start, _position_at(log.index(), oldest, end))
    if options.tail_lines is not None:
        start = max(start, _tail(log, first, end, options.tail_lines))
    return start


def _position_at(index: list[tuple[float, int]], oldest: float, end: int) -> int:
    position = 0
    for when, offset in index:
        if when >= oldest:
            return position
        position = offset
    return min(position, end)


def _tail(log: Log, first: int, end: int, lines: int) -> int:
    """Position of the first of the last ``lines`` lines; reads backwards, a chunk at a time."""
    if lines == 0:
        return end
    needed, position, at_end = lines, end, True
    while position > first:
        begin = max(position - CHUNK, first)
        data = b""
        while len(data) < position - begin:  # a chunk may span both files
            begin_at, more = log.read(begin + len(data), position - begin - len(data))
            if not more or begin_at != begin + len(data):
                return begin_at
            data += more
        cursor = len(data)
        if at_end and data.endswith(b"\n"):
            cursor -= 1
        at_end = False
        while (found := data.rfind(b"\n", 0, cursor)) >= 0:
            needed -= 1
            if needed == 0:
                return begin + found + 1
            cursor = found
        position = begin
    return first


class LogStream:
    """A `ByteStream` that only speaks; ``write`` is refused."""

    def __init__(self, log: Log, options: LogOptions) -> None:
        self._log = log
        self._options = options
        self._position = -1
        self._left = options.limit_bytes
        self._ready = b""  # rendered, not yet taken
        self._line = b""  # with timestamps: the beginning of a line whose end has not come
        self._over = False

    async def read(self, limit: int = 65536) -> bytes:
        while not self._ready and not self._over:
            await self._fill()
        data, self._ready = self._ready[:limit], self._ready[limit:]
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            if self._left == 0:
                self._finish()
        return data

    async def write(self, data: bytes) -> None:
        raise ShimError("a log is read only")

    async def close_write(self) -> None:
        return

    def abort(self, reason: str = "") -> None:
        self._finish()

    def _finish(self) -> None:
        self._over, self._ready = True, b""
        self._log.close()

    async def _fill(self) -> None:
        if self._position < 0:
            self._position = await asyncio.to_thread(start_of, self._log, self._options)
        # Asked before reading: a run that ended has said everything by the time we read.
        ended = not self._options.follow or await asyncio.to_thread(self._log.ended)
        start, data = await asyncio.to_thread(self._log.read, self._position, CHUNK)
        if self._over:
            return
        if start != self._position:
            self._line = b""
        self._position = start + len(data)
        if data:
            self._ready = await asyncio.to_thread(self._stamp, start, data) if self._options.timestamps else data
        elif ended:
            tail = self._render(self._position - len(self._line), self._line, self._log.index()) if self._line else b""
            self._finish()
            self._ready = tail
        else:
            await asyncio.sleep(POLL_SECONDS)

    def _stamp(self, start: int, data: bytes) -> bytes:
        index = self._log.index()
        position = start - len(self._line)
        *lines, self._line = (self._line + data).split(b"\n")
        rendered = []
        for line in lines:
            rendered.append(self._render(position, line, index) + b"\n")
            position += len(line) + 1
        if len(self._line) > MAX_LINE:
            rendered.append(self._render(position, self._line, index))
            self._line = b""
        return b"".join(rendered)

    @staticmethod
    def _render(position: int, line: bytes, index: list[tuple[float, int]]) -> bytes:
        later = bisect.bisect_right(index, position, key=lambda record: record[1])
        when = index[later][0] if later < len(index) else time.time()
        return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode() + line


def open_log(folder: Path, options: Mapping[str, str]) -> LogStream:
    parsed = parse(options)
    return LogStream(Log(folder, parsed.previous), parsed)
