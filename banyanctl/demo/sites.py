"""The processes of the demo: real controllers, started as a user would start them, each with a data folder of its own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from banyanctl.client import Client
from banyanctl.credential import Endpoint
from banyanctl.demo import processes, words
from banyanctl.demo.wire import Wire
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from cluster_controller.errors import BanyanError, Unreachable

START_SECONDS = 60.0
POLL_SECONDS = 0.1
KILL_SECONDS = 0.05
KILL_ROUNDS = 100
STOP_SECONDS = 10.0


class Plan(Struct, frozen=True, kw_only=True):
    """One site of the demo."""

    name: str
    parent: str = ""
    labels: str = ""
    environment: dict[str, str] = {}
    leaf: bool = False


class Site:
    """A controller of the demo, its folder, and the wire to its parent."""

    def __init__(self, plan: Plan, folder: Path, wire: Wire | None) -> None:
        self.plan = plan
        self.name = plan.name
        self.folder = folder
        self.wire = wire
        self.process: subprocess.Popen[bytes] | None = None

    # --- commands ---

    def banyan(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "banyanctl", "--data", str(self.folder), *arguments]

    async def run(self, *arguments: str) -> str:
        """A `banyan` command against this site; its standard output. Unreachable carries what it said when it fails."""
        code, out, err = await words.output(self.banyan(*arguments), self._environment())
        if code != 0:
            raise Unreachable(f"banyan {' '.join(arguments[:3])} at {self.name} failed: {err.strip()[-600:]}")
        return out

    # --- life ---

    def launch(self, arguments: list[str]) -> None:
        """Start in the background; what it logs goes to a file beside its data."""
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True
            )

    def join(self, token: str, proxy: str) -> None:
        options = ["--name", self.name, "--api-listen", "127.0.0.1:0", "--proxy", proxy]
        options += ["--tunnel-listen", "" if self.plan.leaf else "127.0.0.1:0"]
        options += ["--labels", self.plan.labels] if self.plan.labels else []
        options += [] if self.plan.leaf else ["--shim", "none"]
        self.launch(self.banyan("join", token, *options))

    def start(self) -> None:
        self.launch([sys.executable, "-m", "banyanctl", "run", "--data", str(self.folder)])

    async def ready(self) -> None:
        """Until its API answers; Unreachable shows the end of its log when it does not come up."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise Unreachable(f"{self.name} ended with code {self.process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(BanyanError):
                if (await self.request("GET", "/readyz", timeout=2.0))[0] == 200:
                    return
            await asyncio.sleep(POLL_SECONDS)
        raise Unreachable(f"{self.name} did not come up within {START_SECONDS:g} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = 12) -> str:
        with contextlib.suppress(OSError):
            text = (self.folder.parent / f"{self.name}.log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""

    def everything(self) -> list[int]:
        """Pids of all that runs out of this site's folder: controller, supervisor, instances and what those started."""
        found = {self.process.pid} if self.process is not None and self.process.poll() is None else set()
        return sorted(found | {process.pid for process in processes.below(self.folder)})

    def kill_everything(self) -> int:
        """SIGKILL, as a power cut would; returns how many processes died. BanyanError names what does not die."""
        died: set[int] = set()
        for _ in range(KILL_ROUNDS):  # what was being started while the first round went by is seen by the next
            pids = self.everything()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait()
            if not pids:
                return len(died)
            died.update(pids)
            time.sleep(KILL_SECONDS)
        raise Unreachable(f"processes {', '.join(map(str, self.everything()))} of {self.name} do not end, not even by SIGKILL")

    async def stop(self) -> None:
        """Controller first, then what it runs. What does not end by itself is killed, and said: Unreachable."""
        trouble: Exception | None = None
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.process.wait, STOP_SECONDS)
        if (self.folder / "process").exists():
            from cluster_shim.contract import ShimError
            from cluster_shim.process import client

            try:
                await asyncio.to_thread(client.end, self.folder / "process", 2.0)
            except (OSError, ShimError) as error:
                trouble = error
        await asyncio.to_thread(self.kill_everything)
        if trouble is not None:
            raise Unreachable(f"what {self.name} ran did not end by itself, and was killed: {trouble}")

    # --- its API ---

    @property
    def endpoint(self) -> Endpoint:
        return read(self.folder / ADMIN_KUBECONFIG)

    async def request(self, method: str, path: str, body: Any = None, timeout: float = 10.0) -> tuple[int, bytes]:
        """One request with the site's own admin credential."""

        def ask() -> tuple[int, bytes]:
            with Client(self.endpoint, timeout) as client:
                data = None if body is None else json.dumps(body).encode()
                answer = client.request(method, path, body=data, headers={"Content-Type": "application/json"} if data else None)
                return answer.status, answer.body

        return await asyncio.to_thread(ask)

    async def get(self, path: str) -> Any:
        def ask() -> Any:
            with Client(self.endpoint) as client:
                return client.json("GET", path)

        return await asyncio.to_thread(ask)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BANYAN_") and not key.lower().endswith("_proxy")}
        return kept | {"BANYAN_LOG_FORMAT": "human", "PYTHONDONTWRITEBYTECODE": "1"} | dict(self.plan.environment)
