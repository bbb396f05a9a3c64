"""The process shim with real processes: start, serve, swap, stop."""

import asyncio
from pathlib import Path

from tests.shim.harness import Asker, Driver, ask, cluster, free_port, server, work


def test_an_application_starts_serves_and_stops(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            seen = await driver.until_ready()
            assert seen.version == 1
            assert seen.components[0].port == port
            code, body = await ask(port)
            assert (code, body.split()[:2]) == (200, ["v1", seen.instances[0].id])
            driver.want()
            await driver.until(lambda works: not works)

    asyncio.run(scenario())


def test_a_swap_fails_no_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            await driver.until_ready()
            async with Asker(port) as asker:
                driver.want(work(server(version="v2", port=port), version=2))
                seen = await driver.until_ready(revision="v2")
                await asyncio.sleep(0.1)
            assert seen.version == 2
            assert asker.failures == []
            assert asker.answers["v2"] > 0

    asyncio.run(scenario())
