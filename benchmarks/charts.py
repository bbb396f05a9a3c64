"""Charts of docs/performance.md: bars, drawn once as SVG and once as PNG, each from the same list.

The SVG follows the reader's light or dark theme; the PNG comes in both. Text is text in the SVG. What a file was drawn from is in it, so
that a stale one is found without drawing it again, on a machine that cannot draw.
"""

import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks import records
from benchmarks.records import Row

LABEL, BARS, VALUES = 560, 300, 330  # widths in pixels: what it is, the bars, what was measured
LINE, HEAD, MARGIN = 20, 64, 16
FONT_SIZE, TITLE_SIZE = 12, 16
LONGEST_LABEL, LONGEST_PEER = 88, 40  # characters
BEYOND = 1.25  # of the target: where a bar that is short of it ends, however short it is
SCALE, COLOURS = 2, 48  # of the PNG
PALETTES = {
    "light": {"ground": "#ffffff", "text": "#1f2328", "quiet": "#59636e", "good": "#1a7f6b", "bad": "#c2410c", "plain": "#4f6bb5"},
    "dark": {"ground": "#0d1117", "text": "#f0f6fc", "quiet": "#9198a1", "good": "#3fb99f", "bad": "#f0883e", "plain": "#8aa4f0"},
}
PLAIN_LETTERS = str.maketrans({"→": "->", "≤": "<=", "≥": ">=", "×": "x", "–": "-", "“": '"', "”": '"', "…": "..."})


class Bar(Struct, frozen=True):
    """``start`` and ``end`` between 0 and 1 of the bars' width."""

    label: str
    start: float
    end: float
    value: str
    tone: str = "plain"


