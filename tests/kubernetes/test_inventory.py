"""What is known of our objects in a member, from a real socket: how each goes, how much is known, and which watches end."""

import asyncio
import json
import queue
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_shim.kubernetes import inventory as module
from cluster_shim.kubernetes import names
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.inventory import Inventory
from cluster_shim.kubernetes.resources import Resource
from cluster_shim.kubernetes.seen import Key
from tests.kubernetes.scripted import SECONDS, Exchange, kubeconfig, scripted, thing

MAPS = Resource("/api/v1", "configmaps", "ConfigMap", True)
JOBS = Resource("/apis/batch/v1", "jobs", "Job", True)
LABELS = {names.APPLICATION_UID: "app", names.COMPONENT_LABEL: "main"}


def ours(name: str, version: str = "1", status: dict[str, Any] | None = None) -> dict[str, Any]:
    return thing(name, version, labels=LABELS) | ({"status": status} if status else {})


class World:
    """A member: who may look where, what a list brings, and what its watches tell."""

    def __init__(self, *items: dict[str, Any], everywhere: bool = True) -> None:
        self.items = list(items)
        self.everywhere = everywhere
        self.events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.lists: list[str] = []
        self.watching: set[str] = set()
        self.accepted: set[str] = set()

    def script(self, asked: Exchange) -> None:
        if asked.method == "POST":
            where = json.loads(asked.body)["spec"]["resourceAttributes"].get("namespace", "")
            asked.say({"status": {"allowed": self.everywhere or bool(where)}})
        elif not asked.watching:
            self.lists.append(asked.path)
            self.accepted.add(asked.accept)
            asked.listed(*self.items)
        else:
            self.accepted.add(asked.accept)
            self._watch(asked)

    def _watch(self, asked: Exchange) -> None:
        asked.begin()
        self.watching.add(asked.path)
        try:
            while not asked.gone():
                try:
                    kind, made = self.events.get(timeout=0.01)
                except queue.Empty:
                    continue
                asked.tell(kind, made)
                if kind == "ERROR":
                    asked.end()
                    return
        finally:
            self.watching.discard(asked.path)


class Watched:
    def __init__(self, api: Api) -> None:
        self.heard: list[tuple[str, str, str]] = []  # how, name, finished
        self.inventory = Inventory(api, lambda key, found, how: self.heard.append((how, key.name, found.finished)), lambda resource: None)

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not check():
                await asyncio.sleep(0.005)

    async def hears(self, *wanted: tuple[str, str, str]) -> None:
        await self.until(lambda: len(self.heard) >= len(wanted))
        assert self.heard == list(wanted)
        self.heard.clear()


def played(tmp_path: Path, world: World, body: Callable[[Watched], Awaitable[None]]) -> None:
    async def main(url: str) -> None:
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        watched = Watched(api)
        try:
            await body(watched)
        finally:
            await watched.inventory.close()
            await api.close()

    with scripted(world.script) as server:
        asyncio.run(main(server.url))


def test_what_is_known_stays_known_when_there_is_room_for_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for deleted, it would be made again though it stands there."""
    monkeypatch.setattr(module, "MAX_OBJECTS", 1)
    world = World(ours("a"))

    async def body(watched: Watched) -> None:
        await watched.inventory.ready(MAPS, "default")
        await watched.hears(("put", "a", ""))
        world.events.put(("MODIFIED", ours("a", "2")))
        world.events.put(("ADDED", ours("b", "3")))
        world.events.put(("MODIFIED", ours("a", "4")))
        await watched.hears(("put", "a", ""), ("put", "a", ""))
        assert watched.inventory.get(Key("", "ConfigMap", "default", "b")) is None
        world.events.put(("DELETED", ours("a", "5")))
        world.events.put(("ADDED", ours("c", "6")))
        await watched.hears(("deleted", "a", ""), ("put", "c", ""))

    played(tmp_path, world, body)
    assert world.accepted == {module.METADATA, module.METADATA_LIST}


def test_a_job_says_how_it_ended_and_one_that_is_only_missing_is_not_said_to_be_deleted(tmp_path: Path) -> None:
    done = {"conditions": [{"type": "Complete", "status": "True"}]}
    world = World(ours("j"), ours("k"))

    async def body(watched: Watched) -> None:
        await watched.inventory.ready(JOBS, "default")
        await watched.hears(("put", "j", ""), ("put", "k", ""))
        world.events.put(("DELETED", ours("j", "2", done)))
        await watched.hears(("deleted", "j", "Complete"))
        world.items = []
        world.events.put(("ERROR", {"code": 410, "reason": "Expired", "message": "too old"}))
        await watched.hears(("missing", "k", ""))

    played(tmp_path, world, body)
    assert world.accepted == {"application/json"}


def test_the_watches_of_a_namespace_end_with_what_was_ours_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WATCHES", 2)
    world = World(everywhere=False)

    async def body(watched: Watched) -> None:
        for namespace in ("one", "two", "three", "two"):
            for resource in (MAPS, JOBS):
                await watched.inventory.ready(resource, namespace)
            paths = {resource.everywhere(namespace) for resource in (MAPS, JOBS)}
            await watched.until(lambda paths=paths: world.watching == paths)  # type: ignore[misc]
            watched.inventory.leave("another")
            await asyncio.sleep(0)
            assert world.watching == paths
            watched.inventory.leave(namespace)
            await watched.until(lambda: not world.watching)

    played(tmp_path, world, body)
    assert len(world.lists) == 8
