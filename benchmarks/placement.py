"""Deciding: a thousand Applications over a thousand clusters at one level, and one change of one of them.

The real placement of one controller over a real store, every decision written: Works for children, status, in commits as it makes them.
No link and no process: what is timed is the processor time of this process, and one cluster stands for one child. Clusters differ in
labels, size and price; every Application has a selector of its own.
"""

import gc
import random
import time
from collections.abc import Mapping

import msgspec

from benchmarks import gauges
from benchmarks.records import Options, Row
from cluster_controller.documents import encode
from cluster_controller.placement.engine import Engine
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Limits, Store, Tx
from openapi.hooks.explain import explanation

ROOT = "root"
GIBI = 1024**3
TIERS, ZONES, RACKS = ("edge", "hub", "far"), tuple("abcde"), tuple("uvwxy")
SIZES = ((2000, 4), (4000, 8), (8000, 16), (16000, 32))  # millicores, gibibytes
RULES = ({}, {"division": {"by": "FreeCapacity"}}, {"division": {"by": "LowestCost"}}, {"spread": [{"topologyKey": "zone", "maxSkew": 2}]})


async def measure(options: Options) -> list[Row]:
    clusters, applications, rounds = (40, 40, 3) if options.quick else (1000, 1000, 50)
    chooser = random.Random(options.seed)
    site = await Site.open(options, chooser, clusters)
    await site.apply(applications)
    whole = await site.settle_all()
    placed, wanted = site.placed()
    await site.answer()
    again = await site.settle_all()
    gc.collect()
    gc.freeze()  # as a controller does once it has started (`banyanctl.service`)
    changed = [await site.change_application(chooser) for _ in range(rounds)]
    moved = [await site.change_cluster(chooser) for _ in range(rounds)]
    explained = [await site.explain(chooser) for _ in range(rounds)]
    await site.store.close()
    classes = len(site.classes)
    scene = f"{applications:,} Applications with distinct selectors over {clusters:,} clusters of {classes} classes"
    moves, least = sum(change[1] for change in moved), sum(change[2] for change in moved)
    note = f"processor time of one core, commits included; {placed:,} of {wanted:,} replicas have a place; all settled again: {again:.1f} s"
    changes = f"{rounds} changes: labels, cordons, evictions; {moves} replicas moved"
    cluster = gauges.percentile([change[0] for change in moved], 99)
    each = gauges.percentile([change[0] / max(1, change[3]) for change in moved], 99)
    one = gauges.percentile(changed, 99)
    why = gauges.percentile(explained, 99)
    return [
        Row(what=f"{scene}: placed", target=20, measured=whole, unit="s", note=note),
        Row(what="one changed Application placed again, P99", target=50, measured=one, unit="ms", note=f"{rounds} changes"),
        Row(what="one changed cluster, P99 over the Applications that it concerns", target=50, measured=each, unit="ms", note=changes),
        Row(what="one changed cluster, P99 of all that it concerns together", measured=cluster, unit="ms"),
        Row(what="replicas moved by those changes beyond the fewest possible", target=0, measured=moves - least, unit="replicas"),
        Row(what="explain, every cluster with its reason or its score, P99", target=100, measured=why, unit="ms"),
    ]


