"""NATS clients, as a source and a sink of the benchmarks, in the peer's own environment: lines of JSON are orders, and answers.

    python nats_peer.py sink PORT CA COUNT        so many clients that subscribe to one subject, each with a connection of its own
    python nats_peer.py source PORT CA            publishes

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


if __name__ == "__main__":
    uvloop.run({"sink": sink, "source": source}[sys.argv[1]](*sys.argv[2:]))
