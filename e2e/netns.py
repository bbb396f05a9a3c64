"""Networks of one's own for end-to-end tests: namespaces, links between them, shaping, cuts and NAT. Needs root.

A test enters a namespace (`Namespace.entered`) to start a program or to open a connection there; a process keeps the network
it was started in, a socket the one it was made in, so no address of the machine itself is ever used.
Everything carries the pid and start time of its owner in its name: what a killed test run left behind is recognised by the next
one (`sweep`), which ends the processes in those namespaces and nothing else.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2e.cable import Cable

PREFIX = "banyan-test"
MINE = re.compile(rf"{PREFIX}-(\d+)-(\d+)-\S+")
CLONE_NEWNET = 0x40000000
BURST = "32kb"  # more than 20 Mbit/s are in one tick of a slow kernel clock
_libc = ctypes.CDLL(None, use_errno=True)


def command(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr.strip() or done.returncode}"
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    name: str

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts meanwhile, is in the namespace."""
        with Path("/proc/thread-self/ns/net").open("rb") as home, Path("/run/netns", self.name).open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def run(self, *arguments: str) -> str:
        with self.entered():
            return command(*arguments)

    def pids(self) -> list[int]:
        return [int(pid) for pid in command("ip", "netns", "pids", self.name).split()]

    def default_route(self, via: str) -> None:
        self.run("ip", "route", "replace", "default", "via", via)

    def masquerade(self, device: str) -> None:
        """A router that hides what is behind it: what leaves by ``device`` has this namespace's address, and nothing comes in unasked."""
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.run("nft", "add table ip hide; add chain ip hide out { type nat hook postrouting priority 100; }")
        self.run("nft", f'add rule ip hide out oifname "{device}" masquerade')
        self.run("nft", "add chain ip hide through { type filter hook forward priority 0; }")
        self.run("nft", f'add rule ip hide through iifname "{device}" ct state new drop')


@dataclass(frozen=True)
class End:
    """One end of a link."""

    space: Namespace
    device: str
    address: str

    def shape(self, rate: str, queue_bytes: int, burst: str = BURST) -> None:
        """What leaves here leaves at ``rate`` (tc's notation); so much waits in the queue, the rest is dropped."""
        limit = str(queue_bytes)
        self.space.run("tc", "qdisc", "replace", "dev", self.device, "root", "tbf", "rate", rate, "burst", burst, "limit", limit)

    def unshape(self) -> None:
        self.space.run("tc", "qdisc", "delete", "dev", self.device, "root")

    def set(self, state: str) -> None:
        self.space.run("ip", "link", "set", self.device, state)


@dataclass(frozen=True)
class Link:
    upper: End
    lower: End

    def shape(self, rate: str, queue_bytes: int = 1 << 20, burst: str = BURST) -> None:
        """Both ways. The queue is long on purpose: as in a cheap modem, whoever fills it makes everybody wait."""
        for end in (self.upper, self.lower):
            end.shape(rate, queue_bytes, burst)

    def unshape(self) -> None:
        for end in (self.upper, self.lower):
            end.unshape()

    def cut(self) -> None:
        """Nothing passes and nobody is told: connections stay open on both sides until somebody's patience ends."""
        for end in (self.upper, self.lower):
            self._drop(end, ("input", "output"))

    def cut_down(self) -> None:
        """What the upper end sends is lost; what the lower end sends arrives."""
        self._drop(self.lower, ("input",))

    def cut_up(self) -> None:
        """What the lower end sends is lost; what the upper end sends arrives."""
        self._drop(self.upper, ("input",))

    @staticmethod
    def _drop(end: End, hooks: tuple[str, ...]) -> None:
        table = f"cut_{end.device}"
        rules = [f"add table ip {table}", f"flush table ip {table}"]
        for hook in hooks:
            match = "iifname" if hook == "input" else "oifname"
            rules.append(f"add chain ip {table} {hook} {{ type filter hook {hook} priority -10; }}")
            rules.append(f'add rule ip {table} {hook} {match} "{end.device}" drop')
        end.space.run("nft", "; ".join(rules))

    def lose(self, percent: int) -> None:
        """So many of a hundred packets that come, either way and at random. Until the namespaces end."""
        for end in (self.upper, self.lower):
            table = f"lose_{end.device}"
            end.space.run("nft", f"add table ip {table}; flush table ip {table}")
            end.space.run("nft", f"add chain ip {table} input {{ type filter hook input priority -5; }}")
            end.space.run("nft", f'add rule ip {table} input iifname "{end.device}" numgen random mod 100 < {percent} counter drop')

    def lost(self) -> int:
        """Packets that `lose` took."""
        tables = [end.space.run("nft", "list", "table", "ip", f"lose_{end.device}") for end in (self.upper, self.lower)]
        return sum(int(found) for table in tables for found in re.findall(r"counter packets (\d+)", table))

    def lose_none(self) -> None:
        """No more packets are lost."""
        for end in (self.upper, self.lower):
            end.space.run("nft", f"delete table ip lose_{end.device}")

    def mend(self) -> None:
        """The end of any cut."""
        for end in (self.upper, self.lower):
            end.space.run("nft", f"add table ip cut_{end.device}; delete table ip cut_{end.device}")


