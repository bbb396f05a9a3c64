"""Namespaces of Applications: made where one is missing, removed when we made it and nothing is left in it that anybody would miss.

Deleting a namespace deletes everything in it, so before that every kind that the server knows is looked at. What we may not look at
counts as something that somebody would miss: then the namespace stays, and the log says so.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from cluster_shim.kubernetes import names
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.applyset import PARENT
from cluster_shim.kubernetes.inventory import METADATA_LIST
from cluster_shim.kubernetes.resources import Resource, Resources

log = structlog.get_logger()

# What every namespace has of itself, or what only tells about others.
OF_ITSELF = {("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt"), ("ConfigMap", PARENT)}
TELLING = frozenset({"Event", "Endpoints", "EndpointSlice", "PodMetrics"})
AT_ONCE = 4
LOOK = "20"  # objects per kind; a namespace with so many of one kind has one that counts, or is looked at again


class Namespaces:
    def __init__(self, api: Api, resources: Resources) -> None:
        self._api = api
        self._resources = resources
        self._stay: set[tuple[str, str]] = set()  # told once: uid of the namespace, what is in it

    async def make(self, name: str) -> None:
        """There is one afterwards; it is ours only if there was none."""
        labels = {names.MANAGED_BY: names.MANAGER, names.OWN_NAMESPACE: "true"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        try:
            await self._api.request("POST", "/api/v1/namespaces", query=[("fieldManager", names.MANAGER)], body=msgspec.json.encode(body))
        except ApiError as error:
            if error.status != 409:
                raise

    async def is_ours(self, name: str) -> str:
        """uid of a namespace that we made and that is not being deleted yet, else ""."""
        try:
            found: Any = msgspec.json.decode(await self._api.request("GET", f"/api/v1/namespaces/{name}"))
        except ApiError as error:
            if error.status in (403, 404):
                return ""
            raise
        meta = found["metadata"]
        ours = (meta.get("labels") or {}).get(names.OWN_NAMESPACE) == "true" and not meta.get("deletionTimestamp")
        return str(meta["uid"]) if ours else ""

    async def remove(self, name: str, wanted: Callable[[], bool]) -> bool:
        """Unless it is not ours, or something is in it, or it is ``wanted`` again meanwhile. Whether it goes."""
        uid = await self.is_ours(name)
        return bool(uid) and await self.delete_if_empty(name, uid, wanted)

    async def delete_if_empty(self, name: str, uid: str, wanted: Callable[[], bool]) -> bool:
        found = await self.in_use(name)
        if wanted():
            return False
        if found:
            if (uid, found) not in self._stay:
                log.info("member.namespace_stays", namespace=name, because=found)
                self._stay = {entry for entry in self._stay if entry[0] != uid} | {(uid, found)}
            return False
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._api.request("DELETE", f"/api/v1/namespaces/{name}", body=msgspec.json.encode(options))
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        log.info("member.namespace_removed", namespace=name)
        return True

    async def in_use(self, name: str) -> str:
        """Something in it that somebody would miss, or why that is not known; "" for nothing."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def look(resource: Resource) -> str:
            async with slots:
                return await self._look(resource, name)

        kinds = [resource for resource in await self._resources.all_in_namespaces() if resource.kind not in TELLING]
        return next((found for found in await asyncio.gather(*(look(resource) for resource in kinds)) if found), "")

    async def _look(self, resource: Resource, namespace: str) -> str:
        try:
            answer = await self._api.request("GET", resource.everywhere(namespace), query=[("limit", LOOK)], accept=METADATA_LIST)
        except ApiError as error:
            if error.status in (404, 405):
                return ""
            if error.status == 403:
                return f"{resource.plural} cannot be listed"
            raise
        for item in msgspec.json.decode(answer).get("items") or []:
            meta = item["metadata"]
            if (resource.kind, meta["name"]) not in OF_ITSELF and not meta.get("ownerReferences"):
                return f"{resource.kind} {meta['name']}"
        return ""
