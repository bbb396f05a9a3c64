"""Bulk, echo, and a ping-pong beside bulk, through one hop over TLS: the tunnel, and what one would use otherwise, in turns.

Beside it: bare `websockets`, bare TLS sockets, hashicorp/yamux (Go), and NATS with a leaf node. Each has a source, a relay and a sink in
processes of their own; the relay has a core, the two ends share the other. Ours is the shipped `banyan run` as the relay, between two whole
controllers, and one link carries all streams; so it is with yamux. A peer that has no streams of its own makes a connection for each, or
sends messages. On every stream the same is said: a byte for what it is, which the sink gives back, then blocks of one size; it answers the
last block of bulk with the bytes that it has counted, and each of echo with itself. What is lost is an error.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its modules have names of the standard library's

import structlog  # noqa: E402
import uvloop  # noqa: E402

from benchmarks import gauges, nats, records  # noqa: E402
from benchmarks.harness import all_ready, growing  # noqa: E402
from benchmarks.records import Options, Row  # noqa: E402
from benchmarks.relay import joined, pin  # noqa: E402
from benchmarks.relay_ends import Process, child, identity, say, started, told  # noqa: E402
from cluster_controller.tunnel import Lane, Stream  # noqa: E402
from tools.needs import Missing, go  # noqa: E402

BLOCK, PING, LITTLE, STREAMS = 65536, 1024, 64, 64
TOTAL = struct.Struct(">Q")
YAMUX = HERE / "peers" / "yamux"
BUILD_SECONDS = 300
NATS = nats.NAME
OURS, PEERS = "banyan", ("websockets", "TLS sockets", "yamux", NATS)
REMOTEDIALER = "remotedialer, Go, without TLS"


class Pipe(Protocol):
    """One stream, whoever carries it."""

    async def read(self, limit: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


Dial = Callable[[str], Awaitable[Pipe]]


# -- what is said on a stream ----------------------------------------------------------------------------------------------


async def serve(pipe: Pipe) -> None:
    """The sink's side."""
    held = await pipe.read(BLOCK)
    kind, held = held[:1], held[1:]
    await pipe.write(kind)
    if kind == b"e":
        while held or (held := await pipe.read(BLOCK)):
            await pipe.write(held)
            held = b""
        return
    received = next_block = 0
    ending = False
    while held or (held := await pipe.read(1 << 20)):
        end = received + len(held)
        while next_block < end:
            ending = held[next_block - received] == 0
            next_block += BLOCK
        received, held = end, b""
        if ending and received == next_block:
            await pipe.write(TOTAL.pack(received))
            return


async def begun(dial: Dial, what: str) -> Pipe:
    """A stream on which the sink has answered: what opening it costs, at each hop, is not what is measured."""
    pipe, kind = await dial(what), what[:1].encode()
    await pipe.write(kind)
    if await exactly(pipe, 1) != kind:
        raise EOFError("the sink has not understood what is asked")
    return pipe


