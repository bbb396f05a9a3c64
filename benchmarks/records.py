"""A measured row, and the file that one benchmark leaves.

``benchmarks/results/NAME.json`` holds machine, kernel, versions, commit, seed, shape of the network and rows, each with all its rounds.
Tables on a terminal and in docs/performance.md are both made from it, so no figure is ever typed by hand. These files are committed: what
was measured stays what it was until it is measured again.
"""

import os
import platform
import ssl
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks import pairs
from benchmarks.pairs import Ratio

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "build" / "bench" / "quick"
LOOPBACK = "loopback of one machine, not shaped"
# What a run of all benchmarks writes itself is no change of what it measures.
WRITTEN = (":(exclude)benchmarks/results", ":(exclude)docs/performance.md", ":(exclude)docs/performance")
PACKAGES = ("banyan-edge", "uvloop", "websockets", "msgspec", "sqlalchemy", "cryptography", "protobuf")
COMPARABLE = "measured on a comparable 2-core machine"
HERE = "measured in the same run, in turns"


class Row(Struct, kw_only=True, omit_defaults=False):
    """``target`` None: shown for understanding, promised to nobody. ``least``: larger is better. ``peer``: what does the same elsewhere,
    and what it took, measured where ``peer_source`` says. ``rounds``: what each round measured, of which ``measured`` is the median."""

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
    rounds: list[float] = []
    peer_rounds: list[float] = []
    ratio: Ratio | None = None
    """Times the peer's, where both were measured in turns."""
    series: str = ""
    """What grows: rows of one series are the same thing measured at several sizes, ``at``."""
    at: float | None = None

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
    load: float | None = None
    """Processes that wanted a processor in the minute before it began, on average: what is measured beside other work says so."""


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
    network: str = LOOPBACK
    """What lies between the processes."""


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
    cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 2)
    return Machine(cpu=cpu, cores=cores, memory_gib=round(memory, 1), kernel=platform.release(), load=load)


def rounds(
    what: str, ours: Sequence[float], unit: str, *, peer: str = "", theirs: Sequence[float] = (), target: float | None = None,
    least: bool = False, note: str = "",
) -> Row:  # fmt: skip
    """A row of several rounds, with the ratio to a peer that took turns with it, unless a round got nothing done at all."""
    return Row(
        what=what, measured=statistics.median(ours), unit=unit, target=target, least=least, note=note, rounds=list(ours), peer=peer,
        peer_measured=statistics.median(theirs) if theirs else None, peer_source=HERE if theirs else "", peer_rounds=list(theirs),
        ratio=pairs.ratio(ours, theirs) if theirs and min(*ours, *theirs) > 0 else None,
    )  # fmt: skip


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
        ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def result(
    name: str, options: Options, rows: list[Row], seconds: float, *, where: Machine | None = None, network: str = LOOPBACK
) -> Result:
    """``where``: the machine as it was before; without, as it is now, busy with what was measured."""
    return Result(
        name=name, machine=where or machine(), network=network, versions=versions(), commit=commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
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
    return {True: "met", False: "SHORT", None: "–"}[row.met]


def measured(row: Row) -> str:
    """The value with its unit; with the range where there were several rounds."""
    return f"{number(row.measured)} {row.unit}{spread(row)}"


def spread(row: Row) -> str:
    if len(row.rounds) < 2:
        return ""
    return f" ({number(min(row.rounds))} to {number(max(row.rounds))}, {len(row.rounds)} rounds)"


def times(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"× {number(ratio.value)}"
    return f"× {number(ratio.value)} ({number(ratio.low)} to {number(ratio.high)})"


def peer(row: Row) -> str:
    if not row.peer:
        return "–"
    if row.peer_measured is None:
        return row.peer
    return f"{row.peer}: {number(row.peer_measured)} {row.unit}" + (f"; this is {times(row.ratio)}" if row.ratio is not None else "")


def table(rows: Sequence[Row]) -> str:
    """For a terminal: columns as wide as their widest cell."""
    cells = [("what", "target", "measured", "met", "peer")]
    cells += [(row.what, target(row), measured(row), verdict(row), peer(row)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def notes(rows: Iterable[Row]) -> list[str]:
    """Each note once, in order, and where the peers were measured."""
    rows = list(rows)
    found = list(dict.fromkeys(row.note for row in rows if row.note))
    for source in dict.fromkeys(row.peer_source for row in rows if row.peer):
        peers = dict.fromkeys(row.peer.partition(",")[0] for row in rows if row.peer and row.peer_source == source)
        found.append(f"{' and '.join(peers)}: {source}")
    found += dict.fromkeys(f"“this is ×”: {row.ratio.method}" for row in rows if row.ratio is not None and row.ratio.low is not None)
    return found


def say(text: str) -> None:
    """Progress, on standard error, so that standard output is the table alone."""
    print(text, file=sys.stderr, flush=True)
