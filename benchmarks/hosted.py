"""Many real controllers in one process, so that a thousand of them fit on two cores: the load beside a `banyan run` that is measured.

Each is the whole `Controller` with a data folder, a store, an identity, a port of its own where it may have children, and its own TLS links
to its parent; only the interpreter and its libraries are shared, and no API stands on top. Identities are issued by the parent's own
authority, as a join would, without asking for a token each time. A host is told what to do by a line of JSON and answers by one.

    python -m benchmarks.hosted FOLDER        as `Host` starts it
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop
from msgspec import Struct

from benchmarks.load import WorkSpec
from benchmarks.standin import StandIn
from cluster_controller import clock, config
from cluster_controller.app import Controller
from cluster_controller.errors import BanyanError
from cluster_controller.identity import Identity, certificates, holder, keys, load
from cluster_controller.store import Event
from cluster_controller.tasks import Tasks
from cluster_controller.tunnel import Routes
from cluster_controller.tunnel.messages import AttachRecord

AT_ONCE = 8  # controllers that start at the same time in one process
PROCESS_SECONDS = 300.0


# -- identities -------------------------------------------------------------------------------------------------------------


def plant(folder: Path, parent: str, address: str, names: Sequence[str], *, parents: bool = False, **settings: Any) -> None:
    """Data folders of children of ``parent``, whose own folder lies beside theirs; nothing runs. ``parents``: they may have children."""
    above = load(config.load(folder / parent, {}).identity_folder)
    for name in names:
        chosen = {"api_listen": "127.0.0.1:0", "tunnel_listen": "127.0.0.1:0" if parents else "", "shim": "none"} | settings
        made = config.load(folder / name, {}, {"name": name, **chosen})
        config.save(made)
        holder.save(made.identity_folder, born(above, name, address, parents=parents))


def born(parent: Identity, name: str, address: str, *, parents: bool = False) -> Identity:
    """A child as ``parent`` lets it in."""
    key, issuing, now = keys.generate(), keys.generate() if parents else None, clock.wall()
    issued = parent.issuing().issue(
        name=name,
        identity_request=certificates.request(key),
        issuing_request=certificates.request(issuing) if issuing is not None else b"",
        home=parent.uid,
        now=now,
    )
    return holder.member(
        name=name, key=key, issuing_key=issuing, issued=issued, tree_ca=parent.tree_ca, parent_uid=parent.uid, parent_name=parent.name,
        parent_addresses=(address,), token_id="", labels={}, now=now,
    )  # fmt: skip


# -- the process ------------------------------------------------------------------------------------------------------------


class Held(Controller):
    """One that dials its parent when it is told to, not when it has started."""

    def _dial(self) -> None:
        """Not yet."""

    def dial(self) -> None:
        super()._dial()

    async def hang_up(self) -> None:
        await self._dialling.close()
        self._dialling = Tasks("dialling")


class Work(Struct, frozen=True):
    spec: WorkSpec = WorkSpec()


WORK = msgspec.json.Decoder(Work)


class Hosting:
    """What runs in this process. Each public method is an order; what it returns is the answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, Held] = {}
        self.linked_at: dict[str, float] = {}
        self.seen: list[tuple[str, str, str, float]] = []  # (cluster, application, word, when): committed as its own Work

    async def plant(self, parent: str, address: str, names: list[str], parents: bool) -> dict[str, Any]:
        plant(self.folder, parent, address, names, parents=parents)
        return {}

    async def start(self, names: list[str], cluster: bool, dial: bool = True) -> dict[str, Any]:
        """Until all have started. ``cluster``: with a stand-in for a cluster of its own. Where they listen, by name."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> None:
            async with turn:
                made = Held(config.load(self.folder / name, {}), StandIn() if cluster else None, version="benchmark")
                await made.start()
                self.running[name] = made
                if cluster:
                    made.store.subscribe(lambda events: self._changed(name, events), "local")
                if dial:
                    made.dial()

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(one(name))
        return {"addresses": {name: f"127.0.0.1:{self.running[name].tunnel_port}" for name in names if self.running[name].tunnel_port}}

    def _changed(self, name: str, events: Sequence[Event]) -> None:
        now = time.monotonic()
        for event in events:
            if event.kind_of == "put" and event.stored.key.kind == "Work":
                spec = WORK.decode(event.stored.document).spec
                word = spec.components[0].env[0].value if spec.components and spec.components[0].env else ""
                self.seen.append((name, spec.application.name, word, now))

    async def arrivals(self) -> dict[str, Any]:
        """What has been stored since the last time that this was asked."""
        told, self.seen = self.seen, []
        return {"seen": told}

    async def uids(self) -> dict[str, Any]:
        return {name: one.uid for name, one in self.running.items()}

    async def dial(self, seconds: float) -> dict[str, Any]:
        """All of them at once; when the first began, when each was welcomed, and how often one was not let in at first."""
        began = time.monotonic()
        waiting = dict(self.running)
        for one in waiting.values():
            one.dial()
        last, refused = began, 0
        while waiting and time.monotonic() < began + seconds:
            await asyncio.sleep(0.02)
            for name, one in list(waiting.items()):
                if one.tunnel.parent is not None:
                    del waiting[name]
                    last = time.monotonic()
        refused = sum(one.tunnel.refusal is not None for one in waiting.values())
        why = next((f"{name}: {one.tunnel.dial_error}" for name, one in waiting.items()), "")
        return {"began": began, "last": last, "missed": len(waiting), "why": why, "refused": refused}

    async def hang_up(self) -> dict[str, Any]:
        """All links to parents are closed, and nobody dials."""
        for one in self.running.values():
            await one.hang_up()
        return {}

    async def linked(self) -> dict[str, Any]:
        return {"count": sum(one.tunnel.parent is not None for one in self.running.values())}

    async def fill(self, below: int, seed: int) -> dict[str, Any]:
        """Each controller here has ``below`` simulated clusters under it from now on; see `benchmarks.simulated`."""
        from benchmarks.simulated import Simulated

        self.simulated = [Simulated(one, below, seed + number) for number, one in enumerate(self.running.values())]
        for one in self.simulated:
            await one.begin()
        return {"clusters": sum(len(one.clusters) for one in self.simulated)}

    async def report(self, every: float) -> dict[str, Any]:
        """Each simulated cluster reports something new every so many seconds, evenly spread, from now on."""
        self.reporting = [asyncio.create_task(one.report(every)) for one in self.simulated]
        return {}

    async def reported(self) -> dict[str, Any]:
        for task in self.reporting:
            if task.done():
                task.result()
        return {"count": sum(one.reports for one in self.simulated)}


def announce(controller: Controller, records: Sequence[AttachRecord]) -> None:
    """Tell the parent of clusters below, as a controller does that learns of them."""
    parent = controller.tunnel.parent
    if parent is None:
        raise BanyanError(f"{controller.name} has no parent now")
    parent.send_control(Routes(announce=tuple(records)))


async def obey(folder: Path) -> None:
    hosting, loop = Hosting(folder), asyncio.get_running_loop()
    say({"up": True})
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        say(await getattr(hosting, order.pop("do"))(**order))


def say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


# -- the conductor's side ---------------------------------------------------------------------------------------------------


class Host:
    """A process of controllers. Killed at the end: nothing that it holds is needed afterwards."""

    def __init__(self, folder: Path, *, prefix: Sequence[str] = (), core: int | None = None) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BANYAN_") and not key.lower().endswith("_proxy")}
        argv = [*prefix, sys.executable, "-m", "benchmarks.hosted", str(folder)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept)
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})
        self._read()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of controllers ended with {self.process.wait()}; its words are above")
        found: dict[str, Any] = json.loads(line)
        return found

    async def ask(self, do: str, **values: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self._ask, {"do": do, **values})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


if __name__ == "__main__":
    from benchmarks.__main__ import prepare

    prepare()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(50))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(obey(Path(sys.argv[1])))
