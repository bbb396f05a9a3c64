"""What a thousand children cost their parent, and how soon it has served all of them when they come at once.

The parent is a `banyan run`, pinned to one core; the children are whole controllers (`benchmarks.hosted`) on the other cores, which have
started and wait for the word. Bytes are counted at an interface between the two, both ways and with all headers. Then the parent is started
again while nobody dials, and what it grows by when all come back is what a connected child costs: the objects of its children it holds
already. What the kernel holds for the sockets is not in it and stands beside it.
"""

import asyncio
import os
import re
import time

from msgspec import Struct

from benchmarks import gauges, network, records
from benchmarks.failover import address_of
from benchmarks.harness import Site, Tree, all_ready, growing
from benchmarks.hosted import Host, plant
from benchmarks.network import Counter, counted
from benchmarks.records import Options, Row
from benchmarks.relay import pin

NETWORK = "a pair of virtual interfaces into a network namespace, not shaped"
OTE = "ote-stack, Go, without TLS"
PATIENCE_SECONDS = 120.0
SETTLE_SECONDS = 12.0  # the heartbeats of everybody have passed, and a loop's leavings are gone


class Found(Struct, kw_only=True):
    served: float
    ready: float
    parent_cpu: float
    children_cpu: float
    bytes_served: int
    bytes_ready: int
    first: int = 0
    connected: int = 0
    kernel: int = 0
    idle: float = 0.0


async def measure(options: Options) -> list[Row]:
    count, settle = (12, 0.5) if options.quick else (1000, SETTLE_SECONDS)
    async with counted() as counter, growing(options.folder) as tree:
        found = await served(tree, counter, count, settle)
    return shown(found, count, counter.how)


async def served(tree: Tree, counter: Counter, count: int, settle: float) -> Found:
    cores = sorted(os.sched_getaffinity(0))
    root = await tree.root(tunnel_listen=f"{counter.host}:0")
    pin(root.pid, cores[0])
    port = int(address_of(root).rpartition(":")[2])
    names = [f"child-{number}" for number in range(count)]
    await asyncio.to_thread(plant, tree.folder, "root", f"{counter.host}:{port}", names)
    host = await asyncio.to_thread(Host, tree.folder, prefix=counter.prefix, core=cores[-1])
    try:
        await host.ask("start", names=names, cluster=False, dial=False)
        records.say(f"{count:,} children have started and wait")
        await asyncio.sleep(settle / 4)
        before = gauges.anonymous(root.pid)
        found = await at_once(root, host, counter, port, count)
        await asyncio.sleep(settle)
        found.first = gauges.anonymous(root.pid) - before
        await host.ask("hang_up")
        await root.stop()
        root.start()
        await root.ready()
        pin(root.pid, cores[0])
        await root.pool.request("GET", "/healthz")  # what it loads for the first answer, it keeps
        await asyncio.sleep(settle)
        before = gauges.anonymous(root.pid)
        await host.ask("dial", seconds=PATIENCE_SECONDS)
        await all_ready(root, count + 1)
        root.forget()
        await asyncio.sleep(settle)
        found.connected = gauges.anonymous(root.pid) - before
        found.kernel = await asyncio.to_thread(buffers, port)
        sample = gauges.sample(root.pid)
        await asyncio.sleep(max(1.0, settle))
        found.idle = gauges.cost(sample, gauges.sample(root.pid)).cpu_percent
        return found
    finally:
        await asyncio.to_thread(host.close)


async def at_once(root: Site, host: Host, counter: Counter, port: int, count: int) -> Found:
    """All of them dial at the same moment, and have never been here."""
    sent, parent, children = await counter.bytes(port), gauges.cpu_seconds(root.pid), gauges.cpu_seconds(host.pid)
    told = await host.ask("dial", seconds=PATIENCE_SECONDS)
    if told["missed"]:
        raise RuntimeError(f"{told['missed']} children were never welcomed; {told['why']}")
    made = Found(
        served=told["last"] - told["began"],
        ready=0.0,
        parent_cpu=gauges.cpu_seconds(root.pid) - parent,
        children_cpu=gauges.cpu_seconds(host.pid) - children,
        bytes_served=await counter.bytes(port) - sent,
        bytes_ready=0,
    )
    await all_ready(root, count + 1)
    made.ready = time.monotonic() - told["began"]
    made.bytes_ready = await counter.bytes(port) - sent
    root.forget()
    return made


def buffers(port: int) -> int:
    """Bytes that the kernel holds in the sockets of this port: queued both ways, reserved ahead, and the bookkeeping of packets."""
    text = network.command("ss", "-tmnHO", "state", "established", f"( sport = :{port} )")
    total = 0
    for line in text.splitlines():
        found = dict(re.findall(r"([a-z]+)(\d+)", line.partition("skmem:(")[2].partition(")")[0]))
        total += sum(int(found.get(name, 0)) for name in ("r", "t", "f", "o"))
    return total


def shown(found: Found, count: int, how: str) -> list[Row]:
    crowd = f"{count:,} children"
    note = (
        f"children are whole controllers in one process on the other core, which makes its side of {count:,} TLS 1.3 handshakes with"
        f" client certificates there: until all were welcomed it took {found.children_cpu:.1f} s of that core, and the parent"
        f" {found.parent_cpu:.1f} s of its own; bytes {how}; a child that is not let in within {PATIENCE_SECONDS:g} s would have ended"
        " this with an error"
    )
    memory = (
        "anonymous memory of the parent's process that the connections of children take whom it knows already: TLS, link and sync session"
        " both ways; nothing is queued in an idle socket, and the kernel's own records of a socket are not counted"
    )
    return [
        Row(
            what=f"{crowd} connect at once, mutual TLS, one core for the parent: all are served",
            target=8, measured=found.served, unit="s", note=note, peer=OTE, peer_measured=7.9,
        ),
        Row(
            what=f"{crowd} connect at once: bytes sent until then, both ways",
            target=10, measured=found.bytes_served / 1e6, unit="MB", peer=OTE, peer_measured=8400,
        ),
        Row(what=f"{crowd} connect at once: until the API shows every one Ready", measured=found.ready, unit="s"),
        Row(what=f"{crowd} connect at once: bytes until then", measured=found.bytes_ready / 1e6, unit="MB"),
        Row(
            what=f"memory of the parent for each connected, idle child of {count:,}, TLS",
            target=64, measured=found.connected / count / 1024, unit="KiB", note=memory, peer=OTE, peer_measured=39,
        ),
        Row(
            what=f"the kernel's buffers for each of {count:,} idle children, at the parent",
            measured=found.kernel / count / 1024, unit="KiB",
        ),
        Row(
            what=f"growth of the parent for each of {count:,} children whom it has never seen before, stored objects and journal included",
            measured=found.first / count / 1024, unit="KiB",
        ),
        Row(what=f"processor of the parent of {count:,} idle children", measured=found.idle, unit="% of a core"),
    ]  # fmt: skip
