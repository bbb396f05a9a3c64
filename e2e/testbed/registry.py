"""Folders of members, each with its owner's name on it; those whose owner is dead are swept.

A member's keeper cleans up when its owner dies, however it dies. This is for what even that misses: a keeper that was killed too, or a
machine that lost power. Every process of a member is in a process namespace that ends with the keeper, and every mount in a mount namespace
that ends with the last process, so what can be left is files and empty cgroups, which `sweep` removes before new members start.

Each folder has a number; it gives the member a loopback address (127.77.x.y) and an address on the testbed's own wide network, so that any
number of members have the ports that they would have on machines of their own.
"""

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOOPBACK = ipaddress.IPv4Address("127.77.0.0")
WIDE = ipaddress.IPv4Address("198.18.0.0")  # RFC 2544: for measurements; no network that is in use has it
WIDE_HOST = str(WIDE + 1)  # this machine, as every member sees it
MEMBERS = 16000
OWNER = "owner.json"
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "banyan-testbed"


def base() -> Path:
    """Where the folders of all members of this user are; a short path on a disk that overlay file systems can stand on."""
    return Path(os.environ.get("BANYAN_TESTBED") or Path(tempfile.gettempdir()) / f"banyan-testbed-{os.getuid()}")


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks and words: with its pid a name that is never reused. Empty when it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if fields[0] in {"Z", "X"}:  # dead, and not yet fetched by its parent
            return ""
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()}/{fields[19]}"
    except (OSError, IndexError):
        return ""


def claim(name: str) -> tuple[int, Path]:
    """A new folder for a member of this process, and its number; the dead are swept first."""
    with _locked() as folder:
        _sweep(folder)
        taken = {int(entry.name.partition("-")[0]) for entry in folder.iterdir() if entry.name[:1].isdigit()}
        number = next(number for number in range(1, MEMBERS) if number not in taken and _is_free(loopback(number)))
        claimed = folder / f"{number:05d}-{name}"
        claimed.mkdir(mode=0o700)
        write_owner(claimed, os.getpid())
        return number, claimed


def write_owner(folder: Path, pid: int) -> None:
    (folder / OWNER).write_text(json.dumps({"pid": pid, "started": started(pid)}), encoding="utf-8")


def release(folder: Path) -> None:
    """Remove a member that has ended."""
    remove_cgroups(cgroup(folder))
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> int:
    """Remove members whose owners are dead; how many."""
    with _locked() as folder:
        return _sweep(folder)


def loopback(number: int) -> str:
    return str(LOOPBACK + number)


def wide(number: int) -> str:
    return str(WIDE + 256 + number)


def cgroup(folder: Path) -> str:
    return f"{CGROUP_PREFIX}-{os.getuid()}-{folder.name.partition('-')[0]}"


def cgroup_folders(name: str) -> list[Path]:
    """A cgroup of this name in every hierarchy: one per controller (v1), or the only one (v2)."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / name]
    return [entry / name for entry in sorted(CGROUPS.iterdir()) if (entry / "cgroup.procs").exists() and not entry.is_symlink()]


def remove_cgroups(name: str) -> None:
    """Remove a cgroup and those below it; they are empty, for their processes are dead."""
    for top in cgroup_folders(name) if CGROUPS.is_dir() else []:
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()


def _sweep(folder: Path) -> int:
    swept = 0
    for entry in folder.iterdir():
        if not entry.name[:1].isdigit():
            continue
        owner = _read(entry / OWNER)
        if started(int(owner.get("pid", 0))) == owner.get("started", "?") or _keeper_lives(entry):
            continue
        release(entry)
        swept += 1
    return swept


def _keeper_lives(folder: Path) -> bool:
    """True while a keeper is still taking its member down; it will remove the folder itself."""
    keeper = _read(folder / "keeper.json")
    return bool(keeper) and started(int(keeper["pid"])) == keeper["started"]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _is_free(address: str) -> bool:
    """False when another user's testbed, which is not in our folder, has the address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, 6443))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _locked() -> Iterator[Path]:
    folder = base()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; say BANYAN_TESTBED=FOLDER for one of your own")
    with (folder / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text(encoding="ascii").split():
                    found += descendants(int(child))
    return found
