"""Models on their way: down a tree beside a star, over one hop beside bare TLS, through ten cuts, and what others feel of it meanwhile.

Each part is a tree of the shipped `banyan run` in a network of its own, which takes root: the kernel shapes, cuts and counts there. A file
is new random bytes each time, so that nothing of it is anywhere before; it is published at the root and wanted below by an Application,
and it counts from that request until each leaf has it under its name, verified and synced.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from banyanctl.demo.ports import free_port
from benchmarks import gauges, load, records, standin
from benchmarks.harness import API, APPS, Site, Tree, all_ready, growing, token, until
from benchmarks.idle import tunnel_port
from benchmarks.records import Options, Row
from benchmarks.relay import pin
from cluster_controller.clock import wall
from cluster_controller.identity import certificates, keys
from e2e.netns import Fabric, Link, Namespace, weaving

NETWORK = "network namespaces of one machine; shaped, delayed and cut as each row says, else loopback"
MIB = 1 << 20
BARE = "TLS + sha256 + write + fdatasync alone"
REGIONS = 2
UPLINK, REGIONAL = 80, 160  # Mbit/s: of the root, for all of its children together, and of each region
THIN, FAR, QUEUE = 20, 0.020, 0.1  # Mbit/s; seconds one way; seconds of that rate that wait in the queue before it
THINNEST = 64  # kbit/s
WAIT = 300.0
LOOK = 0.005  # seconds between two looks at a disk


class Sizes(Struct, frozen=True):
    rounds: int
    leaves: int  # of the tree, and as many of the star
    spread: int  # MiB to each leaf
    hop: int  # MiB over one hop
    cuts: int
    thin: int  # MiB over the thin link
    trips: int  # round trips on an idle link
    thinnest: float  # seconds at 64 kbit/s


IN_EARNEST = Sizes(rounds=3, leaves=8, spread=20, hop=1024, cuts=10, thin=20, trips=300, thinnest=40.0)
QUICK = Sizes(rounds=1, leaves=2, spread=1, hop=48, cuts=2, thin=2, trips=20, thinnest=2.0)


async def measure(options: Options) -> list[Row]:
    if os.geteuid() != 0:
        raise RuntimeError("it makes networks that it shapes and cuts, which takes root: run `make bench-models` as root")
    sizes = QUICK if options.quick else IN_EARNEST
    rows: list[Row] = []
    with weaving() as fabric:
        for part in (spread, hop, thin):
            records.say(f"models: {part.__name__}")
            rows += await part(fabric, options, sizes)
    return rows


@contextmanager
def inside(space: Namespace) -> Iterator[None]:
    """This task is in that network, and so is what it does in threads: those of before are in the network that they were made in."""
    with ThreadPoolExecutor() as threads, space.entered():
        asyncio.get_running_loop().set_default_executor(threads)
        try:
            yield
        finally:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())


# -- a model, and where it is ------------------------------------------------------------------------------------------------


class Model(Struct, frozen=True):
    name: str
    digest: str
    size: int
    source: Path

    def at(self, site: Site) -> Path:
        return site.folder / "blobs" / "sha256" / self.digest[:2] / self.digest

    def arrived(self, site: Site) -> int:
        """Bytes of it on a site's disk. A file that grows is as long as its last chunk says."""
        for path in (self.at(site), site.folder / "blobs" / "partial" / self.digest):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                continue
        return 0


async def published(root: Site, folder: Path, name: str, mebibytes: int) -> Model:
    path = folder / f"{name}.bin"
    digest = await asyncio.to_thread(_random, path, mebibytes)
    await root.run("model", "publish", name, str(path), "--version", "1")
    return Model(name, digest, mebibytes * MIB, path)


def _random(path: Path, mebibytes: int) -> str:
    seen = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mebibytes):
            block = os.urandom(MIB)
            seen.update(block)
            file.write(block)
    return seen.hexdigest()


