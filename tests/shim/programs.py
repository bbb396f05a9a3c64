"""Small programs that tests run as applications; each is given to the instance as a file, so it needs nothing installed."""

import sys

SERVER = '''
"""An HTTP server on LISTEN_FDS (or PORT) that says who it is, drains on SIGTERM, and answers its private probe socket."""
import asyncio, os, signal, socket, sys

who = os.environ.get("VERSION", "?")
state = {"ready": os.environ.get("READY", "1") == "1"}

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            path = head.split(b" ")[1].decode()
            await asyncio.sleep(float(os.environ.get("DELAY", "0")))
            ok = path != "/ready" or state["ready"]
            if path == "/unready": state["ready"] = False
            if path == "/exit": os._exit(7)
            body = f"{who} {os.environ['BANYAN_INSTANCE']} {os.getpid()}".encode()
            closing = b"" if not stopping.is_set() else b"Connection: close\\r\\n"
            status = b"HTTP/1.1 200 OK\\r\\n" if ok else b"HTTP/1.1 503 No\\r\\n"
            writer.write(status + closing + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
            await writer.drain()
            if closing: break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        active.discard(asyncio.current_task()); writer.close()

active = set()
async def client(reader, writer):
    active.add(asyncio.current_task())
    await serve(reader, writer)

async def main():
    global stopping
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print("starting", who, flush=True)
    await asyncio.sleep(float(os.environ.get("SLOW_START", "0")))
    servers = []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    if count:
        assert os.environ["LISTEN_PID"] == str(os.getpid())
    for fd in range(3, 4 if "ONLY_SITE" in os.environ else 3 + count):
        sock = socket.socket(fileno=fd)
        start = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
        servers.append(await start(client, sock=sock))
    if not count and "PORT" in os.environ:
        servers.append(await asyncio.start_server(client, os.environ["HOST"], int(os.environ["PORT"])))
    print("serving", who, flush=True)
    await stopping.wait()
    print("draining", who, flush=True)
    for server in servers: server.close()
    await asyncio.sleep(float(os.environ.get("DRAIN", "0.05")))
    print("bye", who, flush=True)

asyncio.run(main())
'''

COMMAND = (sys.executable, "server.py")
