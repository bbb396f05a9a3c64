"""A tree of real stores and real placement in one process; links and shims are played by the test, step by step, no clock."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from cluster_controller.documents import encode
from cluster_controller.facts import Requested
from cluster_controller.placement.capacity import add
from cluster_controller.placement.engine import Engine
from cluster_controller.placement.model import Request
from cluster_controller.placement.records import request
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Stored, Tx
from cluster_controller.tree.astray import Astray
from cluster_controller.tree.census import Census
from cluster_controller.tree.news import News
from cluster_controller.tree.upward import Upward

MEBI = 1024**2


class Clock:
    """Boot time of all machines of a tree; it goes when the test says so."""

    now = 0.0


class Site:
    """One controller: its rooms settle when the test says so."""

    def __init__(self, name: str, store: Store, parent: "Site | None", cpu_millis: int, labels: dict[str, str], clock: Clock) -> None:
        self.clock = clock
        self.sick: dict[str, int] = {}  # application → instances of its that are not ready
        self.broken: set[str] = set()  # programs that end again and again; what ran before them serves on
        self.slow: set[str] = set()  # programs that are not ready yet; likewise
        self.understands = [kinds.OVERRIDES]
        self.rtt_millis: float | None = None  # to its parent
        self.name = name
        self.uid = f"uid-{name}"
        self.store = store
        self.parent = parent
        self.children: dict[str, Site] = {}
        self.live: set[str] = set()
        self.heard: set[str] = set()  # uids of strays whose words come now
        self.astray: set[str] = set()  # and of all that are not back
        self.cpu_millis = cpu_millis
        self.labels = labels
        self.running: dict[str, dict[str, int]] = {}  # application → component → instances
        self.asked: dict[str, Request] = {}  # application → what its instances take
        self.tasks: list[asyncio.Task[None]] = []
        self.starts = 0
        self.furnish()

    def furnish(self) -> None:
        """The rooms of one life of the controller, over the store as it is."""
        parent = self.parent
        self.starts += 1
        reporter = Reporter(self.uid, self.starts)
        self.census = Census(
            self.store,
            reporter,
            uid=self.uid,
            name=self.name,
            parent=lambda: (parent.uid, parent.name) if parent else ("", ""),
            facts=self.facts,
            links=lambda: dict.fromkeys(self.live, self.clock.now),
            now=lambda: self.clock.now,
            timestamp=lambda: "2026-01-01T00:00:00Z",
        )
        who = {"uid": self.uid, "name": self.name}
        silent = self.census.silent
        stamp = "2026-01-01T00:00:00Z"
        self.engine = Engine(
            self.store, reporter, **who, silent=silent, silence=self.census.silence, now=lambda: self.clock.now, timestamp=lambda: stamp,
            strays=lambda: self.heard, astray=lambda: self.astray,
        )  # fmt: skip
        self.upward = Upward(self.store, reporter, **who, silent=silent, timestamp=lambda: "2026-01-01T00:00:00Z")
        self.astrays = Astray(self.store, uid=self.uid, heard=lambda: self.heard)
        self.news = News(self.store, reporter, name=self.name, tells=self.parent is not None)

    def facts(self) -> kinds.ClusterFacts:
        if not self.cpu_millis:
            return kinds.ClusterFacts(labels=self.labels, understands=self.understands)
        requested = Requested(self.store)
        used = requested.sums()
        memory = 512 * MEBI
        free = kinds.ResourceSums(cpu_millis=max(0, self.cpu_millis - used.cpu_millis), memory_bytes=max(0, memory - used.memory_bytes))
        node_class = kinds.NodeClass(
            architecture="amd64", count=1, ready=1, names=[f"{self.name}-node"], free=free,
            allocatable=kinds.ResourceSums(cpu_millis=self.cpu_millis, memory_bytes=512 * MEBI),
        )  # fmt: skip
        return kinds.ClusterFacts(
            understands=self.understands, shim="process", component_kinds=["model", "command"],
            labels=self.labels, node_classes=[node_class],
            requested=used, replicas=requested.replicas(), parent_rtt_millis=self.rtt_millis,
        )  # fmt: skip

    def start(self) -> None:
        self.census.load()
        self.upward.load()
        self.engine.load()
        self.astrays.load()
        self.news.load()
        for room in (self.census, self.upward, self.engine, self.astrays, self.news):
            self.store.subscribe(room.changed, kinds=room.heeds)
            self.tasks.append(asyncio.create_task(room.run()))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        await self.store.close()

    async def crash(self, folder: Path) -> None:
        """The controller dies, with all that it only had in memory, and comes back; what it runs, runs on."""
        await self.stop()
        await self.revive(folder)

    async def revive(self, folder: Path) -> None:
        self.store = await Store.open(folder)
        self.furnish()
        self.start()

    async def shim(self) -> None:
        """Play the shim: what is desired runs at once, one thing after the other."""

        def observe(tx: Tx) -> None:
            wanted = {}
            self.asked = {}
            for stored in tx.list("local", "Work"):
                spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
                wanted[spec.application.uid] = {component.name: component.replicas for component in spec.components}
                for component in spec.components:
                    part = self.asked.get(spec.application.uid, Request())
                    self.asked[spec.application.uid] = add(part, request(component.resources), component.replicas)
                components = [
                    kinds.ComponentStatus(
                        name=c.name,
                        desired=c.replicas,
                        ready=ready,
                        confirmed=ready,
                        updated=0 if self.broken.union(self.slow).intersection(c.command) else c.replicas,
                        reason="CrashLoopBackOff" if self.broken.intersection(c.command) else "",
                    )
                    for c in spec.components
                    for ready in [max(0, c.replicas - self.sick.get(spec.application.uid, 0))]
                ]
                total = sum(component.replicas for component in spec.components)
                sick = self.sick.get(spec.application.uid, 0)
                row = kinds.ClusterRow(
                    cluster=self.uid, name=self.name, ready=max(0, total - sick), desired=total, components=wanted[spec.application.uid]
                )
                status = kinds.WorkStatus(
                    spec=kinds.WorkStatusSpec(application=spec.application, cluster=self.uid),
                    status=kinds.WorkStatusStatus(
                        version=spec.shares[-1].id,
                        seen=spec.shares[-1].id,
                        components=components,
                        clusters=[row] if total else [],
                        cluster_count=1,
                    ),
                )
                key = Key("observed", "WorkStatus", "", spec.application.uid)
                there = tx.get(key)
                if there is None or there.document != encode(status):
                    tx.put(key, encode(status), uid=spec.application.uid)
            for stored in tx.list("observed", "WorkStatus"):
                if stored.key.name not in wanted:
                    tx.delete(stored.key)
            self.running = wanted

        await self.store.commit(observe)
        self.census.self_changed()


def _replicas(stored: Stored) -> int:
    return sum(component.replicas for component in msgspec.json.decode(stored.document, type=kinds.Work).spec.components)


async def copy(source: Store, source_space: str, target: Store, target_space: str) -> None:
    """What sync does, without the way: the target's space becomes the source's."""

    def apply(tx: Tx) -> None:
        seen = set()
        for kind in source.kinds(source_space):
            for stored in source.list(source_space, kind):
                key = Key(target_space, kind, stored.key.namespace, stored.key.name)
                seen.add(key)
                there = tx.get(key)
                if there is None or there.document != stored.document:
                    tx.put(
                        key, stored.document, uid=stored.uid, version=stored.version, source=stored.source, start=stored.start,
                        sequence=stored.sequence,
                    )  # fmt: skip
        for kind in target.kinds(target_space):
            for stored in target.list(target_space, kind):
                if stored.key not in seen:
                    tx.delete(stored.key)

    await target.commit(apply)


class Tree:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.sites: dict[str, Site] = {}
        self.cut: set[str] = set()  # names of children whose link is cut
        self.watch: Callable[[], None] = lambda: None

    async def crash(self, name: str) -> None:
        await self.sites[name].crash(self.folder / name)

    async def add(self, name: str, parent: str = "", cpu_millis: int = 0, labels: dict[str, str] | None = None) -> Site:
        folder = self.folder / name
        folder.mkdir()
        above = self.sites.get(parent)
        site = Site(name, await Store.open(folder), above, cpu_millis, labels or {}, self.clock)
        self.sites[name] = site
        site.start()
        if above is not None:
            above.children[name] = site
            above.live.add(site.uid)
        return site

    def set_cut(self, name: str, cut: bool) -> None:
        site = self.sites[name]
        assert site.parent is not None
        if cut:
            self.cut.add(name)
            site.parent.live.discard(site.uid)
            site.parent.census.link_changed(site.uid, self.clock.now)
            site.parent.engine.link_changed(site.uid)
            site.parent.upward.link_changed(site.uid)
        else:
            self.cut.discard(name)
            site.parent.live.add(site.uid)
            site.parent.census.link_changed(site.uid, None)
            site.parent.engine.link_changed(site.uid)
            site.parent.upward.link_changed(site.uid)

    async def step(self, chooser: random.Random) -> None:
        """One thing happens somewhere: a link carries, or a shim looks."""
        site = chooser.choice(list(self.sites.values()))
        if chooser.random() < 0.4:
            await site.shim()
        elif site.parent is not None and site.name not in self.cut:
            if chooser.random() < 0.5:
                await copy(site.parent.store, f"down/{site.uid}", site.store, "desired")
            else:
                await copy(site.store, "report", site.parent.store, f"up/{site.uid}")
        for _ in range(chooser.randint(0, 3)):
            await asyncio.sleep(0)
        self.watch()

    async def quiet(self) -> None:
        """Until nothing changes any more, in three rounds in a row."""
        still = 0
        for _ in range(120):
            before = [site.store.revision for site in self.sites.values()]
            for site in self.sites.values():
                await site.shim()
                if site.parent is not None and site.name not in self.cut:
                    await copy(site.store, "report", site.parent.store, f"up/{site.uid}")
                    await copy(site.parent.store, f"down/{site.uid}", site.store, "desired")
            await self.settled()
            self.watch()
            still = still + 1 if before == [site.store.revision for site in self.sites.values()] else 0
            if still == 3:
                return
        raise AssertionError("the tree does not come to rest")

    async def settled(self) -> None:
        """Let every room look at what was marked, and every commit end."""
        for _ in range(4):
            for _ in range(10):
                await asyncio.sleep(0)
            for site in self.sites.values():
                await site.store.commit(lambda tx: None)

    async def wait(self, seconds: float) -> None:
        """Time goes by, and whoever waits for it looks again."""
        self.clock.now += seconds
        for site in self.sites.values():
            site.engine.ring()
        await self.settled()

    async def close(self) -> None:
        for site in self.sites.values():
            await site.stop()

    def overbooked(self) -> list[str]:
        """Clusters on which more is asked for than there is."""
        found = []
        for site in self.sites.values():
            taken = Request()
            for asked in site.asked.values():
                taken = add(taken, asked)
            if site.cpu_millis and taken.cpu_millis > site.cpu_millis:
                found.append(f"{site.name}: {taken.cpu_millis}m of {site.cpu_millis}m")
        return found

    def assigned(self, site: Site, application: str) -> int:
        """Replicas that its children and its own cluster were given by this site."""
        spaces = ["local", *(f"down/{child.uid}" for child in site.children.values())]
        works = (site.store.get(Key(space, "Work", "", application)) for space in spaces)
        return sum(_replicas(stored) for stored in works if stored is not None)

    def assigned_to(self, site: Site, child: str, application: str) -> int:
        stored = site.store.get(Key(f"down/{self.sites[child].uid}", "Work", "", application))
        return _replicas(stored) if stored is not None else 0

    def total(self, application: str) -> int:
        return sum(sum(site.running.get(application, {}).values()) for site in self.sites.values())


def component(name: str = "serve", replicas: int = 1, cpu: str = "100m", **fields: object) -> dict[str, object]:
    return {"name": name, "command": ["true"], "replicas": replicas, "resources": {"cpu": cpu}, **fields}


async def put_application(
    site: Site,
    name: str,
    replicas: int,
    components: Sequence[dict[str, object]] = (),
    life: int = 1,
    spec: Mapping[str, object] = MappingProxyType({}),
    **placement: object,
) -> str:
    """Create or change; returns the uid. One that was deleted and is created again has another ``life``; ``spec``: more fields of it."""
    uid = f"app-{site.name}-{name}" + (f"-{life}" if life > 1 else "")

    def write(tx: Tx) -> None:
        document = {
            "apiVersion": "banyan.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1, "finalizers": ["banyan.dev/withdraw"]},
            "spec": {
                "components": list(components) or [component(replicas=replicas)],
                "placement": placement,
                **spec,
            },
        }
        tx.put(Key("own", "Application", "default", name), msgspec.json.encode(document), uid=uid)

    await site.store.commit(write)
    return uid


async def delete_application(site: Site, name: str, holders: Sequence[str] = ()) -> None:
    """As the API does; ``holders`` are finalizers of others."""

    def write(tx: Tx) -> None:
        key = Key("own", "Application", "default", name)
        stored = tx.get(key)
        assert stored is not None
        document = msgspec.json.decode(stored.document)
        document["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        document["metadata"]["finalizers"] = ["banyan.dev/withdraw", *holders]
        tx.put(key, msgspec.json.encode(document), uid=stored.uid)

    await site.store.commit(write)


def application(site: Site, name: str) -> kinds.Application | None:
    stored = site.store.get(Key("own", "Application", "default", name))
    return msgspec.json.decode(stored.document, type=kinds.Application) if stored is not None else None
