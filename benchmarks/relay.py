"""How many 256-byte frames a controller relays a second, on one core, over TLS.

The relay is the shipped `banyan run`, joined to its parent and pinned to one core. Around it, pinned to the other cores, two programs
that are whole controllers too, with their stores, sync and signed routes: a source in the place of the parent, which fills its
messages by hand, so that it costs little and can put one frame for each child in turn, and obeys credit like any peer; and a sink
that holds all children. The sink compares every byte with what it must be at that place, so a frame lost, doubled or out of order is
an error, and counts frames. Beside it, in the same run, the bare `websockets` library forwards the same payloads, one message each.

    python benchmarks/relay.py [--seconds 5] [--rounds 1] [--children 100] [--skip-peer]        the same alone, while working on the tunnel
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # not this folder: its modules have names of the standard library's

import structlog  # noqa: E402
import uvloop  # noqa: E402

from banyanctl import service  # noqa: E402
from benchmarks import gauges, records  # noqa: E402
from benchmarks.harness import AT_ONCE, Site, Tree, all_ready, growing, token  # noqa: E402
from benchmarks.records import Options, Row  # noqa: E402
from cluster_controller import config  # noqa: E402
from cluster_controller.app import Controller  # noqa: E402
from cluster_controller.identity import Identity, load  # noqa: E402
from cluster_controller.tunnel import Lane, Link, Stream  # noqa: E402
from cluster_controller.tunnel.protocol import frames  # noqa: E402

PAYLOAD = 256
CYCLE = 241  # distinct payloads; a prime, so that no cycle of messages or children hides a swap
PATTERN = b"".join(number.to_bytes(4, "big") * (PAYLOAD // 4) for number in range(CYCLE))
DOUBLED = PATTERN * 10
WARM_UP = 1.0


class Source:
    """Fills every message of the link to the relay with frames for the streams in turn, within their credit."""

    def __init__(self, link: Link, streams: list[Stream]) -> None:
        self.states = [stream._state for stream in streams]
        self.sent = [0] * len(streams)
        self.turn = 0
        self.connection = link.connection
        self.plain = link.connection.message
        self.wake = link._wake
        self.stopped = False
        self.counted = 0
        link.connection.message = self.message  # type: ignore[method-assign]
        receive = link.connection.receive

        def receive_and_go_on(message: bytes, now: float) -> None:
            receive(message, now)
            link._wake()

        link.connection.receive = receive_and_go_on  # type: ignore[method-assign]
        link._wake()

    def message(self, now: float, bulk: int = frames.MAX_PAYLOAD) -> bytearray:
        made = self.plain(now, bulk)
        if self.stopped:
            return made
        size = PAYLOAD + frames.HEADER_SIZE
        room = (frames.MAX_PAYLOAD - len(made)) // size
        pack, states, sent, turn = frames.HEADER.pack, self.states, self.sent, self.turn
        if len(states) == 1:
            room = min(room, states[0].credit // size)
        for _ in range(room):
            state = states[turn]
            if state.credit < size:
                break
            state.credit -= size
            at = sent[turn] % CYCLE * PAYLOAD
            made += pack(frames.DATA, 0, 0, state.id, PAYLOAD)
            made += PATTERN[at : at + PAYLOAD]
            sent[turn] += 1
            turn = turn + 1 if turn + 1 < len(states) else 0
        self.turn = turn
        if states[turn].credit >= size:
            self.wake()  # the link knows nothing of what waits here, and would rest
        return made


class Sink:
    """Reads one child's stream and compares it."""

    def __init__(self) -> None:
        self.received = 0
        self.wrong = 0

    async def drain(self, stream: Stream) -> None:
        while data := await stream.read(1 << 20):
            at = self.received % len(PATTERN)
            view = memoryview(data)
            while view:
                piece = DOUBLED[at : at + len(view)]
                self.wrong += view[: len(piece)] != piece
                view = view[len(piece) :]
                at = (at + len(piece)) % len(PATTERN)
            self.received += len(data)


# -- the processes ----------------------------------------------------------------------------------------------------------


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def told() -> dict[str, Any]:
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    found: dict[str, Any] = json.loads(line or '{"stop": true}')
    return found


async def started(folder: Path) -> Controller:
    found = Controller(config.load(folder, {}), None, version="benchmark")
    await found.start()
    return found


async def source(folder: Path, children: int) -> None:
    me = await started(folder / "root")
    uids = [identity(folder, child(number)).uid for number in range(children)]
    while any(me.membership.router.next_hop(uid) is None for uid in uids):
        await asyncio.sleep(0.05)
    streams = [await me.tunnel.open(uid, "sink", lane=Lane.SYNC) for uid in uids]
    filling = Source(next(iter(me.tunnel.links.values())), streams)
    say(up=True)
    await told()
    filling.stopped = True
    say(sent=sum(filling.sent))
    await told()
    await me.stop()


