"""What a machine cannot test is named with the reason; where CI says that it is CI, that is a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
