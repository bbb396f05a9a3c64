"""The systemd unit of a controller: written and started by `banyan join --install`.

KillMode=process is what makes law 9 hold under systemd: stopping or restarting the unit ends the controller alone, and the
supervisor with its instances and listening sockets serves on. (The default, control-group, would end every application.)
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from cluster_controller.errors import BanyanError, InvalidInput, NotFound

SYSTEMCTL_SECONDS = 60


def unit_text(data: Path, program: str) -> str:
    """The unit file of the controller in ``data``."""
    command = f"{program} run --data {shlex.quote(str(data))} --log-format human"
    return f"""\
# Written by `banyan join --install`; settings of the controller are in {data}/banyan.toml.
[Unit]
Description=Banyan cluster controller ({data})
Documentation=https://banyan.dev/docs
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
Restart=always
RestartSec=1
# Ends the controller alone: applications, and the supervisor that holds their sockets, outlive every stop, restart and upgrade.
KillMode=process
# Applications may have their own limits below this unit's control group.
Delegate=yes
OOMPolicy=continue
TimeoutStopSec=30
UMask=0077
LimitNOFILE=65536

[Install]
WantedBy={"multi-user.target" if os.geteuid() == 0 else "default.target"}
"""


def unit_name(name: str) -> str:
    return f"banyan-{name}.service"


def unit_folder() -> Path:
    """The system's units for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def program() -> str:
    """The command that starts this very installation."""
    beside = Path(sys.executable).with_name("banyan")
    return shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m banyanctl"


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
        path.write_text(unit_text(data, program()), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}; install as root, or without --install") from error
    scope = [] if os.geteuid() == 0 else ["--user"]
    for arguments in (["daemon-reload"], ["enable", "--now", path.name]):
        done = subprocess.run(["systemctl", *scope, *arguments], capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False)
        if done.returncode != 0:
            raise BanyanError(f"systemctl {' '.join(arguments)} failed: {done.stderr.strip()}; the unit is {path}")
    return path
