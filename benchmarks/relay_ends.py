"""Both ends of a relay that is measured, as programs of their own: a source in the parent's place, a sink that holds all children.

Both are whole controllers, with their stores, sync and signed routes. The source fills the messages of its link by hand, so that it costs
little and can put one frame for each child in turn, and obeys credit like any peer. Frames are of two sorts: *plain* ones, of which the
sink compares every byte with what it must be at that place, and *stamped* ones, which carry their number and when they were written. A
frame that is lost, doubled or out of order is an error either way.

    python -m benchmarks.relay_ends ROLE FOLDER …        as `Process` starts it; a line of JSON is an order, and is answered by one
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # not this folder: its modules have names of the standard library's

import structlog  # noqa: E402
import uvloop  # noqa: E402

from benchmarks import gauges  # noqa: E402
from cluster_controller import config  # noqa: E402
from cluster_controller.app import Controller  # noqa: E402
from cluster_controller.identity import Identity, load  # noqa: E402
from cluster_controller.tunnel import Lane, Link, Stream  # noqa: E402
from cluster_controller.tunnel.protocol import frames  # noqa: E402

PAYLOAD = 256
CYCLE = 241  # distinct payloads; a prime, so that no cycle of messages or children hides a swap
PATTERN = b"".join(number.to_bytes(4, "big") * (PAYLOAD // 4) for number in range(CYCLE))
DOUBLED = PATTERN * 10
STAMP = struct.Struct(">QQ")  # number on its stream, nanoseconds of the monotonic clock
REST = bytes(PAYLOAD - STAMP.size)
FRAME = PAYLOAD + frames.HEADER_SIZE
TICK_SECONDS = 0.001  # of what is sent at a pace
FLOOD_BLOCK = 16 * PAYLOAD
DIRECT = "direct"  # a child of the source itself, in the sink's process


class Source:
    """Fills every message of the link to the relay with frames for the streams in turn, within their credit, while it is told to.

    ``at_most``: frames of one message. ``rate``: stamped frames a second, 0: plain ones, as many as go.
    """

    def __init__(self, link: Link, streams: Sequence[Stream]) -> None:
        self.states = [stream._state for stream in streams]
        self.sent = [0] * len(streams)
        self.turn = 0
        self.at_most = frames.MAX_PAYLOAD
        self.rate = 0.0
        self.began = 0.0
        self.paced = 0
        self.connection = link.connection
        self.plain = link.connection.message
        self._wake_link = link._wake
        self.stopped = True
        link.connection.message = self.message  # type: ignore[method-assign]
        receive = link.connection.receive

        def receive_and_go_on(message: bytes, now: float) -> None:
            receive(message, now)
            self.wake()

        link.connection.receive = receive_and_go_on  # type: ignore[method-assign]

    def go(self, at_most: int = 0, rate: float = 0.0) -> None:
        self.at_most = at_most or frames.MAX_PAYLOAD
        self.rate, self.began, self.paced = rate, time.monotonic(), 0
        self.sent = [0] * len(self.states)
        self.stopped = False
        self.wake()

    def message(self, now: float, bulk: int = frames.MAX_PAYLOAD) -> bytearray:
        made = self.plain(now, bulk)
        if self.stopped:
            return made
        room = min((frames.MAX_PAYLOAD - len(made)) // FRAME, self.at_most)
        if self.rate:
            room = min(room, int((time.monotonic() - self.began) * self.rate) - self.paced)
        states, sent, turn = self.states, self.sent, self.turn
        if len(states) == 1:
            room = min(room, states[0].credit // FRAME)
        pack, stamped = frames.HEADER.pack, bool(self.rate)
        for _ in range(room):
            state = states[turn]
            if state.credit < FRAME:
                break
            state.credit -= FRAME
            made += pack(frames.DATA, 0, 0, state.id, PAYLOAD)
            if stamped:
                self.paced += 1
                made += STAMP.pack(sent[turn], time.monotonic_ns()) + REST
            else:
                at = sent[turn] % CYCLE * PAYLOAD
                made += PATTERN[at : at + PAYLOAD]
            sent[turn] += 1
            turn = turn + 1 if turn + 1 < len(states) else 0
        self.turn = turn
        if self.rate:
            return made  # the next ones are due at the next tick
        if states[turn].credit >= FRAME:
            self.wake()
        return made

    def wake(self) -> None:
        """The link knows nothing of what waits here, and would rest."""
        self.connection._dirty = True
        self._wake_link()

    async def tick(self) -> None:
        """What is sent at a pace is due again and again."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.rate and not self.stopped:
                self.wake()