async def sink(folder: Path, children: int) -> None:
    members, sinks = [], []
    for number in range(children):
        drain = Sink()
        one = await started(folder / child(number))
        one.tunnel.handle("sink", drain.drain)
        members.append(one)
        sinks.append(drain)
    while any(one.tunnel.parent is None for one in members):
        await asyncio.sleep(0.05)
    say(up=True)
    while not (await told()).get("stop"):
        received = [one.received for one in sinks]
        say(at=time.monotonic(), frames=sum(received) / PAYLOAD, wrong=sum(one.wrong for one in sinks))
    for one in members:
        await one.stop()


# -- the peer: the bare library ---------------------------------------------------------------------------------------------


async def peer_relay(folder: Path, children: int) -> None:
    """Forwards every message of the source to the next child in turn, with the library's own asyncio server."""
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed

    context = identity(folder, "relay").server_context()
    connected: list[ServerConnection] = []
    forwarded = 0

    async def handle(connection: ServerConnection) -> None:
        nonlocal forwarded
        assert connection.request is not None
        if connection.request.path == "/child":
            connected.append(connection)
            await connection.wait_closed()
            return
        turn = 0
        with contextlib.suppress(ConnectionClosed):  # a child that leaves at the end
            async for message in connection:
                await connected[turn].send(message)
                forwarded += 1
                turn = (turn + 1) % children

    async with serve(handle, "127.0.0.1", 0, ssl=context, compression=None, max_size=65536, ping_interval=None) as server:
        say(port=next(iter(server.sockets)).getsockname()[1])
        while not (await told()).get("stop"):
            say(at=time.monotonic(), cpu=time.process_time(), relayed=forwarded)


async def peer_ends(folder: Path, port: int, children: int) -> None:
    from websockets.asyncio.client import ClientConnection, connect

    context: ssl.SSLContext = identity(folder, "root").client_context()
    options: dict[str, Any] = {
        "ssl": context,
        "server_hostname": "x",
        "compression": None,
        "max_size": 65536,
        "ping_interval": None,
        "proxy": None,
    }

    async def drain(connection: ClientConnection) -> None:
        async for _ in connection:
            pass

    async with contextlib.AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(connect(f"wss://127.0.0.1:{port}/child", **options)) for _ in range(children)]
        draining = [asyncio.create_task(drain(end)) for end in ends]
        source = await stack.enter_async_context(connect(f"wss://127.0.0.1:{port}/source", **options))
        say(up=True)
        payload = PATTERN[:PAYLOAD]

        async def fill() -> None:
            while True:
                await source.send(payload)

        filling = asyncio.create_task(fill())
        await told()
        for task in (filling, *draining):
            task.cancel()
        await asyncio.gather(filling, *draining, return_exceptions=True)


# -- the conductor ----------------------------------------------------------------------------------------------------------


