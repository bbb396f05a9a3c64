"""A link that loses every tenth packet, either way, beneath a hundred changes a second: each arrives once, and soon.

root → region-1 → leaf-1 with a stand-in shim, all in a network namespace whose loopback has the packets of a real wire (1,500 bytes) and
drops one in ten to and from the root's tunnel port. First what is wanted goes down for a minute, then what is seen goes up for another.
How a branch heals after a cut is measured by `replace`, and what flapping costs by the faults of `e2e/faults`.
"""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from banyanctl.demo.ports import free_port
from benchmarks import load, records
from benchmarks.harness import APPS, Site, all_ready, application, applied, changed, growing
from benchmarks.load import Arrivals, Status, Watches
from benchmarks.records import Options, Row
from e2e.netns import Namespace, weaving

MERGE = "application/merge-patch+json"
LOSS = 10  # of a hundred packets
PER_SECOND = 100.0
WIRE = 1500  # bytes of the largest packet
TABLE = "lossy"
NETWORK = f"loopback of a network namespace with packets of {WIRE} bytes, {LOSS} % of those to and from the root's tunnel lost"
AT_ONCE = 8  # requests, in order: where the root is too busy to take more, no change of an Application overtakes the one before


async def measure(options: Options) -> list[Row]:
    apps, count = (10, 40) if options.quick else (1000, 6000)
    if os.geteuid() != 0:
        raise RuntimeError("it makes a network namespace and drops packets there, which takes root: run `make bench-healing` as root")
    with weaving() as fabric:
        space = fabric.namespace("lossy")
        with space.entered():
            space.run("ip", "link", "set", "lo", "mtu", str(WIRE))
            return await over(space, options, apps, count)


async def over(space: Namespace, options: Options, apps: int, count: int) -> list[Row]:
    async with growing(options.folder) as tree:
        port = free_port(11600)
        root = await tree.root(tunnel_listen=f"127.0.0.1:{port}")
        region = await tree.region("region-1", root)
        await all_ready(root, 2)
        leaf = await tree.leaf("leaf-1", region)
        await all_ready(root, 3)
        turn = asyncio.Semaphore(AT_ONCE)

        async def put(number: int) -> None:
            async with turn:
                await root.pool.request("POST", APPS, application(app(number), clusterName=leaf.name))

        await asyncio.gather(*(put(number) for number in range(apps)))
        await applied(root, apps)
        with losing(space, port):
            down, again, rate = await downwards(root, leaf, apps, count)
            records.say("down: done")
            up = await upwards(root, leaf, apps, count)
            lost, passed = packets(space)
        if not options.quick and lost < 100:
            raise RuntimeError(f"only {lost} of {lost + passed} packets were lost: that was no lossy link")
    what = f"{LOSS} % of all packets lost between root and region, {PER_SECOND:g} changes/s for {count / PER_SECOND:g} s: "
    return [
        Row(
            what=f"{what}applied at the root → stored at the leaf two hops away, P99",
            target=2000,
            measured=load.p99(down),
            unit="ms",
            note=f"{count} changes of {apps} Applications; {lost:,} of {lost + passed:,} packets were lost, both ways and rows together;"
            f" the root took {rate:.0f} changes a second",
        ),
        Row(what=f"{what}applied at the root → stored at the leaf, P50", measured=load.p50(down), unit="ms"),
        Row(what=f"{what}changes that did not arrive", target=0, measured=count - len(down), unit="changes"),
        Row(what=f"{what}changes that arrived more than once", target=0, measured=again, unit="changes"),
        Row(
            what=f"{what}status changed at the leaf → visible at the root, P99",
            target=2000,
            measured=load.p99(up),
            unit="ms",
        ),
        Row(what=f"{what}status changed at the leaf → visible at the root, P50", measured=load.p50(up), unit="ms"),
        Row(what=f"{what}reports that did not arrive", target=0, measured=count - len(up), unit="reports"),
    ]


def app(number: int) -> str:
    return f"app-{number}"


@contextmanager
def losing(space: Namespace, port: int) -> Iterator[None]:
    """To and from the port. In this namespace alone."""
    space.run("nft", f"add table ip {TABLE}; add chain ip {TABLE} input {{ type filter hook input priority 0; }}")
    for end in ("sport", "dport"):
        space.run("nft", f"add rule ip {TABLE} input tcp {end} {port} numgen random mod 100 < {LOSS} counter drop")
        space.run("nft", f"add rule ip {TABLE} input tcp {end} {port} counter accept")
    try:
        yield
    finally:
        space.run("nft", f"delete table ip {TABLE}")


def packets(space: Namespace) -> tuple[int, int]:
    """Lost, and passed."""
    found = re.findall(r"counter packets (\d+) bytes \d+ (drop|accept)", space.run("nft", "list", "table", "ip", TABLE))
    lost, passed = (sum(int(number) for number, verdict in found if verdict == wanted) for wanted in ("drop", "accept"))
    return lost, passed


async def downwards(root: Site, leaf: Site, apps: int, count: int) -> tuple[list[float], int, float]:
    """Milliseconds until stored at the leaf, how many changes were stored there again, and how many a second the root took.

    A change that is overtaken by the next one of its Application is stored with that one, and arrives when it does: of several changes
    to one object only the last is sent.
    """
    arrivals, stored = Arrivals(), Counter[tuple[str, str]]()

    def show(name: str, word: str, at: float) -> None:
        stored[name, word] += 1
        for earlier in range(1 + (int(word) - 1) % apps, 1 + int(word), apps):
            arrivals.arrived((name, str(earlier)), at)

    turn = asyncio.Semaphore(AT_ONCE)
    async with Watches() as watches:
        await watches.works(leaf, show)

        async def change(number: int) -> None:
            name, word = app(number % apps), 1 + number
            async with turn:
                arrivals.began[name, str(word)] = time.monotonic()
                await root.pool.request("PATCH", f"{APPS}/{name}", changed(word), MERGE)

        began = time.monotonic()
        await load.paced(count, PER_SECOND, change)
        rate = count / (time.monotonic() - began)
        took = await arrivals.milliseconds()
        watches.check()
    return took, sum(times > 1 for times in stored.values()), rate


async def upwards(root: Site, leaf: Site, apps: int, count: int) -> list[float]:
    """Milliseconds until visible at the root."""
    arrivals = Arrivals()
    waiting: dict[str, tuple[int, int]] = {}  # application → (turn, what the root will show as ready)
    uids = {item["metadata"]["name"]: item["metadata"]["uid"] for item in (await root.pool.request("GET", APPS))["items"]}
    shim = leaf.shim
    assert shim is not None

    def seen(name: str, status: Status, at: float) -> None:
        turn, ready = waiting.get(name, (0, -1))
        if status.ready == ready:
            arrivals.arrived((name, turn), at)

    async with Watches() as watches:
        await watches.applications(root, seen)

        async def report(number: int) -> None:
            name, turn = app(number % apps), 1 + number // apps
            while turn > 1 and (name, turn - 1) not in arrivals.took:
                await asyncio.sleep(0.005)  # two reports of one application that overtake each other would be one
            waiting[name] = turn, (turn + 1) % 2
            arrivals.began[name, turn] = shim.flip(uids[name], ready=turn % 2 == 0)

        await load.paced(count, PER_SECOND, report)
        took = await arrivals.milliseconds()
        watches.check()
    return took
