"""Installing the unit: `systemctl` is a stand-in that writes down what it is asked (no test may touch this machine's systemd)."""

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from banyanctl import notify, systemd
from cluster_controller.errors import BanyanError, Forbidden, NotFound


class Manager:
    """``systemctl`` on the PATH, and a folder for units."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units, self.asked, self.refuses = folder / "units", folder / "asked", folder / "refuses"
        script = folder / "bin" / "systemctl"
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {self.asked}\n'
            f'if [ -e {self.refuses} ] && echo "$@" | grep -q "$(cat {self.refuses})"; then echo "Unit failed" >&2; exit 1; fi\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
        monkeypatch.setattr(systemd, "unit_folder", lambda: self.units)
        monkeypatch.setattr(systemd, "available", lambda: True)

    @property
    def said(self) -> list[str]:
        return [line.replace("--user ", "") for line in self.asked.read_text().splitlines()]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    return Manager(tmp_path, monkeypatch)


def test_a_unit_is_written_enabled_started_and_taken_away(manager: Manager, tmp_path: Path) -> None:
    path = systemd.install("edge-1", tmp_path / "da ta")
    assert path == manager.units / "banyan-edge-1.service"
    assert f'run --data "{tmp_path}/da ta"' in path.read_text()
    systemd.install("edge-1", tmp_path / "da ta")
    assert manager.said == ["daemon-reload", "enable --now banyan-edge-1.service"] * 2
    manager.asked.unlink()
    systemd.stop("edge-1")
    systemd.remove("edge-1")
    systemd.remove("edge-1")
    assert not path.exists()
    assert manager.said == ["disable --now banyan-edge-1.service", "disable banyan-edge-1.service", "daemon-reload"]


def test_a_unit_that_does_not_start_is_not_left_behind(manager: Manager, tmp_path: Path) -> None:
    manager.refuses.write_text("enable")
    with pytest.raises(BanyanError, match=r"Unit failed.*taken away again.*Run the same command again"):
        systemd.install("edge-1", tmp_path)
    assert list(manager.units.iterdir()) == []


def test_only_root_hands_a_folder_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "available", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Forbidden, match="only root"):
        systemd.require(tmp_path, "nobody")


@pytest.mark.needs("root")
def test_the_data_folder_is_handed_over_to_the_user(manager: Manager, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "identity").mkdir(parents=True)
    (data / "identity" / "identity.json").touch()
    outside = tmp_path / "outside"
    outside.touch()
    (data / "link").symlink_to(outside)
    text = systemd.install("edge-1", data, "nobody").read_text()
    assert "\nUser=nobody\n" in text
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {path.lstat().st_uid for path in (data, *data.rglob("*"))} == {nobody}
    assert outside.stat().st_uid == 0
    with pytest.raises(NotFound, match="no such user"):
        systemd.require(data, "nobody-at-all")


def test_without_systemd_nothing_is_done(tmp_path: Path) -> None:
    """The token is not even looked at, so it can be used again."""
    without = os.environ | {"PATH": str(tmp_path)}  # no systemctl, wherever this runs
    argv = [sys.executable, "-m", "banyanctl", "join", "banyan1nonsense", "--name", "edge-1", "--install", "--data", str(tmp_path / "edge")]
    done = subprocess.run(argv, env=without, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "systemd does not run here" in done.stderr and "nothing was done" in done.stderr
    assert not (tmp_path / "edge").exists()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    address = f"@banyan-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(f"\0{address[1:]}" if abstract else address)
        notify.tell(notify.READY, {"NOTIFY_SOCKET": address})
        assert sock.recv(64) == b"READY=1"
    notify.tell(notify.READY, {"NOTIFY_SOCKET": address})  # nobody listens any more
    notify.tell(notify.READY, {"NOTIFY_SOCKET": "vsock:2:1"})
    notify.tell(notify.READY, {})