async def exactly(pipe: Pipe, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = await pipe.read(size - len(found))
        if not more:
            raise EOFError(f"the stream ended after {len(found)} of {size} bytes")
        found += more
    return found


async def bulk(dial: Dial, seconds: float, _: int, stopped: asyncio.Event | None = None) -> float:
    """Bytes a second, until the sink has counted all of them. ``stopped``: when to end, instead of after so many seconds."""
    pipe = await begun(dial, "bulk")
    on, last = b"\1" + bytes(BLOCK - 1), bytes(BLOCK)
    began, sent = time.perf_counter(), 0
    while time.perf_counter() - began < seconds if stopped is None else not stopped.is_set():
        await pipe.write(on)
        sent += BLOCK
    await pipe.write(last)
    (counted,) = TOTAL.unpack(await exactly(pipe, TOTAL.size))
    if counted != sent + BLOCK:
        raise EOFError(f"{sent + BLOCK} bytes were sent, {counted} arrived")
    return float(counted / (time.perf_counter() - began))


async def echo(dial: Dial, seconds: float, streams: int) -> float:
    """Round trips a second, each stream with one under way."""
    pipes = await asyncio.gather(*(begun(dial, "echo") for _ in range(streams)))
    began, trips, data = time.perf_counter(), 0, bytes(range(256)) * (PING // 256)

    async def go_on(pipe: Pipe) -> int:
        count = 0
        while time.perf_counter() - began < seconds:
            await pipe.write(data)
            if await exactly(pipe, PING) != data:
                raise EOFError("what came back is not what was sent")
            count += 1
        return count

    trips = sum(await asyncio.gather(*map(go_on, pipes)))
    return trips / (time.perf_counter() - began)


async def ping(dial: Dial, seconds: float, _: int) -> dict[str, float]:
    """Milliseconds of a round trip of a few bytes while bulk goes the same way, and the rate of that."""
    stopped = asyncio.Event()
    flowing = asyncio.create_task(bulk(dial, seconds, 1, stopped))
    pipe, data, took = await begun(dial, "echo"), bytes(range(LITTLE)), []
    began = time.perf_counter()
    while (sent := time.perf_counter()) - began < seconds:
        await pipe.write(data)
        if await exactly(pipe, LITTLE) != data:
            raise EOFError("what came back is not what was sent")
        took.append(1000 * (time.perf_counter() - sent))
    stopped.set()
    rate = await flowing
    return {"p50": gauges.percentile(took, 50), "p99": gauges.percentile(took, 99), "bulk": rate}


WORK: dict[str, Callable[[Dial, float, int], Awaitable[float | dict[str, float]]]] = {"bulk": bulk, "echo": echo, "ping": ping}


async def asked(dial: Dial) -> None:
    """The source's side: does what the conductor says."""
    say(up=True)
    while not (order := await told()).get("stop"):
        say(value=await WORK[order["do"]](dial, order["seconds"], order["streams"]))


# -- ours -------------------------------------------------------------------------------------------------------------------


async def banyan_sink(folder: str) -> None:
    me = await started(Path(folder) / child(0))
    me.tunnel.handle("tunnels", serve)
    while me.tunnel.parent is None:
        await asyncio.sleep(0.05)
    say(up=True)
    await told()
    await me.stop()


async def banyan_source(folder: str) -> None:
    me = await started(Path(folder) / "root")
    uid = identity(Path(folder), child(0)).uid
    while me.membership.router.next_hop(uid) is None:
        await asyncio.sleep(0.05)

    async def dial(what: str) -> Stream:
        return await me.tunnel.open(uid, "tunnels", lane=Lane.BULK if what == "bulk" else Lane.INTERACTIVE)

    await asked(dial)
    await me.stop()


# -- peers: a connection for each stream ------------------------------------------------------------------------------------


class Socket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, limit: int) -> bytes:
        return await self._reader.read(limit)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class Messages:
    """A WebSocket, a message for each write."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._rest = b""

    async def read(self, limit: int) -> bytes:
        from websockets.exceptions import ConnectionClosed

        try:
            data = self._rest or await self._connection.recv()
        except ConnectionClosed:
            return b""
        self._rest = data[limit:]
        return bytes(data[:limit])

    async def write(self, data: bytes) -> None:
        await self._connection.send(data)


@asynccontextmanager
async def listening(kind: str, context: ssl.SSLContext, handle: Callable[[Pipe], Awaitable[None]]) -> AsyncIterator[int]:
    """A server of one kind; its port."""
    if kind == "websockets":
        from websockets.asyncio.server import serve as listen

        async def answer(connection: Any) -> None:
            await handle(Messages(connection))

        async with listen(answer, "127.0.0.1", 0, ssl=context, compression=None, max_size=BLOCK, ping_interval=None) as made:
            yield next(iter(made.sockets)).getsockname()[1]
        return

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(Socket(reader, writer))
        except ConnectionError:
            pass  # the other end has gone: the benchmark is over
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context, limit=1 << 20)
    yield server.sockets[0].getsockname()[1]
    server.close()


def dialling(kind: str, port: int, context: ssl.SSLContext) -> Dial:
    async def dial(_: str) -> Pipe:
        if kind == "websockets":
            from websockets.asyncio.client import connect

            options: dict[str, Any] = {"compression": None, "max_size": BLOCK, "ping_interval": None, "proxy": None}
            return Messages(await connect(f"wss://127.0.0.1:{port}/", ssl=context, server_hostname="x", **options))
        return Socket(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="x", limit=1 << 20))

    return dial


async def peer_sink(kind: str, folder: str) -> None:
    async with listening(kind, identity(Path(folder), child(0)).server_context(), serve) as port:
        say(port=port)
        await told()


async def peer_relay(kind: str, folder: str, sink: str) -> None:
    me = identity(Path(folder), "relay")
    onward = dialling(kind, int(sink), me.client_context())

    async def handle(pipe: Pipe) -> None:
        there = await onward("")
        async with asyncio.TaskGroup() as both:
            both.create_task(passing(pipe, there))
            both.create_task(passing(there, pipe))

    async with listening(kind, me.server_context(), handle) as port:
        say(port=port)
        await told()


async def passing(source: Pipe, target: Pipe) -> None:
    while data := await source.read(BLOCK):
        await target.write(data)


async def peer_source(kind: str, folder: str, port: str) -> None:
    await asked(dialling(kind, int(port), identity(Path(folder), "root").client_context()))


# -- the conductor ----------------------------------------------------------------------------------------------------------


def role(core: int, name: str, *arguments: object) -> Process:
    return Process(core, name, *arguments, program=(sys.executable, __file__))


def peer(kind: str, folder: Path, cores: list[int], stack: AsyncExitStack) -> Process:
    """Its source, ready to be asked; relay and sink beside it."""

    def keep(process: Process) -> Process:
        stack.callback(process.kill)
        return process

    if kind == OURS:
        keep(role(cores[-1], "banyan-sink", folder)).read()
        source = keep(role(cores[-1], "banyan-source", folder))
    elif kind == NATS:
        return stack.enter_context(nats.tunnel(folder, cores))
    elif kind == "yamux":
        program = build()

        def start(core: int, *words: object) -> Process:
            return keep(Process(core, *map(str, words), program=("taskset", "-c", str(core), "env", "GOMAXPROCS=1", str(program))))

        port = start(cores[0], "relay").read()["port"]
        start(cores[-1], "sink", port).read()
        source = start(cores[-1], "source", port)
    else:
        sink = keep(role(cores[-1], "peer-sink", kind, folder)).read()["port"]
        relay = keep(role(cores[0], "peer-relay", kind, folder, sink)).read()["port"]
        source = keep(role(cores[-1], "peer-source", kind, folder, relay))
    source.read()
    return source


def build() -> Path:
    """The Go program, made once from its module."""
    target = records.ROOT / "build" / "yamux"
    made = max(path.stat().st_mtime for path in YAMUX.iterdir())
    if not target.exists() or target.stat().st_mtime < made:
        target.parent.mkdir(exist_ok=True)
        argv = [str(go()), "build", "-trimpath", "-o", str(target), "."]
        done = subprocess.run(
            argv, cwd=YAMUX, env=os.environ | {"CGO_ENABLED": "0"}, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        if done.returncode != 0:
            raise Missing(f"the peer yamux could not be built: {done.stderr.strip()[-500:]}")
    return target


async def measure(options: Options) -> list[Row]:
    rounds, seconds = (1, 0.3) if options.quick else (3, 1.5)
    found: dict[tuple[str, str], list[Any]] = {}
    peers = [kind for kind in PEERS if kind != NATS or not options.quick]  # what is installed for development only, tests do without
    cores = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset") is None:
        raise RuntimeError("`taskset` is not installed (Debian: apt-get install util-linux)")
    async with growing(options.folder) as tree, AsyncExitStack() as stack:
        root = await tree.root()
        relay = await tree.region("relay", root)
        await all_ready(root, 2)
        await joined(tree, relay, 1)
        await root.stop()  # the source takes its place: the same identity, store and port
        pin(relay.pid, cores[0])
        sources = {kind: await asyncio.to_thread(peer, kind, tree.folder, cores, stack) for kind in (OURS, *peers)}
        for _ in range(rounds):
            for what in WORK:
                for kind, source in sources.items():
                    value = await asyncio.to_thread(source.ask, do=what, seconds=seconds, streams=STREAMS)
                    found.setdefault((what, kind), []).append(value["value"])
    return shown(found, peers)


def shown(found: dict[tuple[str, str], list[Any]], peers: Sequence[str]) -> list[Row]:
    rows = []
    note = (
        "one core for the relay, TLS; every byte of bulk is counted at its end and every echo compared; one link for all streams, but a"
        " connection for each with bare websockets and TLS sockets; NATS knows no streams: echo is request and reply, bulk has a window of"
        " 4 MiB that its receiver acknowledges, which a program must add, for a leaf node drops whoever reads too slowly"
    )
    remote = f"{records.COMPARABLE}, one WebSocket tunnel"
    for what, text, target, unit, size, other in (
        ("bulk", f"bulk of one stream through one hop, {BLOCK // 1024} KiB messages", 250, "MB/s", 1e6, 301.0),
        ("echo", f"{STREAMS} streams of {PING // 1024} KiB echo through one hop", 25_000, "round trips/s", 1.0, 41_500.0),
    ):
        ours = [value / size for value in found[what, OURS]]
        for number, kind in enumerate(peers):
            theirs = [value / size for value in found[what, kind]]
            promised: dict[str, Any] = {"target": target, "least": True, "note": note} if not number else {"least": True}
            title = text if not number else f"{text}, beside {kind}"
            rows.append(records.rounds(title, ours, unit, peer=kind, theirs=theirs, **promised))
        rows.append(
            Row(what=f"{text}, beside remotedialer", measured=rows[-1].measured, unit=unit, least=True, peer=REMOTEDIALER,
                peer_measured=other, peer_source=remote)
        )  # fmt: skip
    return [*rows, *beside_bulk(found, peers, remote)]


def beside_bulk(found: dict[tuple[str, str], list[Any]], peers: Sequence[str], remote: str) -> list[Row]:
    rows = []
    for key, target, unit, size, other in (("p50", None, "ms", 1.0, 14.0), ("p99", 5, "ms", 1.0, 39.0), ("bulk", None, "MB/s", 1e6, None)):
        text = f"{LITTLE}-byte ping-pong beside bulk, " + (key.upper() if unit == "ms" else "the bulk")
        ours = [value[key] / size for value in found["ping", OURS]]
        for number, kind in enumerate(peers):
            theirs = [value[key] / size for value in found["ping", kind]]
            promised = target if not number else None
            title = text if not number else f"{text}, beside {kind}"
            rows.append(records.rounds(title, ours, unit, peer=kind, theirs=theirs, target=promised, least=unit != "ms"))
        if other is not None:
            rows.append(
                Row(what=f"{text}, beside remotedialer", measured=rows[-1].measured, unit=unit, peer=REMOTEDIALER, peer_measured=other,
                    peer_source=remote)
            )  # fmt: skip
    return rows


ROLES: dict[str, Callable[..., Any]] = {
    "banyan-sink": banyan_sink,
    "banyan-source": banyan_source,
    "peer-sink": peer_sink,
    "peer-relay": peer_relay,
    "peer-source": peer_source,
}


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(40))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ROLES[sys.argv[1]](*sys.argv[2:]))
