"""Real controllers without an API: identity, store, membership and tunnel over loopback, with clocks that tests move."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cluster_controller.identity import create_root, load, token
from cluster_controller.resources import kinds
from cluster_controller.store import Store
from cluster_controller.tree import joining
from cluster_controller.tree.child import IdentityHolder, Settings
from cluster_controller.tree.failover import Policy
from cluster_controller.tree.joining import Joined, Request
from cluster_controller.tree.membership import Membership
from cluster_controller.tunnel import Limits, Tunnel
from cluster_controller.tunnel.course import Course, Timing

T = TypeVar("T")
QUICK = Limits(backoff_first=0.01, backoff_cap=0.05)
ANYBODY = Policy()
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECONDS = 20.0
"""Bound of every wait in these tests; none is expected to take as long."""
TIMING = Timing(backoff_first=0.01, backoff_cap=0.05, grace=0.2, probe_first=0.1, probe_cap=0.2, stable=0.3, settled=0.0, attempt=SECONDS)


class Clock:
    """A wall clock that tests set."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class Site:
    """One controller. ``folder`` is its data folder."""

    def __init__(self, folder: Path, store: Store, clock: Clock, policy: Policy = ANYBODY) -> None:
        self.folder = folder
        self.store = store
        self.clock = clock
        self.port = 0
        self.identity = IdentityHolder(folder / "identity", load(folder / "identity"))
        self.membership = Membership(
            store,
            self.identity,
            Settings(software="test", heartbeat_seconds=5.0, failover=policy),
            wall=clock,
            addresses=lambda: (f"127.0.0.1:{self.port}",),
        )
        self.tunnel = Tunnel(self.identity, self.membership, self.membership.router, QUICK)
        self.membership.bind(self.tunnel)
        self._dialling: asyncio.Task[None] | None = None

    def addresses(self) -> tuple[str, ...]:
        return (f"127.0.0.1:{self.port}",)

    @property
    def uid(self) -> str:
        return self.identity().uid

    @property
    def name(self) -> str:
        return self.identity().name

    async def listen(self, port: int = 0) -> None:
        self.port = await self.tunnel.serve("127.0.0.1", port)

    def dial(self) -> None:
        course = Course(self.membership.parents, TIMING)
        self._dialling = asyncio.create_task(self.tunnel.follow(course, ""))

    async def hang_up(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
            self._dialling = None
        if self.tunnel.parent is not None:
            self.tunnel.parent.close(1001, "test")

    async def come_back(self, port: int) -> None:
        """After its tunnel was closed: another one, on the same port."""
        self.tunnel = Tunnel(self.identity, self.membership, self.membership.router, QUICK)
        self.membership.bind(self.tunnel)
        await self.listen(port)
        if not self.identity().is_root:
            self.dial()

    async def token(self, name: str = "", **spec: Any) -> str:
        _, text = await self.membership.create_token(name, kinds.JoinTokenSpec(**spec))
        return text

    async def close(self) -> None:
        await self.hang_up()
        await self.tunnel.close()
        await self.membership.close()
        await self.store.close()


@contextlib.asynccontextmanager
async def running(folder: Path, clock: Clock, *, port: int | None = 0, dial: bool = True, policy: Policy = ANYBODY) -> AsyncIterator[Site]:
    """The controller whose identity is in ``folder``."""
    site = Site(folder, await Store.open(folder), clock, policy)
    try:
        await site.membership.start()
        if port is not None:
            await site.listen(port)
        if dial and not site.identity().is_root:
            site.dial()
        yield site
    finally:
        await site.close()


@contextlib.asynccontextmanager
async def root(folder: Path, clock: Clock, name: str = "root", *, port: int = 0) -> AsyncIterator[Site]:
    if not (folder / "identity").exists():
        create_root(folder / "identity", name, clock())
    async with running(folder, clock, port=port) as site:
        yield site


async def join(token: str, folder: Path, name: str, clock: Clock, **given: Any) -> Joined:
    given.setdefault("proxy", "")
    return await joining.join(Request(token=token, name=name, folder=folder / "identity", **given), clock)


@contextlib.asynccontextmanager
async def member(parent: Site, folder: Path, name: str, *, policy: Policy = ANYBODY, **given: Any) -> AsyncIterator[Site]:
    """Join under ``parent``, run, and wait until connected."""
    await join(await parent.token(), folder, name, parent.clock, **given)
    async with running(folder, parent.clock, policy=policy) as site:
        await until(lambda: site.uid in parent.tunnel.links and site.tunnel.parent is not None)
        yield site


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(main)


def nothing_left(data: Path) -> bool:
    return not (data / "identity").exists()


def altered(text: str, **change: Any) -> str:
    """A whole token with other content: what a forger makes, not what a slip makes."""
    return token.encode(msgspec.structs.replace(token.decode(text), **change))
