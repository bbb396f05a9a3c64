"""Which kinds a member's API server knows, and where they are: discovery, one group at a time, when somebody asks for a kind.

What was found stays found until `forget`; what was not found is asked for again, but not more often than `AGAIN_SECONDS`.
"""

import asyncio
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller import clock
from cluster_shim.kubernetes.api import Api, ApiError

AGAIN_SECONDS = 1.0
MAX_VERSIONS = 2_000  # remembered; a cluster with many operators has some hundred


class Resource(Struct, frozen=True):
    """One kind of object, and where its objects are."""

    base: str  # /api/v1, /apis/apps/v1
    plural: str
    kind: str
    namespaced: bool
    verbs: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return "" if self.base.startswith("/api/") else self.base.split("/")[2]

    @property
    def version(self) -> str:
        """apiVersion."""
        return self.base.split("/", 2)[2]

    @property
    def group_kind(self) -> str:
        """As KEP-3659 writes it: Deployment.apps; ConfigMap for the core group."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    def everywhere(self, namespace: str = "") -> str:
        """Path of a list; of one namespace, or of all."""
        return f"{self.base}/namespaces/{namespace}/{self.plural}" if namespace and self.namespaced else f"{self.base}/{self.plural}"

    def path(self, namespace: str, name: str) -> str:
        return f"{self.everywhere(namespace)}/{name}"


class _Item(Struct, frozen=True):
    name: str
    kind: str = ""
    namespaced: bool = False
    verbs: list[str] = []


class _List(Struct, frozen=True):
    resources: list[_Item] = []


class Resources:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._found: dict[str, dict[str, Resource]] = {}  # apiVersion → kind → resource
        self._looked: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def find(self, version: str, kind: str, *, again: bool = False) -> Resource | None:
        """None: the server knows no such kind now. ApiError when it cannot be asked. ``again``: what was not there may have just come."""
        found = self._found.get(version, {}).get(kind)
        if found is not None:
            return found
        async with self._lock:
            if again or clock.boottime() - self._looked.get(version, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                await self._look(version)
        return self._found.get(version, {}).get(kind)

    def forget(self, version: str) -> None:
        """Something of it was not where it was said to be."""
        self._found.pop(version, None)
        self._looked.pop(version, None)

    async def _look(self, version: str) -> None:
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if len(self._found) > MAX_VERSIONS:
            self._found.clear()
        try:
            listed = msgspec.json.decode(await self._api.request("GET", base), type=_List)
        except ApiError as error:
            if error.status != 404:
                raise
            listed = _List()
        self._looked[version] = clock.boottime()
        self._found[version] = {
            item.kind: Resource(base, item.name, item.kind, item.namespaced, tuple(item.verbs))
            for item in listed.resources
            if "/" not in item.name
        }

    async def of_group_kind(self, group_kind: str) -> Resource | None:
        """The preferred version of `Deployment.apps`."""
        kind, _, group = group_kind.partition(".")
        if not group:
            return await self.find("v1", kind)
        for version in await self._versions(group):
            if (found := await self.find(version, kind)) is not None:
                return found
        return None

    async def _versions(self, group: str) -> list[str]:
        try:
            document: Any = msgspec.json.decode(await self._api.request("GET", f"/apis/{group}"))
        except ApiError as error:
            if error.status != 404:
                raise
            return []
        preferred = str((document.get("preferredVersion") or {}).get("groupVersion", ""))
        others = [str(item["groupVersion"]) for item in document.get("versions", [])]
        return [preferred, *(item for item in others if item != preferred)] if preferred else others

    async def all_in_namespaces(self) -> list[Resource]:
        """Every kind that lives in namespaces and can be listed, each in one version."""
        groups: Any = msgspec.json.decode(await self._api.request("GET", "/apis"))
        versions = ["v1", *(str(item["preferredVersion"]["groupVersion"]) for item in groups.get("groups", []))]
        found: list[Resource] = []
        for version in versions:
            async with self._lock:
                await self._look(version)
            found += [item for item in self._found.get(version, {}).values() if item.namespaced and "list" in item.verbs]
        return found
