"""What a fault cost: how long until it was missed, until all links were up again, until everything was exact, and what grew.

Nothing is asserted of these figures, for a test that fails on a busy machine proves nothing. Each test that passes leaves its own as one
line of JSON in the file that `--figures` names; `make faults` makes the table in docs/resilience.md of them (`tools.figures`).
"""

import json
import time
from pathlib import Path


class Figures:
    """Of one test. A figure that is noted twice stays as it was noted first."""

    def __init__(self, test: str) -> None:
        self.test = test
        self._begun = time.monotonic()
        self._found: dict[str, str] = {}

    def begin(self) -> None:
        """The fault begins now."""
        self._begun = time.monotonic()

    def mark(self, what: str) -> None:
        """So long after the fault began."""
        self.took(what, time.monotonic() - self._begun)

    def took(self, what: str, seconds: float) -> None:
        self.note(what, f"{seconds:.1f} s")

    def note(self, what: str, value: str) -> None:
        self._found.setdefault(what, value)

    def has(self, what: str) -> bool:
        return what in self._found

    def write(self, path: Path, *, long: bool) -> None:
        """One line, appended whole: several workers write to one file."""
        line = json.dumps({"test": self.test, "long": long, "figures": self._found})
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
