"""What one hop adds to a frame, how a message reaches a hundred children, and what a flood from a hundred children does to the relay.

The relay is a `banyan run` on a core of its own; source and children are those of `benchmarks.relay_ends`, on the other one. Frames carry
their number and when they were written, so one that is lost, doubled or out of order is an error, and how long it was under way is known
on one clock. For one frame at a time the same is measured over a link straight to the source, in turns; the difference is the hop's.
NATS fans out through a leaf node on the relay's core, in turns with ours.
"""

import asyncio
import os
import time
from contextlib import ExitStack

from benchmarks import gauges, nats, records
from benchmarks.harness import Site
from benchmarks.records import Options, Row
from benchmarks.relay import ask, drained, ends, planted
from benchmarks.relay_ends import PAYLOAD, Process

PER_SECOND = 20
GAP_SECONDS = 0.005  # between two frames of which each has the link for itself
LOOK_SECONDS = 0.2  # between two looks at the relay's memory
OTE = "ote-stack, Go, without TLS"


async def measure(options: Options) -> list[Row]:
    children, rounds, alone, seconds, flood = (3, 1, 40, 1.0, 0.5) if options.quick else (100, 3, 600, 4.0, 10.0)
    cores = sorted(os.sched_getaffinity(0))
    direct: list[dict[str, float]] = []
    relayed: list[dict[str, float]] = []
    fans, theirs = [], []
    async with planted(options.folder, children, cores) as (tree, relay), ends(tree.folder, children, cores[-1]) as (top, bottom):
        with ExitStack() as stack:
            peer = None if options.quick else await asyncio.to_thread(stack.enter_context, nats.running(tree.folder, children, cores))
            for _ in range(rounds):
                for straight, found in ((True, direct), (False, relayed)):
                    found.append(await stamped(top, bottom, do="one", direct=straight, count=alone, gap=GAP_SECONDS))
                count = round(PER_SECOND * seconds)
                fans.append(await stamped(top, bottom, do="fan", count=count, gap=1 / PER_SECOND))
                theirs += [await beside(peer, children, count)] if peer is not None else []
        await asyncio.sleep(seconds)
        flooded = await flooding(top, relay, flood)
    return [*one_frame(direct, relayed), *fan_out(children, fans, theirs), *flood_rows(children, flooded)]


async def stamped(top: Process, bottom: Process, **order: object) -> dict[str, float]:
    """P50 and P99 in milliseconds of all frames, once every one has arrived."""
    await ask(bottom, turn=True)
    sent = (await ask(top, **order))["sent"]
    return await drained(bottom, sent)


async def beside(peer: nats.Ends, children: int, count: int) -> dict[str, float]:
    await ask(peer.sink, turn=True)
    await ask(peer.source, count=count, gap=1 / PER_SECOND)
    deadline = time.monotonic() + 30
    while (found := await ask(peer.sink))["frames"] < count * children and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    if found["frames"] != count * children or found["wrong"]:
        raise RuntimeError(f"NATS lost or swapped messages: {found['frames']} of {count * children}, wrong {found['wrong']}")
    took = (await ask(peer.sink, took=True))["took"]
    return {"p50": gauges.percentile(took, 50), "p99": gauges.percentile(took, 99)}


async def flooding(top: Process, relay: Site, seconds: float) -> dict[str, float]:
    """What came through, and by how much the relay grew at most."""
    before = most = gauges.anonymous(relay.pid)
    asked = asyncio.create_task(ask(top, do="flood", seconds=seconds))
    while not asked.done():
        await asyncio.sleep(LOOK_SECONDS)
        most = max(most, gauges.anonymous(relay.pid))
    found = asked.result()
    if found["wrong"]:
        raise RuntimeError(f"{found['wrong']} frames of the flood were lost, doubled or out of order")
    return {"rate": found["counted"] / found["seconds"], "counted": found["counted"], "grown": (most - before) / gauges.MIB}


def one_frame(direct: list[dict[str, float]], relayed: list[dict[str, float]]) -> list[Row]:
    what = f"one frame of {PAYLOAD} bytes at a time, unloaded"
    note = (
        f"{what}: from before it is written until the child's program has read it, through the relay and over a link straight to the"
        " source, in turns; the hop adds the difference of the two"
    )
    rows = []
    for key, target in (("p50", 0.3), ("p99", 1.0)):
        added = [through[key] - straight[key] for through, straight in zip(relayed, direct, strict=True)]
        rows.append(records.rounds(f"{what}: added by a hop, {key.upper()}", added, "ms", target=target, note=note))
        rows.append(records.rounds(f"{what}: through the relay, {key.upper()}", [each[key] for each in relayed], "ms"))
    return rows


def fan_out(children: int, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[Row]:
    what = f"fan-out of {PER_SECOND} messages/s to {children} children"
    note = (
        f"{what}: each child's frame on a stream of its own, read by its program, not stored; a message's frames are written one after the"
        " other, and the time of each begins before the first; NATS publishes once, and its leaf node copies the message"
    )
    rows = []
    for key, target, peer in (("p50", None, 1.4), ("p99", 4.0, 4.1)):
        mine, others = [each[key] for each in ours], [each[key] for each in theirs]
        name = f"{what}, {key.upper()}"
        rows.append(records.rounds(name, mine, "ms", target=target, note=note, peer=nats.NAME if others else "", theirs=others))
        rows.append(
            Row(what=f"{what}, {key.upper()}, beside ote-stack", measured=rows[-1].measured, unit="ms", peer=OTE, peer_measured=peer)
        )
    return rows


def flood_rows(children: int, found: dict[str, float]) -> list[Row]:
    what = f"flooded upwards by {children} children"
    note = f"{what}: {found['counted']:,.0f} frames, every number compared at the source's end, none lost, order kept per stream"
    return [
        Row(what=f"{what}: delivered", measured=found["rate"], unit="frames/s", least=True, peer=f"{OTE}, 92 % lost", peer_measured=38_300),
        Row(what=f"{what}: frames lost or out of order", target=0, measured=0, unit="frames", note=note),
        Row(what=f"{what}: growth of the relay's memory at most", target=32, measured=found["grown"], unit="MiB", peer=OTE,
            peer_measured=1500),
    ]  # fmt: skip
