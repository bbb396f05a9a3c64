"""The history of one simulated run: what happened, in order, as a running hash, so that two runs of a seed can be compared to the byte.

Every message that arrives, every commit, every change at a site, every fault and every logged event is noted. What is kept is
the hash and the last lines; a run that failed is explained by running it again with a file to write all lines to.
"""

from collections import deque
from collections.abc import MutableMapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

import structlog

KEPT_LINES = 200
QUIET = frozenset({"exc_info", "stack_info", "event"})


class History:
    """``path``: also write every line there."""

    def __init__(self, path: Path | None = None) -> None:
        self._hash = blake2b(digest_size=16)
        self._file: TextIO | None = path.open("w", encoding="utf-8") if path is not None else None
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        self.lines = 0

    def note(self, now: float, who: str, what: str) -> None:
        line = f"{now:.6f} {who} {what}\n"
        self._hash.update(line.encode())
        self.lines += 1
        self.tail.append(line)
        if self._file is not None:
            self._file.write(line)

    def aside(self, text: str) -> None:
        """For whoever reads the file; no part of what is compared."""
        if self._file is not None:
            self._file.write(text if text.endswith("\n") else text + "\n")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def fields(event: MutableMapping[str, Any]) -> str:
    """The fields of a logged event, in the order of their names."""
    return " ".join(f"{key}={event[key]}" for key in sorted(event) if key not in QUIET)


def drop(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Nothing is printed of what simulated controllers log."""
    raise structlog.DropEvent
