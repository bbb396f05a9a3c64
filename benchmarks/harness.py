"""A tree of real controllers: each is the shipped `banyan run`, in a process and a data folder of its own.

Identities are made by the same functions that `banyan init` and `banyan join` call, in this process, because a hundred starts of the
command line would only measure patience. What is started is killed at the end, and everything that runs out of its folder with it.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from banyanctl import service
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from benchmarks import standin
from benchmarks.api import Pool, Refused
from benchmarks.standin import StandIn
from cluster_controller import config
from cluster_controller.errors import BanyanError

API = "/apis/banyan.dev/v1alpha1"
APPS = f"{API}/namespaces/default/applications"
WAIT_SECONDS = 120.0
AT_ONCE = 4  # controllers that start at the same time


async def until(what: str, check: Callable[[], Awaitable[Any]], seconds: float = WAIT_SECONDS, pause: float = 0.05) -> Any:
    """Ask until it is true; TimeoutError says what did not come, and the last trouble."""
    deadline, trouble = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if found := await check():
                return found
        except (BanyanError, Refused, OSError, EOFError, KeyError) as error:
            trouble = f" ({error})"
        await asyncio.sleep(pause)
    raise TimeoutError(f"after {seconds:g} s it is still not so that {what}{trouble}")


class Site:
    """One controller, its folder, and what it runs. ``prefix`` is put before its commands (a network namespace)."""

    def __init__(self, folder: Path, environment: dict[str, str], prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.name = folder.name
        self.environment = environment
        self.prefix = tuple(prefix)
        self.process: subprocess.Popen[bytes] | None = None
        self.shim: StandIn | None = None
        self._pool: Pool | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def pool(self) -> Pool:
        """Asks its API; not for a site in a namespace of its own."""
        if self._pool is None:
            self._pool = Pool(read(self.folder / ADMIN_KUBECONFIG))
        return self._pool

    def banyan(self, *arguments: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "banyanctl", "--data", str(self.folder), *arguments]

    async def run(self, *arguments: str) -> str:
        """A `banyan` command against this site; what it prints."""
        done = await asyncio.to_thread(
            subprocess.run,
            self.banyan(*arguments),
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
            env=self._environment(),
        )
        if done.returncode != 0:
            raise RuntimeError(f"banyan {' '.join(arguments[:3])} at {self.name}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def start(self, **environment: str) -> None:
        (self.folder / ADMIN_KUBECONFIG).unlink(missing_ok=True)  # so that its presence says: serving
        self.forget()
        argv = [*self.prefix, sys.executable, "-m", "banyanctl", "run", "--data", str(self.folder)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment() | environment, start_new_session=True
            )

    async def ready(self) -> "Site":
        """Until it serves; RuntimeError with the end of its log when it ends instead."""

        async def serves() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log_tail()}")
            return (self.folder / ADMIN_KUBECONFIG).exists()

        await until(f"{self.name} serves", serves)
        return self

    @property
    def log_file(self) -> Path:
        return self.folder.parent / f"{self.name}.log"

    def log_tail(self) -> str:
        return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    def forget(self) -> None:
        """The connections to its API."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    async def stop(self) -> None:
        """SIGTERM to the controller; what it runs goes on."""
        assert self.process is not None
        self.forget()
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 30)

    def everything(self) -> list[int]:
        """Pids of all that names this folder in its command line: controller, supervisor, workers."""
        mark = os.fsencode(self.folder) + b"/"
        found = {self.process.pid} if self.process is not None and self.process.poll() is None else set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if any(word + b"/" == mark or mark in word for word in words):
                        found.add(int(entry.name))
        return sorted(found)

    def supervisor(self) -> int:
        """LookupError until it runs."""
        for pid in self.everything():
            if b"supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise LookupError(f"{self.name} has no supervisor")

    def instances(self) -> list[int]:
        """What the supervisor has started."""
        found: list[int] = []
        with contextlib.suppress(OSError, LookupError):
            for task in Path(f"/proc/{self.supervisor()}/task").iterdir():
                found += map(int, (task / "children").read_text(encoding="ascii").split())
        return found

    def destroy(self) -> None:
        self.forget()
        for _ in range(20):
            pids = [*self.instances(), *self.everything()]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait()
            if not pids:
                return
            time.sleep(0.05)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BANYAN_") and not key.lower().endswith("_proxy")}
        return kept | self.environment


