"""What the testbed needs of the machine itself: Debian packages, found or installed, or named as missing.

Nothing here relies on what somebody left on a machine: `install` puts everything in place where it may, and otherwise `Missing` names each
thing and the command that brings it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tools.needs import Missing

APT_SECONDS = 600
ADMINISTRATORS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # a user's PATH on Debian lacks them
CNI_PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))

# What must be there → the Debian package that brings it.
NODE = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "tc": "iproute2",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "socat": "socat",
    "nsenter": "util-linux",
    "mount": "mount",
    "busybox": "busybox-static",
    "cc": "gcc libc6-dev",
}
CNI_PACKAGE = "containernetworking-plugins"


def program(name: str) -> Path | None:
    """Where a program of the system is, also one that only administrators have on their PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{ADMINISTRATORS_PATH}")
    return Path(found) if found else None


def require(name: str) -> str:
    """The path of a program. Raises Missing with the package that brings it."""
    if found := program(name):
        return str(found)
    raise Missing(f"{name} is not installed (Debian: apt-get install {NODE.get(name, name)}; `make testbed` does it as root)")


def cni_plugins() -> Path:
    """The folder of the CNI plugins. Raises Missing."""
    for folder in CNI_PLUGINS:
        if (folder / "bridge").exists() and (folder / "host-local").exists():
            return folder
    raise Missing(f"the CNI plugins are not installed (Debian: apt-get install {CNI_PACKAGE}; `make testbed` does it as root)")


def lacking() -> list[str]:
    """Debian packages that a whole node needs and that are not here."""
    packages = {package for name, text in NODE.items() if program(name) is None for package in text.split()}
    try:
        cni_plugins()
    except Missing:
        packages.add(CNI_PACKAGE)
    return sorted(packages)


def install(packages: Iterable[str]) -> None:
    """Install Debian packages. Raises Missing where that is not possible, with the command that a person must give."""
    wanted = sorted(packages)
    if not wanted:
        return
    command = f"apt-get install --no-install-recommends {' '.join(wanted)}"
    if os.geteuid() != 0 or program("apt-get") is None:
        raise Missing(f"these Debian packages are missing: {', '.join(wanted)}; as root: {command}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # a package's own service must not start
    for argv in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]):
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=APT_SECONDS, check=False)
        if done.returncode != 0:
            raise Missing(f"{' '.join(argv)} failed: {done.stderr.strip()[-500:]}; install by hand: {command}")


def node() -> None:
    """Raises Missing unless a whole node can be started here."""
    if os.geteuid() != 0:
        raise Missing("a member with a node of its own makes namespaces and cgroups; run it as root")
    if packages := lacking():
        raise Missing(
            f"these Debian packages are missing: {', '.join(packages)}; as root: make testbed, or apt-get install {' '.join(packages)}"
        )
