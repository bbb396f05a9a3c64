"""The pages of bad input, resilience and promises name the test of each thing they say: it exists, under that name."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    ROOT / "docs" / "bad-input.md": 40,
    ROOT / "docs" / "contributing" / "promises.md": 30,
    ROOT / "docs" / "resilience.md": 25,
}  # and the rows each has at least
TEST = re.compile(r"`((?:tests|e2e)/[\w/]+\.py(?:::\w+)?)`")
NAMED = sorted({name for page in PAGES for name in TEST.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("name", NAMED)
def test_the_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in functions if function else any(each.startswith("test_") for each in functions)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_line_of_the_tables_names_one(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) >= PAGES[page]
    assert [row for row in rows if not TEST.search(row)] == []
