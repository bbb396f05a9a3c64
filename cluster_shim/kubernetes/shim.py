"""The shim of a Kubernetes cluster, in the controller's process or served to it over gRPC.

It is a view, as every shim: closing it, or killing the controller, changes nothing that runs in the member.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path

from cluster_shim.contract import ByteStream, Description, Desired, Observed, OpenTarget, ShimError
from cluster_shim.kubernetes import render
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.direct import DirectApplier
from cluster_shim.kubernetes.files import FileServer
from cluster_shim.kubernetes.member import Door
from cluster_shim.kubernetes.picture import Picture
from cluster_shim.kubernetes.session import Session

__all__ = ["Access", "KubernetesShim"]

KINDS = ("model", "command", "container", "manifests", "helm")


class KubernetesShim:
    """``access``: whom to ask, and as whom. ``settings``: how the site's Kubernetes is used."""

    kind = "kubernetes"

    def __init__(self, access: Access, settings: render.Settings, folder: Path) -> None:
        self._access = access
        self._settings = settings
        self._folder = folder
        self._api: Api | None = None
        self._files: FileServer | None = None
        self._picture: Picture | None = None
        self._session: Session | None = None
        self._door: Door | None = None
        self._connecting = asyncio.Lock()

    async def describe(self) -> Description:
        api, _ = await self._connected()
        return Description(kind=self.kind, version=api.version, component_kinds=KINDS, limits="cgroup")

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        """See `contract.Shim`. One at a time; when it ends, what runs goes on."""
        if self._session is not None:
            raise ShimError("this cluster is being reconciled already; end that reconciliation first")
        api, picture = await self._connected()
        assert self._files is not None
        session = self._session = Session(picture, DirectApplier(api, self._settings, self._files.source))
        try:
            async with aclosing(session.run(self._files.listen(desired))) as news:
                async for observed in news:
                    yield observed
        finally:
            self._session = None

    async def open(self, target: OpenTarget) -> ByteStream:
        if target.kind == "api":
            api, _ = await self._connected()
            self._door = self._door or Door(api)
            return await self._door.open(target)
        raise ShimError(f"a Kubernetes cluster has no {target.kind!r} to open")

    async def close(self) -> None:
        """Let go. Applications run on."""
        picture, api, files = self._picture, self._api, self._files
        self._picture = self._api = self._files = self._door = None
        if files is not None:
            await files.close()
        if picture is not None:
            await picture.close()
        if api is not None:
            await api.close()

    async def _connected(self) -> tuple[Api, Picture]:
        async with self._connecting:
            if self._api is None or self._picture is None:
                if self._files is None:
                    self._files = await asyncio.to_thread(FileServer, self._folder, self._settings)
                self._api = await Api.open(self._access)
                self._files.start(self._api.url)
                self._picture = Picture(self._api, self._seen, self._nodes_seen)
                self._picture.start()
            return self._api, self._picture

    def _seen(self, uids: Iterable[str]) -> None:
        if self._session is not None:
            self._session.seen(uids)

    def _nodes_seen(self) -> None:
        if self._session is not None:
            self._session.nodes_seen()
