"""A program as a site runs it: takes its listening socket (LISTEN_FDS), tells what it was given, echoes HTTP bodies and WebSockets.

Started by the tests as an Application's command with nothing but the standard library. ``/`` tells pid, environment, working
folder and how often it was started (a line per start in ``data/starts``, where a volume may lie); ``/file/PATH`` a file's text;
``/echo`` the body that was sent, as it comes; ``/bytes/N`` so many bytes; ``/sick`` makes ``/health`` fail from then on;
``/exit/N`` ends the process. ``/work`` is a request that counts, of which the part ``FAILS`` (in the environment) is answered 500;
``/metrics`` says how many there were.
"""

import asyncio
import base64
import hashlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CHUNK = 65536
sick = asyncio.Event()
worked = {200: 0, 500: 0}


def started() -> int:
    record = Path("data/starts")
    record.parent.mkdir(exist_ok=True)
    with record.open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    return len(record.read_text().splitlines())


STARTS = started()


def told() -> bytes:
    return json.dumps(
        {"pid": os.getpid(), "cwd": str(Path.cwd()), "starts": STARTS, "env": dict(os.environ), "args": sys.argv[1:]}
    ).encode()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lines = head.decode("latin-1").split("\r\n")
            path = lines[0].split(" ")[1]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
            if headers.get("upgrade", "").lower() == "websocket":
                await websocket(reader, writer, headers["sec-websocket-key"])
                return
            await answer(reader, writer, path, int(headers.get("content-length", 0)))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, length: int) -> None:
    if path == "/echo":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        while length:
            data = await reader.read(min(length, CHUNK))
            length -= len(data)
            writer.write(data)
            await writer.drain()
        return
    await reader.readexactly(length)
    code, body = 200, b"ok"
    if path == "/":
        body = told()
    elif path.startswith("/file/"):
        file = Path(path.removeprefix("/file/"))
        code, body = (200, file.read_bytes()) if file.exists() else (404, b"no such file")
    elif path.startswith("/bytes/"):
        body = b"x" * int(path.removeprefix("/bytes/"))
    elif path == "/sick":
        sick.set()
    elif path == "/work":
        code = 500 if worked[500] < float(os.environ.get("FAILS", "0")) * (worked[200] + worked[500] + 1) else 200
        worked[code] += 1
    elif path == "/metrics":
        body = b"".join(b'work_total{code="%d"} %d\n' % each for each in worked.items())
    elif path == "/health":
        code = 500 if sick.is_set() else 200
    elif path.startswith("/exit/"):
        os._exit(int(path.removeprefix("/exit/")))
    else:
        code, body = 404, b"nothing here"
    kind = b"application/json" if path == "/" else b"application/octet-stream"
    writer.write(b"HTTP/1.1 %d Whatever\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (code, kind, len(body)) + body)


async def websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    """RFC 6455, as much as an echo of whole messages needs."""
    accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    while True:
        first, second = await reader.readexactly(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8))
        mask = await reader.readexactly(4)
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(length)))
        size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2)
        writer.write(bytes([first]) + size + data)
        await writer.drain()
        if first & 0x0F == 8:
            return


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if os.environ.get("LISTEN_FDS"):
        server = await asyncio.start_server(handle, sock=socket.socket(fileno=3))
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print("serving", flush=True)
    await stop.wait()
    server.close()


asyncio.run(main())