async def wanted(root: Site, model: Model, **placement: Any) -> None:
    component = {"name": "main", "model": {"name": model.name, "version": "1"}, "replicas": 1}
    document = {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": f"{model.name}-{placement.get('clusterName', 'all')}", "namespace": "default"},
        "spec": {"components": [component], "placement": placement},
    }
    await root.pool.request("POST", APPS, document)


async def there(model: Model, sites: Sequence[Site]) -> None:
    paths = [model.at(site) for site in sites]
    end = time.monotonic() + WAIT
    while paths := [path for path in paths if not path.exists()]:
        if time.monotonic() > end:
            raise TimeoutError(f"{model.name} has not come to {len(paths)} of {len(sites)} sites within {WAIT:g} s")
        await asyncio.sleep(LOOK)


async def carried(root: Site, model: Model, sites: Sequence[Site], **placement: Any) -> float:
    """Seconds until all have it."""
    began = time.perf_counter()
    await wanted(root, model, **placement)
    await there(model, sites)
    return time.perf_counter() - began


async def round_trips(root: Site, leaf: Site, going_on: Callable[[int], bool]) -> list[float]:
    """Milliseconds of small requests to the leaf's own API through the root, in order, while that is so of their count."""
    took: list[float] = []
    while going_on(len(took)):
        began = time.perf_counter()
        await root.pool.request("GET", f"{API}/clusters/{leaf.name}/banyan/version")
        took.append(1000 * (time.perf_counter() - began))
    return took


# -- a tree beside a star ----------------------------------------------------------------------------------------------------


