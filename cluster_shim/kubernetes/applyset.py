"""The ApplySet of a namespace: one ConfigMap that says which kinds of objects of ours there are (KEP-3659), and for which tool.

Every object of ours in an Application's namespace, and whatever its charts and manifests put elsewhere, carries the set's id as its
label `part-of`. The list of kinds is widened before an object of a new kind is applied, so that after a crash everything that we made
is found again; it goes, as a whole, when nothing of ours is left there. So a Work costs no write of its own here. Specification:
KEP-3659, "ApplySet: kubectl apply --prune redesign".
"""

import asyncio
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from cluster_shim.kubernetes import names
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.resources import Resource

PARENT = "banyan-applyset"
ID = "applyset.kubernetes.io/id"
TOOLING = "applyset.kubernetes.io/tooling"
KINDS = "applyset.kubernetes.io/contains-group-kinds"
NAMESPACES = "applyset.kubernetes.io/additional-namespaces"
TOOL = "banyan/v1.0.0"  # of this use of ApplySets, not of the program: NAME/SEMVER
PAGE = "500"


class Parent(Struct):
    kinds: set[str] = set()  # Deployment.apps
    namespaces: set[str] = set()  # beside its own


class _Annotations(Struct, frozen=True):
    kinds: str = msgspec.field(name=KINDS, default="")
    namespaces: str = msgspec.field(name=NAMESPACES, default="")
    tooling: str = msgspec.field(name=TOOLING, default="")


class _Meta(Struct, frozen=True):
    namespace: str = ""
    annotations: _Annotations = _Annotations()


class _ConfigMap(Struct):
    metadata: _Meta = _Meta()

    def parent(self) -> Parent:
        marks = self.metadata.annotations
        return Parent({one for one in marks.kinds.split(",") if one}, {one for one in marks.namespaces.split(",") if one})


class _ListMeta(Struct, frozen=True):
    continue_: str = msgspec.field(name="continue", default="")


class _List(Struct):
    items: list[_ConfigMap] = []
    metadata: _ListMeta = _ListMeta()


def id_of(namespace: str) -> str:
    return names.applyset_id(PARENT, namespace)


class ApplySets:
    """What every parent says. Only this process writes them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._parents: dict[str, Parent] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._whole = False  # all of the cluster's are known

    async def load(self) -> dict[str, Parent]:
        """All that are in the cluster; where we may not look everywhere, those come one by one (`known`)."""
        found: dict[str, Parent] = {}
        onward = ""
        try:
            while True:
                query = [("labelSelector", f"{ID},{names.MANAGED_BY}={names.MANAGER}"), ("limit", PAGE)]
                query += [("continue", onward)] if onward else []
                page = msgspec.json.decode(await self._api.request("GET", "/api/v1/configmaps", query=query), type=_List)
                found |= {item.metadata.namespace: item.parent() for item in page.items}
                onward = page.metadata.continue_
                if not onward:
                    break
        except ApiError as error:
            if error.status != 403:
                raise
            return {}
        self._whole = True
        self._parents = found
        return found

    async def known(self, namespace: str) -> Parent:
        """What the namespace's parent says; empty where there is none yet."""
        if namespace not in self._parents and not self._whole:
            try:
                answer = await self._api.request("GET", _path(namespace))
                self._parents[namespace] = msgspec.json.decode(answer, type=_ConfigMap).parent()
            except ApiError as error:
                if error.status != 404:
                    raise
        return self._parents.get(namespace, Parent())

    async def include(self, namespace: str, resources: Iterable[Resource], elsewhere: Iterable[str]) -> None:
        """Before objects of these kinds are applied, here or in namespaces ``elsewhere``."""
        kinds, others = {resource.group_kind for resource in resources}, set(elsewhere) - {namespace, ""}
        async with self._locks.setdefault(namespace, asyncio.Lock()):
            parent = await self.known(namespace)
            if namespace in self._parents and kinds <= parent.kinds and others <= parent.namespaces:
                return
            grown = Parent(parent.kinds | kinds, parent.namespaces | others)
            await self._write(namespace, grown)
            self._parents[namespace] = grown

    async def _write(self, namespace: str, parent: Parent) -> None:
        annotations = {TOOLING: TOOL, KINDS: ",".join(sorted(parent.kinds))}
        if parent.namespaces:
            annotations[NAMESPACES] = ",".join(sorted(parent.namespaces))
        labels = {ID: id_of(namespace), names.MANAGED_BY: names.MANAGER}
        made = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": PARENT, "namespace": namespace, "labels": labels, "annotations": annotations},
        }
        query = [("fieldManager", names.MANAGER), ("force", "true")]
        body = msgspec.json.encode(made)
        await self._api.request("PATCH", _path(namespace), query=query, body=body, content_type="application/apply-patch+yaml")

    async def end(self, namespace: str) -> None:
        """Nothing of ours is left there."""
        async with self._locks.setdefault(namespace, asyncio.Lock()):
            if self._parents.pop(namespace, None) is None:
                return
            try:
                await self._api.request("DELETE", _path(namespace))
            except ApiError as error:
                if error.status != 404:
                    self._parents[namespace] = Parent()
                    raise

    def forget(self, namespace: str) -> None:
        """The namespace is gone, and the parent with it."""
        self._parents.pop(namespace, None)


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{PARENT}"
