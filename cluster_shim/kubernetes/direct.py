"""Applying without a plan: the rendered objects one after the other, and everything with the application's label removed."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from cluster_shim import contract
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import names, render
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.status import Trouble

KEPT = "persistentvolumeclaims"  # what an application keeps outlives it


class Applied(Struct, frozen=True):
    problems: dict[str, Trouble] = {}


class Resource(Struct, frozen=True):
    path: str
    plural: str
    namespaced: bool


class DirectApplier:
    def __init__(self, api: Api, settings: render.Settings, source: Callable[[contract.Work], render.Source | None]) -> None:
        self._api = api
        self._settings = settings
        self._source = source
        self._resources: dict[tuple[str, str], Resource] = {}
        self._touched: dict[str, set[Resource]] = {}
        self._namespaces: set[str] = set()

    def uids(self) -> set[str]:
        return set(self._touched)

    async def apply(self, work: contract.Work) -> Applied:
        problems: dict[str, Trouble] = {}
        namespace = names.namespace_of(work.namespace)
        rendered = render.render(work, self._settings, self._source(work))
        await self._namespace(namespace)
        touched = self._touched.setdefault(work.uid, set())
        for item in rendered:
            try:
                resource = await self._resource(item.object["apiVersion"], item.object["kind"])
                touched.add(resource)
                await self._apply(resource, item.object, namespace)
            except ApiError as error:
                problems.setdefault(item.component, Trouble(error.reason or "NotApplied", str(error)))
        return Applied(problems)

    async def _apply(self, resource: Resource, made: dict[str, Any], namespace: str) -> None:
        meta = made["metadata"]
        inside = f"/namespaces/{meta.get('namespace') or namespace}" if resource.namespaced else ""
        await self._api.request(
            "PATCH",
            f"{resource.path}{inside}/{resource.plural}/{meta['name']}",
            query=[("fieldManager", names.MANAGER), ("force", "true")],
            body=msgspec.json.encode(made),
            content_type="application/apply-patch+yaml",
        )

    async def remove(self, uid: str) -> bool:
        common = [("v1", "Service"), ("v1", "ConfigMap"), ("v1", "Secret"), ("apps/v1", "Deployment")]
        resources = self._touched.get(uid, set()) | {await self._resource(*one) for one in common}
        left = await asyncio.gather(*(self._clear(resource, uid) for resource in resources if resource.plural != KEPT))
        if any(left):
            return False
        self._touched.pop(uid, None)
        return True

    async def _clear(self, resource: Resource, uid: str) -> int:
        selector = ("labelSelector", f"{names.APPLICATION_UID}={uid}")
        found = msgspec.json.decode(await self._api.request("GET", f"{resource.path}/{resource.plural}", query=[selector]))
        for item in found.get("items", []):
            meta = item["metadata"]
            inside = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
            try:
                await self._api.request(
                    "DELETE", f"{resource.path}{inside}/{resource.plural}/{meta['name']}", query=[("propagationPolicy", "Background")]
                )
            except ApiError as error:
                if error.status != 404:
                    raise
        return len(found.get("items", []))

    async def _namespace(self, name: str) -> None:
        if name in self._namespaces:
            return
        try:
            await self._api.request("GET", f"/api/v1/namespaces/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {names.MANAGED_BY: names.MANAGER}}}
            await self._api.request("POST", "/api/v1/namespaces", body=msgspec.json.encode(body))
        self._namespaces.add(name)

    async def _resource(self, version: str, kind: str) -> Resource:
        if (version, kind) not in self._resources:
            base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
            for item in msgspec.json.decode(await self._api.request("GET", base))["resources"]:
                if "/" not in item["name"]:
                    self._resources[version, item["kind"]] = Resource(base, item["name"], item["namespaced"])
        try:
            return self._resources[version, kind]
        except KeyError:
            raise ShimError(f"the member knows no {kind} of {version}") from None