class Process:
    """One role in a process of its own, pinned, that answers a line with a line."""

    def __init__(self, core: int, role: str, *arguments: object, program: Sequence[str] = (sys.executable, __file__, "--role")) -> None:
        self.process = subprocess.Popen(
            [*program, role, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.sched_setaffinity(self.process.pid, {core})

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def tell(self, **values: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()

    def ask(self, **values: Any) -> dict[str, Any]:
        self.tell(**values)
        return self.read()

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.tell(stop=True)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def child(number: int) -> str:
    return f"child-{number}"


def identity(folder: Path, name: str) -> Identity:
    return load(config.load(folder / name, {}).identity_folder)


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


async def counted(relay: Site) -> dict[str, float]:
    """What the relay's own /metrics say of its links, with the time that it has spent."""
    text = (await relay.pool.request("GET", "/metrics")).decode()
    found = {"at": time.monotonic(), "cpu": gauges.cpu_seconds(relay.pid)}
    for name, sign in (("in", "received"), ("out", "sent")):
        for unit in ("messages", "frames"):
            lines = [line for line in text.splitlines() if line.startswith(f"banyan_link_{sign}_{unit}_total{{")]
            found[f"{unit}_{name}"] = sum(float(line.rpartition(" ")[2]) for line in lines if ('"root"' in line) == (name == "in"))
    return found


async def relayed(folder: Path, relay: Site, children: int, seconds: float, cores: list[int]) -> dict[str, float]:
    processes: list[Process] = []
    try:
        bottom = Process(cores[-1], "sink", folder, children)
        processes.append(bottom)
        await asyncio.to_thread(bottom.read)
        top = Process(cores[-1], "source", folder, children)
        processes.append(top)
        await asyncio.to_thread(top.read)
        await asyncio.sleep(WARM_UP)
        relay_before, sink_before = await counted(relay), bottom.ask(stats=True)
        await asyncio.sleep(seconds)
        relay_after, sink_after = await counted(relay), bottom.ask(stats=True)
        sent = top.ask(stop=True)["sent"]
        deadline = time.monotonic() + 10
        while (final := bottom.ask(stats=True))["frames"] < sent and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if final["frames"] != sent or final["wrong"]:
            raise SystemExit(f"lost or out of order: sent {sent}, received {final['frames']}, wrong {final['wrong']}")
        change = {name: relay_after[name] - relay_before[name] for name in relay_after}
        return {
            "rate": (sink_after["frames"] - sink_before["frames"]) / (sink_after["at"] - sink_before["at"]),
            "cpu": change["cpu"] / change["at"],
            "in": change["frames_in"] / max(1, change["messages_in"]),
            "out": change["frames_out"] / max(1, change["messages_out"]),
            "sent": sent,
        }
    finally:
        for process in processes:
            await asyncio.to_thread(process.stop)


def measure_peer(folder: Path, children: int, seconds: float, cores: list[int]) -> float:
    processes: list[Process] = []
    try:
        middle = Process(cores[0], "peer-relay", folder, children)
        processes.append(middle)
        ends = Process(cores[-1], "peer-ends", folder, middle.read()["port"], children)
        processes.append(ends)
        ends.read()
        time.sleep(WARM_UP)
        before = middle.ask(stats=True)
        time.sleep(seconds)
        after = middle.ask(stats=True)
        rate: float = (after["relayed"] - before["relayed"]) / (after["at"] - before["at"])
        return rate
    finally:
        for process in reversed(processes):
            process.kill()  # in the middle of a flood, behind which no goodbye comes through


async def conduct(place: Path, rounds: int, seconds: float, many: int, skip_peer: bool) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    rows: list[Row] = []
    async with growing(place) as tree:
        root = await tree.root()
        relay = await tree.region("relay", root)
        await all_ready(root, 2)
        await joined(tree, relay, many)
        await root.stop()  # the source takes its place: the same identity, store and port
        pin(relay.pid, cores[0])
        for children, target in ((1, 500_000), (many, 100_000)):
            ours, theirs = [], []
            for _ in range(rounds):  # in turns, so that whatever else the machine does meets both
                ours.append(await relayed(tree.folder, relay, children, seconds, cores))
                if not skip_peer:
                    theirs.append(await asyncio.to_thread(measure_peer, tree.folder, children, seconds, cores))
            rows += shown(children, target, ours, theirs)
    return rows


def shown(children: int, target: float, ours: list[dict[str, float]], theirs: list[float]) -> list[Row]:
    whom = "1 child" if children == 1 else f"{children} children in turn"
    what = f"relay of {PAYLOAD}-byte frames to {whom}"
    note = (
        f"{whom}: {sum(each['sent'] for each in ours):,.0f} frames sent, every byte compared, none lost, order kept;"
        f" the relay, a `banyan run`, took {statistics.median(each['cpu'] for each in ours):.0%} of its core"
    )
    rate = records.rounds(
        f"{what}, one core, TLS", [round(each["rate"]) for each in ours], "frames/s", target=target, least=True, note=note,
        peer="websockets, bare, one message each", theirs=theirs,
    )  # fmt: skip
    rate.series, rate.at = f"relay of {PAYLOAD}-byte frames, by children in turn", children
    return [
        rate,
        records.rounds(f"{what}: frames per message in", [each["in"] for each in ours], "frames"),
        records.rounds(f"{what}: frames per message out", [each["out"] for each in ours], "frames"),
    ]


async def measure(options: Options) -> list[Row]:
    rounds, seconds, children = (1, 0.5, 3) if options.quick else (5, 2.5, 100)
    return await conduct(options.folder, rounds, seconds, children, False)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "source": source,
    "sink": sink,
    "peer-relay": peer_relay,
    "peer-ends": peer_ends,
}


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(40))
    if sys.argv[1:2] == ["--role"]:
        arguments: list[Any] = [Path(sys.argv[3]), *map(int, sys.argv[4:])]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(ROLES[sys.argv[2]](*arguments))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--children", type=int, default=100)
    parser.add_argument("--skip-peer", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(conduct(Path("/var/tmp"), options.rounds, options.seconds, options.children, options.skip_peer))
    sys.stdout.write("\n".join([records.table(rows), *records.notes(rows), ""]))


if __name__ == "__main__":
    main()
