"""How many 256-byte frames a controller relays a second, on one core, over TLS.

The relay is the shipped `banyan run`, joined to its parent and pinned to one core. Around it, pinned to the other cores, two programs that
are whole controllers too (`benchmarks.relay_ends`): a source in the place of the parent, and a sink that holds all children and compares
what arrives, so a frame lost, doubled or out of order is an error. Beside it, in turns, the bare `websockets` library forwards the same
payloads, one message each. Then the same relay at half of the rate that is promised: how long a frame is under way.
"""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from banyanctl import service
from benchmarks import gauges, records
from benchmarks.failover import address_of
from benchmarks.harness import AT_ONCE, Site, Tree, all_ready, growing, token
from benchmarks.hosted import plant
from benchmarks.records import Options, Row
from benchmarks.relay_ends import DIRECT, PAYLOAD, Process, child
from cluster_controller import config

WARM_UP = 1.0
DRAIN_SECONDS = 60.0
LINK_SECONDS = 120.0
OTE = "ote-stack, Go, without TLS"
OTE_RELAYS = {1: 54_000.0, 100: 5_930.0, 1000: 595.0}
WEBSOCKETS = "websockets, bare, one message each"


class Case(Struct, frozen=True):
    """``half``: at half of this rate the delay is measured. ``peer``: measured beside bare websockets, in turns."""

    children: int
    target: float
    half: bool = False
    peer: bool = False


CASES = (Case(1, 500_000, peer=True), Case(100, 100_000, half=True, peer=True), Case(1000, 60_000, half=True))
SMALL = (Case(1, 500_000, peer=True), Case(3, 100_000, half=True, peer=True), Case(5, 60_000, half=True))


def pin(pid: int, core: int) -> None:
    """All threads; those to come follow whoever starts them."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


async def joined(tree: Tree, relay: Site, children: int) -> None:
    """Children that have joined and are not running."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with turn:
            chosen = {"name": name, "api_listen": "127.0.0.1:0", "tunnel_listen": "", "shim": "none"}
            settings = config.load(tree.folder / name, {}, chosen)
            await asyncio.to_thread(service.join, settings, await token(relay), lambda _: None)

    async with asyncio.TaskGroup() as group:
        for number in range(children):
            group.create_task(one(child(number)))


@asynccontextmanager
async def planted(folder: Path, children: int, cores: list[int]) -> AsyncIterator[tuple[Tree, Site]]:
    """A relay on a core of its own; the root has stopped, so that a source can take its place: the same identity, store and port."""
    async with growing(folder) as tree:
        root = await tree.root()
        relay = await tree.region("relay", root)
        await all_ready(root, 2)
        await asyncio.to_thread(plant, tree.folder, "relay", address_of(relay), [child(number) for number in range(children)])
        await asyncio.to_thread(plant, tree.folder, "root", address_of(root), [DIRECT])
        await root.stop()
        pin(relay.pid, cores[0])
        yield tree, relay


