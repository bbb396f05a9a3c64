"""What the commands print: data for programs, text for people, progress while they wait.

`-o json|yaml|name` goes to standard output and is the whole of it; everything said to people beside the answer goes to standard
error. On a terminal with `rich` installed the text has colours and lines; piped, or without it, the same text comes out plain.
"""

import contextlib
import itertools
import json
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TextIO

from msgspec import Struct, field

from cluster_controller.errors import InvalidInput

Format = Literal["table", "wide", "json", "yaml", "name"]
FORMATS: tuple[Format, ...] = ("table", "wide", "json", "yaml", "name")
PATIENCE_SECONDS = 2.0  # what takes longer says what it is waiting for
GAP = "   "  # between columns
MIN_PROSE = 12  # a column of sentences is not made narrower
GOOD = frozenset({"Ready", "Running", "Open", "Active", "Present", "True"})
BAD = frozenset({"Unknown", "Degraded", "Failed", "Revoked", "Expired", "Held", "False", "Refused"})


class Branch(Struct):
    """A node of a drawn tree: a line of text and what hangs below."""

    text: str
    mood: Literal["good", "bad", "quiet", ""] = ""
    details: list[str] = field(default_factory=list)
    children: list["Branch"] = field(default_factory=list)


def emit(data: Any, form: Format, human: Callable[[], None]) -> None:
    """Print ``data`` for a program, or call ``human`` for a person."""
    if form == "json":
        print(json.dumps(data, indent=2, ensure_ascii=False))
    elif form == "yaml":
        from banyanctl import manifests

        sys.stdout.write(manifests.dumps(data))
    elif form == "name":
        for item in data.get("items", [data]) if isinstance(data, dict) else data:
            print(_full_name(item))
    else:
        human()
    sys.stdout.flush()


def _full_name(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    name = (item.get("metadata") or {}).get("name") or item.get("name", "")
    kind = str(item.get("kind", "")).lower()
    return f"{kind}/{name}" if kind else str(name)


def note(text: str) -> None:
    """Something for the person, beside the answer."""
    print(text, file=sys.stderr, flush=True)


def ask(question: str, option: str) -> None:
    """Let a person decide; click.Abort when they say no. InvalidInput, naming the option that answers, where nobody can be asked."""
    if not sys.stdin.isatty():
        raise InvalidInput(f"{question} Nobody can be asked here; say so with {option}", option)
    import click

    click.confirm(question, abort=True, err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "") -> None:
    """Aligned columns; ``empty`` is said, on standard error, when there is no row.

    On a terminal that is too narrow sentences are broken at words; names, addresses and numbers never are.
    """
    if not rows and empty:
        note(empty)
        return
    heads, texts = [column.upper() for column in columns], [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    console = _console(sys.stdout)
    room = max(console.width, 20) if console is not None else 0
    widths = fit(widths, [max(_longest_word(cell) for cell in column) for column in zip(heads, *texts, strict=True)], room)
    for number, line in enumerate([heads, *texts]):
        for part in _broken(line, widths):
            if console is None:
                print(GAP.join(part).rstrip())
            else:
                style = "bold" if number == 0 else ""
                console.print(_painted(part, style), soft_wrap=True, highlight=False, end="\n")


def fit(widths: Sequence[int], smallest: Sequence[int], room: int) -> list[int]:
    """Column widths that fit into ``room`` (0: any), the widest column given up first and none made narrower than ``smallest``."""
    fitted = list(widths)
    over = sum(fitted) + len(GAP) * (len(fitted) - 1) - room if room else 0
    while over > 0:
        give = [index for index, width in enumerate(fitted) if width > max(smallest[index], MIN_PROSE)]
        if not give:
            return list(widths)  # it cannot fit: the terminal breaks the lines, and columns stay whole
        widest = max(give, key=lambda index: fitted[index])
        fitted[widest] -= 1
        over -= 1
    return fitted


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value not in (None, "") else "-"


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _broken(cells: Sequence[str], widths: Sequence[int]) -> Iterator[list[str]]:
    """The lines that one row takes, each cell padded to its column."""
    wrapped = [
        [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
        for cell, width in zip(cells, widths, strict=True)
    ]
    for parts in itertools.zip_longest(*wrapped, fillvalue=""):
        yield [part.ljust(width) for part, width in zip(parts, widths, strict=True)]


def _painted(cells: Sequence[str], style: str) -> Any:
    from rich.text import Text

    line = Text()
    for number, cell in enumerate(cells):
        line.append(GAP if number else "").append(cell, style=style or _style(cell.rstrip()))
    line.rstrip()
    return line


def tree(root: Branch) -> None:
    """The tree with its lines."""
    console = _console(sys.stdout)
    for line, mood in _lines(root):
        if console is None:
            print(line)
        else:
            console.print(
                line, style={"good": "", "bad": "red", "quiet": "dim", "": ""}[mood], highlight=False, markup=False, soft_wrap=True
            )


def _lines(node: Branch, lead: str = "", below: str = "") -> Iterator[tuple[str, str]]:
    yield lead + node.text, node.mood
    for detail in node.details:
        yield f"{below}{'│' if node.children else ' '}    {detail}", "quiet"
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        yield from _lines(child, below + ("└── " if last else "├── "), below + ("    " if last else "│   "))


def _style(cell: str) -> str:
    return "green" if cell in GOOD else "red" if cell in BAD else ""


def _console(stream: TextIO) -> Any:
    """A rich console for a terminal; None where the text shall be plain."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Say on standard error what is being waited for, once that takes longer than two seconds.

    Yields a function that changes the text. On a terminal one line is drawn over and over; elsewhere a line every ten seconds.
    """
    current = [text]
    done = threading.Event()
    live = sys.stderr.isatty()

    def show() -> None:
        if done.wait(PATIENCE_SECONDS):
            return
        for turn in itertools.count():
            if live:
                sys.stderr.write(f"\r\x1b[2K{'⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏'[turn % 10]} {current[0]}")
                sys.stderr.flush()
            elif turn % 100 == 0:
                note(f"… {current[0]}")
            if done.wait(0.1):
                break
        if live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def change(new: str) -> None:
        current[0] = new

    shower = threading.Thread(target=show, name="progress", daemon=True)
    shower.start()
    try:
        yield change
    finally:
        done.set()
        shower.join()


def size(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
