"""What nodes and pods use: as metrics.k8s.io says it, else as kubelets do, else not known. Answers as real ones give them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_shim.kubernetes import names, usage
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.usage import Measured, Usage
from tests.kubernetes.scripted import Exchange, kubeconfig, scripted

Answer = Callable[[Exchange], None]


def node_metrics(name: str, cpu: str, memory: str) -> dict[str, Any]:
    times = {"timestamp": "2026-11-21T12:00:00Z", "window": "20.064s"}
    return {"metadata": {"name": name, "creationTimestamp": "2026-11-21T12:00:00Z"}, **times, "usage": {"cpu": cpu, "memory": memory}}


def pod_metrics(name: str, *containers: tuple[str, str]) -> dict[str, Any]:
    used = [{"name": f"c{at}", "usage": {"cpu": cpu, "memory": memory}} for at, (cpu, memory) in enumerate(containers)]
    return {"metadata": {"name": name, "namespace": "shop"}, "window": "20s", "containers": used}


def stats(name: str, nano: int, memory: int) -> dict[str, Any]:
    return {
        "podRef": {"name": name, "namespace": "shop", "uid": "u"},
        "cpu": {"time": "2026-11-21T12:00:00Z", "usageNanoCores": nano, "usageCoreNanoSeconds": 10**12},
        "memory": {"time": "2026-11-21T12:00:00Z", "usageBytes": 2 * memory, "workingSetBytes": memory, "rssBytes": 1},
    }


class Bench:
    """An API server that has what ``answers`` say, by path; 404 for the rest."""

    def __init__(self, folder: Path, **answers: Answer) -> None:
        self.folder = folder
        self.answers = {
            "/version": lambda asked: asked.say({"gitVersion": "v1.34.2"}),
            "/api/v1/namespaces/kube-system": lambda asked: asked.say({"metadata": {"uid": "u"}}),
        } | answers
        self.asked: list[str] = []
        self.nodes = ["n1"]

    def _script(self, asked: Exchange) -> None:
        self.asked.append(asked.path)
        self.answers.get(asked.path, lambda asked: asked.refuse(404, "NotFound"))(asked)

    def measure(self, times: int = 1) -> Measured:
        async def run() -> Measured:
            api = await Api.open(Access(kubeconfig=config))
            try:
                used = Usage(api, lambda: self.nodes, lambda namespace, name: name != "theirs", lambda: None)
                for _ in range(times):
                    found = await used._measure()
                return found
            finally:
                await api.close()

        with scripted(self._script) as server:
            config = kubeconfig(self.folder / "kubeconfig", server.url)
            return asyncio.run(run())


NODES, PODS = f"{usage.METRICS}/nodes", f"{usage.METRICS}/pods"
SUMMARY = "/api/v1/nodes/{}/proxy/stats/summary"


def test_what_a_metrics_server_says(tmp_path: Path) -> None:
    def pods(asked: Exchange) -> None:
        assert asked.query["labelSelector"] == names.APPLICATION_UID  # not those of a whole cluster
        asked.listed(pod_metrics("web-1", ("1500u", "10Mi"), ("250m", "1Ki")), pod_metrics("web-2"))

    answers: dict[str, Answer] = {
        NODES: lambda asked: asked.listed(node_metrics("n1", "156000001n", "2Gi"), node_metrics("n2", "2", "1e3")),
        PODS: pods,
    }
    found = Bench(tmp_path, **answers).measure()
    assert found.nodes == {"n1": (157, 2 << 30), "n2": (2000, 1000)}  # rounded up: what is used is not nothing
    assert found.pods == {("shop", "web-1"): (252, (10 << 20) + 1024), ("shop", "web-2"): (0, 0)}


def test_pages_are_asked_for_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nodes(asked: Exchange) -> None:
        at = int(asked.query.get("continue", "0"))
        asked.say({"metadata": {"continue": str(at + 1)}, "items": [node_metrics(f"n{at}", "1", "1")]})

    monkeypatch.setattr(usage, "PAGES", 3)  # one that never ends is not followed for ever
    found = Bench(tmp_path, **{NODES: nodes, PODS: lambda asked: asked.listed()}).measure()
    assert sorted(found.nodes) == ["n0", "n1", "n2"]


@pytest.mark.parametrize("status", [404, 503, 403])
def test_without_a_metrics_server_kubelets_are_asked(tmp_path: Path, status: int) -> None:
    def summary(asked: Exchange) -> None:
        assert asked.query == {"only_cpu_and_memory": "true"}
        node = {"nodeName": "n1"} | stats("", 1_000_001, 4096)
        asked.say({"node": node, "pods": [stats("mine", 5_000_000, 7), stats("theirs", 1, 1), {"podRef": {}}]})

    bench = Bench(tmp_path, **{NODES: lambda asked: asked.refuse(status), SUMMARY.format("n1"): summary})
    bench.nodes = ["n1", "played"]  # the second one has no kubelet
    found = bench.measure()
    assert found.nodes == {"n1": (2, 4096)}
    assert found.pods == {("shop", "mine"): (5, 7), ("", ""): (-1, -1)}  # one without numbers, before its first sample


def test_a_kubelet_that_may_not_be_asked_is_not_asked_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, **{SUMMARY.format("n1"): lambda asked: asked.refuse(403, "Forbidden")})
    assert bench.measure(times=3) == Measured()
    assert bench.asked.count(SUMMARY.format("n1")) == 1


def test_answers_that_are_none_are_not_known_and_no_error(tmp_path: Path) -> None:
    strange = {"items": [{"metadata": {"name": ["n1"]}, "usage": 7}]}
    bench = Bench(tmp_path, **{NODES: lambda asked: asked.say(strange), SUMMARY.format("n1"): lambda asked: asked.say(["?"])})
    assert bench.measure() == Measured()
    assert Bench(tmp_path, **{NODES: lambda asked: asked.refuse(500)}).measure() == Measured()
    odd = node_metrics("n1", "much", "-")
    answers: dict[str, Answer] = {NODES: lambda asked: asked.listed(odd), PODS: lambda asked: asked.listed()}
    assert Bench(tmp_path, **answers).measure().nodes == {"n1": (0, 0)}


def test_what_did_not_change_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(usage, "EVERY_SECONDS", 0.0)
    samples = iter(["1", "1", "1", "2", "2"])
    told: list[Measured] = []

    def nodes(asked: Exchange) -> None:
        asked.listed(node_metrics("n1", next(samples, "3"), "1"))

    async def run(config: str) -> None:
        api = await Api.open(Access(kubeconfig=config))
        enough = asyncio.Event()

        def changed() -> None:
            told.append(used.now)
            if len(told) == 3:
                enough.set()

        used = Usage(api, list, lambda namespace, name: True, changed)
        running = asyncio.create_task(used.run())
        async with asyncio.timeout(30):
            await enough.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await api.close()

    bench = Bench(tmp_path, **{NODES: nodes, PODS: lambda asked: asked.listed()})
    with scripted(bench._script) as server:
        asyncio.run(run(kubeconfig(tmp_path / "kubeconfig", server.url)))
    assert [one.nodes["n1"][0] for one in told[:3]] == [1000, 2000, 3000]
