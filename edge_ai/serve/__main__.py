"""Command line of the inference worker; `--help` is the truth.

Exit codes: 0 after SIGTERM, 2 wrong usage, 3 the model cannot be loaded, 4 the address cannot be listened on.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from pathlib import Path

import uvloop

from edge_ai.serve import events
from edge_ai.serve.http_parts import Limits
from edge_ai.serve.lane import default_threads
from edge_ai.serve.worker import BACKLOG, Settings, Worker

LISTEN_FDS_START = 3  # sd_listen_fds(3)
MAX_UNIX_PATH = 107
MIB = 1 << 20
IN_USE_SECONDS = 300.0  # far below what `edge_ai.fetch` takes for unused


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        listening, inherited = _listening(options.listen, options.control)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        events.error("worker.cannot_listen", address=options.listen, error=error.strerror or str(error))
        return 4
    settings = Settings(
        name=options.name,
        version=options.version,
        folder=options.model_folder,
        digests=dict(options.digest),
        control=options.control,
        threads=options.threads,
        runs=options.runs or default_threads(),
        queue=options.queue,
        max_batch=options.max_batch,
        budget=options.memory_budget * MIB if options.memory_budget else None,
        python_steps=options.python_steps,
        batching=not options.no_batching,
        logged=options.log_one_of,
        grace=options.grace_seconds,
        limits=Limits(body=options.max_request_bytes, bodies=4 * options.max_request_bytes, idle_drain_seconds=options.idle_drain_seconds),
    )
    _hold(settings.folder)
    return uvloop.run(_run(settings, listening, inherited, options.in_use))


def _hold(folder: Path) -> None:
    """Until this process ends, who clears a cache of models (`edge_ai.fetch`) leaves the folder alone; afterwards the mark has to do."""
    with contextlib.suppress(OSError):  # it is not there: the worker will say so
        fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH | fcntl.LOCK_NB)


async def _run(settings: Settings, listening: socket.socket | None, inherited: bool, mark: Path | None) -> int:
    using = asyncio.create_task(_use(mark), name="in-use") if mark is not None else None
    try:
        return await Worker(settings, listening, inherited).run()
    finally:
        if using is not None:
            using.cancel()


async def _use(mark: Path) -> None:
    """Say again and again, where it stays when this process does not, that the folder is in use."""
    told = False
    while True:
        try:
            await asyncio.to_thread(os.utime, mark)
        except OSError as error:  # served all the same: who clears the cache goes by the lock alone
            if not told:
                events.warning("worker.mark_not_set", mark=str(mark), error=error.strerror or str(error))
                told = True
        await asyncio.sleep(IN_USE_SECONDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_ai.serve", description="Serve one ONNX model over the Open Inference Protocol v2, REST and gRPC on one port."
    )
    add = parser.add_argument
    add("--name", required=True, help="name of the model in the protocol's paths")
    add("--version", required=True, help="version of the model")
    add("--model-folder", required=True, type=Path, help="folder that holds model.onnx")
    add("--in-use", type=Path, metavar="FILE", help="set this file's time at the start and every few minutes: the model folder is in use")
    add("--digest", action="append", default=[], type=_digest, metavar="PATH=SHA256", help="verify this file before it is loaded")
    add("--listen", metavar="HOST:PORT", help="address to listen on; without it the socket is inherited as LISTEN_FDS says")
    add("--control", type=_control, metavar="unix:PATH", help="socket for readiness, metrics and loading another version")
    add("--threads", type=_positive, default=1, help="threads inside one run (default 1)")
    add("--runs", type=_positive, help="runs at once (default: the processors, at most 2)")
    add("--queue", type=_positive, default=64, help="requests that may wait; more are answered 429 (default 64)")
    add("--max-batch", type=_positive, default=64, help="largest batch in one request (default 64)")
    add(
        "--memory-budget",
        type=_positive,
        metavar="MIB",
        help="of all models together; the least used ones are put to sleep (default: none)",
    )
    add("--python-steps", action="store_true", help="run Python code that a pipeline in a model folder brings")
    add("--no-batching", action="store_true", help="never run requests that wait as one, also where that pays")
    add("--log-one-of", type=int, default=1000, metavar="N", help="log one of so many requests, 0 for none (default 1000)")
    add("--max-request-bytes", type=_positive, default=Limits().body, help="largest request body (default 16 MiB)")
    add("--grace-seconds", type=float, default=25.0, help="longest wait for requests in flight at the end (default 25)")
    add("--idle-drain-seconds", type=float, default=5.0, help="at the end, wait for one more request on idle connections (default 5)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _digest(text: str) -> tuple[str, str]:
    path, _, digest = text.rpartition("=")
    if not path or len(digest) != 64 or not all(character in "0123456789abcdefABCDEF" for character in digest):
        raise argparse.ArgumentTypeError(f"'{text}' is not PATH=SHA256 in hex")
    return path, digest.lower()


def _control(text: str) -> Path:
    path = text.removeprefix("unix:")
    if path == text or not path:
        raise argparse.ArgumentTypeError(f"'{text}' is not unix:PATH")
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise argparse.ArgumentTypeError(f"'{path}' is longer than the {MAX_UNIX_PATH} bytes of a Unix socket's path")
    return Path(path)


def _listening(address: str | None, control: Path | None) -> tuple[socket.socket | None, bool]:
    """The public socket, and whether it was inherited; None with a control socket alone. `ValueError` for wrong usage."""
    if address is None and control is not None and "LISTEN_FDS" not in os.environ:
        return None, False
    if address is None:
        return _inherited(), True
    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--listen {address}: expected HOST:PORT")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family, backlog=BACKLOG), False


def _inherited() -> socket.socket:
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    if count != "1" or (pid and pid != str(os.getpid())):
        raise ValueError("give --listen HOST:PORT, LISTEN_FDS=1 with the listening socket as file descriptor 3, or --control unix:PATH")
    listening = socket.socket(fileno=LISTEN_FDS_START)
    listening.set_inheritable(False)
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("file descriptor 3 is not a listening socket")
    return listening


if __name__ == "__main__":
    sys.exit(main())
