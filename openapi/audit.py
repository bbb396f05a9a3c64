"""DATA/audit.log: who used a member's API, what they did, when, and how it ended. One JSON document per line.

Every such request is recorded at both ends: where it entered the tree and at the member. One that stays open (a watch, a shell, a
port-forward) has a line when it begins and another when it ends, with the same ``id``; all others have one. Nothing that may be a secret
is written: no header but the program's name, of the query only what says how and not what, no bodies.

The file is 0600; at `MAX_BYTES` it becomes ``audit.log.1`` and so on, and the oldest goes: the log is bounded, whatever people do. While
the disk takes no lines nobody is let in: what cannot be recorded does not happen.
"""

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
    id: str  # of the request, at this controller
    end: str  # "entry": here it came into the tree; "member": here it went to the cluster's API; "both"
    stage: str  # "begun" or "ended"
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


class AuditLog:
    """Lines are written one by one, whole; there is one writer per file."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._descriptor = -1
        self._size = 0
        self._trouble = ""

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

    def write(self, line: Line) -> None:
        """A line that cannot be written is logged instead, and keeps out whoever comes next (`require`)."""
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
        self.close()
        for number in range(self._kept, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number}"))
        self._open()

    def _failed(self, error: OSError) -> None:
        if not self._trouble:
            log.error("audit.unwritable", path=str(self._path), reason=error.strerror or str(error))
        self._trouble = error.strerror or str(error)


def safe_query(query: bytes) -> dict[str, str]:
    """What of a query may be written down."""
    found = parse_qsl(query[:8192].decode("latin-1"), keep_blank_values=True)
    return {name: printable(value, 64) for name, value in found if name in SAFE}


def printable(text: str, most: int) -> str:
    """One line of ASCII, whatever somebody sent."""
    return _UNPRINTABLE.sub("?", text[:most])


def timestamp(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
