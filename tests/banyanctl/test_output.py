"""What is printed: plain where nobody looks at a terminal, colours where somebody does, and progress for what takes long."""

import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


WIDE = """
import fcntl, os, struct, sys, termios
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
from banyanctl import output
output.table(("cluster", "why", "what would help"), [
    ("edge-with-a-long-name-1", "is not one of the clusters that the placement names: edge-2", "add the cluster to placement.clusterNames"),
    ("e", "", "-"),
])
output.table(("name", "uid", "labels"), [("n" * 30, "u" * 30, "l" * 30)])
"""


def test_a_narrow_terminal_breaks_sentences_and_never_names() -> None:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(WIDE)).splitlines()
    assert max(len(line) for line in lines[:-1]) <= 80
    assert lines[1].startswith("edge-with-a-long-name-1   is not one of the")
    assert lines[2].startswith("   ")
    assert " ".join(" ".join(line[26:].split()) for line in lines[1:4]).count("placement.clusterNames") == 1
    assert lines[-1] == "   ".join(("n" * 30, "u" * 30, "l" * 30))  # what cannot fit is left to the terminal, whole


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=1, max_size=12), st.integers(0, 300))
def test_columns_fit_or_stay_as_they_are(columns: list[tuple[int, int]], room: int) -> None:
    widths, smallest = [max(pair) for pair in columns], [min(pair) for pair in columns]
    fitted = output.fit(widths, smallest, room)
    needed = sum(fitted) + len(output.GAP) * (len(fitted) - 1)
    assert fitted == widths or needed == room
    assert all(small <= now <= before for small, now, before in zip(smallest, fitted, widths, strict=True))
    if room and needed > room:
        least = sum(min(width, max(small, output.MIN_PROSE)) for width, small in zip(widths, smallest, strict=True))
        assert least + len(output.GAP) * (len(widths) - 1) > room


def test_truth_is_said_as_everywhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("approve",), [(True,), (False,)])
    assert capsys.readouterr().out == "APPROVE\ntrue\nfalse\n"


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