class Chart(Struct, frozen=True, kw_only=True):
    name: str
    title: str
    about: str
    bars: tuple[Bar, ...]
    mark: float | None = None
    """Where a line says: here."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        return MARGIN + LABEL + BARS + VALUES, HEAD + LINE * len(self.bars) + MARGIN


# --- what they show ---


def promises(rows: Sequence[Row]) -> Chart:
    """How much of each promise is used up."""
    bars = []
    for row in rows:
        if row.target is None:
            continue
        used = share(row)
        value = f"{records.number(row.measured)} of {records.target(row)}"
        bars.append(Bar(_short(row.what), 0.0, round(min(used, BEYOND) / BEYOND, 4), value, "good" if row.met else "bad"))
    about = "A bar that ends before the line has met its target: the shorter, the more room is left."
    return Chart(name="promises", title="What was promised, and how much of it is used up", about=about, bars=tuple(bars), mark=1 / BEYOND)


def share(row: Row) -> float:
    """1 is the target; less is better, whichever way the row counts."""
    assert row.target is not None
    over, under = (row.target, row.measured) if row.least else (row.measured, row.target)
    if under == 0:
        return 0.0 if over == 0 else BEYOND
    return over / under


def peers(rows: Sequence[Row]) -> Chart:
    """Times as good as what a user would take otherwise, on a logarithmic scale."""
    found = [(row, advantage(row)) for row in rows if row.peer_measured]
    reach = max([abs(math.log10(each)) for _, each in found], default=1.0) or 1.0
    bars = []
    for row, times in found:
        end = 0.5 + math.log10(times) / reach / 2
        value = f"× {records.number(times)} ({_short(row.peer.partition(',')[0], LONGEST_PEER)})"
        bars.append(Bar(_short(row.what), *(round(each, 4) for each in sorted((0.5, end))), value, "good" if times >= 1 else "bad"))
    about = "To the right: better than the peer, to the left: worse; logarithmic. The tables name each peer and its figures."
    return Chart(name="peers", title="Beside what one would use otherwise", about=about, bars=tuple(bars), mark=0.5)


def advantage(row: Row) -> float:
    """Above 1: better than the peer."""
    assert row.peer_measured is not None
    if row.ratio is not None:
        return row.ratio.value if more_is_better(row) else 1 / row.ratio.value
    if not row.measured:
        return 1.0
    return row.measured / row.peer_measured if more_is_better(row) else row.peer_measured / row.measured


def more_is_better(row: Row) -> bool:
    return row.least or row.unit.endswith("/s")


def growth(series: Mapping[str, Sequence[Row]]) -> Chart:
    """Each thing at its sizes, as long as its largest."""
    bars = []
    for name, rows in series.items():
        largest = max(row.measured for row in rows) or 1.0
        bars += [Bar(_short(f"{name}: {row.at:,.0f}"), 0.0, round(row.measured / largest, 4), records.measured(row)) for row in rows]
    return Chart(name="growth", title="How cost grows with size", about="Bars compare the sizes of one thing.", bars=tuple(bars))


def _short(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


# --- files ---


def markdown(chart: Chart) -> str:
    pictures = ", ".join(f"[{theme}](performance/{file})" for theme, file in _pngs(chart).items())
    return f"![{chart.title}. {chart.about}](performance/{chart.name}.svg)\n\nAs PNG: {pictures}."


def _pngs(chart: Chart) -> dict[str, str]:
    return {"light": f"{chart.name}.png", "dark": f"{chart.name}-dark.png"}


def write(chart: Chart, folder: Path) -> None:
    (folder / f"{chart.name}.svg").write_text(svg(chart), encoding="utf-8")
    for theme, name in _pngs(chart).items():
        png(chart, theme, folder / name)


def stale(chart: Chart, folder: Path) -> list[Path]:
    """Files that are not there or were drawn from something else."""
    drawn = folder / f"{chart.name}.svg"
    found = [] if drawn.exists() and drawn.read_text(encoding="utf-8") == svg(chart) else [drawn]
    paths = [folder / name for name in _pngs(chart).values()]
    return found + [path for path in paths if not path.exists() or chart.digest.encode() not in path.read_bytes()]


def svg(chart: Chart) -> str:
    width, height = chart.size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{html.escape(chart.title)}</title>",
        f"<desc>{html.escape(chart.about)} [{chart.digest}]</desc>",
        f"<style>{_style()}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    for kind, x, y, word, extra in _parts(chart):
        if kind == "rect":
            lines.append(f'<rect class="{word}" x="{x:g}" y="{y:g}" width="{extra[0]:g}" height="{extra[1]:g}"/>')
        else:
            anchor = ' text-anchor="end"' if extra[1] == "end" else ""
            lines.append(f'<text class="{extra[0]}" x="{x:g}" y="{y:g}"{anchor}>{html.escape(word)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _style() -> str:
    def fills(theme: str) -> str:
        return "".join(f".{name}{{fill:{colour}}}" for name, colour in PALETTES[theme].items())

    text = f"text{{font:{FONT_SIZE}px system-ui,sans-serif}}.title{{font-size:{TITLE_SIZE}px;font-weight:600}}"
    titles = {theme: f".title{{fill:{PALETTES[theme]['text']}}}" for theme in PALETTES}
    return f"{text}{fills('light')}{titles['light']}@media(prefers-color-scheme:dark){{{fills('dark')}{titles['dark']}}}"


def png(chart: Chart, theme: str, path: Path) -> None:
    """Needs Pillow, which the development environment has."""
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    colours = PALETTES[theme]
    width, height = chart.size
    image = Image.new("RGB", (width * SCALE, height * SCALE), colours["ground"])
    pen = ImageDraw.Draw(image)
    fonts = {True: ImageFont.load_default(TITLE_SIZE * SCALE), False: ImageFont.load_default(FONT_SIZE * SCALE)}
    for kind, x, y, word, extra in _parts(chart):
        at = (x * SCALE, y * SCALE)
        if kind == "rect":
            pen.rectangle((at[0], at[1], at[0] + max(0, extra[0] * SCALE - 1), at[1] + extra[1] * SCALE - 1), fill=colours[word])
        else:
            title = extra[0] == "title"
            anchor = "rs" if extra[1] == "end" else "ls"
            fill = colours["text" if title else extra[0]]
            pen.text(at, word.translate(PLAIN_LETTERS), fill=fill, font=fonts[title], anchor=anchor)
    said = PngImagePlugin.PngInfo()
    said.add_text("Title", chart.title)
    said.add_text("Source", chart.digest)
    image.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(path, pnginfo=said, optimize=True)


def _parts(chart: Chart) -> list[tuple[str, float, float, str, tuple[Any, Any]]]:
    """Rectangles (class; width, height) and texts (words; class, anchor), back to front; y of a text is its baseline."""
    left = MARGIN + LABEL
    parts: list[tuple[str, float, float, str, tuple[Any, Any]]] = [
        ("text", MARGIN, MARGIN + TITLE_SIZE, chart.title, ("title", "start")),
        ("text", MARGIN, MARGIN + TITLE_SIZE + LINE, chart.about, ("quiet", "start")),
    ]
    for number, bar in enumerate(chart.bars):
        y = HEAD + number * LINE
        parts += [
            ("text", left - 8, y + 14, bar.label, ("text", "end")),
            ("rect", left + bar.start * BARS, y + 4, bar.tone, (max(1.0, (bar.end - bar.start) * BARS), LINE - 7)),
            ("text", left + BARS + 8, y + 14, bar.value, ("quiet", "start")),
        ]
    if chart.mark is not None:
        parts.append(("rect", left + chart.mark * BARS, HEAD - 4, "text", (1.0, LINE * len(chart.bars) + 6)))
    return parts
