"""The contracts under proto/: generate their modules, lint them, refuse breaking changes, prove what is committed is current.

    python -m tools.proto generate    write *_pb2.py, *_pb2.pyi (and *_pb2_grpc.* where there is a service) beside the .proto files
    python -m tools.proto check       the same into a temporary folder, and compare with what is committed
    python -m tools.proto lint        buf lint
    python -m tools.proto breaking    buf breaking against proto/baseline.binpb
    python -m tools.proto baseline    accept the contracts as they are now; only for a release, or a change that breaks nobody

The baseline is a committed image of the contracts as last released, so the check needs no history and no network.
"""

import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
BASELINE = PROTO / "baseline.binpb"
BIN = Path(sys.executable).parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def sources() -> list[Path]:
    return sorted(PROTO.rglob("*.proto"))


def has_service(source: Path) -> bool:
    return re.search(r"^service\s+\w+", source.read_text(encoding="utf-8"), re.MULTILINE) is not None


def generate(target: Path = PROTO) -> int:
    """Generate every module into ``target``; pinned by the lock, so the same bytes everywhere."""
    for source in sources():
        outputs = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
        if has_service(source):
            outputs += [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
        plugins = [f"--plugin={name}={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", *plugins, *outputs, str(source.relative_to(PROTO))],
            cwd=PROTO,
            check=True,
        )
    return 0


def generated(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for pattern in GENERATED for path in folder.rglob(pattern)}


def check() -> int:
    """What is committed is exactly what the committed .proto files generate."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        generate(fresh)
        old, new = generated(PROTO), generated(fresh)
        wrong = sorted(old ^ new) + sorted(p for p in old & new if not filecmp.cmp(PROTO / p, fresh / p, shallow=False))
    for path in wrong:
        print(f"proto/{path} is not what its .proto file generates; run: make proto")
    return 1 if wrong else 0


def buf(*arguments: str) -> int:
    return subprocess.run([str(BIN / "buf"), *arguments], cwd=ROOT, check=False).returncode


def breaking() -> int:
    if not BASELINE.exists():
        print(f"{BASELINE.relative_to(ROOT)} is missing; accept the contracts once with: python -m tools.proto baseline")
        return 1
    return buf("breaking", "proto", "--against", str(BASELINE))


def baseline() -> int:
    return buf("build", "proto", "--exclude-source-info", "-o", str(BASELINE))


def main() -> int:
    commands = {"generate": generate, "check": check, "lint": lambda: buf("lint", "proto"), "breaking": breaking, "baseline": baseline}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    if shutil.which(str(BIN / "buf")) is None:
        print("buf is missing from the environment; run: make setup", file=sys.stderr)
        return 1
    return commands[sys.argv[1]]()


if __name__ == "__main__":
    sys.exit(main())
