"""A test that fails beside others is tried once more alone; one that is broken stays so."""

from pathlib import Path

import pytest

from tools import check

ONCE = "def test_once(tmp_path):\n    assert flag.exists() or flag.touch()\n"
NEVER = "def test_never():\n    assert False\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:xdist -p no:cov\n", encoding="utf-8")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "WORKERS", ())
    monkeypatch.setattr(check, "LAST_FAILED", tmp_path / ".pytest_cache" / "v" / "cache" / "lastfailed")
    return tmp_path


@pytest.mark.parametrize(
    ("tests", "passes", "runs"), [(ONCE, True, 2), (NEVER, False, 2), (ONCE + NEVER, False, 2), ("def test_fine():\n    pass\n", True, 1)]
)
def test_what_fails_is_tried_once_more(project: Path, capfd: pytest.CaptureFixture[str], tests: str, passes: bool, runs: int) -> None:
    header = f"import pathlib\nflag = pathlib.Path({str(project / 'flag')!r})\n"
    (project / "test_some.py").write_text(header + tests, encoding="utf-8")
    assert check.twice(".") is passes
    said = capfd.readouterr()
    assert said.out.count("test session starts") == runs
    assert ("tried alone: test_some.py::test_" in said.err) is (runs == 2)


def test_many_that_fail_together_are_no_accident(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = "".join(f"def test_{number}():\n    assert False\n" for number in range(check.MOST_TRIED_AGAIN + 1))
    (project / "test_some.py").write_text(broken, encoding="utf-8")
    assert check.twice(".") is False
    assert capfd.readouterr().out.count("test session starts") == 1
