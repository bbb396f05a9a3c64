"""docs/performance.md and its charts, from the result files and a template: `python -m benchmarks report`, `… check`.

The template (`benchmarks/page.md`) holds the prose; a line `{{NAME}}` in it stands for a part that is made here. No figure is typed: a
missed target lists itself, what was measured beside a peer draws itself, and `check` (part of `make lint`) fails when the page or a chart
is not what the result files say.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks import charts, records, sizing
from benchmarks.records import Result, Row

HERE = Path(__file__).parent
DOCS = records.ROOT / "docs"
TEMPLATE, REASONS, OBSERVED = HERE / "page.md", HERE / "reasons.json", HERE / "observed.json"
MADE = "<!-- Made by `python -m benchmarks report` from benchmarks/results and benchmarks/page.md; change those, not this page. -->"
BUSY = 0.5  # processes per core that wanted to run before a benchmark began


class Observation(Struct, kw_only=True, forbid_unknown_fields=True):
    """A promise that was seen to be missed outside a whole run of its benchmark. It is shown until that is measured on a later day, or
    (without ``measured``, which then is that of the row of this name) until the row holds ``target``."""

    benchmark: str = ""
    what: str
    target: float
    measured: float | None = None
    unit: str = ""
    date: str = ""
    where: str


class Short(Struct, frozen=True):
    benchmark: str
    what: str
    target: str
    measured: str
    where: str
    reason: str


class Page:
    """What the parts are made from."""

    def __init__(self, names: Sequence[str], folder: Path = records.RESULTS) -> None:
        paths = {name: folder / f"{name}.json" for name in names}
        loaded = {name: records.load(path) for name, path in paths.items() if path.exists()}
        self.names = names
        self.found = {name: made for name, made in loaded.items() if not made.quick}
        self.reasons = msgspec.json.decode(REASONS.read_bytes(), type=dict[str, dict[str, str]])
        self.observed = msgspec.json.decode(OBSERVED.read_bytes(), type=list[Observation])

    def text(self) -> str:
        parts: Mapping[str, Callable[[], str]] = {
            "{{made}}": lambda: MADE,
            "{{summary}}": self.summary,
            "{{short}}": self.short,
            "{{charts}}": lambda: "\n\n".join(charts.markdown(chart) for chart in self.charts()[:2]),
            "{{growth}}": self.growth,
            "{{sizing}}": lambda: sizing.table(self.found),
            "{{results}}": self.results,
        }
        lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
        return "\n".join(parts[line]().rstrip("\n") if line in parts else line for line in lines) + "\n"

    # --- parts ---

    def summary(self) -> str:
        lines = ["| benchmark | promises met | short | measured | in |", "|---|---|---|---|---|"]
        for name in self.names:
            made = self.found.get(name)
            if made is None:
                lines.append(f"| [{name}](#{name}) | – | – | not yet: `make bench-{name}` | – |")
                continue
            met, short = (len([row for row in made.rows if row.met is good]) for good in (True, False))
            lines.append(f"| [{name}](#{name}) | {met} | {short or '–'} | {made.date}, {made.commit} | {made.seconds:,.0f} s |")
        took = sum(made.seconds for made in self.found.values()) / 60
        rows = [row for made in self.found.values() for row in made.rows if row.met is not None]
        met = len([row for row in rows if row.met])
        lines += ["", f"{len(rows)} promises are measured, {met} are met, {len(rows) - met} are short. All of it took {took:.0f} minutes."]
        return "\n".join(lines)

    def short(self) -> str:
        found = self.shortfalls()
        if not found:
            return "Nothing: every promise that was measured is met."
        lines = ["| what | target | measured | where | why, as far as it is known |", "|---|---|---|---|---|"]
        for each in found:
            name = f"[{each.benchmark}](#{each.benchmark}): " if each.benchmark else ""
            cells = (name + each.what, each.target, f"**{each.measured}**", each.where, each.reason)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines)

    def shortfalls(self) -> list[Short]:
        found = []
        for name, made in self.found.items():
            for row in made.rows:
                if row.met is False:
                    found.append(self._short(name, row, f"{made.date}, {made.commit}{_load(made)}"))
        for each in self.observed:
            known = self.found.get(each.benchmark)
            if each.measured is None:
                same = next((row for row in known.rows if row.what == each.what), None) if known is not None else None
                if known is not None and same is not None and same.met is None and same.measured > each.target:
                    row = Row(what=each.what, target=each.target, measured=same.measured, unit=same.unit)
                    found.append(self._short(each.benchmark, row, f"{known.date}, {known.commit}; {each.where}"))
            elif known is None or known.date <= each.date:
                row = Row(what=each.what, target=each.target, measured=each.measured, unit=each.unit)
                found.append(self._short(each.benchmark, row, f"{each.date}, {each.where}"))
        return found

    def _short(self, name: str, row: Row, where: str) -> Short:
        reason = self.reasons.get(name, {}).get(row.what, "not found yet")
        return Short(name, row.what, records.target(row), records.measured(row), where, reason)

    def growth(self) -> str:
        series = self.series()
        if not series:
            return "Not measured yet: `make bench-growth`."
        lines = ["| what | at | measured |", "|---|---|---|"]
        for name, rows in series.items():
            lines += [f"| {name} | {row.at:,.0f} | **{records.measured(row)}** |" for row in rows]
        return "\n".join([charts.markdown(self.charts()[2]), "", *lines])

    def series(self) -> dict[str, list[Row]]:
        """Rows of the same thing, by size; of two sizes at least."""
        found: dict[str, list[Row]] = {}
        for made in self.found.values():
            for row in made.rows:
                if row.series and row.at is not None:
                    found.setdefault(row.series, []).append(row)
        return {name: sorted(rows, key=lambda row: row.at or 0) for name, rows in found.items() if len(rows) > 1}

    def results(self) -> str:
        parts = []
        for name in self.names:
            made = self.found.get(name)
            parts.append(section(made) if made is not None else f"### {name}\n\nNot measured yet: `make bench-{name}`.\n\n")
        return "".join(parts)

    def charts(self) -> list[charts.Chart]:
        rows = [row for made in self.found.values() for row in made.rows]
        series = self.series()
        return [charts.promises(rows), charts.peers(rows), *([charts.growth(series)] if series else [])]


def section(made: Result) -> str:
    machine = made.machine
    where = f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, Linux {machine.kernel}; Python {made.versions['python']}"
    lines = [
        f"### {made.name}",
        "",
        f"`make bench-{made.name}`, {made.date}, commit {made.commit}, seed {made.seed}{_load(made)}: {where}.",
    ]
    lines += [f"Network: {made.network}."] if made.network != records.LOOPBACK else []
    lines += ["", "| what | target | measured | | peer |", "|---|---|---|---|---|", *map(line, made.rows), ""]
    lines += [f"- {note}." for note in records.notes(made.rows)]
    return "\n".join(lines).rstrip("\n") + "\n\n"


def _load(made: Result) -> str:
    load = made.machine.load
    return f", beside other work (load {load:g})" if load is not None and load > BUSY * made.machine.cores else ""


def line(row: Row) -> str:
    measured = f"**{records.number(row.measured)}** {row.unit}{records.spread(row)}"
    cells = (row.what, records.target(row), measured, records.verdict(row), records.peer(row))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# --- files ---


def write(names: Sequence[str], folder: Path = records.RESULTS, docs: Path = DOCS) -> None:
    """Raises ValueError when a result file is from another version."""
    page = Page(names, folder)
    (docs / "performance").mkdir(parents=True, exist_ok=True)
    (docs / "performance.md").write_text(page.text(), encoding="utf-8")
    for chart in page.charts():
        charts.write(chart, docs / "performance")


def check(names: Sequence[str], folder: Path = records.RESULTS, docs: Path = DOCS) -> int:
    """1 when the page or a chart is not what the results say, each named on standard output."""
    page = Page(names, folder)
    path = docs / "performance.md"
    stale = [] if path.exists() and path.read_text(encoding="utf-8") == page.text() else [path]
    for chart in page.charts():
        stale += charts.stale(chart, docs / "performance")
    for each in stale:
        print(f"{each} is not what the result files say; run: python -m benchmarks report", file=sys.stdout)
    return 1 if stale else 0
