"""Watches: nothing lost between list and watch, bookmarks, selectors, old revisions, slow readers, many readers."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.store import Key, Limits, Store
from openapi import watch
from openapi.services import User
from tests.openapi.support import ADMIN, Server, config_map, run
from tests.openapi.test_objects import failed, ok

MAPS = "/api/v1/namespaces/default/configmaps"
TABLE = b"application/json;as=Table;v=v1;g=meta.k8s.io"


class Client:
    """A watching client at the ASGI door; ``stalled`` stops it from taking what is sent."""

    def __init__(self, server: Server, query: str, path: str = MAPS, accept: bytes = b"application/json", user: User = ADMIN) -> None:
        self.status = 0
        self.lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        self.gone = asyncio.Event()
        self._rest = b""
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"accept", accept), (b"host", b"banyan")], "scheme": "https", "server": ("banyan", 443),
            "banyan.user": user, "banyan.draining": server.draining,
        }  # fmt: skip
        self.task = asyncio.create_task(self._run(server, scope))

    async def _run(self, server: Server, scope: dict[str, Any]) -> None:
        try:
            await server.api(scope, self._receive, self._send)
        finally:
            self.lines.put_nowait(None)

    async def _receive(self) -> MutableMapping[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        await self.reading.wait()
        *lines, self._rest = (self._rest + message.get("body", b"")).split(b"\n")
        for line in lines:
            self.lines.put_nowait(msgspec.json.decode(line))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            line = await self.lines.get()
        assert line is not None, "the watch has ended"
        return line

    async def ended(self) -> None:
        async with asyncio.timeout(10):
            while await self.lines.get() is not None:
                pass

    async def event(self) -> tuple[str, str]:
        line = await self.next()
        return line["type"], line["object"]["metadata"].get("name", "")


@asynccontextmanager
async def watching(server: Server, query: str, **options: Any) -> AsyncIterator[Client]:
    client = Client(server, query, **options)
    try:
        yield client
    finally:
        client.gone.set()
        client.reading.set()
        await asyncio.wait([client.task])


async def put(server: Server, name: str, labels: dict[str, str] | None = None, **data: str) -> None:
    document = config_map(name, **data)
    document["metadata"]["labels"] = labels or {}
    answer = await server.admin.put(f"{MAPS}/{name}", json=document)
    if answer.status_code == 404:
        answer = await server.admin.post(MAPS, json=document)
    assert answer.status_code in (200, 201), answer.text


def test_list_then_watch_misses_nothing(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await put(server, "a")
        revision = ok(await server.admin.get(MAPS))["metadata"]["resourceVersion"]
        await put(server, "b")
        await server.admin.delete(f"{MAPS}/a")
        async with watching(server, f"watch=1&resourceVersion={revision}") as client:
            assert [await client.event(), await client.event()] == [("ADDED", "b"), ("DELETED", "a")]
            await put(server, "b", x="1")
            line = await client.next()
            assert line["type"] == "MODIFIED" and line["object"]["data"] == {"x": "1"}
            assert line["object"]["metadata"]["resourceVersion"] == str(server.store.revision)
            await server.admin.delete(f"{MAPS}/b")
            deleted = await client.next()
            assert deleted["type"] == "DELETED" and int(deleted["object"]["metadata"]["resourceVersion"]) == server.store.revision

    run(tmp_path, body)


@pytest.mark.parametrize("query", ["watch=1", "watch=1&resourceVersion=0"])
def test_a_watch_from_nowhere_begins_with_what_is_there(tmp_path: Path, query: str) -> None:
    async def body(server: Server) -> None:
        await put(server, "a")
        async with watching(server, query) as client:
            assert await client.event() == ("ADDED", "a")
            await put(server, "b")
            assert await client.event() == ("ADDED", "b")

    run(tmp_path, body)


def test_initial_events_end_with_a_bookmark(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        for name in ("a", "b"):
            await put(server, name)
        query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion="
        async with watching(server, query) as client:
            assert [await client.event(), await client.event()] == [("ADDED", "a"), ("ADDED", "b")]
            mark = await client.next()
            assert mark["type"] == "BOOKMARK" and mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
            assert mark["object"]["metadata"]["resourceVersion"] == str(server.store.revision)
            await put(server, "c")
            assert await client.event() == ("ADDED", "c")

    run(tmp_path, body)


def test_bookmarks_carry_the_revision_of_changes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BOOKMARK_SECONDS", 0.01)

    async def body(server: Server) -> None:
        async with watching(server, "watch=1&allowWatchBookmarks=true") as client:
            await server.put("own", "Cluster", "edge-1", spec={})
            while (mark := await client.next())["object"]["metadata"]["resourceVersion"] != str(server.store.revision):
                assert mark["type"] == "BOOKMARK"
            assert mark["object"]["kind"] == "ConfigMap"

    run(tmp_path, body)


def test_with_a_selector_objects_come_and_go_by_changing(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await put(server, "a", {"tier": "hub"})
        async with watching(server, "watch=1&labelSelector=tier%3Dedge&resourceVersion=" + str(server.store.revision)) as client:
            await put(server, "other", {"tier": "hub"})
            await put(server, "a", {"tier": "edge"})
            await put(server, "a", {"tier": "edge"}, x="1")
            await put(server, "a", {"tier": "hub"})
            await server.admin.delete(f"{MAPS}/a")
            await put(server, "b", {"tier": "edge"})
            await server.admin.delete(f"{MAPS}/b")
            wanted = [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b"), ("DELETED", "b")]
            assert [await client.event() for _ in wanted] == wanted

    run(tmp_path, body)


def test_namespaces_and_kinds_are_kept_apart(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
        ok(await server.admin.post("/api/v1/namespaces", json=namespace), 201)
        everywhere = "/api/v1/configmaps"
        async with watching(server, "watch=1") as here, watching(server, "watch=1", path=everywhere) as all_of_them:
            ok(await server.admin.post("/api/v1/namespaces/team/configmaps", json=config_map("t", "team")), 201)
            await put(server, "d")
            assert await here.event() == ("ADDED", "d")
            assert [await all_of_them.event(), await all_of_them.event()] == [("ADDED", "t"), ("ADDED", "d")]
        async with watching(server, "watch=1&fieldSelector=metadata.name%3Dd", path=everywhere) as one:
            assert await one.event() == ("ADDED", "d")

    run(tmp_path, body)


def test_a_table_watch_sends_rows(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await put(server, "a")
        async with watching(server, "watch=1", accept=TABLE) as client:
            line = await client.next()
            assert line["type"] == "ADDED" and line["object"]["kind"] == "Table" and line["object"]["rows"][0]["cells"][0] == "a"

    run(tmp_path, body)


def test_a_revision_past_the_journal_is_410(tmp_path: Path) -> None:
    async def main() -> None:
        from openapi.app import create_app
        from tests.openapi.support import Services

        store = await Store.open(tmp_path, Limits(journal_rows=5))
        api = create_app(Services(store))
        await api.start()
        server = Server(Services(store), api)
        for number in range(20):
            await put(server, "a", x=str(number))
        failed(await server.admin.get(MAPS, params={"watch": "1", "resourceVersion": "2"}), 410, "Expired")
        stale = {"resourceVersion": "2", "resourceVersionMatch": "Exact"}
        failed(await server.admin.get(MAPS, params=stale), 410, "Expired")
        await server.admin.aclose()
        await api.close()
        await store.close()

    asyncio.run(main())


def test_a_slow_watcher_is_given_up_and_slows_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUEUED_EVENTS", 10)

    async def body(server: Server) -> None:
        async with watching(server, "watch=1") as slow, watching(server, "watch=1") as quick:
            await put(server, "warm")
            assert await slow.event() == await quick.event() == ("ADDED", "warm")
            slow.reading.clear()
            for number in range(40):
                await put(server, "a", x=str(number))
                assert (await quick.event())[1] == "a"
            async with asyncio.timeout(10):
                await asyncio.wait([slow.task])
            assert isinstance(slow.task.exception(), ConnectionAbortedError)
            assert server.api.hub.slow == 1 and server.api.hub.count == 1

    run(tmp_path, body)


def test_watches_end_with_the_client_the_time_and_the_front(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        hub = server.api.hub
        async with watching(server, "watch=1") as client:
            await put(server, "a")
            await client.event()
            assert hub.count == 1
        assert hub.count == 0
        async with watching(server, "watch=1&timeoutSeconds=1") as client:
            await client.ended()
            assert client.status == 200 and client.task.exception() is None
        async with watching(server, "watch=1") as client:
            await client.event()
            server.draining.set()
            await client.ended()
        assert hub.count == 0

    run(tmp_path, body)


def test_too_many_watches_are_refused_with_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_WATCHERS", 1)

    async def body(server: Server) -> None:
        await put(server, "a")
        async with watching(server, "watch=1") as client:
            await client.event()
            answer = await server.admin.get(MAPS, params={"watch": "1"})
            failed(answer, 429, "TooManyRequests")
            assert answer.headers["retry-after"] == "30"

    run(tmp_path, body)


def test_an_event_is_encoded_once_for_a_thousand_watchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openapi.present import Printer

    encoded = 0
    real = Printer.one

    def counted(self: Printer, stored: Any) -> bytes:
        nonlocal encoded
        encoded += 1
        return real(self, stored)

    monkeypatch.setattr(Printer, "one", counted)

    async def body(server: Server) -> None:
        clients = [Client(server, "watch=1") for _ in range(1000)]
        await asyncio.sleep(0)
        while server.api.hub.count < 1000:
            await asyncio.sleep(0)
        await put(server, "a")
        assert {await client.event() for client in clients} == {("ADDED", "a")}
        assert encoded == 1
        for client in clients:
            client.gone.set()
        await asyncio.wait([client.task for client in clients])
        assert server.api.hub.count == 0

    run(tmp_path, body)


def test_controllers_writes_are_seen_too(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        async with watching(server, "watch=1", path="/api/v1/pods") as client:
            await server.put("observed", "Pod", "p1", "default", status={"phase": "Running"})
            line = await client.next()
            assert (
                line["object"]["kind"] == "Pod"
                and line["object"]["apiVersion"] == "v1"
                and line["object"]["metadata"]["namespace"] == "default"
            )
            await server.store.commit(lambda tx: tx.delete(Key("observed", "Pod", "default", "p1")))
            assert await client.event() == ("DELETED", "p1")

    run(tmp_path, body)
