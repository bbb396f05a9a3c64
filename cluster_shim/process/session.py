"""One reconciliation: from what is desired and what is seen, plan, act, tell; again whenever either changes.

Nothing here remembers what was done: the supervisor's list is the memory. So a controller that is replaced in the middle of a
swap goes on with it, and an action that failed or whose answer was lost is simply planned again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

import structlog
from msgspec import structs

from cluster_controller.clock import boottime
from cluster_controller.tasks import Tasks, end_task
from cluster_shim.contract import Component, Desired, Instance, Node, Observed, ObservedWork, Phase, ShimError, Work
from cluster_shim.process import facts, observe
from cluster_shim.process.client import LAUNCH_SECONDS, Lost, SupervisorClient
from cluster_shim.process.command import Setting, instance_id, stage
from cluster_shim.process.plan import Action, Capacity, Direct, Held, Hold, Note, Release, Seen, Start, Stop, plan
from cluster_shim.process.probes import Prober
from cluster_shim.process.supervisor.limits import over_memory
from cluster_shim.process.views import InstanceView

log = structlog.get_logger()

USAGE_SECONDS = 15.0
RETRY_SECONDS = (1.0, 30.0)
FIRST_PROBES_SECONDS = 2.0
SILENT_SECONDS = 5.0  # a supervisor that was killed is replaced in much less
_PHASES = {phase.value: phase for phase in Phase}


class Session:
    def __init__(self, setting: Setting, supervisor: SupervisorClient, node: Node) -> None:
        self._setting = setting
        self._supervisor = supervisor
        self._node = node
        self._works: dict[str, Work] | None = None  # None until the first full Desired
        self._notes: dict[tuple[str, str], Note] = {}
        self._failed: dict[tuple[str, str], Note] = {}  # what the supervisor refused, tried again after a delay
        self._usage: dict[str, tuple[int, int]] = {}  # by instance: millicores, bytes
        self._last_usage: dict[str, tuple[float, float]] = {}  # by instance: when, cpu seconds
        self._progress = observe.Progress()  # begins anew with each controller
        self._told: dict[str, ObservedWork] = {}
        self._told_node: Node | None = None
        self._told_any = False
        self._settled = False  # the first plan was carried out on a complete picture
        self._act = asyncio.Event()
        self._tell = asyncio.Event()
        self._retry = RETRY_SECONDS[0]
        self._retry_at: asyncio.TimerHandle | None = None
        self._prober = Prober(setting, supervisor, self._changed, time.time)
        self._tasks = Tasks("shim/process/session")
        self._silent: asyncio.TimerHandle | None = None

    def changed(self, _name: str) -> None:
        """The supervisor's picture changed. While there is none, what it last showed stands; then the node is not ready."""
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None
        if not self._supervisor.connected.is_set():
            self._silent = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._gone_silent)
        else:
            self._node = structs.replace(self._node, ready=True)
            self._prober.follow(self._supervisor.instances.values())
        self._changed(_name)

    def _gone_silent(self) -> None:
        self._node = structs.replace(self._node, ready=False)
        self._tell.set()

    def ready(self, name: str) -> bool:
        return self._prober.ready(name)

    def _changed(self, _name: str) -> None:
        self._act.set()

    async def run(self, desired: AsyncIterator[Desired]) -> AsyncGenerator[Observed, None]:
        listening = asyncio.create_task(self._listen(desired), name="shim/process/session/desired")
        try:
            await self._first_contact()
            self._tasks.keep("act", self._keep_acting)
            self._tasks.keep("usage", self._keep_measuring)
            while not listening.done():
                await self._tell.wait()
                self._tell.clear()
                observed = self._news()
                if observed is not None:
                    yield observed
            await listening  # a broken stream of Desired is the caller's to see
        finally:
            for timer in (self._retry_at, self._silent):
                if timer is not None:
                    timer.cancel()
            await end_task(listening)
            await self._tasks.close()

    async def _first_contact(self) -> None:
        """A cluster that cannot be seen is an error, not an empty cluster."""
        try:
            async with asyncio.timeout(LAUNCH_SECONDS):
                await self._supervisor.connected.wait()
        except TimeoutError:
            raise ShimError(f"no supervisor answers in {self._setting.folder}: {self._supervisor.problem}") from None

    # Desired

    async def _listen(self, desired: AsyncIterator[Desired]) -> None:
        try:
            async for change in desired:
                self._take(change)
        finally:
            self._tell.set()

    def _take(self, change: Desired) -> None:
        if change.full:
            self._works = {work.uid: work for work in change.works}
        elif self._works is None:
            raise ShimError("the first Desired of a reconciliation must be full")
        else:
            self._works = {**self._works, **{work.uid: work for work in change.works}}
            for uid in change.removed:
                self._works.pop(uid, None)
        self._retry = RETRY_SECONDS[0]
        self._failed.clear()
        self._act.set()

    # Acting

    async def _keep_acting(self) -> None:
        self.changed("")
        with suppress(TimeoutError):
            # What served before must not look unready just because we are new: ask first, speak then.
            async with asyncio.timeout(FIRST_PROBES_SECONDS):
                await self._prober.round()
        probing = asyncio.create_task(self._prober.run(), name="shim/process/probes")
        try:
            while True:
                await self._act.wait()
                self._act.clear()
                if self._works is not None and self._supervisor.connected.is_set():
                    await self._step(self._works)
                if self._settled:
                    self._tell.set()
        finally:
            await end_task(probing)

    async def _step(self, works: dict[str, Work]) -> None:
        allocatable = Capacity(self._node.allocatable_cpu_millis, self._node.allocatable_memory_bytes, self._node.accelerators)
        held = {view.name: Held(view.port, view.weight) for view in self._supervisor.ports.values() if not view.error}
        planned = plan(works, self._seen(), held, allocatable, self._setting.node)
        self._notes = dict(planned.notes)
        failed = False
        try:
            for action in planned.actions:
                failed |= not await self._do(action, works)
        except Lost:
            return  # planned again when a supervisor is back
        self._settled = True
        if failed and self._retry_at is None:
            self._retry_at = asyncio.get_running_loop().call_later(self._retry, self._try_again)
            self._retry = min(self._retry * 2, RETRY_SECONDS[1])

    def _try_again(self) -> None:
        self._retry_at = None
        self._failed.clear()
        self._act.set()

    async def _do(self, action: Action, works: dict[str, Work]) -> bool:
        """False when it was refused: noted, and to be tried again."""
        match action:
            case Stop(id=name):
                log.info("instance.stop", instance=name)
                await self._supervisor.call("stop", instance=name)
            case Direct(weights=weights):
                log.info("port.direct", weights=dict(weights))
                await self._supervisor.direct(dict(weights))
            case Release(name=name):
                await self._supervisor.release(name)
            case Hold(name=name, port=port):
                view = await self._supervisor.hold(name, self._setting.bind, port)
                if view.error:
                    uid, component, _ = name.split("/", 2)
                    self._failed[uid, component] = Note("PortUnavailable", f"{view.error}; free it or choose another port")
                    return False
            case Start(uid=uid, component=component):
                return await self._start(works[uid], component)
        return True

    async def _start(self, work: Work, name: str) -> bool:
        key = (work.uid, name)
        if key in self._failed:
            return False  # its port is not there, or it was just refused
        component = next(component for component in work.components if component.name == name)
        instance = instance_id(work, name)
        try:
            await asyncio.to_thread(stage, self._setting, work, component, instance)
            await self._supervisor.begin(instance)
        except Lost:
            raise
        except (OSError, ShimError) as error:
            self._failed[key] = Note("StartRefused", str(error))
            log.warning("instance.refused", instance=instance, reason=str(error))
            return False
        log.info("instance.start", instance=instance, revision=component.revision)
        return True

    def _seen(self) -> list[Seen]:
        return [
            Seen(
                id=view.id,
                uid=view.labels["uid"],
                component=view.labels["component"],
                revision=view.labels["revision"],
                phase=_PHASES.get(view.phase, Phase.PENDING),
                ready=self._prober.ready(view.id),
                started=view.started_unix,
                cpu_millis=view.labels["cpu_millis"],
                memory_bytes=view.labels["memory_bytes"],
                accelerators=view.labels["accelerators"],
                port=view.labels["port"] if view.labels["shared"] else 0,
            )
            for view in self._supervisor.instances.values()
        ]

    # Telling

    def _news(self) -> Observed | None:
        """What differs from what was told; everything the first time."""
        now = self._picture()
        works = tuple(work for uid, work in now.items() if self._told.get(uid) != work)
        removed = tuple(uid for uid in self._told if uid not in now)
        node = observe.settle_node(self._told_node, self._node)
        nodes = (node,) if node != self._told_node else None
        full = not self._told_any
        if not (works or removed or nodes or full):
            return None
        self._told, self._told_node, self._told_any = now, node, True
        return Observed(works=works, removed=removed, nodes=nodes, full=full)

    def _picture(self) -> dict[str, ObservedWork]:
        if not self._supervisor.connected.is_set():
            return self._told  # silent is not empty
        instances: dict[str, list[Instance]] = {}
        told = {instance.id: instance for work in self._told.values() for instance in work.instances}
        for view in self._supervisor.instances.values():
            instances.setdefault(view.labels["uid"], []).append(observe.settle(told.get(view.id), self._instance(view)))
        works = self._works or {}
        notes = {**self._notes, **self._failed}

        def ready(uid: str, component: Component) -> int:
            own = (instance for instance in instances.get(uid, ()) if instance.component == component.name)
            return sum(instance.ready for instance in own if instance.revision == component.revision)

        late = self._progress.late(works.values(), ready, boottime())
        mixed = self._mixed()
        return {
            uid: observe.observed_work(
                uid, works.get(uid), instances.get(uid, ()), notes, self._open_ports(uid, works.get(uid)), late=late, mixed=mixed
            )
            for uid in sorted({*works, *instances})
        }

    def _mixed(self) -> set[tuple[str, str]]:
        """(uid, component) of which several revisions stand on one socket, for want of steering."""
        views = [view for view in self._supervisor.ports.values() if not view.error]
        keys = [tuple(view.name.split("/", 2)[:2]) for view in views]
        return {
            (key[0], key[1]) for key, view in zip(keys, views, strict=True) if not view.source and len(key) == 2 and keys.count(key) > 1
        }

    def _open_ports(self, uid: str, work: Work | None) -> dict[str, int]:
        ports = {}
        for component in work.components if work is not None else ():
            prefix = f"{uid}/{component.name}/"
            listening = [view.port for view in self._supervisor.ports.values() if view.name.startswith(prefix) and not view.error]
            if component.port in listening or (
                component.port
                and not component.takes_socket
                and any(
                    self._prober.ready(i.id)
                    for i in self._supervisor.instances.values()
                    if i.labels["uid"] == uid and i.labels["component"] == component.name
                )
            ):
                ports[component.name] = component.port
        return ports

    def _instance(self, view: InstanceView) -> Instance:
        cpu, memory = self._usage.get(view.id, (-1, -1))
        phase = _PHASES.get(view.phase, Phase.PENDING)
        ready = phase is Phase.RUNNING and self._prober.ready(view.id)
        trouble = self._prober.trouble(view.id) if phase is Phase.RUNNING else ""
        reason, message = observe.condition(view, phase, ready=ready, trouble=trouble)
        return Instance(
            id=view.id,
            component=view.labels["component"],
            revision=view.labels["revision"],
            phase=phase,
            ready=ready,
            restarts=view.restarts,
            reason=reason,
            message=message,
            node=self._setting.node,
            pid=view.pid,
            started_unix=view.started_unix,
            cpu_millis=cpu,
            memory_bytes=memory,
            ended=observe.ended(view),
        )

    # Usage

    async def _keep_measuring(self) -> None:
        before, when = facts.machine_usage(), boottime()
        while True:
            await asyncio.sleep(self._setting.usage_seconds or USAGE_SECONDS)
            now, usage = boottime(), facts.machine_usage()
            self._node = structs.replace(
                self._node,
                used_cpu_millis=int((usage.cpu_seconds - before.cpu_seconds) / (now - when) * 1000),
                used_memory_bytes=usage.memory_bytes,
            )
            before, when = usage, now
            self._measure(now)
            await self._end_greedy()
            if self._settled:
                self._tell.set()

    async def _end_greedy(self) -> None:
        """Where no control group holds an instance to its memory, the measurement does."""
        hello = self._supervisor.hello
        if hello is None or hello.limits != "rlimit":
            return
        for view in list(self._supervisor.instances.values()):
            asked = view.labels["memory_bytes"]
            if asked and self._usage.get(view.id, (0, 0))[1] > asked:
                with suppress(Lost):  # measured again when there is a supervisor
                    await self._supervisor.call("restart", instance=view.id, reason="OOMKilled", message=over_memory(asked), at_once=True)

    def _measure(self, now: float) -> None:
        views = self._supervisor.instances
        for table in (self._usage, self._last_usage):
            for gone in [name for name in table if name not in views]:
                del table[gone]
        for view in views.values():
            usage = facts.instance_usage(view.pid, view.usage) if view.pid else None
            if usage is None:
                self._usage.pop(view.id, None)
                self._last_usage.pop(view.id, None)
                continue
            when, seconds = self._last_usage.get(view.id, (now, usage.cpu_seconds))
            self._last_usage[view.id] = (now, usage.cpu_seconds)
            millis = int(max(usage.cpu_seconds - seconds, 0.0) / (now - when) * 1000) if now > when else -1
            self._usage[view.id] = (millis, usage.memory_bytes)
