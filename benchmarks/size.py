"""How large an edge's install is, without model runtimes: the lock and the wheel, in an empty folder."""

import asyncio
import subprocess
import sys
from pathlib import Path

from benchmarks import records
from benchmarks.records import Options, Row

UV = str(Path(sys.executable).with_name("uv"))
LOCK = records.ROOT / "requirements" / "edge.lock"
SECONDS = 600


async def measure(options: Options) -> list[Row]:
    return await asyncio.to_thread(install, options)


def install(options: Options) -> list[Row]:
    target, dist = options.folder / "site-packages", options.folder / "dist"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(records.ROOT))
    (wheel,) = dist.glob("*.whl")
    into = ["pip", "install", "--quiet", "--python", sys.executable, "--target", str(target), "--no-deps", "--link-mode", "copy"]
    lock = [*into, "--require-hashes", "-r", str(LOCK)]
    try:
        run(UV, "--offline", *lock)  # what `make setup` has fetched is in the cache
    except RuntimeError:
        run(UV, *lock)
    run(UV, "--offline", *into, str(wheel))
    own = sum(size(target / name) for name in ("cluster_controller", "cluster_shim", "openapi", "edge_ai", "banyanctl", "banyan"))
    plain = size(target)
    run(sys.executable, "-m", "compileall", "-q", "-j", "2", str(target))
    return [
        Row(what="an edge's install without model runtimes: files as the wheels bring them", target=60, measured=plain / 1e6, unit="MB"),
        Row(what="of that, Banyan itself", measured=own / 1e6, unit="MB"),
        Row(what="with all bytecode compiled", measured=size(target) / 1e6, unit="MB"),
        Row(what="the wheel", measured=wheel.stat().st_size / 1e6, unit="MB"),
    ]


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv[:4])}: {(done.stdout + done.stderr).strip()[-1000:]}")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
