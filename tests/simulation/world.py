"""A tree of real controllers in one simulated world: their machines, disks, sites, and the ways between them.

A `Place` is one cluster: a machine with a data folder and a site, on which a controller lives, dies and is started again. Identities
are real and made as a join makes them; everything above disk, wire, clock and shim is the product as it ships.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import structlog

from cluster_controller import tasks
from cluster_controller.app import Controller
from cluster_controller.config import Config
from cluster_controller.errors import BanyanError
from cluster_controller.identity import certificates, holder, keys
from cluster_controller.identity.authority import DEFAULT_LIFETIMES, Lifetimes
from cluster_controller.identity.holder import Identity
from tests.simulation.disk import DISKS, Disk
from tests.simulation.history import History
from tests.simulation.life import EPOCH, Life, Machine
from tests.simulation.loop import VirtualLoop
from tests.simulation.net import Network
from tests.simulation.patches import installed
from tests.simulation.site import SimShim, Site
from tests.simulation.ways import Conditions

log = structlog.get_logger()
PORT = 10000
AGAIN_SECONDS = 2.0  # after which the init system starts a controller again that could not start


class Place:
    """One cluster of the tree, whether its controller lives or not."""

    def __init__(self, world: "World", name: str, parent: "Place | None", identity: Identity, *, takes_children: bool) -> None:
        self.world = world
        self.name = name
        self.parent = parent
        self.children: list[Place] = []
        self.uid = identity.uid
        self.identity_name = identity.name
        self.takes_children = takes_children
        self.labels = identity.saved.labels
        self.folder = world.folder / name
        self.machine = Machine(name, world.loop.time, Random(f"machine {name} {world.seed}"))
        self.disk = Disk(name)
        self.site = Site(name, world.loop, self.machine, Random(f"site {name} {world.seed}"), cpu_millis=16_000)
        self.life: Life | None = None
        self.controller: Controller | None = None
        self.started = False
        self.backup: Disk | None = None  # made at the last quiet point
        self.wanted = True  # somebody wants it to run: what cannot start is started again
        DISKS[self.folder] = self.disk
        holder.save(self.folder / "identity", identity)

    def __repr__(self) -> str:
        return f"<Place {self.name}>"

    @property
    def alive(self) -> bool:
        return self.started and self.life is not None and not self.life.dead

    def path(self) -> "list[Place]":
        """From the root down to here."""
        return [*(self.parent.path() if self.parent is not None else []), self]

    def subtree(self) -> "Iterator[Place]":
        yield self
        for child in self.children:
            yield from child.subtree()

    # --- life of its controller ---

    def start(self) -> None:
        """Switch the machine on if it is off, and start the controller."""
        self.wanted = True
        if self.life is not None and not self.life.dead:
            return
        if not self.machine.powered:
            self.machine.boot()
            self.world.network.changed()
        life = self.life = Life(self.machine)
        life.context.run(self._begin)

    def _begin(self) -> None:
        listen = f"{self.name}:{PORT}" if self.takes_children else ""
        advertise = (listen,) if listen else ()
        config = Config(
            data=self.folder,
            name=self.identity_name,
            tunnel_listen=listen,
            tunnel_advertise=advertise,
            heartbeat_seconds=self.world.heartbeat,
        )
        self.controller = Controller(config, SimShim(self.site), version="simulated")
        life = self.life
        assert life is not None
        self.controller.restart = lambda: self._again(life)
        self.started = False
        self.world.loop.create_task(self._run(self.controller), name=f"start {self.name}")

    async def _run(self, controller: Controller) -> None:
        life = self.life
        assert life is not None
        try:
            await controller.start()
            self.started = True
        except (BanyanError, OSError) as error:
            log.error("controller.cannot_start", error=str(error))
            self.world.note(self.name, f"could not start: {error}")
            self.world.loop.call_later(AGAIN_SECONDS, self._again, life, context=self.world.network.kernel)

    def _again(self, life: Life) -> None:
        """Begun anew: by itself, or by an init system."""
        if life is self.life and not life.dead:
            self.world.loop.call_soon(self._anew, life, context=self.world.network.kernel)

    def _anew(self, life: Life) -> None:
        if life is self.life and not life.dead:
            self.kill()
            self.start()

    def copied(self) -> "Place":
        """Another machine that has a copy of this one's data folder, running or not. It is nobody's place in the tree."""
        copy = object.__new__(Place)
        copy.__dict__.update(self.__dict__)
        copy.name = f"{self.name}-copy-{len(self.world.network.machines)}"
        copy.folder = self.world.folder / copy.name
        shutil.copytree(self.folder, copy.folder)
        copy.machine = Machine(copy.name, self.world.loop.time, Random(f"machine {copy.name} {self.world.seed}"))
        copy.disk = DISKS[copy.folder] = self.disk.copy()
        copy.disk.watch = None
        copy.site = Site(copy.name, self.world.loop, copy.machine, Random(f"site {copy.name} {self.world.seed}"), cpu_millis=16_000)
        copy.life = copy.controller = None
        copy.started = False
        self.world.network.add(copy.machine, Conditions())
        return copy

    def kill(self) -> None:
        """SIGKILL: what runs at the site runs on."""
        life = self.life
        if life is None or life.dead:
            return
        self.world.note(self.name, "killed")
        life.end()
        self.site.session = None
        self.world.network.process_ended(life)

    def power_off(self) -> None:
        """The plug is pulled: nobody is told, and nothing runs."""
        if not self.machine.powered:
            return
        self.wanted = False
        self.world.note(self.name, "power lost")
        self.machine.powered = False
        life = self.life
        if life is not None and not life.dead:
            life.end()
        self.site.session = None
        if life is not None:
            self.world.network.process_ended(life)
        self.site.power_lost()

    async def _stop(self) -> None:
        assert self.controller is not None
        await self.controller.stop()

    def run(self, coroutine: Any) -> "asyncio.Task[Any]":
        """As something that happens within this controller's process."""
        assert self.life is not None and not self.life.dead
        return self.life.context.run(self.world.loop.create_task, coroutine)


