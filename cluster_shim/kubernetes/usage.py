"""What nodes and our pods really use: from metrics.k8s.io where there is such a thing, else from each node's kubelet.

Measured once a minute; what cannot be had is not known (-1), never an error: a cluster without metrics runs applications as well.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog
from msgspec import Struct, field

from cluster_shim.kubernetes import names
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.quantities import millis, units

log = structlog.get_logger()

EVERY_SECONDS = 60.0
FIRST_SECONDS = 5.0
AT_ONCE = 2
KUBELETS = 100  # nodes asked one by one; a larger cluster has a metrics server
KUBELET_SECONDS = 5.0
METRICS = "/apis/metrics.k8s.io/v1beta1"
PAGE = "500"
PAGES = 40
REFUSED = (401, 403)
NONE_YET = (404, 503)

Used = tuple[int, int]  # millicores, bytes


class _Meta(Struct, frozen=True):
    name: str = ""
    namespace: str = ""


class _ListMeta(Struct, frozen=True):
    continue_: str = field(name="continue", default="")


class _Container(Struct, frozen=True):
    usage: dict[str, str] = {}


class _Metrics(Struct, frozen=True):
    metadata: _Meta = _Meta()
    usage: dict[str, str] = {}
    containers: list[_Container] = []


class _Page(Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[_Metrics] = []


class _Cpu(Struct, frozen=True, rename="camel"):
    usage_nano_cores: int = 0


class _Memory(Struct, frozen=True, rename="camel"):
    working_set_bytes: int = 0


class _Stats(Struct, frozen=True, rename="camel"):
    cpu: _Cpu | None = None
    memory: _Memory | None = None
    pod_ref: _Meta = _Meta()


class _Summary(Struct, frozen=True):
    node: _Stats = _Stats()
    pods: list[_Stats] = []


class Measured(Struct, frozen=True):
    nodes: dict[str, Used] = {}
    pods: dict[tuple[str, str], Used] = {}  # by namespace and name; ours at least


_PAGE = msgspec.json.Decoder(_Page)
_SUMMARY = msgspec.json.Decoder(_Summary)


class Usage:
    """``nodes``: names to ask about; ``changed`` is called after each measurement."""

    def __init__(self, api: Api, nodes: Callable[[], Iterable[str]], ours: Callable[[str, str], bool], changed: Callable[[], None]) -> None:
        self._api = api
        self._nodes = nodes
        self._ours = ours
        self._changed = changed
        self._kubelets = True
        self.now = Measured()

    async def run(self) -> None:
        pause = FIRST_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = EVERY_SECONDS
            found = await self._measure()
            if found != self.now:
                self.now = found
                self._changed()

    async def _measure(self) -> Measured:
        try:
            return await self._from_metrics()
        except (ApiError, msgspec.DecodeError) as error:
            if isinstance(error, ApiError) and error.status not in (*NONE_YET, *REFUSED):
                return Measured()
        return await self._from_kubelets() if self._kubelets else Measured()

    async def _from_metrics(self) -> Measured:
        nodes = {item.metadata.name: _sum([item.usage]) for item in await self._pages(f"{METRICS}/nodes", "")}
        pods = {
            (item.metadata.namespace, item.metadata.name): _sum([container.usage for container in item.containers])
            for item in await self._pages(f"{METRICS}/pods", names.APPLICATION_UID)
        }
        return Measured(nodes, pods)

    async def _pages(self, path: str, selector: str) -> list[_Metrics]:
        found: list[_Metrics] = []
        onward = ""
        for _ in range(PAGES):
            query = [("limit", PAGE), *([("labelSelector", selector)] if selector else []), *([("continue", onward)] if onward else [])]
            page = _PAGE.decode(await self._api.request("GET", path, query=query))
            found += page.items
            onward = page.metadata.continue_
            if not onward:
                break
        return found

    async def _from_kubelets(self) -> Measured:
        slots = asyncio.Semaphore(AT_ONCE)
        nodes: dict[str, Used] = {}
        pods: dict[tuple[str, str], Used] = {}

        async def ask(node: str) -> None:
            async with slots:
                if not self._kubelets:
                    return
                summary = await self._summary(node)
            if summary is None:
                return
            nodes[node] = _used(summary.node)
            pods.update(
                {
                    (pod.pod_ref.namespace, pod.pod_ref.name): _used(pod)
                    for pod in summary.pods
                    if self._ours(pod.pod_ref.namespace, pod.pod_ref.name)
                }
            )

        await _all(ask(node) for node in sorted(self._nodes())[:KUBELETS])
        return Measured(nodes, pods)

    async def _summary(self, node: str) -> _Summary | None:
        path = f"/api/v1/nodes/{node}/proxy/stats/summary"
        try:
            answer = await self._api.request("GET", path, query=[("only_cpu_and_memory", "true")], timeout=KUBELET_SECONDS)
            return _SUMMARY.decode(answer)
        except ApiError as error:
            if error.status in REFUSED:
                log.info("member.usage_unknown", reason=str(error), hint="usage needs a metrics server, or the right to get nodes/proxy")
                self._kubelets = False  # until the next start: rights do not come by themselves
        except msgspec.DecodeError:
            pass  # no kubelet: a virtual one, say
        return None


async def _all(coroutines: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*coroutines)


def _sum(usages: Iterable[dict[str, str]]) -> Used:
    cpu = memory = 0
    for usage in usages:
        cpu += millis(usage.get("cpu", "0"))
        memory += units(usage.get("memory", "0"))
    return cpu, memory


def _used(stats: _Stats) -> Used:
    cpu = -1 if stats.cpu is None else -(-stats.cpu.usage_nano_cores // 1_000_000)
    return cpu, -1 if stats.memory is None else stats.memory.working_set_bytes