class Sink:
    """Reads one child's streams, compares what comes, and keeps how long stamped frames were under way (microseconds)."""

    def __init__(self) -> None:
        self.received = 0
        self.wrong = 0
        self.stamped = False
        self.took = array("d")
        self._rest = b""
        self._next = 0

    async def drain(self, stream: Stream) -> None:
        while data := await stream.read(1 << 20):
            (self._stamps if self.stamped else self._compare)(data)
            self.received += len(data)

    def turn(self, stamped: bool) -> None:
        """Everything has arrived; what comes next is of this sort, and counts from nothing."""
        self.stamped, self.received, self._next, self._rest = stamped, 0, 0, b""
        self.took = array("d")

    def _compare(self, data: bytes) -> None:
        at, received = self.received % len(PATTERN), 0
        view = memoryview(data)
        while view:
            piece = DOUBLED[at : at + len(view)]
            self.wrong += view[: len(piece)] != piece
            view = view[len(piece) :]
            at, received = (at + len(piece)) % len(PATTERN), received + len(piece)

    def _stamps(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        for at in range(0, len(data) - PAYLOAD + 1, PAYLOAD):
            number, written = STAMP.unpack_from(data, at)
            self.wrong += number != self._next
            self._next = number + 1
            self.took.append((now - written) / 1000)
        self._rest = data[len(data) // PAYLOAD * PAYLOAD :]


# -- what the processes do --------------------------------------------------------------------------------------------------


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
    """In the place of the root."""
    me = await started(folder / "root")
    filling: Source | None = None
    streams: list[Stream] = []
    say(up=True)
    while not (order := await told()).get("stop"):
        match order["do"]:
            case "open":
                streams = [await opened(me, identity(folder, child(number)).uid, "sink") for number in range(children)]
                filling = Source(link_of(me, identity(folder, "relay").uid), streams)
                ticking = asyncio.create_task(filling.tick())
                say()
            case "go" if filling is not None:
                filling.go(order["at_most"], order["rate"])
                say()
            case "pause" if filling is not None:
                filling.stopped = True
                say(sent=sum(filling.sent), running=not ticking.done())
            case "one":
                whom = DIRECT if order["direct"] else child(0)
                stream = await opened(me, identity(folder, whom).uid, "sink", Lane.INTERACTIVE)
                say(sent=await spaced([stream], order["count"], order["gap"]))
                await stream.close_write()
            case "fan":
                streams = [await opened(me, identity(folder, child(number)).uid, "sink", Lane.INTERACTIVE) for number in range(children)]
                say(sent=await spaced(streams, order["count"], order["gap"]))
                for stream in streams:
                    await stream.close_write()
            case "flood":
                say(**await flooded(me, [identity(folder, child(number)).uid for number in range(children)], order["seconds"]))
    await me.stop()


def link_of(me: Controller, uid: str) -> Link:
    return me.tunnel.links[uid]


async def opened(me: Controller, uid: str, service: str, lane: Lane = Lane.SYNC) -> Stream:
    """As soon as there is a way."""
    async with asyncio.timeout(120):
        while me.membership.router.next_hop(uid) is None:
            await asyncio.sleep(0.05)
    return await me.tunnel.open(uid, service, lane=lane)


async def spaced(streams: Sequence[Stream], count: int, gap: float) -> int:
    """So many messages of one frame to each, ``gap`` seconds apart, each stamped before the first of its frames is written."""
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number * gap - time.monotonic()))
        frame = STAMP.pack(number, time.monotonic_ns()) + REST
        for stream in streams:
            await stream.write(frame)
    return count * len(streams)


