"""What is watched, from a real socket: a connection that breaks is no blindness, and a server that wants to be left alone is."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster_shim.kubernetes import api as api_module
from cluster_shim.kubernetes import narrow
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.informer import Informer
from tests.kubernetes.scripted import SECONDS, Exchange, kubeconfig, scripted, thing

PATH = "/api/v1/pods"
Following = Callable[[Informer[narrow.Pod]], Awaitable[None]]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not check():
            await asyncio.sleep(0.005)


def follow(
    tmp_path: Path, script: Callable[[Exchange], None], body: Following, prepare: Callable[[Informer[narrow.Pod]], None] | None = None
) -> None:
    async def main(url: str) -> None:
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        informer = Informer(api, PATH, narrow.Pod)
        if prepare is not None:
            prepare(informer)
        running = asyncio.create_task(informer.run())
        try:
            await body(informer)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await api.close()

    with scripted(script) as server:
        asyncio.run(main(server.url))


def test_a_watch_that_is_reset_while_its_kind_is_quiet_is_well_as_soon_as_it_is_answered_again(tmp_path: Path) -> None:
    """Nothing happens to that kind for hours: no event comes that could say so."""
    watches: list[str] = []
    refused, again = threading.Event(), threading.Event()

    def script(asked: Exchange) -> None:
        if not asked.watching:
            asked.listed(thing("a"))
            return
        watches.append(asked.query["resourceVersion"])
        if len(watches) == 1:
            asked.begin()
            asked.reset()
        elif len(watches) == 2:
            refused.set()
            again.wait(SECONDS)
            asked.refuse(500)
        else:
            asked.begin()
            asked.wait()

    async def body(informer: Informer[narrow.Pod]) -> None:
        await until(refused.is_set)
        assert informer.failing_since is None, "a connection that broke after it was answered is only begun anew"
        again.set()
        await until(lambda: informer.failing_since is not None)
        informer.hurry()
        await until(lambda: len(watches) == 3)
        await until(lambda: informer.failing_since is None)
        assert informer.error == ""
        assert watches == ["10", "10", "10"]

    follow(tmp_path, script, body)


def test_a_watch_under_way_is_begun_anew_when_sight_returns(tmp_path: Path) -> None:
    """Its other end may have gone without a word."""
    versions: list[str] = []

    def script(asked: Exchange) -> None:
        if not asked.watching:
            asked.listed()
            return
        versions.append(asked.query["resourceVersion"])
        asked.begin()
        if len(versions) == 1:
            asked.tell("ADDED", thing("a", "12"))
        asked.wait()

    async def body(informer: Informer[narrow.Pod]) -> None:
        await until(lambda: "a" in informer.items)
        informer.hurry()
        await until(lambda: len(versions) == 2)
        assert versions == ["10", "12"]
        assert informer.failing_since is None

    follow(tmp_path, script, body)


def test_a_watch_that_says_nothing_at_all_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_module.SILENCE_SECONDS <= 180.0, "a server sends a bookmark about once a minute"
    monkeypatch.setattr(api_module, "SILENCE_SECONDS", 0.05)
    watches: list[str] = []

    def script(asked: Exchange) -> None:
        if not asked.watching:
            asked.listed()
            return
        watches.append(asked.query["resourceVersion"])
        asked.begin()
        asked.wait()

    async def body(informer: Informer[narrow.Pod]) -> None:
        await until(lambda: len(watches) >= 2)
        assert informer.failing_since is None

    follow(tmp_path, script, body)


def test_who_stops_watching_leaves_no_connection_open(tmp_path: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def script(asked: Exchange) -> None:
        if not asked.watching:
            asked.listed()
            return
        asked.begin()
        begun.set()
        asked.wait()
        over.set()

    async def body(informer: Informer[narrow.Pod]) -> None:
        await until(begun.is_set)
        await until(informer.synced.is_set)

    async def main(url: str) -> None:
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        informer = Informer(api, PATH, narrow.Pod)
        running = asyncio.create_task(informer.run())
        await body(informer)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await until(over.is_set)
        await api.close()

    with scripted(script) as server:
        asyncio.run(main(server.url))


class Waits(threading.Event):
    """How long somebody was ready to wait. Nobody does."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout or 0.0)
        time.sleep(0.001)
        return False


@pytest.mark.parametrize("what", ["list", "watch"])
def test_a_server_that_wants_to_be_left_alone_is(tmp_path: Path, what: str) -> None:
    waits = Waits()

    def script(asked: Exchange) -> None:
        if asked.watching or what == "list":
            asked.refuse(429, "TooManyRequests", Retry_After="20")
        else:
            asked.listed()

    async def body(informer: Informer[narrow.Pod]) -> None:
        await until(lambda: len(waits.asked) >= 3)
        assert all(20.0 <= pause <= 45.0 for pause in waits.asked)
        assert informer.failing_since is not None

    def prepare(informer: Informer[narrow.Pod]) -> None:
        informer._now = waits  # what is waited for is seen, and not waited for

    follow(tmp_path, script, body, prepare)


def test_a_server_that_calls_every_watch_too_old_is_not_listed_in_a_loop(tmp_path: Path) -> None:
    waits = Waits()

    def script(asked: Exchange) -> None:
        if asked.watching:
            asked.refuse(410, "Expired")
        else:
            asked.listed(thing("a"))

    async def body(informer: Informer[narrow.Pod]) -> None:
        await until(lambda: len(waits.asked) >= 4)
        assert waits.asked[3] > waits.asked[0] > 0.0
        assert set(informer.items) == {"a"}

    def prepare(informer: Informer[narrow.Pod]) -> None:
        informer._now = waits

    follow(tmp_path, script, body, prepare)
