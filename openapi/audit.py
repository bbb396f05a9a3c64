"""DATA/audit.log: who used a member's API, what they did, when, and how it ended. One JSON document per line.

Every such request is recorded at both ends, where it entered the tree and at the member, with one ``id``. One that stays open (a watch,
a shell, a port-forward) has a line when it begins and another when it ends; all others have one. Nothing that may be a secret is written:
no header but the program's name, of the query only what says how and not what, no bodies.

The file is 0600; at `MAX_BYTES` it becomes ``audit.log.1`` and so on, and the oldest goes: the log is bounded, whatever people do. Nobody
can drive out what others did by asking for what they are refused: of one user so many such requests are written in a minute, and one line
counts the rest. While the disk takes no lines nobody is let in: what cannot be recorded does not happen.
"""

import math
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.errors import StoreFull

log = structlog.get_logger()

MAX_BYTES = 8 << 20
KEPT = 4  # older files beside the one that is written
MAX_PATH = 1024  # characters of a path that are written
MAX_REASON = 300
MAX_QUERY = 8192  # bytes of a query that are read; whoever sends more is taken to hide something behind them
REFUSED_A_MINUTE = 60  # lines about what one user was refused
MINUTE = 60.0
MAX_REFUSED_USERS = 1000  # who are told apart in one minute; those beyond are counted together

# Query parameters that say how something is done. Selectors, commands and the like are what people type, and may hold anything.
SAFE = frozenset(
    {
        "container",
        "dryRun",
        "fieldManager",
        "follow",
        "force",
        "gracePeriodSeconds",
        "limit",
        "ports",
        "previous",
        "propagationPolicy",
        "stderr",
        "stdin",
        "stdout",
        "tailLines",
        "tty",
        "watch",
    }
)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. Times are UTC."""

    time: str
    id: str  # of the request, the same at both ends
    end: str  # "entry": here it came into the tree; "member": here it went to the cluster's API; "both"
    stage: str  # "begun", "ended", or "counted": so many more of this user were refused, as ``reason`` says
    user: str
    groups: list[str]
    entry: str  # uid of the controller where it came into the tree
    cluster: str  # the member's name, as this controller knows it
    verb: str  # the HTTP method, or the protocol that was switched to
    path: str
    query: dict[str, str] = {}
    client: str = ""  # the address that asked, at the entry
    agent: str = ""  # what program, as it says itself
    code: int = 0  # of the answer; 0: none came
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    reason: str = ""  # why it ended, when not by itself


class _Minute(Struct):
    """What one user was refused in it."""

    since: float
    written: int = 0
    counted: int = 0
    end: str = ""


class Refusals:
    """Which refused requests are written one by one, and which are only counted. Pure; ``now`` on the boot-time clock."""

    def __init__(self) -> None:
        self._minutes: dict[str, _Minute] = {}  # by user, oldest first; "": all for whom there is no room

    def admit(self, user: str, end: str, now: float) -> bool:
        """Whether this one is written."""
        if user not in self._minutes and len(self._minutes) >= MAX_REFUSED_USERS:
            user = ""
        minute = self._minutes.setdefault(user, _Minute(now, end=end))
        if minute.written < REFUSED_A_MINUTE:
            minute.written += 1
            return True
        minute.counted += 1
        return False

    def over(self, now: float) -> list[tuple[str, str, int]]:
        """(user, end, requests that were only counted) of minutes that have passed."""
        passed = []
        for user, minute in list(self._minutes.items()):
            if now - minute.since < MINUTE:
                break
            del self._minutes[user]
            if minute.counted:
                passed.append((user, minute.end, minute.counted))
        return passed


class AuditLog:
    """Lines are written one by one, whole; there is one writer per file."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._descriptor = -1
        self._size = 0
        self._trouble = ""
        self._refusals = Refusals()
        self._time = ""  # of the last line

    def require(self) -> None:
        """StoreFull while lines cannot be written; each call tries anew."""
        try:
            self._open()
            if self._trouble:
                self._append(b"\n")  # an empty line, which readers pass over, finds out whether there is room again
        except OSError as error:
            self._failed(error)
            raise StoreFull(f"{self._path} cannot be written ({error.strerror}), and what cannot be recorded is not let in") from None
        self._trouble = ""

    def write(self, line: Line, now: float) -> None:
        """A line that cannot be written is logged instead, and keeps out whoever comes next (`require`)."""
        self._time = line.time
        self._count(now)
        self._put(line)

    def write_refused(self, line: Line, now: float) -> None:
        """The same for a request that came to nothing: beyond `REFUSED_A_MINUTE` of one user it is counted instead."""
        self._time = line.time
        self._count(now)
        if self._refusals.admit(line.user, line.end, now):
            self._put(line)

    def _count(self, now: float) -> None:
        for user, end, count in self._refusals.over(now):
            reason = f"{count} more requests were refused or failed within a minute"
            self._put(
                Line(
                    time=self._time,
                    id="",
                    end=end,
                    stage="counted",
                    user=user,
                    groups=[],
                    entry="",
                    cluster="",
                    verb="",
                    path="",
                    reason=reason,
                )
            )

    def _put(self, line: Line) -> None:
        data = msgspec.json.encode(line) + b"\n"
        try:
            self._open()
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            self._append(data)
        except OSError as error:
            self._failed(error)
            log.error("audit.lost", **msgspec.to_builtins(line))

    def close(self) -> None:
        self._count(math.inf)
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(self._descriptor, 0o600)
            self._size = os.fstat(self._descriptor).st_size

    def _append(self, data: bytes) -> None:
        written = os.write(self._descriptor, data)
        self._size += written
        if written < len(data):  # the disk is full: no half lines
            os.ftruncate(self._descriptor, self._size - written)
            self._size -= written
            raise OSError(28, "no space left on device")

    def _rotate(self) -> None:
        self._close()
        for number in range(self._kept, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number}"))
        self._open()

    def _failed(self, error: OSError) -> None:
        if not self._trouble:
            log.error("audit.unwritable", path=str(self._path), reason=error.strerror or str(error))
        self._trouble = error.strerror or str(error)


def parameters(query: bytes) -> list[tuple[str, str]]:
    """Of a query, as far as it is read."""
    return parse_qsl(query[:MAX_QUERY].decode("latin-1"), keep_blank_values=True)


def safe_query(query: bytes) -> dict[str, str]:
    """What of a query may be written down."""
    return {name: printable(value, 64) for name, value in parameters(query) if name in SAFE}


def printable(text: str, most: int) -> str:
    """One line of ASCII, whatever somebody sent."""
    return _UNPRINTABLE.sub("?", text[:most])


def timestamp(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
