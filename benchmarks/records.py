"""A measured row, and the file that one benchmark leaves.

``build/bench/NAME.json`` holds machine, versions, commit, seed and rows; tables on a terminal and in docs/performance.md are both made
from it, so no figure is ever typed by hand.
"""

import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "bench"
PACKAGES = ("banyan-edge", "uvloop", "websockets", "msgspec", "sqlalchemy", "cryptography", "protobuf")
COMPARABLE = "measured on a comparable 2-core machine"


class Row(Struct, kw_only=True, omit_defaults=False):
    """``target`` None: shown for understanding, promised to nobody. ``least``: larger is better. ``peer``: what does the same elsewhere,
    and what it took, measured where ``peer_source`` says."""

    what: str
    target: float | None = None
    measured: float
    unit: str
    met: bool | None = None
    peer: str = ""
    peer_measured: float | None = None
    peer_source: str = ""
    least: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.target is not None:
            self.met = self.measured >= self.target if self.least else self.measured <= self.target
        if self.peer and not self.peer_source:
            self.peer_source = COMPARABLE


class Machine(Struct, kw_only=True):
    cpu: str
    cores: int
    memory_gib: float
    kernel: str


class Result(Struct, kw_only=True):
    name: str
    machine: Machine
    versions: dict[str, str]
    commit: str
    date: str
    seed: int
    quick: bool
    seconds: float
    """How long the benchmark took, setting up included."""
    rows: list[Row]


class Options(Struct, frozen=True, kw_only=True):
    """``folder``: an empty one on a real disk, removed afterwards. ``quick``: small counts, for the tests; such figures mean nothing."""

    folder: Path
    quick: bool = False
    seed: int = 1


def machine() -> Machine:
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(cpu=cpu, cores=len(os.sched_getaffinity(0)), memory_gib=round(memory, 1), kernel=platform.release())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The commit that was measured; with ``+`` when tracked files differ from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def result(name: str, options: Options, rows: list[Row], seconds: float) -> Result:
    return Result(
        name=name, machine=machine(), versions=versions(), commit=commit(), date=datetime.now(UTC).strftime("%Y-%m-%d"),
        seed=options.seed, quick=options.quick, seconds=round(seconds, 1), rows=rows,
    )  # fmt: skip


def save(made: Result, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made.name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    return path


def load(path: Path) -> Result:
    """ValueError when it is no result of this version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} was written by another version ({error}); measure again: make bench-{path.stem}") from error


def number(value: float | None) -> str:
    """Three significant digits, thousands apart: 0.171, 17.1, 289,125."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def target(row: Row) -> str:
    return "–" if row.target is None else f"{'≥' if row.least else '≤'} {number(row.target)} {row.unit}"


def verdict(row: Row) -> str:
    return {True: "yes", False: "NO", None: "–"}[row.met]


def peer(row: Row) -> str:
    if not row.peer:
        return "–"
    return row.peer if row.peer_measured is None else f"{row.peer}: {number(row.peer_measured)} {row.unit}"


def table(rows: Sequence[Row]) -> str:
    """For a terminal: columns as wide as their widest cell."""
    cells = [("what", "target", "measured", "met", "peer")]
    cells += [(row.what, target(row), f"{number(row.measured)} {row.unit}", verdict(row), peer(row)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def notes(rows: Iterable[Row]) -> list[str]:
    """Each note once, in order, and where the peers were measured."""
    rows = list(rows)
    found = list(dict.fromkeys(row.note for row in rows if row.note))
    for source in dict.fromkeys(row.peer_source for row in rows if row.peer):
        peers = dict.fromkeys(row.peer.partition(",")[0] for row in rows if row.peer and row.peer_source == source)
        found.append(f"{' and '.join(peers)}: {source}")
    return found


def say(text: str) -> None:
    """Progress, on standard error, so that standard output is the table alone."""
    print(text, file=sys.stderr, flush=True)
