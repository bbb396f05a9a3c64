"""`banyan join --install`: write the systemd unit of a controller, enable it, start it. What it says is the process shim's to know."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster_controller.errors import BanyanError, InvalidInput, NotFound
from cluster_shim.process.systemd import unit

SYSTEMCTL_SECONDS = 60


def unit_text(name: str, data: Path, program: Sequence[str]) -> str:
    """The unit file of the controller in ``data``."""
    command = [*program, "run", "--data", str(data), "--log-format", "human"]
    return unit(command, name=name, target="multi-user.target" if os.geteuid() == 0 else "default.target")


def unit_name(name: str) -> str:
    return f"banyan-{name}.service"


def unit_folder() -> Path:
    """The system's units for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def program() -> list[str]:
    """The command that starts this very installation."""
    beside = Path(sys.executable).with_name("banyan")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "banyanctl"]


def available() -> bool:
    """Whether systemd runs here and takes units of this user."""
    return Path("/run/systemd/system").is_dir()


def install(name: str, data: Path) -> Path:
    """Write the unit, enable and start it; returns its path. Writing the same unit again is harmless."""
    if not available():
        raise NotFound(f"systemd does not run here, so no unit was installed; start the controller with: banyan run --data {data}")
    path = unit_folder() / unit_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit_text(name, data, program()), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}; install as root, or without --install") from error
    scope = [] if os.geteuid() == 0 else ["--user"]
    for arguments in (["daemon-reload"], ["enable", "--now", path.name]):
        done = subprocess.run(["systemctl", *scope, *arguments], capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False)
        if done.returncode != 0:
            raise BanyanError(f"systemctl {' '.join(arguments)} failed: {done.stderr.strip()}; the unit is {path}")
    return path
