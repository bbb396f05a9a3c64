"""One contract suite against the process shim, in the controller's process and over gRPC."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster_controller.tasks import end_task
from cluster_shim import verify
from cluster_shim.contract import ByteStream, Description, Desired, Observed, OpenTarget, ShimError
from cluster_shim.grpc import client
from cluster_shim.grpc.client import GrpcShim
from cluster_shim.grpc.server import SUPERSEDED, ShimServer
from tests.shim.harness import Driver, cluster, server, work


@asynccontextmanager
async def over_grpc(folder: Path) -> AsyncIterator[GrpcShim]:
    async with cluster(folder) as shim:
        address = f"unix:{folder}/shim.sock"
        offered = ShimServer(shim, address)
        await offered.start()
        remote = GrpcShim(address)
        try:
            yield remote
        finally:
            await remote.close()
            await offered.close()


@pytest.mark.parametrize("wanted", verify.CHECKS, ids=lambda wanted: wanted.__name__)
@pytest.mark.parametrize("way", ["in-process", "grpc"])
def test_contract(tmp_path: Path, way: str, wanted: object) -> None:
    async def scenario() -> None:
        async with (cluster if way == "in-process" else over_grpc)(tmp_path) as shim:
            result = await verify.check(shim, wanted)  # type: ignore[arg-type]
            assert result.ok, result.message

    asyncio.run(scenario())


def test_a_controller_that_comes_later_takes_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with over_grpc(tmp_path) as shim:
            first = Driver(shim)
            await first.__aenter__()
            first.want(work(server()))
            await first.until_ready()
            async with Driver(shim) as second:
                second.want(work(server()))
                await second.until_ready()
                assert first._task is not None
                with pytest.raises(ShimError, match=SUPERSEDED):
                    await first._task

    asyncio.run(scenario())


def test_a_shim_that_is_gone_is_an_error_not_an_empty_cluster(tmp_path: Path) -> None:
    async def scenario() -> None:
        shim = GrpcShim(f"unix:{tmp_path}/nobody.sock")
        with pytest.raises(ShimError, match="see whether it runs"):
            await shim.describe()
        driver = Driver(shim)
        await driver.__aenter__()
        driver.want()
        assert driver._task is not None
        with pytest.raises(ShimError):
            await driver._task
        await shim.close()

    asyncio.run(scenario())


class Holding:
    """A shim that reconciles nothing and says who it is only while it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.free = asyncio.Event()
        self.fault = ""

    async def describe(self) -> Description:
        self.asked += 1
        await self.free.wait()
        if self.fault:
            raise ShimError(self.fault)
        return Description(kind="process", version="1")

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        async for _ in desired:
            yield Observed(full=True)

    async def open(self, target: OpenTarget) -> ByteStream:
        raise ShimError("nothing to open")


async def once() -> AsyncIterator[Desired]:
    yield Desired(full=True)
    await asyncio.Event().wait()


def test_a_shim_that_hangs_is_lost_and_one_that_answers_anything_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ASK_SECONDS", 0.05)

    async def scenario() -> None:
        address, shim = f"unix:{tmp_path}/shim.sock", Holding()
        offered = ShimServer(shim, address)
        await offered.start()
        remote = GrpcShim(address)
        try:
            shim.fault = "its cluster is out of reach"
            shim.free.set()
            news = remote.reconcile(once())
            assert (await anext(news)).full
            following = asyncio.ensure_future(anext(news))
            while shim.asked < 3 * client.SILENCES:
                await asyncio.sleep(0.01)
            assert not following.done(), "it answers, be it with an error"
            shim.free.clear()
            with pytest.raises(ShimError, match="has not answered for"):
                await following
        finally:
            await remote.close()
            await offered.close(0)

    asyncio.run(scenario())


class Slow:
    """A shim that takes its time to end a reconciliation, and refuses a second one at once."""

    def __init__(self) -> None:
        self.busy = False

    async def describe(self) -> Description:
        return Description(kind="process", version="1")

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        if self.busy:
            raise ShimError("this cluster is being reconciled already")
        self.busy = True
        try:
            async for _ in desired:
                yield Observed(full=True)
        finally:
            await asyncio.sleep(0.02)
            self.busy = False

    async def open(self, target: OpenTarget) -> ByteStream:
        raise ShimError("nothing to open")


def test_the_next_reconciliation_waits_for_the_end_of_the_one_before(tmp_path: Path) -> None:
    """Whether that was superseded, or its call has ended, or both at once."""

    async def scenario() -> None:
        address = f"unix:{tmp_path}/shim.sock"
        offered = ShimServer(Slow(), address)
        await offered.start()
        remotes = [GrpcShim(address) for _ in range(2)]
        try:
            before: asyncio.Task[None] | None = None
            for turn in range(20):
                answered = asyncio.Event()

                async def one(shim: GrpcShim = remotes[turn % 2], answered: asyncio.Event = answered) -> None:
                    async for _ in shim.reconcile(once()):
                        answered.set()

                task = asyncio.create_task(one())
                if before is not None:
                    await asyncio.sleep(0.002 * (turn % 5))
                    before.cancel()
                waiting = asyncio.create_task(answered.wait())
                await asyncio.wait({task, waiting}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
                assert answered.is_set(), task
                before = task
            if before is not None:
                await end_task(before)
        finally:
            for remote in remotes:
                await remote.close()
            await offered.close(0)

    asyncio.run(scenario())


def test_who_ended_a_reconciliation_leaves_nobody_that_reads_what_is_desired(tmp_path: Path) -> None:
    """Else that one would take what the next reconciliation is to be told."""

    class Refusing(Holding):
        async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
            await anext(aiter(desired))
            raise ShimError("not now")
            yield

    async def scenario() -> None:
        address, ended = f"unix:{tmp_path}/shim.sock", asyncio.Event()

        async def desired() -> AsyncIterator[Desired]:
            try:
                yield Desired(full=True)
                await asyncio.Event().wait()
            finally:
                ended.set()

        offered = ShimServer(Refusing(), address)
        await offered.start()
        remote = GrpcShim(address)
        states = desired()  # kept, so that nobody ends it by forgetting it
        try:
            with pytest.raises(ShimError, match="not now"):
                async for _ in remote.reconcile(states):
                    pass
            assert ended.is_set()
        finally:
            await remote.close()
            await offered.close(0)

    asyncio.run(scenario())


def test_a_suite_that_finds_nothing_wrong_with_a_broken_shim_would_be_worthless() -> None:
    class Broken:
        async def describe(self) -> object:
            raise ShimError("out of order")

        async def open(self, target: object) -> object:
            raise ShimError("")

        async def reconcile(self, desired: object) -> AsyncIterator[object]:
            return
            yield

    async def scenario() -> None:
        results = await verify.verify(Broken())  # type: ignore[arg-type]
        assert [result.name for result in results if result.ok] == []

    asyncio.run(scenario())


def test_the_process_shim_loads_no_grpc() -> None:
    program = "import sys, cluster_shim.process.shim; print([m for m in ('grpc', 'google.protobuf', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
