"""Real controllers as processes, real TLS, the real kubectl: what the end-to-end tests stand on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from banyanctl.client import Client
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from cluster_controller.errors import BanyanError
from tools import needs

ROOT = Path(__file__).parent.parent
EMOTION = ROOT / "examples" / "emotion"
SITE_PROGRAM = ROOT / "e2e" / "site_program.py"
API = "/apis/banyan.dev/v1alpha1"
APPS = f"{API}/namespaces/default/applications"
WAIT_SECONDS = 60.0
# Site ports are the same wherever a test runs: each worker of pytest-xdist has addresses of its own.
NEIGHBOURHOOD = 10 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def until(what: str, check: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Poll until ``check`` is true; its value. Fails with what did not come, and the last error."""
    deadline = time.monotonic() + seconds
    trouble = ""
    while time.monotonic() < deadline:
        trouble = ""
        try:
            if found := check():
                return found
        except (BanyanError, OSError, KeyError, AssertionError) as error:
            trouble = f" ({error})"
        time.sleep(0.05)
    pytest.fail(f"after {seconds:g} s it is still not so that {what}{trouble}")


class Site:
    """One controller process and its data folder. A branch whose parent is killed stays cut off, unless BANYAN_FAILOVER_ALLOW says else:
    what becomes of it then is what most tests are about; `test_failover.py` is about the other way."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.name = folder.name
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    # --- commands ---

    def banyan(
        self, *arguments: str, check: bool = True, stdin: str | None = None, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "banyanctl", "--data", str(self.folder), *arguments],
            capture_output=True, text=True, timeout=seconds, check=False, env=self._environment(), input=stdin,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"banyan {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        config = kubeconfig or self.folder / ADMIN_KUBECONFIG
        done = subprocess.run(
            [str(needs.kubectl()), "--kubeconfig", str(config), *arguments],
            capture_output=True, text=True, timeout=60, check=False, input=stdin, env=os.environ | {"HOME": str(self.folder)},
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    # --- life ---

    def launch(self, *arguments: str) -> None:
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "banyanctl", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True,
            )  # fmt: skip

    def run(self) -> "Site":
        self.launch("run", "--data", str(self.folder))
        return self.wait()

    def join(self, token: str, *options: str) -> None:
        self.launch("--data", str(self.folder), "join", token, "--name", self.name, "--api-listen", "127.0.0.1:0", *options)

    def wait(self) -> "Site":
        def answers() -> bool:
            if self.process is not None and self.process.poll() is not None:
                pytest.fail(f"{self.name} ended with {self.process.returncode}:\n{self.log()}")
            with Client(read(self.folder / ADMIN_KUBECONFIG), 2.0) as client:
                return client.request("GET", "/readyz").status == 200

        until(f"{self.name} answers", answers)
        return self

    def log(self, lines: int = 30) -> str:
        return "\n".join((self.folder.parent / f"{self.name}.log").read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """The controller alone, with SIGKILL; what it runs goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def everything(self) -> list[int]:
        """Pids of all that runs out of this folder, or in it, but this test."""
        mark = str(self.folder).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "cmdline").read_bytes() or (entry / "cwd").readlink().is_relative_to(self.folder):
                        found.append(int(entry.name))
        return sorted(found)

    def destroy(self) -> None:
        """Whatever is left, with SIGKILL, until nothing is."""
        for _ in range(20):
            pids = self.everything()
            if self.process is not None and self.process.poll() is None:
                pids.append(self.process.pid)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait()
            if not pids:
                return
            time.sleep(0.05)

    # --- its API ---

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        with Client(read(self.folder / ADMIN_KUBECONFIG), 20.0) as client:
            data = None if body is None else json.dumps(body).encode()
            answer = client.request(method, path, body=data, headers={"Content-Type": kind})
            return answer.status, json.loads(answer.body) if "json" in answer.headers.get("content-type", "") else answer.body

    def get(self, path: str) -> Any:
        code, document = self.ask("GET", path)
        assert code == 200, document
        return document

    def status(self, name: str = "emotion") -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"{APPS}/{name}").get("status", {})
        return found

    def clusters(self) -> dict[str, dict[str, Any]]:
        return {item["metadata"]["name"]: item["status"] for item in self.get(f"{API}/clusters")["items"]}

    def token(self, *options: str) -> str:
        return str(json.loads(self.banyan("token", "create", "-o", "json", *options).stdout)["status"]["token"])

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BANYAN_") and not key.lower().endswith("_proxy")}
        return kept | {"BANYAN_LOG_FORMAT": "human", "BANYAN_FAILOVER_ALLOW": "false"} | self.environment


