"""Watches of a real controller that is stopped, killed and started again while somebody writes all the time.

`kubectl get -w` (1.32) does not come back by itself: it ends with code 0 when the connection does, and whoever starts it again sees
everything. client-go's informers and the Python client come back by themselves; nothing is missed or doubled by either.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from banyanctl.client import Client
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from cluster_controller.errors import BanyanError
from e2e.support import Site, Tree, until
from e2e.test_informer import APPS, MAPS, Follower, following
from e2e.test_informer import informer as informer  # noqa: PLC0414
from tests.openapi.support import application, config_map
from tools import needs

pytestmark = pytest.mark.needs("kubectl")


@contextmanager
def watching(site: Site, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """kubectl, and the lines that it has printed so far."""
    command = [str(needs.kubectl()), "--kubeconfig", str(site.folder / ADMIN_KUBECONFIG), "get", "configmaps", "-o", "name", *arguments]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        reader = threading.Thread(target=lambda: lines.extend(line.strip() for line in process.stdout or ()))
        reader.start()
        try:
            yield process, lines
        finally:
            process.kill()
            reader.join()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_kubectl_get_w_ends_with_the_controller_and_shows_everything_when_started_again(tree: Tree, end: str) -> None:
    root = tree.root()
    root.kubectl("create", "configmap", "first")
    with watching(root, "-w") as (process, lines):
        until("it shows what is there", lambda: lines == ["configmap/first"])
        root.kubectl("create", "configmap", "second")
        until("it shows what comes", lambda: lines == ["configmap/first", "configmap/second"])
        getattr(root, end)()
        assert process.wait(30) == 0
        assert lines == ["configmap/first", "configmap/second"], "no error text on standard output or error"
    root.run()
    root.kubectl("create", "configmap", "third")
    with watching(root, "-w") as (process, lines):
        until("it shows everything", lambda: set(lines) == {"configmap/first", "configmap/second", "configmap/third"})
    with watching(root, "--watch-only") as (process, lines):
        numbers = count()  # it asks where to begin before it watches: what comes in between is not shown
        until("it shows a change", lambda: change(root, next(numbers)) and lines)
        assert set(lines) == {"configmap/first"}


def change(site: Site, number: int) -> str:
    return site.kubectl("label", "configmap", "first", f"a={number}", "--overwrite")


class Writer:
    """Creates, changes and deletes ConfigMaps in a thread, as fast as the controller takes them, whether it is there or not."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        number = 0
        while not self._over.wait(0.005):
            number += 1
            name = f"w{number % 7}"
            try:
                with Client(read(self._site.folder / ADMIN_KUBECONFIG), 5.0) as client:
                    for method, path in (("POST", MAPS), ("PATCH", f"{MAPS}/{name}"), ("DELETE", f"{MAPS}/{name}"))[: 2 + number % 2]:
                        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
                        body = b"" if method == "DELETE" else encoded(name, str(number))
                        client.request(method, path, body=body, headers={"Content-Type": kind})
                        self.written += 1
            except (BanyanError, OSError):
                continue  # it is away just now


def encoded(name: str, x: str) -> bytes:
    import msgspec

    return msgspec.json.encode(config_map(name, x=x))


def held(site: Site) -> str:
    shown = []
    for kind, path in (("applications", APPS), ("configmaps", MAPS)):
        entries = []
        for item in site.get(path)["items"]:
            metadata = item["metadata"]
            data = f"={item.get('data', {}).get('x', '')}" if kind == "configmaps" else ""
            entries.append(f"{metadata['namespace']}/{metadata['name']}@{metadata['resourceVersion']}{data}")
        shown.append(f"{kind}: {' '.join(sorted(entries))}")
    return " ".join(shown)


async def agrees(follower: Follower, site: Site) -> None:
    async with asyncio.timeout(60):
        while (await follower.state()).strip() != held(site).strip():
            await asyncio.sleep(0.1)


@pytest.mark.exact
@pytest.mark.needs("go")
@pytest.mark.parametrize("streamed", [False, True], ids=["listed", "streamed"])
def test_informers_miss_and_double_nothing_while_the_controller_is_stopped_and_killed(tree: Tree, informer: Path, streamed: bool) -> None:
    root = tree.root()

    async def main() -> None:
        async with following(informer, root.folder / ADMIN_KUBECONFIG, streamed=streamed) as follower:
            for number, end in enumerate(("kill", "stop")):
                with Writer(root) as writer:
                    await asyncio.to_thread(until, "some are written", lambda: writer.written > 60)
                    await asyncio.to_thread(getattr(root, end))
                    await asyncio.to_thread(root.run)
                    before = writer.written
                    await asyncio.to_thread(until, "more are written", lambda: writer.written > before + 60)  # noqa: B023
                root.ask("POST", APPS, application(f"mark-{number}"))
                await follower.until(f"ADD applications default/mark-{number}")
                await agrees(follower, root)

    asyncio.run(main())


PROGRAM = """
import sys, time
import kubernetes
from urllib3.exceptions import HTTPError
kubernetes.config.load_kube_config(sys.argv[1])
client = kubernetes.dynamic.DynamicClient(kubernetes.client.ApiClient())
maps = client.resources.get(api_version="v1", kind="ConfigMap")
version, known = None, set()
print("READY", flush=True)
while "last" not in known:
    try:
        for event in maps.watch(namespace="default", resource_version=version, timeout=20):
            name, version = event["object"].metadata.name, event["object"].metadata.resourceVersion
            assert (name in known) is (event["type"] != "ADDED"), (event["type"], name, known)
            (known.discard if event["type"] == "DELETED" else known.add)(name)
            if name == "last":
                break
    except HTTPError:
        time.sleep(0.1)
print(sorted(known))
"""


@pytest.mark.exact
def test_a_python_client_goes_on_from_its_last_version_through_a_restart(tree: Tree) -> None:
    root = tree.root()
    argv = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(root.folder / ADMIN_KUBECONFIG)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n"
            for end in ("kill", "stop"):
                with Writer(root) as writer:
                    until("some are written", lambda: writer.written > 40)
                    getattr(root, end)()
                    root.run()
                    before = writer.written
                    until("more are written", lambda: writer.written > before + 40)  # noqa: B023
            root.kubectl("create", "configmap", "last")
            out, trouble = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, trouble
    names = sorted(item["metadata"]["name"] for item in root.get(MAPS)["items"])
    assert out.strip() == str(names)
