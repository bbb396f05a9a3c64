"""The least that bringing a file over a link can be: TLS on a socket, sha256, write, fdatasync, with nothing around it.

python -m benchmarks.models_bare send CERTIFICATE FILE      says its port, and sends the file to whoever connects
python -m benchmarks.models_bare receive PORT TARGET        says how many seconds it took and the digest of what it then holds

The two are processes of their own. Blocking sockets and one thread each: no event loop, no frames, no credit, no chunks.
"""

import hashlib
import json
import os
import socket
import ssl
import sys
import time
from pathlib import Path

BLOCK = 1 << 18
PATIENCE = 120.0


def send(certificate: Path, path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as server, path.open("rb", buffering=0) as file:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        server.settimeout(PATIENCE)
        plain, _ = server.accept()
        with context.wrap_socket(plain, server_side=True) as stream:
            buffer = memoryview(bytearray(BLOCK))
            while count := file.readinto(buffer):
                stream.sendall(buffer[:count])
            stream.unwrap()


def receive(port: int, target: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # what is measured is how fast it goes; both ends are this benchmark's
    context.verify_mode = ssl.CERT_NONE
    began = time.perf_counter()
    seen, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain, target.open("xb", buffering=0) as file:
        with context.wrap_socket(plain) as stream:
            while count := stream.recv_into(buffer):
                seen.update(buffer[:count])
                file.write(buffer[:count])
            stream.unwrap()
        os.fdatasync(file.fileno())
    print(json.dumps({"seconds": time.perf_counter() - began, "sha256": seen.hexdigest()}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        receive(int(sys.argv[2]), Path(sys.argv[3]))
