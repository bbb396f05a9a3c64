"""docs/resilience.md's table of figures, from what one run of the fault tests left: `python -m tools.figures build/faults.jsonl`.

Only what stands between the two markers is replaced, and only by a run that `make faults` made: no figure is typed by hand.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LEFT = ROOT / "build" / "faults.jsonl"
DOCUMENT = ROOT / "docs" / "resilience.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


class Found(NamedTuple):
    test: str
    long: bool
    figures: dict[str, str]


def read(lines: Iterable[str]) -> list[Found]:
    """By test, the last of each: one that was tried again counts once."""
    found = {}
    for line in lines:
        one = Found(**json.loads(line))
        if one.figures:
            found[one.test] = one
    return [found[test] for test in sorted(found)]


def table(found: Iterable[Found]) -> str:
    lines = ["| played | figures | test |", "|---|---|---|"]
    for one in found:
        figures = "; ".join(f"{what}: {value}" for what, value in one.figures.items()).replace("|", "\\|")
        name, _, which = one.test.partition("[")
        test = f"`{name}`" + (f" {which.removesuffix(']')}" if which else "")
        lines.append(f"| {'as long as in life' if one.long else 'as in CI'} | {figures} | {test} |")
    return "\n".join(lines) + "\n"


def where(commit: str, day: str) -> str:
    cores = os.cpu_count()
    return f"{day}, commit {commit}, {cores} cores, Linux {platform.release()}, Python {platform.python_version()}."


def write(text: str, body: str) -> str:
    """``text`` with ``body`` between the markers. ValueError when it has not each of them once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{DOCUMENT} needs the lines {BEGIN} and {END}, each once; put them where the table shall stand")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{body}{END}{rest.partition(END)[2]}"


def record(left: Path = LEFT) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    with left.open(encoding="utf-8") as lines:
        body = f"{where(commit, datetime.now(UTC).date().isoformat())}\n\n{table(read(lines))}"
    DOCUMENT.write_text(write(DOCUMENT.read_text(encoding="utf-8"), body), encoding="utf-8")


if __name__ == "__main__":
    record(*map(Path, sys.argv[1:2]))
