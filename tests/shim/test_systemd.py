"""The unit is one that systemd accepts, and it does not kill what must survive."""

import subprocess
from pathlib import Path

import pytest

from cluster_shim.contract import ShimError
from cluster_shim.process.systemd import unit
from tools import needs


def test_it_ends_the_controller_alone_and_delegates_its_group() -> None:
    lines = unit(["/usr/bin/env", "run"], name="edge-1").splitlines()
    assert "KillMode=process" in lines
    assert "Delegate=cpu memory" in lines
    assert "OOMPolicy=continue" in lines
    assert "Restart=always" in lines
    assert "Type=notify" in lines
    assert "RestartPreventExitStatus=2 3" in lines  # InvalidInput, NotFound: only a person helps


def test_it_puts_no_sandbox_around_the_applications() -> None:
    """Whatever the unit forbids, it forbids to what runs on the site."""
    text = unit(["/usr/bin/env", "run"])
    for flag in (
        "Protect",
        "Private",
        "NoNewPrivileges",
        "Restrict",
        "SystemCallFilter",
        "CapabilityBoundingSet",
        "ReadOnly",
        "Memory",
        "Tasks",
    ):
        assert f"\n{flag}" not in text


@pytest.mark.needs("systemd-analyze")
def test_systemd_accepts_a_program_with_spaces_and_a_user(tmp_path: Path) -> None:
    program = tmp_path / "my apps" / "ban yan"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "banyan-edge-1.service"
    path.write_text(unit([str(program), "run", "--data", str(tmp_path / "a b")], user="daemon"))
    assert f'ExecStart="{program}" run --data "{tmp_path}/a b"\nUser=daemon\n' in path.read_text()
    done = subprocess.run([needs.systemd_analyze(), "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, "banyan-edge-1" in done.stderr) == (0, False), done.stderr


@pytest.mark.needs("systemd-analyze")
def test_systemd_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / "banyan.service"
    path.write_text(unit(["/usr/bin/env", "banyan", "run", "--data-dir", '/srv/a "b" $HOME %h\\x'], name="100% edge"))
    done = subprocess.run([needs.systemd_analyze(), "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    assert "banyan.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_words_reach_the_program_as_they_were_given() -> None:
    (line,) = (line for line in unit(["/bin/x", "a b", "%h", "$HOME", '"', "\\"]).splitlines() if line.startswith("ExecStart="))
    assert unit(["/opt/$x/%y"]).count("ExecStart=/opt/$x/%%y\n") == 1
    assert line == 'ExecStart=/bin/x "a b" %%h $$HOME "\\"" "\\\\"'


@pytest.mark.parametrize("command", [[], ["banyan", "run"], ["/bin/x", "a\nExecStartPre=/bin/evil"]])
def test_what_cannot_be_written_is_refused(command: list[str]) -> None:
    with pytest.raises(ShimError):
        unit(command)
