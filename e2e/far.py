"""A member behind NAT two hops from the root, an unmodified kubectl for it, and what every controller on the way says of itself.

The member is a real cluster with a real node in a network of its own; its controller runs there, beside it, and dials out.
"""

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.support import ROOT, Tree, until
from e2e.testbed import Member
from tools import needs

EDGE = "edge-k8s"
JOIN_SECONDS = 180.0  # a controller that starts beside a whole cluster on a busy machine
WEB = (
    "echo started; mkdir -p /www; hostname > /www/index.html; head -c 20000000 /dev/zero > /www/big;"
    " dd if=/dev/zero of=/www/huge bs=1 count=0 seek=1G 2>/dev/null;"
    " exec httpd -f -p 8080 -h /www"
)


class Far:
    """root, region, and a member at a site of its own."""

    def __init__(self, tree: Tree, member: Member) -> None:
        self.tree = tree
        self.member = member
        self.root = tree.root()
        self.region = tree.site("region-a", BANYAN_HEARTBEAT_SECONDS="2")
        self.region.join(self.root.token(), "--tunnel-listen", f"{member.wan_host}:0", "--shim", "none")
        self.region.wait()
        self.data = member.folder / "edge-controller"
        member.disown()
        self.run_edge("join", self.region.token(), "--name", EDGE, "--api-listen", "127.0.0.1:0", "--tunnel-listen", "",
                      "--shim", "kubernetes", "--kubeconfig", str(member.site_kubeconfig))  # fmt: skip
        until(f"{EDGE} is Ready", self.is_ready, JOIN_SECONDS)
        self.kubeconfig = tree.folder / "edge.kubeconfig"
        self.root.banyan("kubeconfig", EDGE, "--write", str(self.kubeconfig))

    def run_edge(self, *arguments: str) -> None:
        argv = [sys.executable, "-m", "banyanctl", "--data", str(self.data), *arguments]
        environment = {"PYTHONPATH": str(ROOT), "BANYAN_LOG_FORMAT": "human", "BANYAN_HEARTBEAT_SECONDS": "2"}
        self.member.run_at_site("edge", argv, environment)

    def is_ready(self) -> bool:
        status = self.root.clusters().get(EDGE, {})
        return bool(status.get("phase") == "Ready" and status.get("facts", {}).get("shim"))

    # --- programs ---

    def at_site(self, *arguments: str, stdin: str | None = None) -> str:
        """`banyan` at the member's own controller, on its own machine."""
        return self.member.machine.run([sys.executable, "-m", "banyanctl", "--data", str(self.data), *arguments], stdin=stdin)

    def argv(self, *arguments: str, kubeconfig: Path | None = None) -> list[str]:
        return [str(needs.kubectl()), "--kubeconfig", str(kubeconfig or self.kubeconfig), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        return kept | {"HOME": str(self.tree.folder)} | more

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None, **more: str) -> str:
        done = subprocess.run(
            self.argv(*arguments, kubeconfig=kubeconfig), capture_output=True, text=True, input=stdin, timeout=90, check=False,
            env=self.environment(**more),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self, *arguments: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """kubectl in the background, with its output in a pipe that nobody need read."""
        process = subprocess.Popen(
            self.argv(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment(**more)
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    # --- what is seen ---

    def streams(self) -> dict[str, float]:
        """Open streams at each hop, by the controller that counts and its peer."""
        found = {}
        texts = {site.name: str(site.ask("GET", "/metrics")[1], "utf-8") for site in (self.root, self.region)}
        texts[EDGE] = str(self.of_edge("/metrics"), "utf-8")
        for name, text in texts.items():
            for peer, count in re.findall(r'banyan_link_streams\{peer="([^"]+)"\} ([0-9.]+)', text):
                found[f"{name}-{peer}"] = float(count)
        return found

    def of_edge(self, path: str) -> bytes:
        """The member's controller's own API, from the root."""
        code, answer = self.root.ask("GET", f"/apis/banyan.dev/v1alpha1/clusters/{EDGE}/banyan{path}")
        assert code == 200, answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def audit(self, where: str) -> list[dict[str, Any]]:
        path = (self.root.folder if where == "entry" else self.data) / "audit.log"
        return [json.loads(line) for line in path.read_text().splitlines() if line]

    def pod(self) -> str:
        return self.kubectl(
            "get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}"
        )

    def losses(self) -> int:
        """How often a link was lost, as every controller on the way logs it."""
        logs = [self.root.log(100_000), self.region.log(100_000), self.member.log("edge", 100_000)]
        return sum(log.count("link.lost") for log in logs)

    def memory(self) -> dict[str, int]:
        """Resident bytes of every controller on the way."""
        assert self.root.process is not None and self.region.process is not None
        pids = {"root": self.root.process.pid, "region": self.region.process.pid, EDGE: self.member.machine.host_pid("edge")}
        return {name: _resident(pid) for name, pid in pids.items()}


def port_of(process: subprocess.Popen[bytes]) -> int:
    """The local port that kubectl says it listens on, whatever warnings it prints before."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(rb"127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    pytest.fail("kubectl ended without a port")


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


class Terminal:
    """What stands before a screen: types, and looks at what comes."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self.heard = b""

    def say(self, data: bytes) -> None:
        os.write(self._descriptor, data)

    def hear(self, mark: bytes, seconds: float = 60.0) -> bytes:
        deadline = time.monotonic() + seconds
        while mark not in self.heard.replace(b"\r", b""):
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{mark!r} did not come: {self.heard[-300:]!r}"
            self.heard += os.read(self._descriptor, 65536)
        return self.heard

    def ended(self, seconds: float = 60.0) -> int:
        return self._process.wait(seconds)


@contextlib.contextmanager
def terminal(argv: list[str], environment: dict[str, str]) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "77"], stdin=theirs, check=True)
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
