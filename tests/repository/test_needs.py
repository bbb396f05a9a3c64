"""What a machine cannot test is named with the reason; where CI says that it is CI, that is a failure."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import needs

ROOT = Path(__file__).parent.parent.parent
TEST = """
import pytest
from tools import needs

def missing():
    raise needs.Missing("no such tool here; get it from the moon")

needs.TOOLS["moonstone"] = missing

@pytest.mark.needs("moonstone")
def test_with_a_moonstone():
    raise AssertionError("it ran without its tool")

def test_without():
    pass
"""


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_a_test_that_lacks_its_tool_is_named_and_in_ci_it_fails(tmp_path: Path, ci: str, code: int) -> None:
    (tmp_path / "test_moon.py").write_text(TEST, encoding="utf-8")
    argv = [sys.executable, "-m", "pytest", "-p", "tools.needs", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {"CI": ci, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*argv, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "it ran without its tool" not in done.stdout
    if ci:
        assert "needs moonstone: no such tool here; get it from the moon" in done.stdout
    else:
        assert "left out, for want of moonstone: no such tool here; get it from the moon:" in done.stdout
        assert "test_moon.py::test_with_a_moonstone" in done.stdout


# --- every test that needs something says so ---

TESTS = sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "e2e").rglob("test_*.py")])
USES = {"needs.kubectl": "kubectl", ".kubectl": "kubectl", "needs.go": "go", "needs.cc": "cc", "needs.systemd_analyze": "systemd-analyze"}


def used(tree: ast.AST) -> set[str]:
    """Tools that a piece of code calls by way of tools/needs.py, or of `Site.kubectl`."""
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {tool for name in called for ending, tool in USES.items() if name.endswith(ending)}


def unmarked(module: ast.Module) -> list[str]:
    """Tests that call a tool, themselves or by a function or fixture of their module, without the mark."""
    by_name = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    said = "\n".join(ast.unparse(node) for node in module.body if isinstance(node, ast.Assign))
    found = []
    for name, node in by_name.items():
        if not name.startswith("test_"):
            continue
        reached, waiting = set(), [name]
        while waiting:
            if (one := waiting.pop()) in by_name and one not in reached:
                reached.add(one)
                waiting += [inner.id for inner in ast.walk(by_name[one]) if isinstance(inner, ast.Name)]
                waiting += [inner.arg for inner in ast.walk(by_name[one]) if isinstance(inner, ast.arg)]
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        marks = said + "\n".join(ast.unparse(mark) for mark in node.decorator_list)
        wanted = set().union(*(used(by_name[one]) for one in reached))
        found += [f"{name} needs {tool}" for tool in sorted(wanted) if f"needs('{tool}')" not in marks]
    return found


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_test_is_left_out_by_its_mark_alone(path: Path) -> None:
    """A skip of one's own is silent, even where CI runs."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert unmarked(module) == []
    calls = {ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    assert not calls & {"pytest.mark.skipif", "pytest.mark.skip", "pytest.importorskip"}
    if path.name not in OF_THE_TESTBED:
        assert "pytest.skip" not in calls
    if path != Path(__file__):
        assert not {ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.Call)} & {
            f"shutil.which('{tool}')" for tool in needs.TOOLS
        }


# Its members are many tools at once, which e2e/testbed finds and names.
OF_THE_TESTBED = ("test_demo_kubernetes.py",)


def test_a_missing_mark_is_found() -> None:
    text = (
        "def helper(site):\n    site.kubectl('get')\n"
        "def test_a(root):\n    helper(root)\n"
        "@pytest.mark.needs('kubectl')\ndef test_b(root):\n    helper(root)\n"
        "def test_c(root):\n    root.get('/')\n"
    )
    assert unmarked(ast.parse(text)) == ["test_a needs kubectl"]


def test_what_was_found_elsewhere_is_called_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tmp_path / "cache" / "kubectl"
    built.parent.mkdir()
    built.write_text("#!/bin/sh\n")
    built.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("kubectl") is None
    needs.put_on_path(built)
    assert shutil.which("kubectl") == str(built)
    before = os.environ["PATH"]
    needs.put_on_path(built)
    assert os.environ["PATH"] == before


def test_a_kubectl_of_a_person_is_taken_and_one_too_old_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(needs, "go", lambda: (_ for _ in ()).throw(needs.Missing("no Go")))
    monkeypatch.setattr(needs.shutil, "which", lambda name, **_: str(tmp_path / name))
    program = tmp_path / "kubectl"
    program.write_text('#!/bin/sh\necho \'{"clientVersion": {"major": "1", "minor": "29+"}}\'\n')
    program.chmod(0o755)
    with pytest.raises(needs.Missing, match=r"no kubectl 1\.30\+ on the PATH or as \$BANYAN_KUBECTL, and none can be built: no Go"):
        needs.kubectl.__wrapped__()
    program.write_text(program.read_text().replace("29+", "34"))
    assert needs.kubectl.__wrapped__() == program
    program.write_text("no program")
    with pytest.raises(needs.Missing):
        needs.kubectl.__wrapped__()
