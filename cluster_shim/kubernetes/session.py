"""One reconciliation with a Kubernetes member: apply what is desired, remove what is not, tell what is seen.

Nothing here remembers what was done: the member's own objects, found by their labels, are the memory. Works are applied several at a
time, one application never twice at once; what failed is tried again after a pause that doubles, or at once when it changes, when
somebody changes its objects, or when the API server is back.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import structlog
from msgspec import Struct, structs

from cluster_controller import clock
from cluster_controller.tasks import Tasks, end_task
from cluster_shim import contract
from cluster_shim.contract import Desired, Instance, Observed, ObservedWork, ShimError
from cluster_shim.kubernetes import narrow, render, status
from cluster_shim.kubernetes.health import Blind
from cluster_shim.kubernetes.picture import Picture
from cluster_shim.kubernetes.status import Trouble

log = structlog.get_logger()

AT_ONCE = 6  # Works being applied; the executor of `api` has a few threads more
RETRY_SECONDS = (1.0, 60.0)
REMOVE_SECONDS = 1.0  # between looks at what is being deleted
PROVE_SECONDS = 1.0  # between looks at what has yet to prove itself
HOLD_SECONDS = render.UNPROVEN_SECONDS + 5.0  # a next version waits no longer, whatever the ones before it do
GATHER_SECONDS = 0.005  # changes that come together are told together
NODES_SECONDS = 2.0  # between tellings of nodes whose figures alone have changed
SYNC_SECONDS = 60.0


class Applying(Protocol):
    """What a session asks of `apply.Applier`."""

    async def apply(self, work: contract.Work) -> Mapping[str, Trouble]:
        """By component, why its objects are not as they should be."""
        ...

    async def remove(self, uid: str) -> bool:
        """Whether nothing of it is left."""
        ...

    def held(self, uid: str) -> Mapping[str, Trouble]:
        """By component, what keeps the rest of a removed Work from going."""
        ...

    def uids(self) -> set[str]: ...

    def hurry(self) -> None:
        """The API server answers again."""
        ...


class _Task(Struct):
    """Where one Work stands."""

    running: bool = False
    again: bool = False
    pause: float = RETRY_SECONDS[0]
    timer: asyncio.TimerHandle | None = None


class _Seen(NamedTuple):
    """One pod, and what it was said to be."""

    pod: narrow.Pod
    hints: status.Hints
    used: tuple[int, int]
    instance: Instance


class Session:
    """``blind``: what is known of the member's being out of sight, or None."""

    def __init__(self, picture: Picture, applier: Applying, blind: Callable[[], Blind | None]) -> None:
        self._picture = picture
        self._applier = applier
        self._blind = blind
        self._works: dict[str, contract.Work] | None = None  # None until the first full Desired
        self._leaving: set[str] = set()  # withdrawn, not gone yet
        self._todo: dict[str, _Task] = {}
        self._troubles: dict[str, dict[str, Trouble]] = {}
        self._applied: dict[str, int] = {}  # version of each Work whose objects all were applied
        self._held: dict[str, tuple[int, float]] = {}  # version that waits until what serves is proven, and since when
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tell = asyncio.Event()
        self._dirty: set[str] = set()
        self._told: dict[str, ObservedWork] = {}
        self._seen: dict[str, dict[str, _Seen]] = {}  # application uid → pod uid →
        self._told_nodes: tuple[contract.Node, ...] | None = None
        self._nodes_dirty = True
        self._nodes_timer: asyncio.TimerHandle | None = None
        self._told_any = False
        self._refused: ShimError | None = None
        self._tasks = Tasks("shim/kubernetes/session")

    async def run(self, desired: AsyncIterator[Desired]) -> AsyncGenerator[Observed, None]:
        listening = asyncio.create_task(self._listen(desired), name="shim/kubernetes/session/desired")
        try:
            try:
                async with asyncio.timeout(SYNC_SECONDS):
                    await self._picture.synced()
            except TimeoutError:
                raise ShimError(f"the member did not list what it runs within {SYNC_SECONDS:g} s: {self._failing()}") from None
            self._first()
            while not listening.done():
                await self._tell.wait()
                if self._refused is not None:
                    raise self._refused
                await asyncio.sleep(GATHER_SECONDS)
                self._tell.clear()
                observed = self._news()
                if observed is not None:
                    yield observed
            await listening  # a broken stream of Desired is the caller's to see
        finally:
            for task in self._todo.values():
                if task.timer is not None:
                    task.timer.cancel()
            if self._nodes_timer is not None:
                self._nodes_timer.cancel()
            await end_task(listening)
            await self._tasks.close()

    def refuse(self, error: ShimError) -> None:
        """The member is not this controller's any more: nothing more is done to it."""
        self._refused = error
        self._tell.set()

    def _failing(self) -> str:
        return next((one.error for one in self._picture.informers() if one.error), "no answer")

    # --- Desired ---

    async def _listen(self, desired: AsyncIterator[Desired]) -> None:
        try:
            async for change in desired:
                self._take(change)
        finally:
            self._tell.set()

    def _take(self, change: Desired) -> None:
        before = self._works
        if change.full:
            self._works = {work.uid: work for work in change.works}
            gone = set(before or ()) - set(self._works)
        elif before is None:
            raise ShimError("the first Desired of a reconciliation must be full")
        else:
            gone = set(change.removed)
            self._works = {uid: work for uid, work in before.items() if uid not in gone} | {work.uid: work for work in change.works}
        for work in change.works:
            if before is None or before.get(work.uid) != work:
                self._leaving.discard(work.uid)
                self.again(work.uid)
        for uid in gone:
            self._leave(uid)
        if change.full:
            self._strays()

    def _first(self) -> None:
        """The picture is whole: what is there and not desired goes."""
        self._strays()
        self._tell.set()

    def _strays(self) -> None:
        if self._works is not None and self._picture.pods.synced.is_set():
            for uid in (self._picture.uids() | self._applier.uids()) - set(self._works):
                self._leave(uid)
        self._tell.set()

    def _leave(self, uid: str) -> None:
        if uid not in self._leaving:
            self._leaving.add(uid)
            self.again(uid)

    # --- acting ---

    def again(self, uid: str) -> None:
        """Apply this Work now, or once more when that is under way."""
        task = self._todo.setdefault(uid, _Task())
        task.pause = RETRY_SECONDS[0]
        self._begin(uid, task)
        self.seen((uid,))

    def touched(self, uids: Iterable[str]) -> None:
        """Objects of these are not as they were left; or they are nobody's here, and go."""
        for uid in uids:
            if self._works is not None and (uid in self._works or uid in self._leaving):
                self.again(uid)
            elif self._works is not None:
                self._leave(uid)

    def sight_changed(self) -> None:
        """The member is out of sight: it is said. It is back: whatever waits for another try has waited long enough, and what is watched
        is watched anew, for the other end of a connection may have forgotten it."""
        if self._blind() is None:
            self._picture.hurry()
            self._applier.hurry()
            for uid, task in self._todo.items():
                if task.timer is not None:
                    task.pause = RETRY_SECONDS[0]
                    self._begin(uid, task)
        self.seen({*(self._works or ()), *self._leaving})
        self._nodes_dirty = True

    def kinds_changed(self) -> None:
        """Some kind of object cannot be read, or can be again."""
        self.seen({*(self._works or ()), *self._leaving})
        self._nodes_dirty = True

    def _begin(self, uid: str, task: _Task) -> None:
        if task.timer is not None:
            task.timer.cancel()
            task.timer = None
        if task.running:
            task.again = True
            return
        task.running = True
        self._tasks.spawn(f"apply-{uid}", self._act(uid, task))

    async def _act(self, uid: str, task: _Task) -> None:
        done = False
        try:
            async with self._slots:
                task.again = False
                done = await (self._remove(uid) if uid in self._leaving else self._apply(uid))
        except Exception:
            self._later(uid, task)  # a defect, which the guard of tasks tells; no reason to leave the Work as it is for ever
            raise
        finally:
            task.running = False
        self.seen((uid,))
        if task.again:
            self._begin(uid, task)
        elif not done:
            self._later(uid, task)
        elif not (self._works and uid in self._works):
            self._todo.pop(uid, None)

    def _later(self, uid: str, task: _Task) -> None:
        if uid in self._held:
            pause = PROVE_SECONDS
        else:
            pause = REMOVE_SECONDS if uid in self._leaving and self._blind() is None else task.pause
            task.pause = min(task.pause * 2, RETRY_SECONDS[1])
        task.timer = asyncio.get_running_loop().call_later(pause, self._begin, uid, task)

    async def _apply(self, uid: str) -> bool:
        work = (self._works or {}).get(uid)
        if work is None:
            return True
        if self._applied.get(uid) != work.version and (waiting := self._unproven(work)):
            self._troubles[uid] = waiting
            return False
        try:
            troubles = dict(await self._applier.apply(work))
        except ShimError as error:
            troubles = {component.name: Trouble("NotApplied", str(error)) for component in work.components}
        if troubles != self._troubles.get(uid, {}):
            for name, trouble in troubles.items():
                log.warning("work.not_applied", work=uid, component=name, reason=trouble.reason, message=trouble.message)
        self._troubles[uid] = troubles
        if not troubles:
            self._applied[uid] = work.version
        return not troubles

    def _unproven(self, work: contract.Work) -> dict[str, Trouble]:
        """Why this version is not applied yet: its rollout would take what serves for broken. For a while only."""
        found, workloads = self._instances(work.uid), self._picture.workloads_of(work.uid)
        waiting = {
            item.name: Trouble(status.STARTING, f"waiting until what serves has been ready for {render.UNPROVEN_SECONDS} s")
            for item in work.components
            if status.unproven(item, found.get(item.name, ()), workloads.get(item.name, ()))
        }
        version, since = self._held.pop(work.uid, (work.version, clock.boottime()))
        if version != work.version:
            since = clock.boottime()
        if not waiting or clock.boottime() - since > HOLD_SECONDS:
            return {}
        self._held[work.uid] = work.version, since
        return waiting

    async def _remove(self, uid: str) -> bool:
        self._held.pop(uid, None)
        self._troubles.pop(uid, None)
        self._applied.pop(uid, None)
        try:
            if not await self._applier.remove(uid):
                self._troubles[uid] = dict(self._applier.held(uid))
                return False
        except ShimError as error:
            log.warning("work.not_removed", work=uid, error=str(error))
            return False
        if uid in self._picture.uids():
            return False
        self._leaving.discard(uid)
        return True

    # --- telling ---

    def seen(self, uids: Iterable[str]) -> None:
        """These look different now."""
        self._dirty.update(uids)
        self._tell.set()

    def nodes_seen(self) -> None:
        """Told soon: their figures move with every pod of anybody's."""
        self._nodes_dirty = True
        if self._nodes_timer is None:
            self._nodes_timer = asyncio.get_running_loop().call_later(NODES_SECONDS, self._tell_nodes)

    def _tell_nodes(self) -> None:
        self._nodes_timer = None
        self._tell.set()

    def _news(self) -> Observed | None:
        """What differs from what was told; everything the first time."""
        if self._works is None or not self._picture.pods.synced.is_set():
            return None
        full = not self._told_any
        dirty = {*self._works, *self._leaving} if full else self._dirty
        self._dirty = set()
        works: list[ObservedWork] = []
        removed: list[str] = []
        for uid in sorted(dirty):
            if uid not in self._works and uid not in self._leaving:
                if self._told.pop(uid, None) is not None:
                    removed.append(uid)
                elif uid in self._picture.uids():
                    self._leave(uid)  # a stray: something that was withdrawn while nobody looked
                continue
            seen = self._observe(uid)
            if self._told.get(uid) != seen:
                self._told[uid] = seen
                works.append(seen)
        nodes = self._news_of_nodes()
        if not (works or removed or full or nodes is not None):
            return None
        self._told_any = True
        return Observed(works=tuple(works), removed=tuple(removed), nodes=nodes, full=full)

    def _news_of_nodes(self) -> tuple[contract.Node, ...] | None:
        if not self._nodes_dirty:
            return None
        self._nodes_dirty = False
        found = self._picture.node_list()
        if self._blind() is not None or self._picture.nodes_hidden:
            found = tuple(structs.replace(node, ready=False) for node in found)
        if found == self._told_nodes:
            return None
        self._told_nodes = found
        return found

    def _observe(self, uid: str) -> ObservedWork:
        work = (self._works or {}).get(uid)
        pods = self._instances(uid)
        applied = work is not None and self._applied.get(uid) == work.version
        seen = status.observe(uid, work, pods, self._picture.workloads_of(uid), self._troubles.get(uid, {}), applied)
        blind, hidden = self._blind(), self._picture.hidden(uid)
        if blind is not None:
            return status.unseen(seen, blind.since, blind.why)
        return seen if hidden is None else status.unread(seen, *hidden)

    def _instances(self, uid: str) -> dict[str, list[Instance]]:
        """By component. What a pod was said to be is kept until it changes: one change among a thousand pods must not cost a thousand."""
        before, kept = self._seen.get(uid, {}), dict[str, _Seen]()
        found: dict[str, list[Instance]] = {}
        for component, pods in self._picture.pods_of(uid).items():
            for pod, own in pods.values():
                if status.is_finished(pod):
                    continue
                hints, used = self._picture.hints(uid, pod), self._picture.used(pod)
                one = before.get(pod.metadata.uid)
                if one is None or one.pod is not pod or one.hints is not hints or one.used != used:
                    one = _Seen(pod, hints, used, status.instance(pod, component, hints, used, own=own))
                kept[pod.metadata.uid] = one
                found.setdefault(component, []).append(one.instance)
        if kept:
            self._seen[uid] = kept
        else:
            self._seen.pop(uid, None)
        return found

    # --- what streams ask ---

    def port(self, uid: str, component: str) -> int:
        """Where pods of a component listen; 0 when nobody said so."""
        work = (self._works or {}).get(uid)
        found = next((item for item in work.components if item.name == component), None) if work is not None else None
        return 0 if found is None else render.port_of(found)
