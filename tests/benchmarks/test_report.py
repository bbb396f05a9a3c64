"""The page and its charts are what the result files say, and nothing else; what is short says so by itself."""

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks import charts, records, report, sizing
from benchmarks.__main__ import BUDGET, LARGE, LONGEST, NAMES
from benchmarks.records import Options, Result, Row

ROWS = [
    Row(what="memory | at rest", target=64, measured=46.87, unit="MiB", peer="KubeEdge 1.23, 5 pods", peer_measured=90),
    Row(what="frames", target=200_000, measured=199_999, unit="/s", least=True),
    records.rounds("pairs", [2.0, 3.0, 4.0], "ms", peer="bare", theirs=[4.0, 6.0, 8.0]),
    *(Row(what=f"root {size}", measured=50 + size / 10, unit="MiB", series=sizing.ROOT_MEMORY, at=size) for size in (10, 100)),
]


def written(folder: Path, name: str, rows: list[Row], *, quick: bool = False) -> Result:
    made = records.result(name, Options(folder=folder, quick=quick, seed=7), rows, 12.34)
    records.save(made, folder)
    return made


def test_a_page_is_made_from_results_and_found_stale_when_they_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, docs, names = tmp_path / "results", tmp_path / "docs", ["footprint", "size", "lists"]
    written(results, "footprint", ROWS)
    written(results, "size", ROWS, quick=True)
    report.write(names, results, docs)
    assert report.check(names, results, docs) == 0
    text = (docs / "performance.md").read_text(encoding="utf-8")
    assert "| memory \\| at rest | ≤ 64 MiB | **46.9** MiB | met | KubeEdge 1.23, 5 pods: 90 MiB |\n" in text
    assert "| frames | ≥ 200,000 /s | **199,999** /s | SHORT | – |\n" in text
    assert "| pairs | – | **3** ms (2 to 4, 3 rounds) | – | bare: 6 ms; this is × 0.500 (0.500 to 0.500) |\n" in text
    assert "### size\n\nNot measured yet: `make bench-size`." in text  # a quick run is no measurement
    assert "### lists\n\nNot measured yet" in text
    assert "| [footprint](#footprint): frames | ≥ 200,000 /s | **199,999 /s** |" in text
    assert "{{" not in text
    for link in re.findall(r"\]\((performance/[^)]+)\)", text):
        assert (docs / link).exists(), link
    assert (docs / "performance" / "growth.svg").exists()
    capsys.readouterr()
    written(results, "footprint", [*ROWS[:1], Row(what="frames", target=200_000, measured=200_000, unit="/s", least=True)])
    assert report.check(names, results, docs) == 1
    said = capsys.readouterr().out
    assert all(name in said for name in ("performance.md", "promises.svg", "promises.png", "promises-dark.png", "peers.svg"))
    report.write(names, results, docs)
    assert "**199,999 /s**" not in (docs / "performance.md").read_text(encoding="utf-8")


def page(folder: Path, observed: list[report.Observation]) -> report.Page:
    made = report.Page(["footprint"], folder)
    made.observed = observed
    return made


def test_what_was_seen_to_be_missed_stays_until_it_is_measured_again(tmp_path: Path) -> None:
    made = written(tmp_path, "footprint", ROWS[:1])
    seen = report.Observation(benchmark="footprint", what="memory | at rest", target=64, measured=70, unit="MiB", date=made.date, where="x")
    assert [each.measured for each in page(tmp_path, [seen]).shortfalls()] == ["70 MiB"]
    before = msgspec.structs.replace(seen, date="2026-01-01")
    assert page(tmp_path, [before]).shortfalls() == []
    assert [each.benchmark for each in page(tmp_path, [msgspec.structs.replace(seen, benchmark="")]).shortfalls()] == [""]


def test_a_target_that_a_row_had_not_is_held_against_what_it_measured(tmp_path: Path) -> None:
    written(tmp_path, "footprint", [Row(what="all together", measured=297, unit="ms")])
    seen = report.Observation(benchmark="footprint", what="all together", target=50, where="as recorded")
    assert [(each.target, each.measured) for each in page(tmp_path, [seen]).shortfalls()] == [("≤ 50 ms", "297 ms")]
    written(tmp_path, "footprint", [Row(what="all together", measured=49, unit="ms")])
    assert page(tmp_path, [seen]).shortfalls() == []


