"""NATS clients, as a source and a sink of the benchmarks, in the peer's own environment: lines of JSON are orders, and answers.

    python nats_peer.py sink PORT CA COUNT        so many clients that subscribe to one subject, each with a connection of its own
    python nats_peer.py source PORT CA            publishes
    python nats_peer.py tunnel-sink PORT CA       answers echo and counts bulk
    python nats_peer.py tunnel-source PORT CA     does what benchmarks/tunnels.py asks: echo by request and reply; bulk with a window that
                                                  its receiver acknowledges, for NATS itself drops whoever reads too slowly

A message is a number and the nanoseconds of the monotonic clock at which it was written, filled up to 256 bytes, as ours is.
"""

import asyncio
import json
import ssl
import struct
import sys
import time
from typing import Any

import nats
import uvloop

SUBJECT = "fan"
STAMP = struct.Struct(">QQ")
REST = bytes(256 - STAMP.size)


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def told() -> dict[str, Any]:
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    found: dict[str, Any] = json.loads(line or '{"stop": true}')
    return found


async def connected(port: str, anchor: str) -> Any:
    context = ssl.create_default_context(cafile=anchor)
    return await nats.connect(f"tls://127.0.0.1:{port}", tls=context, tls_hostname="localhost", allow_reconnect=False)


async def sink(port: str, anchor: str, count: str) -> None:
    took: list[float] = []
    wrong = 0

    async def listen() -> Any:
        following = 0

        async def arrived(message: Any) -> None:
            nonlocal following, wrong
            now = time.monotonic_ns()
            number, written = STAMP.unpack_from(message.data)
            wrong += number not in (following, 0)  # each turn begins at nothing
            following = number + 1
            took.append((now - written) / 1e6)

        client = await connected(port, anchor)
        await client.subscribe(SUBJECT, cb=arrived)
        await client.flush()
        return client

    clients = [await listen() for _ in range(int(count))]
    say(up=True)
    while not (order := await told()).get("stop"):
        if order.get("turn"):
            took.clear()
        say(frames=len(took), wrong=wrong, took=sorted(took) if order.get("took") else [])
    for client in clients:
        await client.close()


async def source(port: str, anchor: str) -> None:
    client = await connected(port, anchor)
    say(up=True)
    while not (order := await told()).get("stop"):
        began = time.monotonic()
        for number in range(order["count"]):
            await asyncio.sleep(max(0.0, began + number * order["gap"] - time.monotonic()))
            await client.publish(SUBJECT, STAMP.pack(number, time.monotonic_ns()) + REST)
        say(sent=order["count"])
    await client.close()


BLOCK, PING, LITTLE = 65536, 1024, 64
WINDOW = 64  # blocks under way
ACKNOWLEDGED = 8  # blocks at a time
ECHO, BULK, ACK = "echo", "bulk", "ack"


async def tunnel_sink(port: str, anchor: str) -> None:
    client = await connected(port, anchor)
    blocks = 0

    async def answer(message: Any) -> None:
        await message.respond(message.data)

    async def count(message: Any) -> None:
        nonlocal blocks
        blocks += 1
        if message.data[0] == 0 or blocks % ACKNOWLEDGED == 0:
            await client.publish(ACK, struct.pack(">Q", blocks))
        if message.data[0] == 0:
            blocks = 0

    await client.subscribe(ECHO, cb=answer)
    await client.subscribe(BULK, cb=count)
    await client.flush()
    await asyncio.sleep(0.5)  # until the hub has heard who is interested
    say(up=True)
    await told()
    await client.close()


class Tunnel:
    """The source's side."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.acknowledged = 0
        self.news = asyncio.Event()

    async def begin(self) -> None:
        async def acknowledged(message: Any) -> None:
            (self.acknowledged,) = struct.unpack(">Q", message.data)
            self.news.set()

        await self.client.subscribe(ACK, cb=acknowledged)
        await self.client.flush()
        await asyncio.sleep(0.5)

    async def until(self, blocks: int) -> None:
        while self.acknowledged < blocks:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 30)

    async def bulk(self, seconds: float, _: int, stopped: asyncio.Event | None = None) -> float:
        on, last = b"\1" + bytes(BLOCK - 1), bytes(BLOCK)
        self.acknowledged = sent = 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds if stopped is None else not stopped.is_set():
            await self.until(sent - WINDOW + ACKNOWLEDGED)
            await self.client.publish(BULK, on)
            sent += 1
        await self.client.publish(BULK, last)
        await self.until(sent + 1)
        return (sent + 1) * BLOCK / (time.perf_counter() - began)

    async def echo(self, seconds: float, streams: int) -> float:
        began, data = time.perf_counter(), bytes(range(256)) * (PING // 256)

        async def go_on() -> int:
            count = 0
            while time.perf_counter() - began < seconds:
                if (await self.client.request(ECHO, data, timeout=30)).data != data:
                    raise ValueError("what came back is not what was sent")
                count += 1
            return count

        trips = sum(await asyncio.gather(*(go_on() for _ in range(streams))))
        return trips / (time.perf_counter() - began)

    async def ping(self, seconds: float, _: int) -> dict[str, float]:
        stopped = asyncio.Event()
        flowing = asyncio.create_task(self.bulk(seconds, 1, stopped))
        began, data, took = time.perf_counter(), bytes(range(LITTLE)), []
        while (sent := time.perf_counter()) - began < seconds:
            await self.client.request(ECHO, data, timeout=30)
            took.append(1000 * (time.perf_counter() - sent))
        stopped.set()
        rate = await flowing
        took.sort()
        return {**{f"p{percent}": took[max(0, -(-len(took) * percent // 100) - 1)] for percent in (50, 99)}, "bulk": rate}


async def tunnel_source(port: str, anchor: str) -> None:
    client = await connected(port, anchor)
    tunnel = Tunnel(client)
    await tunnel.begin()
    work = {"bulk": tunnel.bulk, "echo": tunnel.echo, "ping": tunnel.ping}
    say(up=True)
    while not (order := await told()).get("stop"):
        say(value=await work[order["do"]](order["seconds"], order["streams"]))
    await client.close()


ROLES = {"sink": sink, "source": source, "tunnel-sink": tunnel_sink, "tunnel-source": tunnel_source}

if __name__ == "__main__":
    uvloop.run(ROLES[sys.argv[1]](*sys.argv[2:]))
