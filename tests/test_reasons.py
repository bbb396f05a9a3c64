"""One list of reasons: whatever the product decides is written with one of them, each is written somewhere, and people find all of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from banyanctl.happened import reasons
from cluster_controller.events import OTHER, Reason
from cluster_controller.resources.reasons import WARNINGS

ROOT = Path(__file__).parent.parent
LIST = ROOT / "cluster_controller" / "resources" / "reasons.py"
PAGE = ROOT / "docs" / "how-to" / "operate.md"
WRITERS = frozenset({"record", "record_status", "cluster", "cluster_event", "_event", "_announce", "_write"})


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "cluster_controller").rglob("*.py")):
        if path != LIST:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_each_is_written_somewhere() -> None:
    used = {
        node.attr
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    }
    assert used == {reason.name for reason in Reason}


def test_none_is_written_but_those() -> None:
    """Types say so of `record`; a word of a status may be anybody's, and must not be made up where the Event is written."""
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or _name(node.func) not in WRITERS:
                continue
            given = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            found += [f"{path.name}:{node.lineno}" for value in given for part in ast.walk(value) if isinstance(part, ast.Constant)]
    assert found == []


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def test_no_other_word_stands_for_one_of_them() -> None:
    """Where a reason of this list is told, it is told by its name, so that nobody can misspell it."""
    words = {reason.value for reason in Reason} - {"Ready", "Running", "Progressing"}  # words of conditions and phases too
    given = [
        (path, part.value)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "reason"
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant)
    ]
    assert [f"{path.name}: {word}" for path, word in given if word in words] == []


def test_the_page_for_people_has_all_of_them_and_says_which_warn() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (Normal|Warning) \| [^|]+ \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted((reason.value, "Warning" if reason in WARNINGS else "Normal") for reason in Reason)


def test_a_shell_completes_them() -> None:
    assert reasons("") == [reason.value for reason in Reason]
    assert reasons("roll") == ["RolloutWave", "RolloutComplete", "RolloutFailed", "RolledBack"]
    assert reasons("Adopted,ref") == ["Adopted,Refused", "Adopted,RefusalEnded"]
    assert OTHER not in reasons("")