class Site:
    """One controller's store and placement; `settle` decides what is marked, as its own loop would."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 0.0
        self.engine = Engine(
            store, Reporter(ROOT, 1), uid=ROOT, name=ROOT, silent=dict, silence=lambda _: 0.0, now=lambda: self.now,
            timestamp=lambda: "2026-01-01T00:00:00Z",
        )  # fmt: skip
        self.classes: set[str] = set()
        self._answered: dict[tuple[str, str], int] = {}
        self.clusters: list[str] = []
        self.applications: list[str] = []
        store.subscribe(self.engine.changed)

    @classmethod
    async def open(cls, options: Options, chooser: random.Random, count: int) -> "Site":
        site = cls(await Store.open(options.folder / "store", Limits(journal_rows=200_000)))
        documents = [kinds.Cluster(metadata=kinds.Metadata(name=ROOT), status=kinds.ClusterState(uid=ROOT, phase="Ready"))]
        documents += [site.cluster(index, chooser) for index in range(count)]
        site.clusters = [document.status.uid for document in documents[1:]]

        def write(tx: Tx) -> None:
            for document in documents:
                tx.put(Key("own", "Cluster", "", document.metadata.name), encode(document), uid=document.status.uid)

        await site.store.commit(write)
        return site

    def cluster(self, index: int, chooser: random.Random) -> kinds.Cluster:
        cpu, memory = chooser.choice(SIZES)
        labels = {"tier": chooser.choice(TIERS), "zone": chooser.choice(ZONES), "rack": chooser.choice(RACKS), "number": str(index % 100)}
        price = {kinds.HOURLY_COST: str(chooser.randint(1, 40) / 100)}
        self.classes.add(f"{labels['tier']}{labels['zone']}{labels['rack']}{cpu}")
        sums = kinds.ResourceSums(cpu_millis=cpu, memory_bytes=memory * GIBI)
        node = kinds.NodeClass(architecture="amd64", count=1, ready=1, allocatable=sums, free=sums, labels=price, names=[f"node-{index}"])
        facts = kinds.ClusterFacts(shim="process", component_kinds=["model", "command"], node_classes=[node])
        name = f"edge-{index}"
        status = kinds.ClusterState(uid=f"uid-{name}", parent_uid=ROOT, phase="Ready", facts=facts, labels=labels)
        return kinds.Cluster(metadata=kinds.Metadata(name=name), status=status)

    async def apply(self, count: int) -> None:
        def write(tx: Tx) -> None:
            for index in range(count):
                document = self.application(index, 1 + index % 5)
                tx.put(Key("own", "Application", "default", f"app-{index}"), msgspec.json.encode(document), uid=f"app-{index}")

        self.applications = [f"app-{index}" for index in range(count)]
        await self.store.commit(write)

    @staticmethod
    def application(index: int, replicas: int) -> Mapping[str, object]:
        """Selectors that leave a fiftieth to nearly all of the clusters, no two alike."""
        selector: dict[str, object] = {
            "matchExpressions": [{"key": "number", "operator": "NotIn", "values": [str(index % 97), f"n{index}"]}]
        }
        if index % 2:
            selector["matchLabels"] = {"zone": ZONES[index % 5]} | ({"rack": RACKS[index // 5 % 5]} if index % 3 else {})
        component = {
            "name": "serve",
            "command": ["serve"],
            "replicas": replicas,
            "resources": {"cpu": f"{100 + index % 7 * 100}m", "memory": "256Mi"},
        }
        return {
            "apiVersion": kinds.API_VERSION, "kind": "Application", "metadata": {"name": f"app-{index}", "namespace": "default"},
            "spec": {"components": [component], "placement": {"clusterSelector": selector, **RULES[index % len(RULES)]}},
        }  # fmt: skip

    async def settle_all(self) -> float:
        """Seconds of processor time until every Application is decided."""
        began = time.process_time()
        self.engine.load()
        await self.engine.once()
        return time.process_time() - began

    def shares(self) -> dict[tuple[str, str], int]:
        found = {}
        for cluster in self.clusters:
            for stored in self.store.list(f"down/{cluster}", "Work"):
                work = msgspec.json.decode(stored.document, type=kinds.Work)
                found[stored.key.name, cluster] = work.spec.components[0].replicas
        return found

    def placed(self) -> tuple[int, int]:
        return sum(self.shares().values()), sum(1 + index % 5 for index in range(len(self.applications)))

    async def answer(self) -> None:
        """The children say that they run what they were given."""

        def write(tx: Tx) -> None:
            for cluster in self.clusters:
                for stored in tx.list(f"down/{cluster}", "Work"):
                    work = msgspec.json.decode(stored.document, type=kinds.Work).spec
                    share, replicas = work.shares[-1].id, work.components[0].replicas
                    if self._answered.get((stored.key.name, cluster)) == share:
                        continue
                    self._answered[stored.key.name, cluster] = share
                    part = kinds.ComponentStatus(name="serve", desired=replicas, ready=replicas, updated=replicas)
                    rows = [kinds.ClusterRow(cluster=cluster, ready=replicas, desired=replicas, components={"serve": replicas})]
                    status = kinds.WorkStatusStatus(version=share, seen=share, components=[part], clusters=rows, cluster_count=1)
                    spec = kinds.WorkStatusSpec(application=work.application, cluster=cluster)
                    document = encode(kinds.WorkStatus(spec=spec, status=status))
                    tx.put(Key(f"up/{cluster}", "WorkStatus", "", stored.key.name), document, uid=stored.key.name)

        await self.store.commit(write)
        await self.engine.once()

    async def change_application(self, chooser: random.Random) -> float:
        """Milliseconds until one more replica, or another selector, is decided and written."""
        index = chooser.randrange(len(self.applications))
        document = self.application(index, chooser.randint(1, 8))
        uid = self.applications[index]
        began = time.process_time()
        await self.store.commit(lambda tx: tx.put(Key("own", "Application", "default", uid), msgspec.json.encode(document), uid=uid))
        await self.engine.once()
        millis = 1000 * (time.process_time() - began)
        await self.answer()
        return millis

    async def change_cluster(self, chooser: random.Random) -> tuple[float, int, int, int]:
        """Milliseconds, replicas that moved, how many had to (those that may not stay), and Applications decided."""
        uid = chooser.choice(self.clusters)
        stored = self.store.find("own", "Cluster", uid)
        assert stored is not None
        document = msgspec.json.decode(stored.document)
        status = document["status"]
        before = self.shares()
        here = sum(count for (_, cluster), count in before.items() if cluster == uid)
        change = chooser.choice(("cordon", "evict", "label"))
        if change == "cordon":
            status["unschedulable"] = not status.get("unschedulable", False)
        elif change == "evict":
            status["taints"] = [{"key": "maintenance", "effect": "NoExecute"}]
        else:
            status["labels"]["room"] = str(chooser.random())
        began = time.process_time()
        await self.store.commit(lambda tx: tx.put(stored.key, msgspec.json.encode(document), uid=uid))
        decided = await self.engine.once()
        millis = 1000 * (time.process_time() - began)
        await self.answer()
        after = self.shares()
        moved = sum(max(0, count - after.get(key, 0)) for key, count in before.items())
        return millis, moved, here if change == "evict" else 0, decided

    async def explain(self, chooser: random.Random) -> float:
        application = chooser.choice(self.applications)
        began = time.process_time()
        await self.store.commit(lambda tx: msgspec.json.encode(explanation(tx, self.engine.explain, lambda _: None, application)))
        return 1000 * (time.process_time() - began)
