"""What /proc and pidfds tell about processes; the only place that decides whether a pid still means the same process.

A pid alone names nothing: it is reused. A process is (pid, start time in clock ticks since boot, boot id), and signals go
through a pidfd that was opened before the start time was compared, so a signal can never reach a stranger.
"""

from __future__ import annotations

import os
import signal

MAX_ENVIRON = 1 << 20  # bytes read of one process's environment


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the third on (state); the command name may hold spaces and brackets."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read(4096)
    except OSError:
        return None
    return data[data.rfind(b")") + 2 :].split()


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which ``pid`` started; None when there is no such process. Unchanged by exec."""
    fields = _stat(pid)
    return int(fields[19]) if fields and len(fields) > 19 else None


def parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def open_same(pid: int, start: int) -> int | None:
    """A pidfd for exactly that process, or None when it is gone or its pid now belongs to another."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    if start_time(pid) == start:
        return pidfd
    os.close(pidfd)
    return None


def send(pidfd: int, number: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def with_environment(entry: bytes) -> list[int]:
    """Pids whose environment at exec held ``entry`` (``b"NAME=value"``), without those that may not be read."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                data = file.read(MAX_ENVIRON)
        except OSError:
            continue
        if entry in data.split(b"\0"):
            found.append(int(name))
    return found


def kill_all_with_environment(entry: bytes, rounds: int = 5) -> int:
    """SIGKILL every process that carries ``entry``, again until none is left; returns how many were hit."""
    hit = 0
    for _ in range(rounds):
        pids = with_environment(entry)
        if not pids:
            break
        for pid in pids:
            hit += _kill_if(pid, entry)
    return hit


def _kill_if(pid: int, entry: bytes) -> int:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return 0
    try:
        # Read again behind the pidfd: the pid may have changed hands since the scan.
        with open(f"/proc/{pid}/environ", "rb") as file:
            same = entry in file.read(MAX_ENVIRON).split(b"\0")
        return int(same and send(pidfd, signal.SIGKILL))
    except OSError:
        return 0
    finally:
        os.close(pidfd)


def socket_descriptors(pid: int, inode: int) -> list[int]:
    """File descriptors of ``pid`` that refer to the socket with this inode."""
    wanted = f"socket:[{inode}]"
    found = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                found.append(int(name))
        except OSError:
            continue
    return found
