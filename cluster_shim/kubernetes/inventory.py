"""Every object of ours in the member, seen as it changes: how drift is noticed, and how nothing is written that is there already.

One metadata-only watch per kind that is in use (`PartialObjectMetadata`, our label as selector): a ConfigMap of a megabyte costs some
hundred bytes. Jobs are read whole, for their metadata does not say whether they are over. Where we may not look into all namespaces, one
watch per kind and namespace in use, for as long as anything of ours is there. The answer to an apply is noted too, for it comes before
the watch says the same. Both go by resourceVersion, so whichever comes late changes nothing.

Bounds: `MAX_WATCHES` threads, and `MAX_OBJECTS` objects. What is beyond the latter is not known: it is applied at each attempt
(which writes nothing on the server where nothing differs), and no drift is seen there.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

import structlog
from msgspec import Struct

from cluster_controller import clock
from cluster_controller.tasks import Tasks
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import names, seen
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.informer import Change, Informer
from cluster_shim.kubernetes.resources import Resource
from cluster_shim.kubernetes.seen import Key, Seen

log = structlog.get_logger()

METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
JSON = "application/json"
JOB = "Job.batch"
MAX_WATCHES = 96
MAX_OBJECTS = 100_000
SYNC_SECONDS = 20.0
AGAIN_SECONDS = 30.0  # after which it is asked again whether we may look somewhere

How = Literal["put", "deleted", "missing"]  # deleted: as it was at its end; missing: as it was seen last, and it is there no more
Noticed = Callable[[Key, Seen, How], None]
Place = tuple[str, str, str]  # group, plural, namespace or "" for all


class _Watch(Struct):
    resource: Resource
    informer: Informer[Seen]
    task: "asyncio.Task[None] | None" = None
    ahead: dict[Key, str] = {}  # applied by us and not seen by the watch yet → resourceVersion


class Inventory:
    """``noticed`` hears of everything that the watches bring, ``vanished`` of kinds that the server knows no more; both on the loop."""

    def __init__(self, api: Api, noticed: Noticed, vanished: Callable[[Resource], None]) -> None:
        self._api = api
        self._noticed = noticed
        self._vanished = vanished
        self._tasks = Tasks("shim/kubernetes/inventory")
        self._objects: dict[Key, Seen] = {}
        self._resources: dict[Key, Resource] = {}
        self._by_uid: dict[str, set[Key]] = {}
        self._by_namespace: dict[str, int] = {}
        self._watches: dict[Place, _Watch] = {}
        self._may: dict[Place, float] = {}  # where we may not look, and when that was said

    async def close(self) -> None:
        await self._tasks.close()

    # --- what is known ---

    def get(self, key: Key) -> Seen | None:
        return self._objects.get(key)

    def of(self, uid: str) -> dict[Key, Seen]:
        return {key: self._objects[key] for key in self._by_uid.get(uid, ())}

    def uids(self) -> set[str]:
        return set(self._by_uid)

    def is_empty(self, namespace: str) -> bool:
        return not self._by_namespace.get(namespace)

    def resource(self, key: Key) -> Resource:
        """Where a known object is."""
        return self._resources[key]

    def has_kind(self, group: str, kind: str) -> bool:
        return any(key.group == group and key.kind == kind for key in self._objects)

    # --- watching ---

    def hurry(self) -> None:
        """The API server answers again."""
        for watch in self._watches.values():
            watch.informer.hurry()

    async def ready(self, resource: Resource, namespace: str) -> None:
        """Until everything of this kind is known. ApiError or ShimError when that is not to be had."""
        if await self._may_look(resource, ""):
            await self._watch(resource, "")
        elif resource.namespaced and namespace and await self._may_look(resource, namespace):
            await self._watch(resource, namespace)
        else:
            where = f" in namespace {namespace}" if resource.namespaced and namespace else ""
            raise ApiError(f"we may not list and watch {resource.plural}{where}; grant it to applications that bring such", status=403)

    async def _may_look(self, resource: Resource, namespace: str) -> bool:
        place = resource.group, resource.plural, namespace
        if place in self._watches:
            return True
        if self._may.get(place, -AGAIN_SECONDS) + AGAIN_SECONDS > clock.boottime():
            return False
        for verb in ("list", "watch"):
            if not await self._api.allowed(verb, resource.group, resource.plural, namespace):
                self._may[place] = clock.boottime()
                return False
        self._may.pop(place, None)
        return True

    async def _watch(self, resource: Resource, namespace: str) -> None:
        place = resource.group, resource.plural, namespace
        watch = self._watches.get(place)
        if watch is None:
            if len(self._watches) >= MAX_WATCHES:
                raise ShimError(f"{resource.group_kind} is one kind of objects too many in this member: {MAX_WATCHES} are watched already")
            watch = self._watches[place] = self._begin(place, resource, namespace)
        if watch.informer.synced.is_set():
            return
        assert watch.task is not None
        synced = asyncio.ensure_future(watch.informer.synced.wait())
        try:
            await asyncio.wait((synced, watch.task), timeout=SYNC_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            synced.cancel()
        if watch.task.done():
            raise ApiError(f"the member knows no {resource.plural} of {resource.version} any more", status=404)
        if not watch.informer.synced.is_set():
            why = watch.informer.error or "no answer"
            raise ShimError(f"the member does not list its {resource.plural} within {SYNC_SECONDS:g} s: {why}")

    def _begin(self, place: Place, resource: Resource, namespace: str) -> _Watch:
        whole = resource.group_kind == JOB
        informer: Informer[Seen] = Informer(
            self._api,
            resource.everywhere(namespace),
            None,
            decode=seen.decode_job if whole else seen.decode,
            selector=f"{names.APPLICATION_UID},{names.PART_OF}",
            keep=lambda found: self._counts(resource, found),
            accept=(JSON, JSON) if whole else (METADATA_LIST, METADATA),
            ends_when_gone=True,
        )
        watch = _Watch(resource, informer)
        informer.subscribe(lambda changes: self._take(watch, changes))
        watch.task = self._tasks.spawn(informer.path, self._run(place, watch))
        return watch

    def leave(self, namespace: str) -> None:
        """Nothing of ours is there any more: what watches that namespace alone ends, and makes room for others."""
        for place in [place for place in self._watches if place[2] == namespace]:
            task = self._watches.pop(place).task
            if task is not None:
                task.cancel()

    async def _run(self, place: Place, watch: _Watch) -> None:
        """Until the kind is gone, and everything of it with it; or nobody wants to know any more."""
        try:
            await watch.informer.run()
        except ApiError as error:
            log.info("member.kind_gone", path=watch.informer.path, reason=str(error))
        finally:
            if self._watches.get(place) is watch:
                del self._watches[place]
        self._vanished(watch.resource)
        for key in [key for key, resource in self._resources.items() if resource == watch.resource]:
            self._drop(key, self._objects[key])

    def _counts(self, resource: Resource, found: Seen) -> bool:
        """There is room, or it has its place already: what is known must not be taken for deleted because it has changed."""
        return not found.owned and (len(self._objects) < MAX_OBJECTS or self._key(resource, found) in self._objects)

    # --- changes ---

    def _take(self, watch: _Watch, changes: list[Change[Seen]]) -> None:
        last = ""
        for change in changes:
            found = change.object
            key = self._key(watch.resource, found)
            if not last or seen.newer(found.resource_version, last):
                last = found.resource_version
            if change.kind == "put":
                if watch.ahead.get(key) == found.resource_version or seen.newer(found.resource_version, watch.ahead.get(key, "0")):
                    watch.ahead.pop(key, None)
                if self._put(watch.resource, key, found):
                    self._noticed(key, found, "put")
            else:
                known = self._objects.get(key)
                if known is None or known.uid == found.uid:
                    watch.ahead.pop(key, None)
                    self._drop(key, found)
        # What we applied, and what the watch has passed without bringing it, somebody has deleted in between.
        for key in [key for key, version in watch.ahead.items() if seen.newer(last, version)]:
            del watch.ahead[key]
            if key in self._objects:
                self._drop(key, self._objects[key])

    def note(self, resource: Resource, found: Seen) -> None:
        """What an apply of ours was answered."""
        key = self._key(resource, found)
        watch = self._watches.get((resource.group, resource.plural, "")) or self._watches.get(
            (resource.group, resource.plural, found.namespace)
        )
        if self._put(resource, key, found) and watch is not None:
            watch.ahead[key] = found.resource_version

    def gone(self, key: Key) -> None:
        """A deletion of ours was carried out."""
        known = self._objects.get(key)
        if known is not None:
            self._forget(key, known)

    def _put(self, resource: Resource, key: Key, found: Seen) -> bool:
        """False: something newer is known."""
        known = self._objects.get(key)
        if known is not None and known.resource_version == found.resource_version:
            found.fields = known.fields  # let go, if it was compared
            found.finished = found.finished or known.finished  # not in the answer to an apply
            self._objects[key] = found  # the same copy as the informer's
            return False
        if known is not None and seen.newer(known.resource_version, found.resource_version):
            found.fields = b""
            return False
        if known is not None:
            self._forget(key, known)
        self._objects[key] = found
        self._resources[key] = resource
        self._by_uid.setdefault(found.application, set()).add(key)
        self._by_namespace[key.namespace] = self._by_namespace.get(key.namespace, 0) + 1
        return True

    def _forget(self, key: Key, known: Seen) -> None:
        del self._objects[key]
        del self._resources[key]
        keys = self._by_uid[known.application]
        keys.discard(key)
        if not keys:
            del self._by_uid[known.application]
        self._by_namespace[key.namespace] -= 1
        if not self._by_namespace[key.namespace]:
            del self._by_namespace[key.namespace]

    def _drop(self, key: Key, found: Seen) -> None:
        known = self._objects.get(key)
        if known is not None:
            self._forget(key, known)
            self._noticed(key, found, "deleted" if seen.newer(found.resource_version, known.resource_version) else "missing")

    @staticmethod
    def _key(resource: Resource, found: Seen) -> Key:
        return Key(resource.group, resource.kind, found.namespace, found.name)