async def flooded(me: Controller, uids: Sequence[str], seconds: float) -> dict[str, Any]:
    """Every child writes as fast as it may for so long; each stream is read to its end, and every block's number compared."""
    began, counted, wrong = time.monotonic(), 0, 0

    async def take(uid: str) -> None:
        nonlocal counted, wrong
        stream = await opened(me, uid, "flood")
        await stream.write(struct.pack(">d", seconds))
        await stream.close_write()
        rest, expected = b"", 0
        while data := await stream.read(1 << 20):
            data = rest + data
            whole = len(data) // PAYLOAD
            for at in range(0, whole * PAYLOAD, PAYLOAD):
                number, _ = STAMP.unpack_from(data, at)
                if number == LAST:
                    wrong += expected != STAMP.unpack_from(data, at)[1]
                    continue
                wrong += number != expected
                expected = number + 1
            counted += whole
            rest = data[whole * PAYLOAD :]
        wrong += bool(rest)

    await asyncio.gather(*map(take, uids))
    return {"counted": counted, "wrong": wrong, "seconds": time.monotonic() - began}


LAST = 2**64 - 1  # in the place of a number: what follows is how many there were


async def flood(stream: Stream) -> None:
    """A child's side."""
    (seconds,) = struct.unpack(">d", await stream.read(8))
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        await stream.write(b"".join([STAMP.pack(number + each, 0) + REST for each in range(FLOOD_BLOCK // PAYLOAD)]))
        number += FLOOD_BLOCK // PAYLOAD
    await stream.write(STAMP.pack(LAST, number) + REST)


async def sink(folder: Path, children: int) -> None:
    """All children, and one that hangs from the source itself if there is a folder for it."""
    names = [child(number) for number in range(children)] + ([DIRECT] if (folder / DIRECT).exists() else [])
    turn = asyncio.Semaphore(8)
    members: list[Controller] = []
    sinks: list[Sink] = []

    async def one(name: str) -> None:
        async with turn:
            drain, made = Sink(), await started(folder / name)
            made.tunnel.handle("sink", drain.drain)
            made.tunnel.handle("flood", flood)
            members.append(made)
            sinks.append(drain)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    say(up=True)
    while not (order := await told()).get("stop"):
        if order.get("linked"):
            say(linked=sum(made.tunnel.parent is not None for made in members), of=len(members))
            continue
        if "turn" in order:
            for drain in sinks:
                drain.turn(order["turn"])
        found = {
            "at": time.monotonic(),
            "frames": sum(each.received for each in sinks) / PAYLOAD,
            "wrong": sum(each.wrong for each in sinks),
        }
        if order.get("took"):
            took = sorted(each for drain in sinks for each in drain.took)
            found |= {f"p{percent}": gauges.percentile(took, percent) / 1000 for percent in (50, 99)} if took else {}
        say(**found)
    for made in members:
        await made.stop()


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


# -- how they are started and asked -------------------------------------------------------------------------------------------


class Process:
    """One role in a process of its own, pinned, that answers a line with a line."""

    def __init__(self, core: int, role: str, *arguments: object, program: Sequence[str] = (sys.executable, __file__)) -> None:
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


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "source": source,
    "sink": sink,
    "peer-relay": peer_relay,
    "peer-ends": peer_ends,
}


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(40))
    arguments: list[Any] = [Path(sys.argv[2]), *map(int, sys.argv[3:])]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ROLES[sys.argv[1]](*arguments))


if __name__ == "__main__":
    main()