@asynccontextmanager
async def ends(folder: Path, children: int, core: int) -> AsyncIterator[tuple[Process, Process]]:
    """(source, sink), with all links up."""
    processes: list[Process] = []
    try:
        for role in ("sink", "source"):
            processes.append(Process(core, role, folder, children))
            await asyncio.to_thread(processes[-1].read)
        bottom, top = processes
        deadline = time.monotonic() + LINK_SECONDS
        while (state := await ask(bottom, linked=True))["linked"] < state["of"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{state['of'] - state['linked']} of {state['of']} children have no link after {LINK_SECONDS:g} s")
            await asyncio.sleep(0.1)
        yield top, bottom
    finally:
        for process in reversed(processes):
            await asyncio.to_thread(process.kill)


async def ask(process: Process, **order: Any) -> dict[str, Any]:
    return await asyncio.to_thread(process.ask, **order)


async def counted(relay: Site) -> dict[str, float]:
    """What the relay's own /metrics say of its links, with the time that it has spent."""
    text = (await relay.pool.request("GET", "/metrics")).decode()
    found = {"at": time.monotonic(), "cpu": gauges.cpu_seconds(relay.pid)}
    for name, sign in (("in", "received"), ("out", "sent")):
        for unit in ("messages", "frames"):
            lines = [line for line in text.splitlines() if line.startswith(f"banyan_link_{sign}_{unit}_total{{")]
            found[f"{unit}_{name}"] = sum(float(line.rpartition(" ")[2]) for line in lines if ('"root"' in line) == (name == "in"))
    return found


async def relayed(relay: Site, top: Process, bottom: Process, seconds: float, *, at_most: int = 0, rate: float = 0.0) -> dict[str, float]:
    """One round. ``at_most``: frames of one message of the source; ``rate``: stamped frames a second instead of as many as go."""
    await ask(bottom, turn=bool(rate))
    await ask(top, do="go", at_most=at_most, rate=rate)
    await asyncio.sleep(WARM_UP)
    relay_before, sink_before = await counted(relay), await ask(bottom, stats=True)
    await asyncio.sleep(seconds)
    relay_after, sink_after = await counted(relay), await ask(bottom, stats=True)
    sent = (await ask(top, do="pause"))["sent"]
    final = await drained(bottom, sent)
    change = {name: relay_after[name] - relay_before[name] for name in relay_after}
    return {
        "rate": (sink_after["frames"] - sink_before["frames"]) / (sink_after["at"] - sink_before["at"]),
        "cpu": change["cpu"] / change["at"],
        "in": change["frames_in"] / max(1, change["messages_in"]),
        "out": change["frames_out"] / max(1, change["messages_out"]),
        "sent": sent,
        **{name: value for name, value in final.items() if name.startswith("p")},
    }


async def drained(bottom: Process, sent: int) -> dict[str, Any]:
    """Until everything that was sent has arrived. RuntimeError when it does not, or is not what was sent."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while (final := await ask(bottom, took=True))["frames"] < sent and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    if final["frames"] != sent or final["wrong"]:
        raise RuntimeError(f"lost or out of order: sent {sent}, received {final['frames']}, wrong {final['wrong']}")
    return final


def measure_peer(folder: Path, children: int, seconds: float, cores: list[int]) -> float:
    processes: list[Process] = []
    try:
        middle = Process(cores[0], "peer-relay", folder, children)
        processes.append(middle)
        outer = Process(cores[-1], "peer-ends", folder, middle.read()["port"], children)
        processes.append(outer)
        outer.read()
        time.sleep(WARM_UP)
        before = middle.ask(stats=True)
        time.sleep(seconds)
        after = middle.ask(stats=True)
        rate: float = (after["relayed"] - before["relayed"]) / (after["at"] - before["at"])
        return rate
    finally:
        for process in reversed(processes):
            process.kill()  # in the middle of a flood, behind which no goodbye comes through


async def measure(options: Options) -> list[Row]:
    rounds, seconds, cases = (1, 0.5, SMALL) if options.quick else (3, 2.5, CASES)
    cores = sorted(os.sched_getaffinity(0))
    rows: list[Row] = []
    async with planted(options.folder, max(case.children for case in cases), cores) as (tree, relay):
        for case in cases:
            rows += await measured(tree, relay, case, rounds, seconds, cores)
    return rows


async def measured(tree: Tree, relay: Site, case: Case, rounds: int, seconds: float, cores: list[int]) -> list[Row]:
    ours, single, theirs, paced = [], [], [], []
    async with ends(tree.folder, case.children, cores[-1]) as (top, bottom):
        await ask(top, do="open")
        for _ in range(rounds):  # in turns, so that whatever else the machine does meets all
            ours.append(await relayed(relay, top, bottom, seconds))
            if case.children == 1:
                single.append(await relayed(relay, top, bottom, seconds, at_most=1))
            if case.half:
                paced.append(await relayed(relay, top, bottom, seconds, rate=case.target / 2))
            if case.peer:
                theirs.append(await asyncio.to_thread(measure_peer, tree.folder, case.children, seconds, cores))
    rows = shown(case, ours, theirs)
    if single:
        rows += one_each(single, theirs)
    if paced:
        rows += at_half(case, paced)
    return rows


def named(case: Case) -> str:
    return f"relay of {PAYLOAD}-byte frames to {'1 child' if case.children == 1 else f'{case.children:,} children in turn'}"


def shown(case: Case, ours: list[dict[str, float]], theirs: list[float]) -> list[Row]:
    what = named(case)
    note = (
        f"{what}: {sum(each['sent'] for each in ours):,.0f} frames sent, every byte compared, none lost, order kept;"
        f" the relay, a `banyan run`, took {statistics.median(each['cpu'] for each in ours):.0%} of its core"
    )
    rates = [round(each["rate"]) for each in ours]
    rate = records.rounds(
        f"{what}, one core, TLS", rates, "frames/s", target=case.target, least=True, note=note, peer=WEBSOCKETS if theirs else "",
        theirs=theirs,
    )  # fmt: skip
    rate.series, rate.at = f"relay of {PAYLOAD}-byte frames, by children in turn", case.children
    rows = [
        rate,
        records.rounds(f"{what}: frames per message in", [each["in"] for each in ours], "frames"),
        records.rounds(f"{what}: frames per message out", [each["out"] for each in ours], "frames"),
    ]
    if case.children in OTE_RELAYS:
        beside = Row(
            what=f"{what}, beside ote-stack", measured=rate.measured, unit="frames/s", least=True, peer=OTE,
            peer_measured=OTE_RELAYS[case.children],
        )  # fmt: skip
        rows.insert(1, beside)
    return rows


def one_each(single: list[dict[str, float]], theirs: list[float]) -> list[Row]:
    what = f"relay of {PAYLOAD}-byte frames to 1 child, one frame per message in"
    note = f"{what}: the relay took {statistics.median(each['cpu'] for each in single):.0%} of its core"
    rate = records.rounds(
        what, [round(each["rate"]) for each in single], "frames/s", least=True, note=note, peer=WEBSOCKETS if theirs else "", theirs=theirs
    )
    return [
        rate,
        records.rounds(f"{what}: frames per message in, as counted", [each["in"] for each in single], "frames"),
        records.rounds(f"{what}: frames per message out", [each["out"] for each in single], "frames"),
    ]


def at_half(case: Case, paced: list[dict[str, float]]) -> list[Row]:
    what = f"{named(case)} at {case.target / 2:,.0f} frames/s"
    note = f"{what}: from before the source writes its message until the child's program has read the frame, so both ends are in it"
    if min(each["rate"] for each in paced) < 0.9 * case.target / 2:
        note += f"; the machine was too busy for that rate: {min(each['rate'] for each in paced):,.0f} frames/s in the slowest round"
    return [
        records.rounds(f"{what}: under way, P50", [each["p50"] for each in paced], "ms"),
        records.rounds(f"{what}: under way, P99", [each["p99"] for each in paced], "ms", target=5, note=note),
    ]
