"""Ten thousand clusters below one root, and what one of them costs it when there are ten times as many.

The root is a `banyan run`. Its children are whole controllers, many in one process; the clusters below them are simulated: a child writes
into its own store what a site's controller would have reported, under an identity of that site's own (source, start, sequence), and
announces a way to it signed with that site's own key. So what the root sees, verifies, stores, acknowledges and shows is the protocol's,
frame for frame, over sync and TLS; that nobody is at home in the sites, it cannot tell. Four levels: root, child, district, site.
Liveness of what is below goes up as exceptions only, so the heartbeats are those of the root's own links.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from benchmarks import gauges, records
from benchmarks.failover import address_of
from benchmarks.harness import API, Site, growing, until
from benchmarks.hosted import Host, announce, plant
from benchmarks.records import Options, Row
from cluster_controller.documents import encode
from cluster_controller.identity import attach, keys
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx
from cluster_controller.tree import wire

if TYPE_CHECKING:
    from cluster_controller.app import Controller
    from cluster_controller.tunnel.messages import AttachRecord

SITES = 10  # of a district
EVERY_SECONDS = 60.0
START = 1
A_MESSAGE = 500  # attach records of one announcement
READY_SECONDS = 900.0


class Simulation(Struct):
    """One cluster that nobody runs."""

    uid: str
    name: str
    parent: str
    parent_name: str
    children: int
    sequence: int = 0


class Simulated:
    """The clusters below one controller of this process."""

    def __init__(self, controller: Controller, below: int, seed: int) -> None:
        self.controller = controller
        self.dice = random.Random(seed)
        self.clusters: list[Simulation] = []
        self.routes: list[AttachRecord] = []
        self.reports = 0
        for number in range(-(-below // (1 + SITES))):
            self._district(number, min(SITES, below - len(self.clusters) - 1))

    def _district(self, number: int, sites: int) -> None:
        name = f"{self.controller.name}-district-{number}"
        district = self._cluster(name, self.controller.uid, self.controller.name, sites)
        for site in range(sites):
            self._cluster(f"{name}-site-{site}", district.uid, name, 0)

    def _cluster(self, name: str, parent: str, parent_name: str, children: int) -> Simulation:
        key = keys.generate()
        uid, spki = keys.uid_of(key.public_key()), keys.spki(key.public_key())
        signed = attach.sign(uid, parent, 1, spki, lambda data, purpose: keys.sign(key, purpose, data))
        self.routes.append(wire.attach_message(signed, name))
        made = Simulation(uid, name, parent, parent_name, children)
        self.clusters.append(made)
        return made

    async def begin(self) -> None:
        """All of them are there, and reached by way of this controller."""
        for first in range(0, len(self.routes), A_MESSAGE):
            announce(self.controller, self.routes[first : first + A_MESSAGE])

        def everything(tx: Tx) -> None:
            for cluster in self.clusters:
                self._say(tx, cluster)

        await self.controller.store.commit(everything)

    async def report(self, every: float) -> None:
        """Each of them in turn, in an order drawn once, so that each has its turn every so many seconds."""
        order = self.dice.sample(self.clusters, len(self.clusters))
        began, count = time.monotonic() + self.dice.uniform(0, every / len(order)), 0
        while True:
            due = began + count * every / len(order)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            cluster = order[count % len(order)]
            await self.controller.store.commit(lambda tx, cluster=cluster: self._say(tx, cluster))  # type: ignore[misc]
            count += 1
            self.reports += 1

    def _say(self, tx: Tx, cluster: Simulation) -> None:
        """What a site reports of itself; the processor that it has asked for differs each time."""
        cluster.sequence += 1
        has = kinds.ResourceSums(cpu_millis=4000, memory_bytes=8 << 30)
        facts = kinds.ClusterFacts(
            version=self.controller.version, shim="process", component_kinds=["command", "model"], can_parent=bool(cluster.children),
            nodes=1, nodes_ready=1, capacity=has, allocatable=has, requested=kinds.ResourceSums(cpu_millis=1000 + cluster.sequence),
            architectures=["amd64"], applications=5, instances=5,
        )  # fmt: skip
        document = kinds.ClusterStatus(
            metadata=kinds.Metadata(name=cluster.uid, uid=cluster.uid),
            spec=kinds.ClusterStatusSpec(cluster=cluster.uid, name=cluster.name, parent=cluster.parent, parent_name=cluster.parent_name),
            status=kinds.ClusterStatusStatus(facts=facts, ready="True", children=cluster.children),
        )
        key = Key("report", "ClusterStatus", "", cluster.uid)
        tx.put(key, encode(document), uid=cluster.uid, source=cluster.uid, start=START, sequence=cluster.sequence)


class Steady(Struct, kw_only=True):
    """What one size cost."""

    clusters: int
    percent: float
    per_second: float
    memory: float
    seconds: float


async def measure(options: Options) -> list[Row]:
    sizes = ((1, 9), (2, 9)) if options.quick else ((10, 99), (100, 99))  # children of the root, and clusters below each
    settle, seconds, every = (0.5, 2.0, 2.0) if options.quick else (10.0, 40.0, EVERY_SECONDS)
    found = []
    for children, below in sizes:
        found.append(await steady(options, children, below, settle, seconds, every))
        records.say(f"{found[-1]}")
    return shown(found, every)


async def steady(options: Options, children: int, below: int, settle: float, seconds: float, every: float) -> Steady:
    cores = sorted(os.sched_getaffinity(0))
    async with growing(options.folder) as tree:
        root = await tree.root()
        names = [f"region-{number}" for number in range(children)]
        await asyncio.to_thread(plant, tree.folder, "root", address_of(root), names, parents=True)
        host = await asyncio.to_thread(Host, tree.folder, core=cores[-1])
        try:
            began = time.monotonic()
            await host.ask("start", names=names, cluster=False)
            await everybody(root, 1 + children)
            made = await host.ask("fill", below=below, seed=options.seed)
            count = 1 + children + made["clusters"]
            await everybody(root, count)
            took = time.monotonic() - began
            records.say(f"{count:,} clusters are known and Ready after {took:.0f} s")
            await host.ask("report", every=every)
            root.forget()
            await asyncio.sleep(settle)
            before, reports, at = gauges.sample(root.pid), (await host.ask("reported"))["count"], time.monotonic()
            await asyncio.sleep(seconds)
            after, told = gauges.sample(root.pid), (await host.ask("reported"))["count"] - reports
            return Steady(
                clusters=count,
                percent=gauges.cost(before, after).cpu_percent,
                per_second=told / (time.monotonic() - at),
                memory=gauges.pss(root.pid) / gauges.MIB,
                seconds=took,
            )
        finally:
            await asyncio.to_thread(host.close)


async def everybody(root: Site, count: int) -> None:
    """Until so many are Ready, asked in chunks and seldom, for it is the root that computes the answer."""

    async def check() -> bool:
        ready, path = 0, f"{API}/clusters?limit=500"
        while path:
            page = await root.pool.request("GET", path)
            ready += sum(item["status"].get("phase") == "Ready" for item in page["items"])
            more = page["metadata"].get("continue", "")
            path = f"{API}/clusters?limit=500&continue={more}" if more else ""
        return ready >= count

    await until(f"{count:,} clusters are Ready", check, seconds=READY_SECONDS, pause=2.0 if count > 100 else 0.1)


def shown(found: list[Steady], every: float) -> list[Row]:
    small, large = found
    what = f"{large.clusters:,} clusters below one root, status every {every:g} s"
    sizes = [f"{one.per_second:,.0f} reports/s from {one.clusters:,} clusters (all Ready after {one.seconds:.0f} s)" for one in found]
    note = (
        f"the root is a `banyan run`; {' and '.join(sizes)}; each report is verified against its link,"
        " stored twice (as received, as the Cluster that the API shows) and acknowledged"
    )
    each = [one.percent / one.clusters for one in found]
    rows = [
        Row(what=f"{what}: processor of the root", target=50, measured=large.percent, unit="% of a core", note=note),
        Row(what=f"cost for each of {large.clusters:,} clusters beside each of {small.clusters:,}", target=1.2, measured=each[1] / each[0]
            if each[0] else 1.0, unit="×"),
        Row(what=f"{what}: memory (PSS) of the root", measured=large.memory, unit="MiB"),
    ]  # fmt: skip
    for one in found:
        name = "root: processor by clusters below it, simulated"
        rows.append(Row(what=f"{name}: {one.clusters:,}", measured=one.percent, unit="% of a core", series=name, at=one.clusters))
    return rows