class World:
    """Use as a context manager. ``trace``: a file for the whole history."""

    def __init__(self, seed: int, *, trace: Path | None = None, heartbeat: float = 5.0, lifetimes: Lifetimes = DEFAULT_LIFETIMES) -> None:
        self.seed = seed
        self.heartbeat = heartbeat
        self.rng = Random(f"world {seed}")
        self.history = History(trace)
        self.loop = VirtualLoop()  # type: ignore[abstract]  # what programs here never ask of a loop is not there
        self.network = self.loop.network = Network(self.loop, Random(f"network {seed}"), self.history)
        self.places: dict[str, Place] = {}
        self.by_uid: dict[str, Place] = {}
        self.identities: dict[str, Identity] = {}
        self.usual: dict[str, Conditions] = {}  # of the ways, while nothing makes them worse
        self.folder = Path()
        self._patches = installed(seed, self.history, self.loop.time, lifetimes)

    def __enter__(self) -> "World":
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._scratch, self._home = Path(tempfile.mkdtemp(prefix="banyan-simulation-", dir=base)), Path.cwd()
        os.chdir(self._scratch)  # paths are told upwards in errors, and compressed: they have to be the same each time
        self._patches.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop._enter()
        try:
            for place in self.places.values():
                if place.life is not None:
                    place.life.end()
        finally:
            self.loop._leave()
            self.loop.close()
            self._patches.__exit__(None, None, None)
            for folder in [each for each in DISKS if each.parent == self.folder]:
                del DISKS[folder]
            os.chdir(self._home)
            shutil.rmtree(self._scratch, ignore_errors=True)
            self.history.close()

    @property
    def root(self) -> Place:
        return next(iter(self.places.values()))

    @property
    def crashes(self) -> int:
        """Defects that the tasks' guards met."""
        return sum(tasks.crashes.values())

    def note(self, who: str, what: str) -> None:
        self.history.note(self.loop.time(), who, what)

    # --- building ---

    def plant(self, name: str) -> Place:
        """The root."""
        folder = self.folder / name / "identity"
        identity = holder.create_root(folder, name, EPOCH)
        return self._settle(name, None, identity, takes_children=True)

    def grow(self, name: str, parent: Place, *, takes_children: bool) -> Place:
        """A cluster below ``parent``, as if it had joined."""
        above = self.identities[parent.uid]
        if parent.alive and parent.controller is not None:
            above = parent.controller.identity()  # it may have been moved since
        key = keys.generate()
        issuing = keys.generate() if takes_children else None
        labels = {"half": "ab"[len(self.places) % 2]}
        issued = above.issuing().issue(
            name=name, identity_request=certificates.request(key),
            issuing_request=certificates.request(issuing) if issuing is not None else b"", home=above.uid, now=EPOCH,
        )  # fmt: skip
        identity = holder.member(
            name=name, key=key, issuing_key=issuing, issued=issued, tree_ca=above.tree_ca, parent_uid=above.uid,
            parent_name=above.name, parent_addresses=[f"{parent.name}:{PORT}"], token_id="", labels=labels, now=EPOCH,
        )  # fmt: skip
        place = self._settle(name, parent, identity, takes_children=takes_children)
        parent.children.append(place)
        return place

    def _settle(self, name: str, parent: Place | None, identity: Identity, *, takes_children: bool) -> Place:
        self.identities[identity.uid] = identity
        place = Place(self, name, parent, identity, takes_children=takes_children)
        self.places[name] = self.by_uid[place.uid] = place
        delay = self.rng.choice((0.0005, 0.005, 0.03))
        self.usual[name] = Conditions(delay=delay, jitter=delay / 4)
        self.network.add(place.machine, self.usual[name])
        return place

    # --- running ---

    def run_for(self, seconds: float) -> None:
        self.loop.run_for(seconds)

    def call(self, place: Place, coroutine: Any, *, limit: float = 120.0) -> Any:
        """Run ``coroutine`` within a controller and let time pass until it has ended."""
        return self.loop.run_until_complete(place.run(coroutine), limit=limit)
