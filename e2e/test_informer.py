"""client-go's own informers (typed and dynamic) and the Python dynamic client hold what the controller holds, through a restart.

Every event of an informer is checked: nothing is added that it holds, nothing changed or deleted that it does not. So an object
missed or doubled on any way back (a resumed watch, 410 and a new list, a streamed list) is seen.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import pytest

from cluster_controller.store import Limits
from openapi import watch
from openapi.app import Api
from tests.openapi.support import GROUP, Server, application, config_map, fronted, kubeconfig, serving
from tools import needs

SOURCE = Path(__file__).parent / "informer"
MAPS = "/api/v1/namespaces/default/configmaps"
APPS = f"{GROUP}/namespaces/default/applications"


@pytest.fixture(scope="module")
def informer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("go") / "informer"
    environment = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run([needs.go(), "build", "-trimpath", "-o", str(program), "."], cwd=SOURCE, env=environment, check=True, timeout=600)
    return program


class Follower:
    """The Go program: its lines, and its state when asked."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.asked = 0
        self.held: set[str] = set()  # by its events
        self.events: list[str] = []

    async def until(self, wanted: str) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(90):
            while line := (await self.process.stdout.readline()).decode().strip():
                self._check(line)
                if line.startswith(wanted):
                    return line
        raise AssertionError(f"the informer ended before it said {wanted!r}")

    def _check(self, line: str) -> None:
        what, _, key = line.partition(" ")
        if what not in ("ADD", "UPDATE", "DELETE"):
            return
        self.events.append(line)
        assert (key in self.held) is (what != "ADD"), f"{line}: after {self.events[-20:]}"
        if what == "UPDATE":
            return
        (self.held.add if what == "ADD" else self.held.remove)(key)

    async def state(self) -> str:
        assert self.process.stdin is not None
        self.asked += 1
        self.process.stdin.write(f"{self.asked}\n".encode())
        return (await self.until(f"STATE {self.asked} ")).split(" ", 2)[2]


@asynccontextmanager
async def following(program: Path, config: Path, *, streamed: bool = False) -> AsyncIterator[Follower]:
    """``streamed``: the informer lists by a watch that begins with all objects (sendInitialEvents), as newer clients do."""
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "KUBE_FEATURE_WatchListClient": str(streamed).lower()}
    process = await asyncio.create_subprocess_exec(
        program, "--kubeconfig", str(config), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=environment
    )
    try:
        follower = Follower(process)
        await follower.until("SYNCED")
        yield follower
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(30):
            await process.communicate()


class Asked:
    """The API, and what was asked of it: path and query."""

    def __init__(self, server: Server) -> None:
        self._api = server.api
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        server.api = cast(Api, self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests.append((scope["path"], parse_qs(scope["query_string"].decode())))
        await self._api(scope, receive, send)

    def lists(self, path: str) -> int:
        """How often the whole of ``path`` was read: by a list, or streamed."""
        return sum(asked == path and ("watch" not in query or "sendInitialEvents" in query) for asked, query in self.requests)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)


async def wanted(client: Any) -> str:
    """The state as a list shows it, in the program's words."""
    shown = []
    for kind, path in (("applications", APPS), ("configmaps", MAPS)):
        items = (await client.get(path)).json()["items"]
        entries = []
        for item in items:
            metadata = item["metadata"]
            data = f"={item.get('data', {}).get('x', '')}" if kind == "configmaps" else ""
            entries.append(f"{metadata['namespace']}/{metadata['name']}@{metadata['resourceVersion']}{data}")
        shown.append(f"{kind}: {' '.join(sorted(entries))}")
    return " ".join(shown)


async def agrees(follower: Follower, client: Any) -> None:
    """Events may still be on their way: each further one is waited for, until both say the same."""
    async with asyncio.timeout(90):
        while True:
            expected, held = await wanted(client), await follower.state()
            if held.strip() == expected.strip():
                return
            await asyncio.sleep(0.1)


