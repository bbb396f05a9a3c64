"""Sites in networks of their own: a controller, its commands and who talks to it are in the namespace of its machine."""

import subprocess
from pathlib import Path
from typing import Any

from e2e.netns import Namespace
from e2e.support import Site

HEARTBEAT = 1.0  # seconds; a link is dead after three


class PlacedSite(Site):
    """A site in a network of its own: whoever talks to it enters that network first."""

    def __init__(self, folder: Path, environment: dict[str, str], space: Namespace) -> None:
        super().__init__(folder, {"BANYAN_HEARTBEAT_SECONDS": str(HEARTBEAT)} | environment)
        self.space = space

    def banyan(
        self, *arguments: str, check: bool = True, stdin: str | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        with self.space.entered():
            return super().banyan(*arguments, check=check, stdin=stdin, seconds=seconds)

    def launch(self, *arguments: str) -> None:
        with self.space.entered():
            super().launch(*arguments)

    def wait(self) -> Site:
        with self.space.entered():
            return super().wait()

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        with self.space.entered():
            return super().ask(method, path, body, kind)

    def pss(self) -> int:
        """Bytes of memory that are this controller's, its share of what it shares included."""
        assert self.process is not None
        return pss(self.process.pid)


def pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no Pss of {pid}")