async def spread(fabric: Fabric, options: Options, sizes: Sizes) -> list[Row]:
    """The same root, two regions with eight leaves and eight leaves of its own, in turns."""
    space = fabric.namespace("spread")
    with inside(space):
        async with growing(options.folder) as tree:
            ports = [free_port(11700 + number) for number in range(1 + REGIONS)]
            root = await tree.root(tunnel_listen=f"127.0.0.1:{ports[0]}")
            regions = []
            for number, port in enumerate(ports[1:]):
                listen = f"127.0.0.1:{port}"
                regions.append(await tree.member(f"region-{number}", await token(root), tunnel_listen=listen, shim="none"))
            below = [
                leaf
                for number, region in enumerate(regions)
                for leaf in await tree.leaves(_names(f"tree-{number}", sizes.leaves // REGIONS), region, labels={"shape": "tree"})
            ]
            beside = await tree.leaves(_names("star", sizes.leaves), root, labels={"shape": "star"})
            await all_ready(root, 1 + REGIONS + 2 * sizes.leaves)
            shape(space, ports)
            stars, trees, copies = [], [], []
            for number in range(max(1, sizes.rounds - 1)):
                model = await published(root, tree.folder, f"star-{number}", sizes.spread)
                stars.append(await carried(root, model, beside, **_duplicated("star")))
                model = await published(root, tree.folder, f"tree-{number}", sizes.spread)
                before = sent(space)
                trees.append(await carried(root, model, below, **_duplicated("tree")))
                copies.append((sent(space) - before) / (REGIONS * model.size))
    what = f"{sizes.spread} MiB to {sizes.leaves} leaves below {REGIONS} regions"
    ratio = records.rounds("", trees, "s", peer="x", theirs=stars).ratio
    assert ratio is not None
    note = (
        f"the root sends {UPLINK} Mbit/s, to all its children together, each region {REGIONAL}; from the request for the Application until"
        f" the last leaf has the verified file"
    )
    return [
        records.rounds(what, trees, "s", peer=f"star: {sizes.leaves} leaves under the same root", theirs=stars, note=note),
        Row(what=f"{what}: time, of that of the star", target=0.3, measured=ratio.value, unit="×"),
        Row(
            what=f"{what}: bytes on the root's links, copies for each child",
            target=1.06,
            measured=max(copies),
            unit="copies",
            note="one copy and what carries it: counted by the kernel with the headers of Ethernet, IP and TCP of packets of 1,500 bytes",
        ),
    ]


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


def _duplicated(shape: str) -> dict[str, Any]:
    return {"strategy": "Duplicated", "clusterSelector": {"matchLabels": {"shape": shape}}}


def shape(space: Namespace, ports: Sequence[int]) -> None:
    """What leaves each parent's tunnel port shares that parent's uplink; everything else is as fast as it goes."""
    space.run("ip", "link", "set", "lo", "mtu", "1500")
    space.run("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "999")
    space.run("tc", "class", "add", "dev", "lo", "parent", "1:", "classid", "1:999", "htb", "rate", "10gbit", "quantum", "60000")
    for number, (port, rate) in enumerate(zip(ports, [UPLINK] + [REGIONAL] * REGIONS, strict=True), 1):
        where = ("dev", "lo", "parent", "1:")
        space.run("tc", "class", "add", *where, "classid", f"1:{number}", "htb", "rate", f"{rate}mbit", "burst", "32kb", "quantum", "60000")
        space.run(
            "tc", "filter", "add", *where, "protocol", "ip", "u32", "match", "ip", "sport", str(port), "0xffff", "flowid", f"1:{number}"
        )


def sent(space: Namespace) -> int:
    """Bytes that have left the root's tunnel port."""
    found = re.search(r"class htb 1:1 .*?Sent (\d+) bytes", space.run("tc", "-s", "class", "show", "dev", "lo"), re.DOTALL)
    if found is None:
        raise RuntimeError("the kernel says nothing of what has left the root")
    return int(found[1])


# -- one hop, as fast as it goes -----------------------------------------------------------------------------------------------


async def hop(fabric: Fabric, options: Options, sizes: Sizes) -> list[Row]:
    space = fabric.namespace("hop")
    with inside(space):
        async with growing(options.folder) as tree:
            root = await tree.root()
            # A leaf for each time, so that nothing of the file is there before; it is published once.
            *leaves, undisturbed, resumed = await tree.leaves(_names("leaf", sizes.rounds + 2), root)
            await all_ready(root, 3 + sizes.rounds)
            port = await tunnel_port(root)
            model = await published(root, tree.folder, "hop", sizes.hop)
            ours, theirs, grown = [], [], []
            cores = sorted(os.sched_getaffinity(0))
            for leaf in leaves:
                theirs.append(model.size / 1e6 / await asyncio.to_thread(bare, model, tree.folder, cores))
                with pinned({root.pid: cores[0], leaf.pid: cores[-1]}), Growth([root.pid, leaf.pid]) as growth:
                    carrying = asyncio.create_task(carried(root, model, [leaf], clusterName=leaf.name))
                    await growth.watch(carrying)
                ours.append(model.size / 1e6 / carrying.result())
                grown.append(growth.most / MIB)
            beside = await meanwhile(root, undisturbed, model, sizes)
            bytes_ = await cut(space, root, resumed, model, port=port, cuts=sizes.cuts, seed=options.seed)
    what = f"{sizes.hop} MiB over one hop, TLS on loopback"
    row = records.rounds(what, ours, "MB/s", peer=BARE, theirs=theirs, least=True, note="each end has a core, as the bare pipeline's")
    assert row.ratio is not None
    added = load.p99(beside[1]) - load.p99(beside[0])
    return [
        row,
        Row(what=f"{what}: of what the bare pipeline reaches", target=80, measured=100 * row.ratio.value, unit="%", least=True),
        Row(
            what=f"{what}: growth of a controller's memory",
            target=32,
            measured=max(grown),
            unit="MiB",
            note="the most that either end had at any look, every 20 ms, above what it had before; anonymous memory",
        ),
        Row(
            what=f"{what}: round trip of a person's request meanwhile, P99 above that on the idle link",
            target=5,
            measured=added,
            unit="ms",
            note=f"{len(beside[0])} requests on the idle link, P99 {load.p99(beside[0]):.1f} ms; {len(beside[1])} beside the model",
        ),
        Row(
            what=f"{what}, {sizes.cuts} cuts: bytes that left the parent, of the model's",
            target=1.02,
            measured=bytes_ / (sizes.hop * MIB),
            unit="×",
            note="counted by the kernel, headers and what was lost on its way included; each cut resets the connection",
        ),
    ]


def bare(model: Model, folder: Path, cores: Sequence[int]) -> float:
    """Seconds."""
    certificate, target = folder / "bare.pem", folder / "bare.bin"
    if not certificate.exists():
        key = keys.generate()
        signer = certificates.site_ca("bare", keys.uid_of(key.public_key()), key, wall())
        certificate.write_bytes(certificates.pem(signer.certificate) + keys.to_pem(key))
    program = [sys.executable, "-m", "benchmarks.models_bare"]

    def start(core: int, *words: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen([*program, *map(str, words)], stdout=subprocess.PIPE, text=True, cwd=records.ROOT)
        os.sched_setaffinity(process.pid, {core})
        return process

    with start(cores[0], "send", certificate, model.source) as sender:
        assert sender.stdout is not None
        try:
            port = json.loads(sender.stdout.readline())["port"]
            with start(cores[-1], "receive", port, target) as receiver:
                told = json.loads(receiver.communicate(timeout=WAIT)[0])
        finally:
            sender.kill()
    target.unlink()
    if told["sha256"] != model.digest:
        raise RuntimeError("the bare pipeline brought other bytes")
    return float(told["seconds"])


@contextmanager
def pinned(cores: dict[int, int]) -> Iterator[None]:
    """Each process on its core, and free again afterwards."""
    every = os.sched_getaffinity(0)
    for pid, core in cores.items():
        pin(pid, core)
    try:
        yield
    finally:
        for pid in cores:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), every)


class Growth:
    """The most that any of these processes' memory grew."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = dict.fromkeys(pids, 0)
        self.most = 0

    def __enter__(self) -> "Growth":
        self._before = {pid: gauges.anonymous(pid) for pid in self._before}
        return self

    def __exit__(self, *exc: object) -> None:
        self._look()

    async def watch(self, task: "asyncio.Task[float]") -> None:
        while not task.done():
            self._look()
            await asyncio.wait([task], timeout=0.02)

    def _look(self) -> None:
        self.most = max(self.most, *(gauges.anonymous(pid) - before for pid, before in self._before.items()))


async def meanwhile(root: Site, leaf: Site, model: Model, sizes: Sizes) -> tuple[list[float], list[float]]:
    """Round trips on the idle link, and beside a model that takes all it can get."""
    await round_trips(root, leaf, lambda count: count < sizes.trips // 10)
    idle = await round_trips(root, leaf, lambda count: count < sizes.trips)
    await wanted(root, model, clusterName=leaf.name)
    await flowing(model, leaf)
    beside = await round_trips(root, leaf, lambda count: not model.at(leaf).exists())
    await there(model, [leaf])
    if not beside:
        raise RuntimeError("no request was answered while the model was on its way")
    return idle, beside


async def flowing(model: Model, site: Site, least: int = 1) -> None:
    """Until so many bytes of it are there."""
    end = time.monotonic() + WAIT
    while model.arrived(site) < least:
        if time.monotonic() > end:
            raise TimeoutError(f"{model.name}: {model.arrived(site)} of {least} bytes came to {site.name} within {WAIT:g} s")
        await asyncio.sleep(LOOK)


async def cut(space: Namespace, root: Site, leaf: Site, model: Model, *, port: int, cuts: int, seed: int) -> int:
    """Bytes that left the root's port until the leaf had it, through so many cuts at random places."""
    whole = model.size // MIB
    places = sorted(random.Random(seed).sample(range(whole // 20, whole * 19 // 20, max(1, whole // 40)), cuts))
    space.run("nft", "add table ip cuts; add chain ip cuts out { type filter hook output priority 0; }; add counter ip cuts sent")
    space.run("nft", f"add rule ip cuts out tcp sport {port} counter name sent")
    space.run("nft", "add chain ip cuts in { type filter hook input priority 0; }")
    await wanted(root, model, clusterName=leaf.name)
    for place in places:
        await flowing(model, leaf, place * MIB)
        if model.at(leaf).exists():
            raise RuntimeError(f"the model was there before the cut at {place} MiB")
        before = losses(leaf)
        space.run("nft", f"add rule ip cuts in tcp dport {port} reject with tcp reset")
        await until("the leaf has lost its link", partial(_lost, leaf, before), pause=0.01)
        space.run("nft", "flush chain ip cuts in")
    await there(model, [leaf])
    found = re.search(r"bytes (\d+)", space.run("nft", "list", "counter", "ip", "cuts", "sent"))
    space.run("nft", "delete table ip cuts")
    assert found is not None
    return int(found[1])


# -- thin links -----------------------------------------------------------------------------------------------------------------


async def thin(fabric: Fabric, options: Options, sizes: Sizes) -> list[Row]:
    upper, lower = fabric.namespace("upper"), fabric.namespace("lower")
    link, cable = fabric.cable(upper, lower)
    cable.delay = FAR
    link.shape(f"{THIN}mbit", round(THIN * 1e6 / 8 * QUEUE))
    with inside(upper):
        async with growing(options.folder) as tree, pair(tree, link, lower) as (root, leaf):
            model = await published(root, tree.folder, "thin", sizes.thin)
            idle = await round_trips(root, leaf, lambda count: count < max(10, sizes.trips // 3))
            await wanted(root, model, clusterName=leaf.name)
            await flowing(model, leaf)
            beside = await round_trips(root, leaf, lambda count: not model.at(leaf).exists())
            await there(model, [leaf])
            lost = losses(root, leaf)
            link.shape(f"{THINNEST}kbit", round(THINNEST * 1e3 / 8 * 2), burst="2kb")
            second = await published(root, tree.folder, "thinnest", 1 + sizes.thin // 4)
            before = carried_by(link)
            await wanted(root, second, clusterName=leaf.name)
            await asyncio.sleep(sizes.thinnest)
            after = carried_by(link)
            more = losses(root, leaf) - lost
    used = (after - before) * 8 / 1000 / sizes.thinnest
    added, shaped = load.p99(beside) - load.p99(idle), f"{THIN} Mbit/s, {2000 * FAR:g} ms, a queue of {1000 * QUEUE:g} ms"
    return [
        Row(
            what=f"{shaped}, a model on its way: a person's request, P99 above the idle link's",
            target=60,
            measured=added,
            unit="ms",
            note=f"{len(idle)} requests on the idle link, P99 {load.p99(idle):.1f} ms; {len(beside)} beside {sizes.thin} MiB,"
            f" P99 {load.p99(beside):.1f} ms; {lost} links were lost",
        ),
        Row(
            what=f"{THINNEST} kbit/s, a model on its way for {sizes.thinnest:g} s: links lost for want of a heartbeat",
            target=0,
            measured=more,
            unit="links",
            note=f"the link carried {used:.0f} kbit/s meanwhile, down; heartbeats every 5 s by default, a link is given up after 15",
        ),
    ]


@asynccontextmanager
async def pair(tree: Tree, link: Link, lower: Namespace) -> AsyncIterator[tuple[Site, Site]]:
    """A root, and a leaf with a stand-in at the other end of the link."""
    root = await tree.root(tunnel_listen=f"{link.upper.address}:0")
    path = tree.folder / "leaf.sock"
    shim, server = await standin.serve(path)
    try:
        leaf = tree.site("leaf", ("ip", "netns", "exec", lower.name))
        words = ("--name", "leaf", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "", "--shim", f"unix:{path}", "--no-run")
        await leaf.run("join", await token(root), *words)
        leaf.start()
        await leaf.ready()
        leaf.shim = shim
        await all_ready(root, 2)
        yield root, leaf
    finally:
        leaf.destroy()
        await server.close(0.1)


async def _lost(site: Site, before: int) -> bool:
    return losses(site) > before


def carried_by(link: Link) -> int:
    """Bytes that its upper end has sent."""
    (told,) = json.loads(link.upper.space.run("ip", "-json", "-statistics", "link", "show", "dev", link.upper.device))
    return int(told["stats64"]["tx"]["bytes"])


def losses(*sites: Site) -> int:
    return sum(site.log_file.read_text(encoding="utf-8").count("link.lost") for site in sites)
