"""A program that tells a story, as a reader sees it: in a session of its own, with what it says in a file, as plain lines."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from e2e.support import ROOT, until


class Telling:
    """``process`` is its own; whoever makes one ends it."""

    def __init__(self, argv: Sequence[str], said: Path, patience_seconds: float, environment: Mapping[str, str] | None = None) -> None:
        """``patience_seconds``: for each word that is waited for. ``environment``: instead of this process's."""
        self._said = said
        self._patience = patience_seconds
        with said.open("wb") as file:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=environment
            )

    def said(self) -> str:
        return self._said.read_text(encoding="utf-8")

    def wait_for(self, words: str) -> None:
        def there() -> bool:
            if words in self.said():
                return True
            if self.process.poll() is not None:
                pytest.fail(f"the demo ended with {self.process.returncode} before it said {words!r}:\n{self.said()}")
            return False

        until(f"the demo says {words!r}", there, self._patience)
