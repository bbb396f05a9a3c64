"""One benchmark with small counts, as the tests run it: it shows that it works, and what it promises."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import records
from benchmarks.records import Result

SECONDS = 180
PROMISED = {  # of issues and architecture: how many rows of each benchmark carry a target
    "footprint": 6, "size": 1, "startup": 2, "idle": 3, "propagation": 3, "three": 2, "relay": 5, "hop": 5, "tunnels": 3, "children": 3,
    "thousand": 3, "simulated": 2, "objects": 3, "burst": 6, "lists": 2,
    "decode": 2, "serve": 13, "device": 2, "models": 8, "placement": 5, "replace": 4, "failover": 4, "healing": 5, "growth": 0,
    "members": 4, "crowd": 3, "kubectl": 3,
}  # fmt: skip


def run(name: str, folder: Path) -> tuple[Result, str]:
    """What it left in ``folder``, and what it printed. RuntimeError with all that it said when it failed."""
    argv = [sys.executable, "-m", "benchmarks", name, "--quick", "--seed", "3", "--output", str(folder)]
    done = subprocess.run(argv, cwd=records.ROOT, env=os.environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return records.load(folder / f"{name}.json"), done.stdout
