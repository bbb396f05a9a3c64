"""The README's first command on a clone: `make demo`, with all that it installs, and once more."""

import asyncio
import os
import subprocess
import time
from pathlib import Path

from benchmarks import records
from benchmarks.records import Options, Row

SECONDS = 900


async def measure(options: Options) -> list[Row]:
    return await asyncio.to_thread(play, options.folder / "clone")


def play(clone: Path) -> list[Row]:
    run(Path("/"), "git", "clone", "--quiet", str(records.ROOT), str(clone))
    first, again = (timed(clone) for _ in range(2))
    note = "from a fresh clone, its .venv made on the way; packages as the package client had them, in its cache or not"
    return [
        Row(what="`make demo`, the first time, installation included", target=300, measured=first, unit="s", note=note),
        Row(what="`make demo`, later", target=60, measured=again, unit="s"),
    ]


def timed(clone: Path) -> float:
    began = time.monotonic()
    run(clone, "make", "demo")
    return time.monotonic() - began


def run(folder: Path, *argv: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BANYAN_")}
    done = subprocess.run(
        argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False, env=kept
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv[:3])}: {(done.stdout + done.stderr).strip()[-1000:]}")
