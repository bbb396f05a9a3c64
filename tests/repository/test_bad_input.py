"""`docs/bad-input.md` names the test of each bad input: they exist, under those names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "bad-input.md"
NAMED = sorted(set(re.findall(r"`((?:tests|e2e)/[\w/]+\.py(?:::\w+)?)`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", NAMED)
def test_the_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in functions if function else any(each.startswith("test_") for each in functions)


def test_every_line_of_the_tables_names_one() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) > 40
    assert [row for row in rows if not re.search(r"`(tests|e2e)/", row)] == []
