"""The shim of a Kubernetes cluster, in the controller's process or served to it over gRPC.

It is a view, as every shim: closing it, or killing the controller, changes nothing that runs in the member.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path

import structlog

from cluster_controller.tasks import Tasks
from cluster_shim.contract import ByteStream, Description, Desired, Observed, OpenTarget, ShimError
from cluster_shim.kubernetes import health, narrow, render, rights, status, streams
from cluster_shim.kubernetes.api import Access, Api, ApiError
from cluster_shim.kubernetes.apply import Applier
from cluster_shim.kubernetes.files import FileServer
from cluster_shim.kubernetes.health import Blind, Health
from cluster_shim.kubernetes.helm import Helm
from cluster_shim.kubernetes.jobs import FILE, Jobs
from cluster_shim.kubernetes.member import Door
from cluster_shim.kubernetes.owner import Owner, Tenure
from cluster_shim.kubernetes.picture import Picture
from cluster_shim.kubernetes.session import Session

log = structlog.get_logger()

__all__ = ["Access", "KubernetesShim", "Owner"]

TRIES = 3  # instances of an application that are asked for a connection
NEEDED = [rule for rule in rights.SEE if rule.group in ("", "apps", "batch") and "events" not in rule.resources]
KINDS = ("model", "command", "container", "manifests", "helm")


class KubernetesShim:
    """``access``: whom to ask, and as whom. ``settings``: how the site's Kubernetes is used. ``owner``: for whom it is managed, asked
    when that is to be written there (it may read a disk); without it nobody else is kept from managing it too."""

    kind = "kubernetes"

    def __init__(self, access: Access, settings: render.Settings, folder: Path, owner: Callable[[], Owner] | None = None) -> None:
        self._access = access
        self._settings = settings
        self._folder = folder
        self._owner = owner
        self._tenure: Tenure | None = None
        self._api: Api | None = None
        self._files: FileServer | None = None
        self._picture: Picture | None = None
        self._session: Session | None = None
        self._door: Door | None = None
        self._health: Health | None = None
        self._tasks = Tasks("shim/kubernetes")
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
        if self._owner is not None and self._tenure is None:
            self._tenure = Tenure(await asyncio.to_thread(self._owner), self._settings.take_over)
        if self._tenure is not None:
            await self._tenure.claim(api)
        jobs = Jobs(self._folder / FILE)
        await asyncio.to_thread(jobs.load)
        charts = Helm(self._folder / "charts")
        applier = Applier(api, self._settings, touched=self._touched, source=self._files.source, charts=charts, jobs=jobs)
        session = self._session = Session(picture, applier, self._blind)
        keeping = Tasks("shim/kubernetes/owner")
        if self._tenure is not None:
            keeping.spawn("keep", self._tenure.keep(api, session.refuse))
        try:
            await applier.start()
            async with aclosing(session.run(self._files.listen(desired))) as news:
                async for observed in news:
                    yield observed
        finally:
            self._session = None
            await keeping.close()
            await applier.close()

    async def open(self, target: OpenTarget) -> ByteStream:
        if target.kind not in ("api", "logs", "application"):
            raise ShimError(f"a Kubernetes cluster has no {target.kind!r} to open; it offers application, logs and api")
        api, picture = await self._connected()
        if target.kind == "api":
            self._door = self._door or Door(api)
            return await self._door.open(target)
        found = [each for each in picture.find(target.uid, target.component, target.instance) if not status.is_finished(each[1])]
        if not found:
            raise ShimError(f"no instance {target.instance or target.component or target.uid} runs here")
        if target.kind == "logs":
            component, pod = max(found, key=lambda each: (status.is_ready(each[1]), each[1].metadata.creation_timestamp or ""))
            meta = pod.metadata
            return await streams.open_log(api, meta.namespace, meta.name, status.container_of(pod, component), target.options)
        return await self._open_application(api, target, found)

    async def _open_application(self, api: Api, target: OpenTarget, found: list[tuple[str, narrow.Pod]]) -> ByteStream:
        """To a ready instance, another one each time; one that cannot be reached is no reason not to ask the next."""
        ports = {component: self._session.port(target.uid, component) if self._session is not None else 0 for component, _ in found}
        ready = [(component, pod) for component, pod in found if ports[component] and status.is_ready(pod)]
        if not any(ports.values()):
            raise ShimError(f"application {target.uid}: component {', '.join(sorted(ports))} exposes no port")
        if not ready:
            raise ShimError(f"application {target.uid}: no instance is ready ({found[0][1].metadata.name} is {found[0][1].status.phase})")
        random.shuffle(ready)
        for number, (component, pod) in enumerate(ready, 1):
            try:
                return await streams.open_port(api, pod.metadata.namespace, pod.metadata.name, ports[component], pod.status.pod_ip)
            except ApiError as error:
                if number >= min(TRIES, len(ready)):
                    raise
                log.info("instance.not_reached", instance=pod.metadata.name, error=str(error))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Let go. Applications run on."""
        await self._tasks.close()
        picture, api, files = self._picture, self._api, self._files
        if self._door is not None:
            await self._door.close()
        self._picture = self._api = self._files = self._door = self._health = None
        if files is not None:
            await files.close()
        if picture is not None:
            await picture.close()
        if api is not None:
            await api.close()

    async def _connected(self) -> tuple[Api, Picture]:
        async with self._connecting:
            if self._api is None or self._picture is None:
                await self._connect()
            assert self._api is not None and self._picture is not None
            return self._api, self._picture

    async def _connect(self) -> None:
        if self._files is None:
            self._files = await asyncio.to_thread(FileServer, self._folder, self._settings)
        api = await Api.open(self._access_now())
        try:
            await asyncio.to_thread(health.recognise, self._folder, api)
            await self._check_rights(api)
            labels = await self._learn(api)
        except BaseException:
            await api.close()
            raise
        self._api = api
        self._files.start(api.url)
        picture = self._picture = Picture(api, self._seen, self._nodes_seen, labels)
        picture.start()
        self._health = Health(api, self._sight_changed, picture.failing, self._look)
        self._tasks.keep("health", self._health.run)
        log.info("member.connected", server=api.url, version=api.version, uid=api.cluster_uid)

    # what other distributions know beside

    def _access_now(self) -> Access:
        return self._access

    async def _learn(self, api: Api) -> dict[str, str]:
        """Labels for every node: what the distribution brings along. Asked once per connection, before anything is applied."""
        return {}

    async def _check_rights(self, api: Api) -> None:
        """Without the rights to see nothing can be told; the others are missed where they are needed, and said here already."""
        needed = await health.missing(api, rights.questions(NEEDED))
        if needed:
            raise ShimError(
                f"{api.url} does not let this controller see what it runs; missing rights: {', '.join(map(str, needed))};"
                " `banyan join --print-manifest` shows the roles to grant"
            )
        for one in await health.missing(api, rights.questions(rights.RUN)):
            log.warning("member.right_missing", right=str(one), without_it=one.reason)

    def _blind(self) -> Blind | None:
        return self._health.blind if self._health is not None else None

    def _sight_changed(self) -> None:
        if self._session is not None:
            self._session.sight_changed()

    def _look(self) -> None:
        if self._picture is not None and self._picture.look() and self._session is not None:
            self._session.kinds_changed()

    def _touched(self, uids: Iterable[str]) -> None:
        if self._session is not None:
            self._session.touched(uids)

    def _seen(self, uids: Iterable[str]) -> None:
        if self._session is not None:
            self._session.seen(uids)

    def _nodes_seen(self) -> None:
        if self._session is not None:
            self._session.nodes_seen()
