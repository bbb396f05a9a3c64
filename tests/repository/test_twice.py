"""An end-to-end test that fails beside others is tried once more alone, and named at the end; one that is broken or exact stays so."""

from pathlib import Path

import pytest

from tools import check

ONCE = "def test_once(tmp_path):\n    assert flag.exists() or flag.touch()\n"
NEVER = "def test_never():\n    assert False\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:xdist -p no:cov\n", encoding="utf-8")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "LAST_FAILED", tmp_path / ".pytest_cache" / "v" / "cache" / "lastfailed")
    monkeypatch.setattr(check, "PASSED_ALONE", tmp_path / "build" / "passed-alone")
    monkeypatch.delenv("CI", raising=False)
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
    check.say_what_passed_alone()
    alone = "failed beside others and passed only when tried alone, 1:\n  test_some.py::test_once\n"
    assert capfd.readouterr().err == (alone if passes and runs == 2 else "")
    check.say_what_passed_alone()
    assert capfd.readouterr().err == ""  # of this run alone


def test_ci_says_at_its_very_end_what_passed_only_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    (project / "test_some.py").write_text(f"import pathlib\nflag = pathlib.Path({str(project / 'flag')!r})\n{ONCE}", encoding="utf-8")
    assert check.twice(".")
    check.say_what_passed_alone()  # at the end of `make test`, and CI goes on
    assert check.PASSED_ALONE.read_text() == "test_some.py::test_once\n"
    script = (Path(__file__).parent.parent.parent / ".ci" / "run").read_text()
    assert script.index("rm -f build/passed-alone") < script.index("make test\n") < script.index("cat build/passed-alone")


def test_what_is_exact_is_not_tried_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    header = f"import pathlib\nimport pytest\nflag = pathlib.Path({str(project / 'flag')!r})\n@pytest.mark.exact\n"
    (project / "test_some.py").write_text(header + ONCE, encoding="utf-8")
    (project / "conftest.py").write_text("from e2e.conftest import pytest_configure, pytest_runtest_setup\n", encoding="utf-8")
    assert check.twice(".") is False
    assert "so it is not tried again" in capfd.readouterr().out


def test_no_unit_test_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []
    monkeypatch.setattr(check, "pytest", lambda *arguments, **_: bool(runs.append(arguments)))
    monkeypatch.setattr(check, "make_tools", lambda: None)
    monkeypatch.setattr(check.coverage_gate, "judge", lambda _: True)
    assert check.unit() is False
    assert [run[0] for run in runs] == ["tests"]


def test_many_that_fail_together_are_no_accident(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = "".join(f"def test_{number}():\n    assert False\n" for number in range(check.MOST_TRIED_AGAIN + 1))
    (project / "test_some.py").write_text(broken, encoding="utf-8")
    assert check.twice(".") is False
    assert capfd.readouterr().out.count("test session starts") == 1
