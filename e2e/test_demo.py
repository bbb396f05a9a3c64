"""`banyan demo` as a reader sees it: it plays to its end, what it shows can be typed, and nothing of it stays."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banyanctl.demo import ports
from e2e.support import ROOT, until
from e2e.telling import Telling

PLAY_SECONDS = 240.0
STEPS = ("1. six clusters join", "3. one HTTPS call", "5. the link above region-a", "7. the link heals")


class Demo(Telling):
    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        argv = [sys.executable, "-m", "banyanctl", "demo", "--folder", str(folder), *options]
        super().__init__(argv, folder.with_suffix(".said"), PLAY_SECONDS)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def left(self) -> list[str]:
        """What still runs out of its folder."""
        return running_out_of(self.folder)


def running_out_of(folder: Path) -> list[str]:
    """Whatever has to do with it: by its command line, its environment, or the folder that it works in."""
    found, mark = [], str(folder).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                works_there = (entry / "cwd").readlink().is_relative_to(folder)
                if works_there or mark in command or mark in (entry / "environ").read_bytes():
                    found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    made: list[Demo] = []

    def start(name: str, *options: str) -> Demo:
        made.append(Demo(tmp_path / name, *options))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.end(signal.SIGTERM)


def commands_after(text: str, mark: str) -> list[str]:
    """The commands that a demo shows after ``mark``, whole, though some go on in the next lines."""
    part = text[text.index(mark) :]
    return [re.sub(r"\\\n +", "", found) for found in re.findall(r"^  \$ ((?:.*\\\n)*.*)$", part, re.MULTILINE)]


@pytest.mark.needs("kubectl")
def test_it_plays_to_its_end_and_every_command_that_it_leaves_to_try_works(demo: Callable[..., Demo], kubectl: Path) -> None:
    """Beside it a second demo plays, and is ended by the terminal that goes away: neither disturbs the other."""
    first = demo("one", "--keep")
    second = demo("two")
    second.wait_for("✓ running on edge-1 and edge-3")
    assert second.end(signal.SIGHUP) == 130
    assert second.left() == []
    first.wait_for("The tree is running")
    said = first.said()
    assert "route root, region-" in said and "happy, confidence 0.99" in said
    assert re.search(r"edge-1 +○ Unknown +heard \d+s ago .*broken: root → region-a", said), said
    assert re.search(r"edge-1 came to version 2: \d{2,} requests, 0 failed", said), said
    assert "nothing runs twice: 2 processes of emotion and 1 of beacon" in said
    assert re.search(r"reports of region-a since the link healed: [1-9]\d* applied at the root, \d+ that came again were dropped", said), (
        said
    )
    assert re.search(r"edge-1 → region-a +[\d,]+ +[\d,]{6,}", said), said
    time_to_try = "In another terminal"
    until("all commands are shown", lambda: "get pods" in first.said()[first.said().index(time_to_try) :])
    tried = commands_after(first.said(), time_to_try)
    assert len(tried) >= 8
    environment = os.environ | {"PATH": f"{kubectl.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "set -eu\n" + "\n".join(f"echo '$ '{number}\n{line}" for number, line in enumerate(tried))
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{tried}\n{done.stdout}\n{done.stderr}"
    assert '"kind":"Application"' in done.stdout and "edge-2" in done.stdout and "lit" in done.stdout
    assert first.end(signal.SIGINT) == 0
    assert first.left() == []


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_in_any_step_leaves_no_process(demo: Callable[..., Demo], step: str) -> None:
    played = demo("played")
    played.wait_for(step)
    # Somewhere inside the step: where exactly is left to chance, for there is no safe place to be interrupted at.
    time.sleep(int.from_bytes(os.urandom(1)) / 256)
    assert played.end(signal.SIGINT) == 130, played.said()
    assert played.left() == []


def test_in_a_terminal_it_is_drawn_and_nothing_is_cut_off_at_its_edge(tmp_path: Path) -> None:
    """A pseudo-terminal of 80 columns, and Ctrl-C as the terminal sends it: to all of the foreground at once."""
    folder = tmp_path / "drawn"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "banyanctl", "demo", "--folder", str(folder)],
            os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"},
        )
    said = b""
    try:
        while b"2. " not in re.sub(rb"\x1b\[[0-9;]*m", b"", said):
            said += os.read(terminal, 65536)
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # the end of a terminal is an error, not an empty read
            while more := os.read(terminal, 65536):
                said += more
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    assert "\x1b[" in said.decode() and "╭" in text
    assert "reboots in the dark, and heals" in " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())
    assert running_out_of(folder) == []


def test_a_folder_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    argv = [sys.executable, "-m", "banyanctl", "demo", "--folder", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not empty; name a new folder" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "mine").read_text() == "precious"


def test_two_demos_never_choose_one_port_and_a_used_one_is_passed_over() -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.3", 0))
        taken = int(used.getsockname()[1])
        first, claim = ports.claim_port(taken)
        second, other = ports.claim_port(taken)
        assert taken < first < second
        other.close()
        claim.close()
        again, claim = ports.claim_port(taken)
        assert again == first
        claim.close()
