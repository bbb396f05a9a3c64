"""docs/performance.md's tables, from the result files: `python -m benchmarks report`.

Only what stands between the two markers is replaced; a benchmark that has no result file is named as not measured.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.records import Result, Row

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
DOCUMENT = records.ROOT / "docs" / "performance.md"


def write(names: Sequence[str], folder: Path = records.RESULTS, document: Path = DOCUMENT) -> None:
    """Raises ValueError when the document has no markers, or a result file is from another version."""
    found = {name: records.load(folder / f"{name}.json") for name in names if (folder / f"{name}.json").exists()}
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{document} needs the lines {BEGIN} and {END}, each once; put them where the tables shall stand")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(before + BEGIN + "\n" + body(names, found) + END + after, encoding="utf-8")


def body(names: Sequence[str], found: dict[str, Result]) -> str:
    parts = []
    for name in names:
        made = found.get(name)
        if made is None or made.quick:
            parts.append(f"## {name}\n\nNot measured yet: `make bench-{name}`.\n\n")
        else:
            parts.append(section(made))
    return "".join(parts)


def section(made: Result) -> str:
    machine = made.machine
    where = f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, Linux {machine.kernel}; Python {made.versions['python']}"
    lines = [f"## {made.name}", "", f"{made.date}, commit {made.commit}, seed {made.seed}: {where}.", ""]
    lines += ["| what | target | measured | met | peer |", "|---|---|---|---|---|", *map(line, made.rows), ""]
    lines += [f"- {note}." for note in records.notes(made.rows)]
    return "\n".join(lines).rstrip("\n") + "\n\n"


def line(row: Row) -> str:
    measured = f"**{records.number(row.measured)}** {row.unit}"
    cells = (row.what, records.target(row), measured, records.verdict(row), records.peer(row))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
