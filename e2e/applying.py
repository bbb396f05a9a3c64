"""An applier on a real API server, and somebody else who works there by hand."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from cluster_shim.contract import Component, Work
from cluster_shim.kubernetes import names, render
from cluster_shim.kubernetes.api import Access, Api, ApiError
from cluster_shim.kubernetes.apply import Applier, Charts
from cluster_shim.kubernetes.helm import Helm
from cluster_shim.kubernetes.jobs import FILE, Jobs
from e2e.testbed import Member

WAIT_SECONDS = 60.0
SETTINGS = render.Settings(worker_image="nowhere/worker:1")
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
Problems = dict[str, tuple[str, str]]


class Bench:
    """An applier, and who was touched."""

    def __init__(self, member: Member, api: Api, charts: Charts, jobs: Jobs) -> None:
        self.member = member
        self.api = api
        self.touched: list[str] = []
        self.applier = Applier(api, SETTINGS, touched=self._touch, source=lambda work: None, charts=charts, jobs=jobs)

    def _touch(self, uids: Iterable[str]) -> None:
        self.touched.extend(uids)

    async def apply(self, work: Work) -> Problems:
        problems = await self.applier.apply(work)
        return {name: (trouble.reason, trouble.message) for name, trouble in problems.items()}

    async def remove(self, uid: str) -> None:
        await eventually("the work is removed", lambda: self.applier.remove(uid))

    async def until_touched(self, uid: str) -> None:
        async def was() -> bool:
            return uid in self.touched

        await eventually("the change is noticed", was)
        self.touched.clear()

    # --- by hand ---

    async def by_hand(
        self, method: str, path: str, body: object = None, *, manager: str = "kubectl-edit", content: str = MERGE, force: bool = False
    ) -> dict[str, Any]:
        """As somebody else: another field manager."""
        query = [("fieldManager", manager)] if method in ("PATCH", "POST", "PUT") else []
        query += [("force", "true")] if force else []
        data = msgspec.json.encode(body) if body is not None else None
        kind = content if method == "PATCH" else "application/json"
        return dict(msgspec.json.decode(await self.api.request(method, path, query=query, body=data, content_type=kind)))

    async def get(self, path: str) -> dict[str, Any]:
        """Empty for what is not there."""
        try:
            return await self.by_hand("GET", path)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    async def namespace(self, name: str) -> None:
        await self.by_hand("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    # --- what the server saw ---

    def writes(self) -> list[tuple[str, str, str]]:
        """Requests of ours that write, as the server's audit log has them: (verb, resource, name)."""
        lines = self.member.audit_log.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if "fieldManager=banyan" in line]
        return [(one["verb"], one["objectRef"]["resource"], one["objectRef"].get("name", "")) for one in found]


async def eventually(what: str, check: Callable[[], Awaitable[Any]]) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await check():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"after {WAIT_SECONDS:g} s it is still not so that {what}") from None


@asynccontextmanager
async def bench(
    member: Member, charts: Charts | None = None, kubeconfig: Path | None = None, remembered: Path | None = None
) -> AsyncIterator[Bench]:
    """``remembered``: where what has run is kept, for the one after it."""
    api = await Api.open(Access(kubeconfig=str(kubeconfig or member.kubeconfig)))
    with TemporaryDirectory() as folder:
        jobs = Jobs(Path(remembered or folder) / FILE)
        jobs.load()
        made = Bench(member, api, charts or Helm(Path(folder)), jobs)
        try:
            await made.applier.start()
            yield made
        finally:
            await made.applier.close()
            await api.close()


# --- works ---


def manifest(version: str, kind: str, name: str, namespace: str = "", **rest: Any) -> dict[str, Any]:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": meta, **rest}


def config_map(name: str, namespace: str = "", **data: str) -> dict[str, Any]:
    return manifest("v1", "ConfigMap", name, namespace, data=data)


def definition(plural: str, kind: str, group: str = "e2e.banyan.dev") -> dict[str, Any]:
    """A CustomResourceDefinition."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "scope": "Namespaced",
        "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
    }
    return manifest("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"{plural}.{group}", spec=spec)


def of_manifests(*objects: dict[str, Any], name: str = "things") -> Component:
    return Component(name=name, replicas=1, revision="1", manifests=tuple(msgspec.json.encode(one) for one in objects))


def container(name: str = "web", **changes: Any) -> Component:
    return msgspec.structs.replace(Component(name=name, replicas=1, revision="r1", image="nowhere/web:1", port=8080), **changes)


def work(*components: Component, namespace: str = "default", uid: str = "", **more: Any) -> Work:
    return Work(uid=uid or str(uuid.uuid4()), name="app", namespace=namespace, origin="root", version=1, components=components, **more)


def with_components(work: Work, *components: Component, **more: Any) -> Work:
    return msgspec.structs.replace(work, components=components, version=work.version + 1, **more)


def deployment(work: Work, component: str = "web") -> str:
    """Path of a component's Deployment."""
    return f"/apis/apps/v1/namespaces/{work.namespace}/deployments/{names.object_name(work.name, component, work.uid)}"


def configs(name: str, namespace: str = "default") -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{name}"


def unique(stem: str) -> str:
    return f"{stem}-{uuid.uuid4().hex[:8]}"
