"""`banyan join --install` and `banyan leave`: the systemd unit of a controller, written, enabled, started, and taken away again.

What the unit says is the process shim's to know. A failure leaves no unit behind.
"""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster_controller.errors import BanyanError, Forbidden, InvalidInput, NotFound
from cluster_shim.process.systemd import unit

SYSTEMCTL_SECONDS = 120  # longer than a controller may take to start or to stop


def unit_text(name: str, data: Path, program: Sequence[str], user: str = "") -> str:
    """The unit file of the controller in ``data``. ``user``: who it and its applications run as; "" for whoever installs."""
    command = [*program, "run", "--data", str(data), "--log-format", "human"]
    return unit(command, name=name, user=user, target="multi-user.target" if os.geteuid() == 0 else "default.target")


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
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        return False
    return os.geteuid() == 0 or Path(os.environ.get("XDG_RUNTIME_DIR", "/nowhere"), "systemd").is_dir()


def require(data: Path, user: str) -> None:
    """NotFound where no unit can be installed. Asked before anything else is done: a token is good for one join."""
    if user:
        if os.geteuid() != 0:
            raise Forbidden(f"--user {user}: only root installs a unit for another user; leave it out for a unit of your own")
        _account(user)
    if not available():
        whose = "" if os.geteuid() == 0 else " for this user (log in as them, or install as root)"
        raise NotFound(
            f"systemd does not run here{whose}, so --install cannot be followed and nothing was done; join without it,"
            f" and let your supervisor of services start: banyan run --data {data}"
        )


def install(name: str, data: Path, user: str = "") -> Path:
    """Write the unit, enable and start it; returns its path. Writing the same unit again is harmless.

    With ``user`` the data folder becomes that user's.
    """
    if user:
        _hand_over(data, user)
    path = unit_folder() / unit_name(name)
    fresh = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit_text(name, data, program(), user), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}; install as root, or without --install") from error
    for arguments in (["daemon-reload"], ["enable", "--now", path.name]):
        if trouble := _systemctl(*arguments):
            if fresh:
                remove(name)
            state = "taken away again" if fresh else "left as it is"
            raise BanyanError(
                f"systemctl {' '.join(arguments)} failed: {trouble}; the site has joined, its unit was {state}."
                f" Run the same command again, or start the controller with: banyan run --data {data}"
            )
    return path


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise NotFound(f"--user {user}: there is no such user; make one with: useradd --system {user}") from None


def _hand_over(data: Path, user: str) -> None:
    """The folder and all in it; links themselves, never what they point to."""
    account = _account(user)
    for folder, _, files in os.walk(data):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def stop(name: str) -> None:
    """Stop the unit, where one is installed, and see that it is not started again. BanyanError when systemd does not."""
    if (unit_folder() / unit_name(name)).exists() and available() and (trouble := _systemctl("disable", "--now", unit_name(name))):
        raise BanyanError(f"systemctl disable --now {unit_name(name)} failed: {trouble}")


def remove(name: str) -> None:
    """Take the unit away, where one is installed."""
    path = unit_folder() / unit_name(name)
    if path.exists():
        if available():
            _systemctl("disable", path.name)
        path.unlink(missing_ok=True)
        if available():
            _systemctl("daemon-reload")


def _systemctl(*arguments: str) -> str:
    """What went wrong, or nothing."""
    scope = [] if os.geteuid() == 0 else ["--user"]
    try:
        done = subprocess.run(["systemctl", *scope, *arguments], capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