@pytest.mark.exact
@pytest.mark.needs("go")
@pytest.mark.parametrize("streamed", [False, True], ids=["listed", "streamed"])
@pytest.mark.parametrize(("between", "lists_again"), [(0, False), (20, True)], ids=["resumed", "past the journal"])
def test_informers_survive_a_restart_of_the_controller(
    tmp_path: Path, informer: Path, streamed: bool, between: int, lists_again: bool
) -> None:
    limits = Limits(journal_rows=30)
    store, front = tmp_path / "store", tmp_path / "front"
    store.mkdir()
    front.mkdir()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            async with serving(store, limits) as server, fronted(server, front) as port:
                for number in range(3):
                    assert (await server.admin.post(MAPS, json=config_map(f"m{number}", x=str(number)))).status_code == 201
                follower = await stack.enter_async_context(following(informer, kubeconfig(front), streamed=streamed))
                assert (await server.admin.post(APPS, json=application())).status_code == 201
                await follower.until("ADD applications default/emotion")
                assert (await server.admin.post(MAPS, json=config_map("m3", x="3"))).status_code == 201
                await follower.until("ADD configmaps default/m3")  # a watch that ends without an event is not resumed by client-go
                await agrees(follower, server.admin)
            async with serving(store, limits) as server:  # changes while nobody can see them
                for _ in range(between):
                    assert (await server.admin.post(MAPS, json=config_map("brief", x="gone before it is seen"))).status_code == 201
                    assert (await server.admin.delete(f"{MAPS}/brief")).status_code == 200
                assert (await server.admin.delete(f"{MAPS}/m0")).status_code == 200
                assert (await server.admin.put(f"{MAPS}/m1", json=config_map("m1", x="changed"))).status_code == 200
                assert (await server.admin.delete(f"{MAPS}/m2")).status_code == 200
                assert (await server.admin.post(MAPS, json=config_map("m2", x="another of that name"))).status_code == 201
                assert (await server.admin.post(MAPS, json=config_map("m9", x="new"))).status_code == 201
                asked = Asked(server)
                async with fronted(server, front, port):
                    await follower.until("DELETE configmaps default/m0")
                    await agrees(follower, server.admin)
                    assert (asked.lists("/api/v1/configmaps") > 0) is lists_again
                    assert (await server.admin.delete(f"{APPS}/emotion")).status_code == 200
                    await follower.until("DELETE applications default/emotion")
                    await agrees(follower, server.admin)

    asyncio.run(main())


@pytest.mark.exact
@pytest.mark.needs("go")
def test_bookmarks_spare_an_idle_informer_a_new_list(tmp_path: Path, informer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others change so much that the journal has forgotten what this informer saw last; bookmarks told it how far it is."""
    monkeypatch.setattr(watch, "BOOKMARK_SECONDS", 0.05)
    store, front = tmp_path / "store", tmp_path / "front"
    store.mkdir()
    front.mkdir()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            async with serving(store, Limits(journal_rows=10)) as server, fronted(server, front) as port:
                assert (await server.admin.post(MAPS, json=config_map("m", x="1"))).status_code == 201
                asked = Asked(server)
                follower = await stack.enter_async_context(following(informer, kubeconfig(front)))
                for _ in range(5):
                    for name in ("a", "b", "c"):
                        await server.put("own", "Cluster", name, spec={})
                    await asyncio.sleep(0.2)  # a bookmark or two
            async with serving(store, Limits(journal_rows=10)) as server:
                asked = Asked(server)
                assert (await server.admin.post(MAPS, json=config_map("late", x="2"))).status_code == 201
                async with fronted(server, front, port):
                    await follower.until("ADD configmaps default/late")
                    await agrees(follower, server.admin)
                    assert asked.lists("/api/v1/configmaps") == 0

    asyncio.run(main())


def python_client(folder: Path) -> dict[str, Any]:
    """What the kubernetes package's dynamic client sees and does; in a thread, for it is synchronous."""
    from kubernetes import config, dynamic
    from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

    with config.new_client_from_config(str(kubeconfig(folder))) as connection:
        client = dynamic.DynamicClient(connection, cache_file=str(folder / "discovery.json"))
        apps = client.resources.get(api_version="banyan.dev/v1alpha1", kind="Application")
        maps = client.resources.get(api_version="v1", kind="ConfigMap")
        made = apps.create(body=application(), namespace="default")
        changed = made.to_dict()
        changed["spec"]["components"][0]["replicas"] = 4
        apps.replace(body=changed, namespace="default")
        conflicts = missing = 0
        try:
            apps.replace(body=changed, namespace="default")
        except ConflictError:
            conflicts += 1
        patch = {"metadata": {"labels": {"a": "b"}}}
        apps.patch(name="emotion", namespace="default", body=patch, content_type="application/merge-patch+json")
        selected = [item.metadata.name for item in apps.get(namespace="default", label_selector="a=b").items]
        maps.create(body=config_map("m", x="1"), namespace="default")
        seen = [(event["type"], event["object"].metadata.name) for event in maps.watch(namespace="default", timeout=1)]
        apps.delete(name="emotion", namespace="default")
        try:
            apps.get(name="emotion", namespace="default")
        except NotFoundError:
            missing += 1
        return {"conflicts": conflicts, "missing": missing, "selected": selected, "seen": seen}


def test_the_python_dynamic_client(tmp_path: Path) -> None:
    folder = tmp_path / "front"
    folder.mkdir()

    async def main() -> dict[str, Any]:
        async with serving(tmp_path) as server, fronted(server, folder):
            return await asyncio.to_thread(python_client, folder)

    assert asyncio.run(main()) == {"conflicts": 1, "missing": 1, "selected": ["emotion"], "seen": [("ADDED", "m")]}
