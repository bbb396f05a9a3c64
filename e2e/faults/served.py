"""A shim in a process of its own, as `banyan shim serve` runs it beside a controller: killed, hung, started again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from banyanctl.demo import processes
from e2e.netns import started
from e2e.support import NEIGHBOURHOOD, ROOT


class ServedShim:
    """``options``: what comes behind `banyan shim serve KIND`."""

    def __init__(self, folder: Path, kind: str, *options: str) -> None:
        self.folder = folder
        self.address = f"unix:{folder}.sock"
        self._words = ["--data", str(folder), "shim", "serve", kind, "--listen", self.address, *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BANYAN_")}
        own = {"BANYAN_SITE_BIND": f"127.0.{NEIGHBOURHOOD}.77", "BANYAN_CAPACITY": "cpu=4,memory=4Gi"}
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "banyanctl", *self._words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=kept | own, cwd=ROOT,
            )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def instances(self) -> set[tuple[str, int, int]]:
        """Application, pid and start time of each instance that runs, of a process cluster."""
        found = [process for process in processes.below(self.folder) if process.instance]
        names = {process.pid: process.instance for process in found}
        return {
            (process.application, process.pid, started(process.pid))
            for process in found
            if names.get(process.parent) != process.instance
        }  # fmt: skip
