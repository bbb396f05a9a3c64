"""The process shim in a process of its own, offered over gRPC: ``FOLDER ADDRESS [CA CERTIFICATE KEY]``."""

import asyncio
import signal
import sys
from pathlib import Path

import grpc

from cluster_shim.grpc.server import ShimServer
from cluster_shim.process.shim import ProcessShim


async def main(folder: Path, address: str, *files: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    credentials = None
    if files:
        ca, certificate, key = (Path(file).read_bytes() for file in files)
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    shim = ProcessShim(folder, node_name="far", bind="127.0.1.9")
    server = ShimServer(shim, address, credentials)
    await server.start()
    print("ready", flush=True)
    await stop.wait()
    await server.close()
    await shim.end(0)


asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
