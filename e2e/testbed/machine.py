"""One member's machine: a folder that stays, and processes that are gone when the power is cut.

The other end of `keeper.py`: starts it, asks it, and finds the pids that its components have on this host.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e.testbed import host, registry

KEEPER = Path(__file__).parent / "keeper.py"
ANSWER_SECONDS = 30.0
API_PORT = 6443
LAN_ADDRESS = "192.168.50.10"  # the same at every site, as private addresses are


class MachineError(AssertionError):
    """The machine did not do what it was asked; the message says why. An assertion, so that a test that waits may ask again."""


class Machine:
    """Folder, addresses and processes of one member.

    With `node=True` it has process, mount, network, host name and IPC namespaces, and cgroups, of its own, behind a translating router;
    else a process namespace alone.
    """

    def __init__(self, name: str, *, node: bool) -> None:
        self.name = name
        self.node = node
        self.number, self.folder = registry.claim(name)
        self.address = registry.loopback(self.number)
        """Where this machine's tests reach it: a loopback address of its own."""
        self.wide_address = registry.wide(self.number)
        """Its address on the wide network, from which it calls out; nobody can call in."""
        self.cgroup = registry.cgroup(self.folder)
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._replies = b""

    # --- power ---

    def power_on(self) -> None:
        if self._control is not None:
            raise MachineError(f"{self.name} is on already")
        ours, theirs = socket.socketpair()
        owner = os.pidfd_open(os.getpid())
        door = socket.create_server((self.address, API_PORT), backlog=128) if self.node else None
        passed = [theirs.fileno(), owner, *([door.fileno()] if door else [])]
        description = self._description() | {"door": door.fileno() if door else None}
        argv = [sys.executable, "-I", "-S", str(KEEPER), json.dumps(description), str(theirs.fileno()), str(owner)]
        try:
            with (self.folder / "keeper.log").open("ab") as log:
                self._keeper = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=passed, start_new_session=True
                )
        finally:
            theirs.close()
            os.close(owner)
            if door:
                door.close()
        ours.settimeout(ANSWER_SECONDS)
        self._control, self._replies = ours, b""
        with self._lock:
            self._answer()

    def power_off(self) -> None:
        """Cut the power: everything that runs on it is dead when this returns."""
        control, keeper = self._control, self._keeper
        if control is None or keeper is None:
            return
        with self._lock:
            self._control = self._keeper = None
            with contextlib.suppress(OSError):
                control.sendall(b'{"op": "off"}\n')
            control.close()
        try:
            keeper.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def destroy(self) -> None:
        self.power_off()
        registry.release(self.folder)

    @property
    def is_on(self) -> bool:
        return self._control is not None

    # --- processes ---

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program by name; its output goes to `log(name)`. Raises MachineError when one of that name runs."""
        given = {"PATH": f"{os.environ.get('PATH', os.defpath)}:{host.ADMINISTRATORS_PATH}", "HOME": str(self.folder), "LANG": "C.UTF-8"}
        program = {
            "name": name,
            "argv": list(argv),
            "environment": given | dict(environment or {}),
            "log": str(self.log_path(name)),
            "folder": str(self.folder),
        }
        self._ask({"op": "start", "program": program})

    def signal(self, name: str, number: signal.Signals) -> None:
        self._ask({"op": "signal", "name": name, "signal": int(number)})

    def stop(self, name: str, seconds: float = 15.0) -> None:
        """SIGTERM, and SIGKILL for what has not ended then. Nothing happens when it does not run."""
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
            if not self.runs(name):
                return
            with contextlib.suppress(MachineError):  # it ended between the question and the signal
                self.signal(name, number)
                self.signal(name, signal.SIGCONT)  # one that is stopped hears no other signal
            deadline = time.monotonic() + patience
            while self.runs(name) and time.monotonic() < deadline:
                time.sleep(0.02)
        if self.runs(name):
            raise MachineError(f"{name} of {self.name} survives SIGKILL")

    def runs(self, name: str) -> bool:
        return name in self._ask({"op": "status"})["pids"]

    def running(self) -> list[str]:
        return sorted(self._ask({"op": "status"})["pids"])

    def exit_code(self, name: str) -> int | None:
        """Of a program that has ended; negative for a signal. None for one that runs, or never did."""
        code: int | None = self._ask({"op": "status"})["codes"].get(name)
        return code

    def host_pid(self, name: str) -> int:
        """The pid of a program as this host counts: for its memory in /proc."""
        inner = int(self._ask({"op": "status"})["pids"][name])
        for pid in self.host_pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
                    if line.startswith("NSpid:") and int(line.split()[-1]) == inner:
                        return pid
        raise MachineError(f"{name} of {self.name} is not in /proc")

    def host_pids(self) -> list[int]:
        """Every process of this machine, containers' too, as this host counts."""
        if not self.is_on:
            return []
        return registry.descendants(self._inner_pid())

    def log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log(self, name: str, lines: int = 30) -> str:
        """The last lines that a program printed."""
        path = self.log_path(name)
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` at this machine's site: in its network and on its disk. For short-lived programs of a test."""
        if not self.node:
            return list(argv)
        return [host.require("nsenter"), "--target", str(self._inner_pid()), "--mount", "--net", "--uts", "--ipc", "--pid", "--", *argv]

    def run(self, argv: Sequence[str], *, stdin: str | None = None, seconds: float = 60.0) -> str:
        """Run a program at the site; what it printed. Raises MachineError when it fails."""
        path = f"{os.environ.get('PATH', os.defpath)}:{host.ADMINISTRATORS_PATH}"
        done = subprocess.run(
            self.inside(argv), capture_output=True, text=True, input=stdin, timeout=seconds, check=False, env=os.environ | {"PATH": path}
        )
        if done.returncode != 0:
            raise MachineError(f"{' '.join(argv)} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    # --- the keeper ---

    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = {"folder": str(self.folder), "hostname": self.name, "cgroups": [], "network": None}
        if self.node:
            described["cgroups"] = [str(path) for path in registry.cgroup_folders(self.cgroup)]
            described["network"] = {
                "link": f"banyan{self.number}",
                "gateway": registry.WIDE_HOST,
                "address": self.wide_address,
                "lan": LAN_ADDRESS,
            }
        return described

    def _inner_pid(self) -> int:
        return int(json.loads((self.folder / "keeper.json").read_text(encoding="utf-8"))["inner"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._control is None:
                raise MachineError(f"{self.name} is off")
            self._control.sendall(json.dumps(request).encode() + b"\n")
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._control is not None
        while b"\n" not in self._replies:
            try:
                data = self._control.recv(65536)
            except TimeoutError:
                raise MachineError(f"the keeper of {self.name} does not answer") from None
            if not data:
                raise MachineError(f"the keeper of {self.name} has ended: {self.log('keeper') or 'without a word'}")
            self._replies += data
        line, self._replies = self._replies.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MachineError(f"{self.name}: {answer['error']}")
        return answer
