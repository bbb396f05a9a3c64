"""Named points at which a test can have the supervisor die as if by power loss: ``BANYAN_CRASH_AT=start.recorded:2``.

The number says at which passing it happens (default the first). Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "start.moved",  # the instance's folder is in place, nothing says yet that it starts
    "start.intended",  # the intention and its token are durable, no process exists
    "start.forked",  # a process exists, waits at the gate, and is recorded nowhere
    "start.recorded",  # the process is recorded, the gate still shut
    "start.released",  # the process runs its program, nobody was told
    "stop.intended",  # the wish to stop is durable, no signal was sent
    "stop.signalled",
    "exit.reaped",  # the process is gone, its record still names it
    "remove.moved",  # the folder waits in the trash
    "port.recorded",  # the port is in the file, its socket not yet bound
    "port.bound",
    "release.recorded",
    "upgrade.written",
    "upgrade.exec",
)

_name, _, _count = os.environ.get("BANYAN_CRASH_AT", "").partition(":")
_left = int(_count or "1") if _name else 0


def point(name: str) -> None:
    global _left  # noqa: PLW0603 - one countdown per process is the point
    if name != _name or not _left:
        return
    _left -= 1
    if not _left:
        os.kill(os.getpid(), signal.SIGKILL)
