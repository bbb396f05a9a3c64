"""What so many sites need, from what was measured: the advice of docs/performance.md.

Three inputs are taken from the recorded rows, never from memory: what a controller costs with no cluster below (footprint), what each
cluster and each stored object adds (growth, lists), and what an idle link carries (idle). A cell says whether it was measured at that size
or is arithmetic: a straight line through what was measured, which may hold or not, and has to be measured by whoever depends on it.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from benchmarks import records
from benchmarks.records import Result, Row

SIZES = (10, 1_000, 100_000)
FANOUT = 100  # clusters directly under one controller, at most: what propagation is measured with
OBJECTS = 10_000  # that the benchmark of lists stores
ROOT_MEMORY, ROOT_PROCESSOR = "root: memory (PSS) by clusters below", "root: processor by clusters below"
LISTED = "memory that they and the lists take"


class Line(Struct, frozen=True):
    """``base + slope × size``, and the largest size that was measured."""

    base: float
    slope: float
    largest: float

    def at(self, size: float) -> float:
        return self.base + self.slope * size


def shape(sites: int) -> tuple[int, int]:
    """(levels of controllers above the sites, controllers in them besides the root) when none has more than FANOUT children."""
    levels, above, width = 1, 0, sites
    while width > FANOUT:
        width = -(-width // FANOUT)
        above += width
        levels += 1
    return levels, above


def fit(rows: Sequence[Row]) -> Line | None:
    """Least squares through the rows of a series; None with less than two sizes."""
    points = [(row.at, row.measured) for row in rows if row.at is not None]
    if len({at for at, _ in points}) < 2:
        return None
    middle = sum(at for at, _ in points) / len(points)
    level = sum(value for _, value in points) / len(points)
    slope = sum((at - middle) * (value - level) for at, value in points) / sum((at - middle) ** 2 for at, _ in points)
    return Line(level - slope * middle, slope, max(at for at, _ in points))


def table(found: Mapping[str, Result]) -> str:
    rows = [row for made in found.values() for row in made.rows]
    memory, processor = (fit([row for row in rows if row.series == name]) for name in (ROOT_MEMORY, ROOT_PROCESSOR))
    objects = _row(found, "lists", LISTED)
    link = _row(found, "idle", "idle link of an edge")
    uplink = _row(found, "idle", "idle uplink of a region")
    edge = _row(found, "footprint", "memory (PSS)")
    head = "| | " + " | ".join(f"{size:,} sites" for size in SIZES) + " |"
    lines = [head, "|---" * (len(SIZES) + 1) + "|"]
    lines.append(_line("levels of controllers above the sites, at most 100 children each", [f"{shape(size)[0]}" for size in SIZES]))
    lines.append(_line("controllers between the root and the sites", [f"{shape(size)[1]:,}" for size in SIZES]))
    lines.append(_line("memory of a site's controller, with five models that serve", [_each(edge)] * len(SIZES)))
    lines.append(_line("memory of the root, nothing placed", [_cell(memory, size, "MiB") for size in SIZES]))
    lines.append(_line("processor of the root, idle", [_cell(processor, size, "% of a core") for size in SIZES]))
    added = [f"+ {records.number(objects.measured / OBJECTS * size)} MiB, {_word(size, OBJECTS)}" if objects else "–" for size in SIZES]
    lines.append(_line("memory at the root for one object of 1 KiB per site", added))
    lines.append(_line("idle traffic of a site, both ways", [_each(link)] * len(SIZES)))
    lines.append(_line("idle traffic of the root, both ways", [_root_traffic(uplink or link, size) for size in SIZES]))
    return "\n".join(lines)


def _root_traffic(uplink: Row | None, sites: int) -> str:
    """A link's idle cost does not grow with what is below it, so the root's children count and not its sites."""
    if uplink is None:
        return "–"
    children = sites
    while children > FANOUT:
        children = -(-children // FANOUT)
    return f"{records.number(uplink.measured * children)} {uplink.unit} for {children} links, arithmetic"


def _row(found: Mapping[str, Result], name: str, what: str) -> Row | None:
    made = found.get(name)
    return next((row for row in made.rows if what in row.what), None) if made is not None else None


def _each(row: Row | None) -> str:
    return f"{records.number(row.measured)} {row.unit}, measured" if row is not None else "–"


def _cell(line: Line | None, size: int, unit: str) -> str:
    return f"{records.number(line.at(size))} {unit}, {_word(size, line.largest)}" if line is not None else "– (`make bench-growth`)"


def _word(size: float, largest: float) -> str:
    return "within what was measured" if size <= largest else "arithmetic"


def _line(what: str, cells: Sequence[str]) -> str:
    return f"| {what} | " + " | ".join(cells) + " |"
