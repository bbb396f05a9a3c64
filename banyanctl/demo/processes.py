"""What really runs out of a data folder, as the kernel tells it: neither a controller's view of itself nor a list that the demo keeps.

A process belongs to a folder when its command line names it, when its environment is that of an instance there, or when it works in the
folder of an instance. A reader's own shell in the demo's folder, or with BANYAN_DATA set to one of its sites, does not.
"""

import os
import re
from collections import Counter
from pathlib import Path

from msgspec import Struct

PROC = Path("/proc")


class Process(Struct, frozen=True):
    pid: int
    parent: int  # its pid
    instance: str = ""  # nothing for controllers and supervisors
    application: str = ""


def below(folder: Path) -> list[Process]:
    """All that belongs to ``folder`` but this process; what has ended and waits for its parent is not counted."""
    numbers = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return [found for pid in numbers if pid != os.getpid() and (found := _look(pid, folder)) is not None]


def instances(folder: Path) -> Counter[str]:
    """How many instances of each application run: an instance is one process with all that it started itself."""
    found = [process for process in below(folder) if process.instance]
    names = {process.pid: process.instance for process in found}
    return Counter(process.application for process in found if names.get(process.parent) != process.instance)


def _look(pid: int, folder: Path) -> Process | None:
    entry, mark = PROC / str(pid), os.fsencode(folder)
    try:
        state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        named = re.search(re.escape(mark) + rb"(?:/|\0|$)", (entry / "cmdline").read_bytes())
        environment = dict(word.partition(b"=")[::2] for word in (entry / "environ").read_bytes().split(b"\0"))
        works_there = (entry / "cwd").readlink().is_relative_to(folder / "process")
    except OSError:
        return None  # it ended meanwhile, or is another user's
    if state == b"Z":
        return None
    if environment.get(b"HOME", b"").startswith(mark + b"/") and b"BANYAN_INSTANCE" in environment:
        name, application = (os.fsdecode(environment.get(key, b"")) for key in (b"BANYAN_INSTANCE", b"BANYAN_APPLICATION"))
        return Process(pid, int(parent), name, application)
    return Process(pid, int(parent)) if named or works_there else None
