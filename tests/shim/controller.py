"""A controller of its own process for tests to kill: reconciles the Desired in a JSON file, says each Observed on a line."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from cluster_shim.contract import Desired
from cluster_shim.process.shim import ProcessShim


async def main(folder: Path, desired: Path) -> None:
    shim = ProcessShim(folder, node_name="node-1")

    async def states() -> AsyncIterator[Desired]:
        yield msgspec.json.decode(desired.read_bytes(), type=Desired)
        await asyncio.Event().wait()

    async for observed in shim.reconcile(states()):
        sys.stdout.write("OBSERVED " + msgspec.json.encode(observed).decode() + "\n")
        sys.stdout.flush()


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