def test_the_page_of_this_repository_is_what_its_results_say() -> None:
    assert report.check(NAMES) == 0, "run: python -m benchmarks report"


def test_every_benchmark_is_told_of_and_all_of_them_take_forty_minutes() -> None:
    template = report.TEMPLATE.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in template] == []
    assert set(BUDGET) == set(NAMES)
    assert sum(seconds for name, seconds in BUDGET.items() if name not in LARGE) <= LONGEST
    assert sum(BUDGET[name] for name in LARGE) <= LONGEST / 4


def test_the_reasons_are_of_rows_that_are_there() -> None:
    """They are shown while a row is short; one whose row has another name is never shown."""
    page = report.Page(NAMES)
    known = {(name, row.what) for name, made in page.found.items() for row in made.rows}
    known |= {(each.benchmark, each.what) for each in page.observed}
    assert {(name, what) for name, rows in page.reasons.items() for what in rows} <= known


# --- charts ---


def test_a_bar_is_what_its_row_says() -> None:
    chart = charts.promises(ROWS)
    assert [bar.tone for bar in chart.bars] == ["good", "bad"]
    assert chart.mark is not None
    assert chart.bars[0].end < chart.mark
    (short,) = charts.promises([Row(what="x", target=10, measured=11, unit="s")]).bars
    assert (short.tone, short.end > chart.mark) == ("bad", True)  # met ends before the line, short behind it
    beside = charts.peers(ROWS)
    assert [bar.start == 0.5 and bar.end > 0.5 for bar in beside.bars] == [True, True]  # less memory and less time are better
    slower = charts.peers([Row(what="rate", measured=5, unit="MiB/s", peer="other", peer_measured=10)])
    assert (slower.bars[0].end, slower.bars[0].tone) == (0.5, "bad")


@pytest.mark.parametrize(
    ("row", "share"),
    [
        (Row(what="x", target=0, measured=0, unit=""), 0.0),
        (Row(what="x", target=0, measured=1, unit=""), charts.BEYOND),
        (Row(what="x", target=10, measured=5, unit=""), 0.5),
        (Row(what="x", target=10, measured=20, unit="", least=True), 0.5),
        (Row(what="x", target=10, measured=0, unit="", least=True), charts.BEYOND),
    ],
)
def test_how_much_of_a_promise_is_used_up(row: Row, share: float) -> None:
    assert charts.share(row) == share


def test_a_drawing_is_the_same_each_time_and_follows_the_readers_theme() -> None:
    chart = charts.promises([Row(what="a < b & c", target=1, measured=0.5, unit="s")])
    drawn = charts.svg(chart)
    assert drawn == charts.svg(chart)
    assert "a &lt; b &amp; c" in drawn
    assert "prefers-color-scheme:dark" in drawn
    assert chart.digest in drawn


@pytest.mark.parametrize("theme", charts.PALETTES)
def test_text_is_readable_on_its_ground(theme: str) -> None:
    """A contrast of 4.5 to 1, as WCAG 2 asks of text; 3 to 1 for bars."""
    colours = charts.PALETTES[theme]
    for name, least in {"text": 4.5, "quiet": 4.5, "good": 3, "bad": 3, "plain": 3}.items():
        assert contrast(colours[name], colours["ground"]) >= least, (theme, name)


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# --- sizing ---


@pytest.mark.parametrize(
    ("sites", "shape"), [(10, (1, 0)), (100, (1, 0)), (101, (2, 2)), (1_000, (2, 10)), (10_000, (2, 100)), (100_000, (3, 1_010))]
)
def test_no_controller_of_the_advice_has_more_than_a_hundred_children(sites: int, shape: tuple[int, int]) -> None:
    assert sizing.shape(sites) == shape


def test_a_line_through_what_was_measured_says_where_arithmetic_begins(tmp_path: Path) -> None:
    made = written(tmp_path, "growth", ROWS)
    line = sizing.fit(ROWS[3:])
    assert line is not None
    assert (line.base, line.slope, line.largest) == (pytest.approx(50), pytest.approx(0.1), 100)
    assert sizing.fit(ROWS[3:4]) is None
    text = sizing.table({"growth": made})
    assert (
        "| memory of the root, nothing placed | 51 MiB, within what was measured | 150 MiB, arithmetic | 10,050 MiB, arithmetic |" in text
    )
    assert "make bench-growth" in text  # of the processor nothing is known
