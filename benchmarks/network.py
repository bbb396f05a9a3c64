"""A link whose bytes are counted: a pair of interfaces into a network namespace, or the sockets' own counters.

With root the child lives in a namespace of its own and all that crosses is counted at the interface: Ethernet, IP, TCP, TLS, ARP, what
is sent again, everything. Without, `ss` gives the connection's bytes and segments, and each segment gets the headers of its layers.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec import Struct

HEADERS = 14 + 20 + 32  # Ethernet, IPv4, TCP with timestamps
SECONDS = 30


class Counter(Struct, frozen=True, kw_only=True):
    """``host``: what the parent listens on. ``prefix``: put before the commands of the child's side."""

    host: str
    prefix: tuple[str, ...]
    how: str
    interface: str = ""

    async def bytes(self, port: int) -> int:
        """Both ways since the beginning, of the link to ``port``."""
        return await asyncio.to_thread(self._interface if self.interface else self._sockets, port)

    def _interface(self, port: int) -> int:
        folder = Path(f"/sys/class/net/{self.interface}/statistics")
        return sum(int((folder / name).read_text(encoding="ascii")) for name in ("rx_bytes", "tx_bytes"))

    def _sockets(self, port: int) -> int:
        text = command("ss", "-tinHO", "state", "established", f"( sport = :{port} )")
        total = 0
        for line in text.splitlines():
            values = dict(word.partition(":")[::2] for word in line.split() if ":" in word)
            total += int(values.get("bytes_sent", 0)) + int(values.get("bytes_received", 0))
            total += HEADERS * (int(values.get("segs_out", 0)) + int(values.get("segs_in", 0)))
        return total


@contextlib.asynccontextmanager
async def counted(which: int = 0) -> AsyncIterator[Counter]:
    """``which``: tells apart those that one process has at the same time, at most four."""
    if os.geteuid() != 0 or not possible():
        if shutil.which("ss") is None:
            raise RuntimeError("neither network namespaces (root) nor `ss` are here; install iproute2")
        yield Counter(host="127.0.0.1", prefix=(), how="counted at the socket, 66 bytes of headers added for each segment")
        return
    number, base = os.getpid() % 250, 4 * which
    mark = f"{os.getpid()}{'abcd'[which]}"
    space, outside, inside = f"bench-{mark}", f"bo{mark}", f"bi{mark}"
    here, there = f"10.213.{number}.{base + 1}", f"10.213.{number}.{base + 2}"
    await asyncio.to_thread(_make, space, outside, inside, here, there)
    try:
        yield Counter(
            host=here, prefix=("ip", "netns", "exec", space), interface=outside, how="counted at the interface of a network namespace"
        )
    finally:
        await asyncio.to_thread(subprocess.run, ["ip", "netns", "del", space], timeout=SECONDS, check=False)
        await asyncio.to_thread(subprocess.run, ["ip", "link", "del", outside], timeout=SECONDS, check=False, capture_output=True)


def possible() -> bool:
    return (
        shutil.which("ip") is not None
        and subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=SECONDS, check=False).returncode == 0
    )


def _make(space: str, outside: str, inside: str, here: str, there: str) -> None:
    command("ip", "netns", "add", space)
    command("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
    # Router solicitations and the like are the interface's, not the link's.
    Path(f"/proc/sys/net/ipv6/conf/{outside}/disable_ipv6").write_text("1", encoding="ascii")
    command("ip", "netns", "exec", space, "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{inside}/disable_ipv6")
    command("ip", "addr", "add", f"{here}/30", "dev", outside)
    command("ip", "link", "set", outside, "up")
    command("ip", "-n", space, "addr", "add", f"{there}/30", "dev", inside)
    command("ip", "-n", space, "link", "set", inside, "up")
    command("ip", "-n", space, "link", "set", "lo", "up")


def command(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
