"""What is printed: plain where nobody looks at a terminal, colours where somebody does, and progress for what takes long."""

import os
import pty
import subprocess
import sys

import pytest

from banyanctl import output

TABLE = """
from banyanctl import output
output.table(("name", "status"), [("edge-1", "Ready"), ("edge-2", "Unknown"), ("[bold]", "")])
output.tree(output.Branch("root", "good", [], [output.Branch("edge-1", "bad", ["detail"], [])]))
"""


def on_a_terminal(code: str, **environment: str) -> str:
    """What a program writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    variables = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")} | {"TERM": "xterm"} | environment
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=variables) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # EIO: the program has ended
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode().replace("\r\n", "\n")


def test_a_table_and_a_tree_are_plain_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "status"), [("edge-1", "Ready"), ("x", None)])
    output.tree(output.Branch("root", "good", [], [output.Branch("a", "", [], [output.Branch("b")]), output.Branch("c", "", ["more"])]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["NAME     STATUS", "edge-1   Ready", "x        -"]
    assert lines[3:] == ["root", "├── a", "│   └── b", "└── c", "         more"]


def test_an_empty_table_says_so_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name",), [], empty="nothing here")
    assert capsys.readouterr() == ("", "nothing here\n")


def test_a_terminal_has_colours_and_the_same_words() -> None:
    seen = on_a_terminal(TABLE)
    assert "\x1b[32mReady" in seen
    assert "\x1b[31mUnknown" in seen
    assert "[bold]" in seen  # a name is never markup
    assert "└── edge-1" in seen


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_none_gets_none(environment: dict[str, str]) -> None:
    assert "\x1b[" not in on_a_terminal(TABLE, **environment)


def test_without_rich_the_same_words_come_out() -> None:
    assert "edge-2" in on_a_terminal("import sys; sys.modules['rich'] = None\n" + TABLE)


def test_what_is_quick_says_nothing_and_what_takes_long_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("waiting for the parent"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(output, "PATIENCE_SECONDS", 0.0)
    shown = output.threading.Event()
    monkeypatch.setattr(output, "note", lambda text: (shown.set(), print(text))[0])
    with output.progress("waiting for the parent"):
        assert shown.wait(10)
    assert "waiting for the parent" in capsys.readouterr().out


def test_data_is_the_whole_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit({"a": 1}, "json", lambda: print("never"))
    output.emit({"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "x"}}, {"name": "y"}]}, "name", lambda: print("never"))
    output.emit({"a": "ä"}, "yaml", lambda: print("never"))
    output.emit({}, "table", lambda: print("people"))
    assert capsys.readouterr().out == '{\n  "a": 1\n}\npod/x\ny\na: ä\npeople\n'
