"""The table of figures in docs/resilience.md: made from what a run left, between its markers, and from nothing else."""

import json

import pytest

from tools import figures


def left(test: str, **found: str) -> str:
    return json.dumps({"test": test, "long": True, "figures": found})


def test_each_test_has_one_row_with_what_it_left_last() -> None:
    found = figures.read([left("b[up]", missed="9 s"), left("a", missed="1 s", healed="2 s"), left("b[up]", missed="3 s | 4"), left("c")])
    rows = ["missed: 1 s; healed: 2 s | `a`", "missed: 3 s \\| 4 | `b` up"]
    assert figures.table(found).splitlines()[2:] == [f"| as long as in life | {row} |" for row in rows]


def test_nothing_but_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"
    assert figures.write(text, "new\n") == f"before\n{figures.BEGIN}\nnew\n{figures.END}\nafter\n"
    with pytest.raises(ValueError, match="each once"):
        figures.write("no markers", "new\n")


def test_the_document_has_the_markers() -> None:
    figures.write(figures.DOCUMENT.read_text(encoding="utf-8"), "new\n")