class Tree:
    """The sites of one benchmark, removed with all that they run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites: dict[str, Site] = {}
        self._servers: list[Any] = []

    async def root(self, **settings: Any) -> Site:
        site = self.site("root")
        chosen = {"api_listen": "127.0.0.1:0", "tunnel_listen": "127.0.0.1:0", "shim": "none"} | settings
        await asyncio.to_thread(service.init, config.load(site.folder, {}, {"name": site.name, **chosen}))
        site.start()
        return await site.ready()

    async def member(self, name: str, token: str, **settings: Any) -> Site:
        site = self.site(name)
        chosen = {"api_listen": "127.0.0.1:0"} | settings
        await asyncio.to_thread(service.join, config.load(site.folder, {}, {"name": name, **chosen}), token, lambda _: None)
        site.start()
        return await site.ready()

    async def region(self, name: str, parent: Site) -> Site:
        return await self.member(name, await token(parent), tunnel_listen="127.0.0.1:0", shim="none")

    async def leaf(self, name: str, parent: Site, **settings: Any) -> Site:
        """With a stand-in for its cluster."""
        path = self.folder / f"{name}.sock"
        shim, server = await standin.serve(path)
        self._servers.append(server)
        site = await self.member(name, await token(parent), tunnel_listen="", shim=f"unix:{path}", **settings)
        site.shim = shim
        return site

    async def edge(self, name: str, parent: Site) -> Site:
        """With the process shim, its site ports on a loopback address of its own."""
        number = 1 + len(self.sites)
        capacity = {"cpu": "16", "memory": "16Gi"}
        return await self.member(name, await token(parent), tunnel_listen="", site_bind=f"127.0.2.{number}", capacity=capacity)

    async def leaves(self, names: Sequence[str], parent: Site, **settings: Any) -> list[Site]:
        """Several at a time; in the order of ``names``."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> Site:
            async with turn:
                return await self.leaf(name, parent, **settings)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(name)) for name in names]
        return [task.result() for task in tasks]

    def site(self, name: str, prefix: Sequence[str] = (), **environment: str) -> Site:
        site = self.sites[name] = Site(self.folder / name, environment, prefix)
        return site

    async def close(self) -> None:
        for site in reversed(list(self.sites.values())):
            site.destroy()
        for server in self._servers:
            await server.close(0.1)


@contextlib.asynccontextmanager
async def growing(folder: Path) -> AsyncIterator[Tree]:
    """In a folder with a short name of its own: paths of Unix sockets must not be long."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="t") as name:
        tree = Tree(Path(name))
        try:
            yield tree
        finally:
            await tree.close()


async def token(parent: Site, below: str = "") -> str:
    """For one cluster under ``parent``, or under its descendant ``below``, asked through it."""
    path = (f"{API}/clusters/{below}/banyan" if below else "") + f"{API}/jointokens"
    document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "bench-"}, "spec": {}}
    made = await parent.pool.request("POST", path, document)
    return str(made["status"]["token"])


async def all_ready(root: Site, count: int) -> None:
    """Until ``count`` clusters, the root included, are Ready and say what they can run."""

    async def check() -> bool:
        items = (await root.pool.request("GET", f"{API}/clusters"))["items"]
        return [item["status"].get("phase") for item in items].count("Ready") >= count

    await until(f"{count} clusters are Ready", check, pause=0.2)


def application(
    name: str, *, word: int = 0, replicas: int = 1, command: Sequence[str] = ("sleep", "100000"), **placement: Any
) -> dict[str, Any]:
    """One component of kind command; ``word`` is what changes when it is changed."""
    component = {
        "name": "main", "command": list(command), "takesSocket": False, "replicas": replicas, "env": [{"name": "WORD", "value": str(word)}],
    }  # fmt: skip
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"components": [component], "placement": placement},
    }


def changed(word: int, replicas: int = 1) -> dict[str, Any]:
    """A merge patch that changes what `application` made."""
    return {"spec": {"components": application("x", word=word, replicas=replicas)["spec"]["components"]}}


async def applied(root: Site, count: int) -> None:
    """Until ``count`` applications say that all of them is ready."""

    async def check() -> bool:
        items = (await root.pool.request("GET", APPS))["items"]
        states = [item.get("status", {}) for item in items]
        return len([state for state in states if state.get("ready", 0) >= state.get("desired", 0) > 0]) >= count

    await until(f"{count} applications are ready", check, pause=0.2)