class Fabric:
    """Namespaces and links of one test module."""

    def __init__(self) -> None:
        self._mark = f"{PREFIX}-{os.getpid()}-{started(os.getpid())}"
        self._spaces: dict[str, Namespace] = {}
        self._cables: list[Cable] = []
        self._links = 0

    def namespace(self, name: str) -> Namespace:
        space = self._spaces[name] = Namespace(f"{self._mark}-{name}")
        command("ip", "netns", "add", space.name)
        space.run("ip", "link", "set", "lo", "up")
        return space

    def link(self, upper: Namespace, lower: Namespace) -> Link:
        """A cable between two namespaces, with an address at each end."""
        self._links += 1
        number = self._links
        ends = (End(upper, f"down{number}", f"10.77.{number}.1"), End(lower, f"up{number}", f"10.77.{number}.2"))
        command(
            "ip", "link", "add", "name", ends[0].device, "netns", upper.name, "type", "veth",
            "peer", "name", ends[1].device, "netns", lower.name,
        )  # fmt: skip
        return _up(Link(*ends))

    def cable(self, upper: Namespace, lower: Namespace) -> "tuple[Link, Cable]":
        """A link over a `Cable`, whose length and widest packet can be changed."""
        from e2e.cable import Cable

        self._links += 1
        number = self._links
        ends = (End(upper, f"down{number}", f"10.77.{number}.1"), End(lower, f"up{number}", f"10.77.{number}.2"))
        cable = Cable(*((end.space, end.device) for end in ends))
        self._cables.append(cable)
        return _up(Link(*ends)), cable

    def destroy(self) -> None:
        for cable in self._cables:
            cable.close()
        for space in self._spaces.values():
            _remove(space)


def _up(link: Link) -> Link:
    for end in (link.upper, link.lower):
        end.space.run("ip", "address", "add", f"{end.address}/30", "dev", end.device)
        end.set("up")
    return link


@contextlib.contextmanager
def weaving() -> Iterator[Fabric]:
    sweep()
    fabric = Fabric()
    try:
        yield fabric
    finally:
        fabric.destroy()


def sweep() -> list[str]:
    """End and remove what test runs left behind that are no more; their namespaces' names."""
    swept = []
    for line in command("ip", "netns", "list").splitlines():
        name = line.split()[0] if line.split() else ""
        found = MINE.fullmatch(name)
        if found is not None and started(int(found[1])) != int(found[2]):
            _remove(Namespace(name))
            swept.append(name)
    return swept


def _remove(space: Namespace) -> None:
    """Its processes end, then the namespace goes and its links with it."""
    for _ in range(100):
        pids = space.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.05)
    command("ip", "netns", "delete", space.name)


def started(pid: int) -> int:
    """When the process began, in the kernel's ticks; 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return 0


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
