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
# Foreign protocols that a room speaks live in that room: not linted, since their style is not ours to choose.
FOLDERS = (PROTO, ROOT / "edge_ai" / "serve" / "proto")
BASELINE = PROTO / "baseline.binpb"
BIN = Path(sys.executable).parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def has_service(source: Path) -> bool:
    return re.search(r"^service\s+\w+", source.read_text(encoding="utf-8"), re.MULTILINE) is not None


def generate() -> int:
    for folder in FOLDERS:
        generate_into(folder, folder)
    return 0


def generate_into(folder: Path, target: Path) -> None:
    """Generate every module of a folder into ``target``; the tools are pinned by the lock, so the same bytes everywhere."""
    plugins = [f"--plugin={name}={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    for source in sorted(folder.rglob("*.proto")):
        outputs = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
        if folder == PROTO and has_service(source):
            outputs += [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
        argv = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}", *plugins, *outputs, str(source.relative_to(folder))]
        subprocess.run(argv, cwd=folder, check=True)


def generated(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for pattern in GENERATED for path in folder.rglob(pattern)}


def check() -> int:
    """What is committed is exactly what the committed .proto files generate."""
    wrong = []
    for folder in FOLDERS:
        with tempfile.TemporaryDirectory() as name:
            fresh = Path(name)
            generate_into(folder, fresh)
            old, new = generated(folder), generated(fresh)
            stale = sorted(old ^ new) + sorted(p for p in old & new if not filecmp.cmp(folder / p, fresh / p, shallow=False))
        wrong += [folder.relative_to(ROOT) / path for path in stale]
    for path in wrong:
        print(f"{path} is not what its .proto file generates; run: make proto")
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