class Tree:
    """Sites of one test, destroyed at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites: dict[str, Site] = {}

    def site(self, name: str, **environment: str) -> Site:
        site = self.sites[name] = Site(self.folder / name, environment)
        return site

    def root(self, name: str = "root") -> Site:
        root = self.site(name)
        root.banyan("init", name, "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
        return root.run()

    def region(self, name: str, parent: Site, *options: str) -> Site:
        site = self.site(name)
        site.join(parent.token(), "--tunnel-listen", "127.0.0.1:0", "--shim", "none", *options)
        return site.wait()

    def edge(self, name: str, parent: Site, *options: str, **environment: str) -> Site:
        """A leaf with a process cluster; site ports on a loopback address of its own."""
        number = 1 + len([site for site in self.sites.values() if "BANYAN_SITE_BIND" in site.environment])
        given = {"BANYAN_SITE_BIND": f"127.0.{NEIGHBOURHOOD}.{number}", "BANYAN_CAPACITY": "cpu=1,memory=1Gi"} | environment
        site = self.site(name, **given)
        site.join(parent.token(), "--tunnel-listen", "", "--labels", f"tier=edge,site={name}", *options)
        return site.wait()

    def destroy(self) -> None:
        for site in reversed(list(self.sites.values())):
            site.destroy()


@contextlib.contextmanager
def growing(folder: Path) -> Iterator[Tree]:
    tree = Tree(folder)
    try:
        yield tree
    finally:
        tree.destroy()


def model_application(name: str = "emotion", version: str = "1", replicas: int = 1, port: int = 0, **placement: Any) -> dict[str, Any]:
    component: dict[str, Any] = {
        "name": "serve",
        "model": {"name": "emotion", "version": version},
        "replicas": replicas,
        "resources": {"cpu": "250m", "memory": "192Mi"},
    }
    if port:
        component["expose"] = {"port": port}
    return application(name, [component], **placement)


def application(name: str, components: list[dict[str, Any]], **placement: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"components": components}
    if placement:
        spec["placement"] = placement
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def talker(name: str = "talker", replicas: int = 1, **placement: Any) -> dict[str, Any]:
    """A command that prints a line every second."""
    program = "import time,os\nn=0\nwhile True:\n    n+=1\n    print('line', n, os.environ.get('WORD',''), flush=True)\n    time.sleep(0.2)"
    component = {"name": "talk", "command": [sys.executable, "-u", "-c", program], "takesSocket": False, "replicas": replicas}
    return application(name, [component], **placement)


def program(name: str, *, placement: dict[str, Any] | None = None, **component: Any) -> dict[str, Any]:
    """`site_program.py` as an application; by default on edge-1."""
    command = [sys.executable, str(SITE_PROGRAM)]
    return application(name, [{"name": "main", "command": command} | component], **(placement or {"clusterName": "edge-1"}))


def publish(site: Site, version: str = "1") -> None:
    site.banyan("model", "publish", "emotion", str(EMOTION / f"model-{version}" / "model.onnx"), "--version", version)


class Asker:
    """The device program, asking all the time from its own process."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(EMOTION / "device.py"), "--url", url, "--loop", "--connections", "both", "--json", "--interval", "0.01"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def end(self) -> dict[str, Any]:
        """Its last report: requests, failures and more."""
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=20)
        report: dict[str, Any] = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
        return report

    def destroy(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def infer(url: str) -> dict[str, Any]:
    """One answer of the device program; AssertionError when there is none."""
    done = subprocess.run(
        [sys.executable, str(EMOTION / "device.py"), "--url", url, "--json"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr or done.stdout
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
