"""Files that are made from something else: written anew, or held against what they would be now."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent

Files = Callable[[], Mapping[Path, str]]


def write(files: Mapping[Path, str]) -> int:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def check(files: Mapping[Path, str]) -> int:
    """1 when any is not what it would be made now; each is named."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what its source says now; run: make docs")
    return 1 if stale else 0


def main(usage: str | None, commands: Mapping[str, Callable[[], int]]) -> int:
    """``write`` or ``check``, as the command line says; 2 when it says neither."""
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(usage, file=sys.stderr)
        return 2
    return commands[sys.argv[1]]()
