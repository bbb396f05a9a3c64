"""Entry of the supervisor: ``python -I -S -E main.py --folder DATA/process``.

It leaves the life of whoever started it: a double fork into a session of its own, no inherited descriptors, an environment of
its own, output into ``supervisor.log``. One lock per folder makes it the only one; a second one leaves quietly. The starter
gets exit code 0 when a supervisor answers on the control socket.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
import zlib

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from cluster_shim.process.supervisor import control, files, loop, proc
from cluster_shim.process.supervisor.core import Supervisor
from cluster_shim.process.supervisor.limits import Limits, detect
from cluster_shim.process.supervisor.logfile import MAX_BYTES
from cluster_shim.process.supervisor.record import Folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

LOCK_SECONDS = 5.0  # a killed predecessor's lock is free at once; a child of its at the gate may hold it for a moment
MAX_OWN_LOG = 1 << 20


def _options(arguments: list[str]) -> dict[str, str]:
    """``--name value`` pairs; argparse would double the memory of this process."""
    options: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            raise SystemExit(f"supervisor: unexpected argument {word!r}")
        options[word[2:]] = "1" if word in ("--resume", "--foreground") else next(words, "")
    if not options.get("folder"):
        raise SystemExit("supervisor: --folder is missing")
    return options


def _take_lock(path: str) -> int | None:
    import time

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = loop.now() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _answers(path) or loop.now() > deadline:
                os.close(fd)
                return None
            time.sleep(0.02)
        else:
            return fd


def _answers(lock_path: str) -> bool:
    """Whether a living supervisor accepts connections in this folder."""
    import socket

    folder = os.open(os.path.dirname(lock_path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"/proc/self/fd/{folder}/supervisor.sock")
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _detach(folder: Folder) -> int:
    """Double fork. Returns, in the grandchild only, the descriptor that tells the starter how it went."""
    read, write = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(write)
        os._exit(0 if os.read(read, 1) == b"k" else 1)
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    if os.path.exists(folder.log) and os.path.getsize(folder.log) > MAX_OWN_LOG:
        os.replace(folder.log, folder.log + ".1")
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    keep = sorted({0, 1, 2, write})
    for low, high in zip(keep, [*keep[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
    return write


def _handed(folder: Folder) -> tuple[dict[str, int], int, socket.socket]:
    import socket

    document = files.read_json(folder.upgrade)
    os.unlink(folder.upgrade)
    for fd in (document["lock"], document["control"]):
        os.set_inheritable(fd, False)
    return document["ports"], document["lock"], socket.socket(fileno=document["control"])


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    folder = Folder(os.path.abspath(options["folder"]))
    started = -1
    descriptors: dict[str, int] = {}
    if "resume" in options:
        descriptors, lock, sock = _handed(folder)
    else:
        folder.make()
        if "foreground" not in options:
            started = _detach(folder)
        taken = _take_lock(folder.lock)
        if taken is None:
            if started >= 0 and _answers(folder.lock):
                os.write(started, b"k")
            return 0
        lock, sock = taken, control.listen(folder.socket)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))  # instances go on; a successor adopts them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    limits = Limits() if options.get("limits") == "rlimit" else detect(f"{zlib.crc32(folder.path.encode()):08x}")
    log_bytes = int(options.get("log-bytes") or MAX_BYTES)
    supervisor = Supervisor(folder, options.get("boot-id") or proc.boot_id(), sock, lock, log_bytes=log_bytes, limits=limits)
    supervisor.resume(descriptors)
    if started >= 0:
        os.write(started, b"k")
        os.close(started)
    gc.collect()
    gc.freeze()
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
