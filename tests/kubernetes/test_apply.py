"""A Work carried out against a server that breaks in the middle: nothing of it goes on by itself."""

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest

from cluster_shim.contract import Component, Work
from cluster_shim.kubernetes import render
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.apply import Applier
from cluster_shim.kubernetes.helm import Helm
from cluster_shim.kubernetes.jobs import FILE, Jobs
from tests.kubernetes.scripted import SECONDS, Exchange, kubeconfig, scripted

MAPS = "/api/v1/namespaces/default/configmaps"


def work(*objects: str) -> Work:
    manifests = tuple(msgspec.json.encode({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}) for name in objects)
    component = Component(name="things", replicas=1, revision="1", manifests=manifests)
    return Work(uid="u", name="app", namespace="default", origin="root", version=1, components=(component,))


def test_a_defect_in_one_of_several_writes_leaves_none_of_them_running(tmp_path: Path) -> None:
    """What went on by itself would write beside the next attempt."""
    slow, release = threading.Event(), threading.Event()

    def script(asked: Exchange) -> None:
        if asked.path == "/api/v1":
            asked.say({"resources": [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": ["list", "watch"]}]})
        elif asked.method == "POST":
            asked.say({"status": {"allowed": True}})
        elif asked.watching:
            asked.begin()
            asked.wait()
        elif asked.method == "GET":
            asked.listed()
        elif asked.path == f"{MAPS}/slow":
            slow.set()
            asked.wait(release)
            asked.say({"metadata": {"name": "slow", "namespace": "default", "resourceVersion": "11"}})
        elif asked.path == f"{MAPS}/broken":
            asked.wait(slow)
            asked.say(["nothing that an API server says"])
        else:
            asked.say({})

    async def main(url: str) -> None:
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        applier = Applier(
            api,
            render.Settings(),
            touched=lambda uids: None,
            source=lambda work: None,
            charts=Helm(tmp_path / "charts"),
            jobs=Jobs(tmp_path / FILE),
        )
        try:
            await applier.start()
            async with asyncio.timeout(SECONDS):
                with pytest.raises(ExceptionGroup) as broke:
                    await applier.apply(work("slow", "broken"))
            assert broke.group_contains(msgspec.DecodeError)
            assert not [task for task in asyncio.all_tasks() if "shim/kubernetes/apply" in task.get_name() or "_step" in repr(task)]
        finally:
            release.set()
            await applier.close()
            await api.close()

    with scripted(script) as server:
        asyncio.run(main(server.url))
