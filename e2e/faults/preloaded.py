"""What is preloaded into controllers: a disk that forgets what was not synced when the power fails, and a clock that can be set wrong."""

import random
import struct
import subprocess
from pathlib import Path
from typing import Protocol

from tests.store.disk import Disk, read_trace
from tests.store.disk import build as build_disk
from tools import needs


class Powered(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    def power_off(self) -> None:
        """Whatever writes to its folder is gone at once."""
        ...


class Power:
    """Traces the disks of machines, and cuts their power. Build it only in tests marked `needs("cc")`."""

    def __init__(self, folder: Path, seed: int, lucky: float) -> None:
        """``lucky``: the share of sectors and names that reach the disk though nobody synced them."""
        self._library = build_disk(folder)
        self._traces = folder
        self._chance = random.Random(seed)
        self._lucky = lucky

    def environment(self, site: Path) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "BANYAN_DISK_FOLDER": str(site), "BANYAN_DISK_TRACE": str(self._trace(site))}

    def _trace(self, site: Path) -> Path:
        return self._traces / f"{site.name}.trace"

    def fail(self, site: Powered) -> int:
        """The machine is off, its disk holds what was synced, and luck. How many files are not as the running system saw them.

        What the supervisor keeps is left as it was: it is in nobody's trace."""
        site.power_off()
        disk = Disk(site.folder)
        for op in read_trace(self._trace(site.folder)):
            disk.play(op)
        left = self._traces / f"{site.name}.left"
        disk.cut(left, self._chance, self._lucky)
        changed = 0
        for name in disk.names.keys() | disk.durable.keys():
            path = Path(name)
            if path.is_relative_to(site.folder / "process"):
                continue
            kept = left / path.relative_to(site.folder)
            was = path.read_bytes() if path.exists() else None
            now = kept.read_bytes() if kept.exists() else None
            changed += was != now
            if now is None:
                path.unlink(missing_ok=True)
            elif was != now:
                path.write_bytes(now)
                path.chmod(0o600)
        self._trace(site.folder).unlink()
        return changed


class Clocks:
    """A wall clock for each machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([needs.cc(), "-shared", "-fPIC", "-O1", "-Wall", "-o", self._library, source], check=True, timeout=60)

    def environment(self, site: Path) -> dict[str, str]:
        self.set(site.name, 0)
        return {"LD_PRELOAD": str(self._library), "BANYAN_CLOCK": str(self._folder / f"{site.name}.clock")}

    def set(self, name: str, seconds: int) -> None:
        """The machine's clock is so far ahead from now on."""
        path = self._folder / f"{name}.clock"
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(struct.pack("<q", seconds))
