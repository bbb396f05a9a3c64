"""A simulated cluster and its shim: instances that start late, crash, end slowly; reports that come late or twice.

The `Site` is the ground truth of what runs where. It lives on when its controller dies, as a process supervisor or a Kubernetes
does, and ends with its machine's power. `SimShim` is one controller's view of it, by the contract of `cluster_shim.contract`.
An upgrade replaces one instance after the other and never runs more than were asked for, so that what runs in sum can be compared
with what is wanted in sum.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from random import Random

from cluster_shim import contract
from cluster_shim.contract import Phase, ShimError
from tests.simulation import versions
from tests.simulation.life import LIFE, Machine

GIBI = 1024**3
CRASHES = 2  # after which the shim speaks of a loop
NOBODY = Context()  # whose doings go on without a controller


class Instance:
    __slots__ = ("app", "began", "command", "component", "env", "id", "phase", "ready", "restarts", "revision")

    def __init__(self, app: str, component: str, name: str, revision: str, command: str = "") -> None:
        self.app, self.component, self.id, self.revision, self.command = app, component, name, revision, command
        self.began = 0.0
        self.env: dict[str, str] = {}
        self.phase = Phase.STARTING
        self.ready = False
        self.restarts = 0


class Habits:
    """How a site behaves. Seconds."""

    def __init__(self) -> None:
        self.start = (0.1, 2.0)
        self.grace = (0.05, 1.0)
        self.backoff = (1.0, 10.0)
        self.late = (0.0, 0.02)  # until a change is reported
        self.repeats = 0.05  # how often a report is made twice
        self.lost = False  # the shim does not answer
        self.frozen = False  # it answers, and does nothing
        self.lie: Lie | None = None  # what it says instead of what it sees
        self.slow = False


Lie = Callable[[contract.ObservedWork], contract.ObservedWork]
Stop = Callable[["Site", Instance, str], None]
Change = Callable[["Site", str], None]


class Site:
    """``stopping(site, instance, why)`` is told before an instance is stopped by order; ``changed(site, app)`` after each change."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, machine: Machine, rng: Random, cpu_millis: int) -> None:
        self.name = name
        self.machine = machine
        self.cpu_millis = cpu_millis
        self.habits = Habits()
        self.works: dict[str, contract.Work] = {}
        self.instances: dict[str, dict[str, Instance]] = {}  # application → id → instance
        self.stopping: Stop = lambda site, instance, why: None
        self.changed: Change = lambda site, app: None
        self.session: Session | None = None
        self._loop = loop
        self._rng = rng
        self._epoch = 0
        self._number = 0
        self._undone: list[contract.Desired] = []  # told while it was frozen

    def running(self, app: str, component: str = "") -> int:
        """Everything that holds a place: starting, running, ending."""
        found = self.instances.get(app, {}).values()
        return sum(1 for each in found if not component or each.component == component)

    def ready(self, app: str, revision: str = "") -> int:
        return sum(1 for each in self.instances.get(app, {}).values() if each.ready and (not revision or each.revision == revision))

    # --- what happens to it ---

    def power_lost(self) -> None:
        self._epoch += 1
        self.works.clear()
        self._undone.clear()
        apps = list(self.instances)
        self.instances.clear()
        for app in apps:
            self.changed(self, app)

    def crash_one(self) -> None:
        """An instance ends by itself and is started again after a pause."""
        everything = [each for group in self.instances.values() for each in group.values() if each.phase is Phase.RUNNING]
        if not everything:
            return
        victim = everything[self._rng.randrange(len(everything))]
        victim.phase, victim.ready = Phase.BACKOFF, False
        victim.restarts += 1
        self._later(self.habits.backoff, self._begin_again, victim)
        self._tell(victim.app)

    def lose_shim(self) -> None:
        self.habits.lost = True
        if self.session is not None:
            self.session.wake.set()

    # --- what it is told ---

    def thaw(self) -> None:
        """What it was told meanwhile it does now."""
        self.habits.frozen = False
        waiting, self._undone = self._undone, []
        for desired in waiting:
            self.desire(desired)

    def speak(self) -> None:
        """It says anew what it sees."""
        for app in dict.fromkeys((*self.works, *self.instances)):
            self._tell(app)

    def desire(self, desired: contract.Desired) -> None:
        if self.habits.frozen:
            self._undone.append(desired)
            return
        named = {work.uid for work in desired.works}
        if desired.full:
            for uid in [uid for uid in (*self.works, *self.instances) if uid not in named]:
                self._remove(uid)
        for uid in desired.removed:
            self._remove(uid)
        for work in desired.works:
            self.works[work.uid] = work
            self._converge(work.uid)
            self._tell(work.uid)

    def _remove(self, uid: str) -> None:
        self.works.pop(uid, None)
        self._converge(uid)
        self._tell(uid)

    def _converge(self, uid: str) -> None:
        work = self.works.get(uid)
        wanted = {each.name: each for each in work.components} if work is not None else {}
        group = self.instances.get(uid, {})
        for component in sorted({*wanted, *(each.component for each in group.values())}):
            self._converge_component(uid, component, wanted.get(component))
        if uid in self.instances and not self.instances[uid]:
            del self.instances[uid]

    def _converge_component(self, uid: str, name: str, wanted: contract.Component | None) -> None:
        mine = [each for each in self.instances.get(uid, {}).values() if each.component == name]
        alive = [each for each in mine if each.phase is not Phase.STOPPING]
        count = wanted.replicas if wanted is not None else 0
        revision = wanted.revision if wanted is not None else ""
        alive.sort(key=lambda each: (each.revision == revision, each.ready))  # what is least worth keeping first
        while len(alive) > count:
            self._stop(alive.pop(0), "scaled")
        old = [each for each in alive if each.revision != revision]
        if old and all(each.ready for each in alive if each.revision == revision) and len(mine) == len(alive):
            self._stop(old[0], "replaced")
        for _ in range(count - len(mine)):
            assert wanted is not None
            self._start(uid, wanted)

    def _start(self, uid: str, wanted: contract.Component) -> None:
        self._number += 1
        instance = Instance(uid, wanted.name, f"{wanted.name}-{self._number}", wanted.revision, wanted.command[0] if wanted.command else "")
        instance.env = wanted.env
        self.instances.setdefault(uid, {})[instance.id] = instance
        self._later(self.habits.start, self._started, instance)

    def _stop(self, instance: Instance, why: str) -> None:
        self.stopping(self, instance, why)
        instance.phase, instance.ready = Phase.STOPPING, False
        self._later(self.habits.grace, self._ended, instance)

    # --- what instances do ---

    def _started(self, instance: Instance) -> None:
        if instance.phase is Phase.STARTING and versions.crashes(instance.command):
            instance.phase = Phase.BACKOFF
            instance.restarts += 1
            self._later(self.habits.backoff, self._begin_again, instance)
            self._tell(instance.app)
        elif instance.phase is Phase.STARTING:
            instance.phase, instance.ready = Phase.RUNNING, versions.becomes_ready(instance.command)
            instance.began = self._loop.time()
            self._converge(instance.app)
            self._tell(instance.app)

    def _begin_again(self, instance: Instance) -> None:
        if instance.phase is Phase.BACKOFF:
            instance.phase = Phase.STARTING
            self._later(self.habits.start, self._started, instance)
            self._tell(instance.app)

    def _ended(self, instance: Instance) -> None:
        group = self.instances.get(instance.app, {})
        group.pop(instance.id, None)
        self._converge(instance.app)
        if not self.instances.get(instance.app):
            self.instances.pop(instance.app, None)
        self._tell(instance.app)

    def _later(self, pause: tuple[float, float], callback: Callable[[Instance], None], instance: Instance) -> None:
        def due(epoch: int = self._epoch) -> None:
            if epoch == self._epoch:
                callback(instance)

        self._loop.call_later(self._rng.uniform(*pause), due, context=NOBODY)

    def _tell(self, app: str) -> None:
        self.changed(self, app)
        if self.session is not None:
            self.session.dirty[app] = None
            if not self.session.telling:
                self.session.telling = True
                self._loop.call_later(self._rng.uniform(*self.habits.late), self.session.tell, context=NOBODY)

    # --- what it says ---

    def said(self, uid: str) -> contract.ObservedWork | None:
        """What it sees, or what it makes of that."""
        seen = self.observed(uid)
        lie = self.habits.lie
        return lie(seen) if lie is not None and seen is not None else seen

    def observed(self, uid: str) -> contract.ObservedWork | None:
        work = self.works.get(uid)
        group = self.instances.get(uid, {})
        if work is None and not group:
            return None
        names = {each.name: each for each in work.components} if work is not None else {}
        every = sorted({*names, *(each.component for each in group.values())})
        return contract.ObservedWork(
            uid=uid,
            version=work.version if work is not None else 0,
            components=tuple(self._component(uid, name, names.get(name)) for name in every),
            instances=tuple(
                contract.Instance(
                    id=each.id, component=each.component, revision=each.revision, phase=each.phase, ready=each.ready,
                    restarts=each.restarts, node=self.name,
                ) for each in group.values()
            ),
        )  # fmt: skip

    def _component(self, uid: str, name: str, wanted: contract.Component | None) -> contract.ObservedComponent:
        mine = [each for each in self.instances.get(uid, {}).values() if each.component == name]
        ready = sum(each.ready for each in mine)
        desired = wanted.replicas if wanted is not None else 0
        updated = sum(each.ready for each in mine if wanted is not None and each.revision == wanted.revision)
        looping = any(versions.crashes(each.command) and each.restarts >= CRASHES for each in mine)
        reason = "" if ready >= desired else versions.CRASH_LOOP if looping else "Starting"
        return contract.ObservedComponent(name=name, desired=desired, ready=ready, updated=updated, reason=reason)

    def node(self) -> contract.Node:
        memory = 64 * GIBI
        return contract.Node(
            name=self.name, architecture="amd64", boot_id=f"{self.name}-{self._epoch}", cpu_millis=self.cpu_millis,
            memory_bytes=memory, allocatable_cpu_millis=self.cpu_millis, allocatable_memory_bytes=memory,
        )  # fmt: skip


class Session:
    """One reconciliation under way."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.dirty: dict[str, None] = {}
        self.telling = False
        self.began = False
        self.failed: ShimError | None = None  # the shim was lost while it listened

    def tell(self) -> None:
        self.telling = False
        self.wake.set()


class Exposition:
    """Answers one GET."""

    def __init__(self, text: str) -> None:
        self._answer = f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()

    async def read(self, limit: int = 65536) -> bytes:
        found, self._answer = self._answer[:limit], self._answer[limit:]
        return found

    async def write(self, data: bytes) -> None:
        pass

    async def close_write(self) -> None:
        pass

    def abort(self, reason: str = "") -> None:
        pass


class SimShim:
    """Of one controller's life."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._life = LIFE.get()

    async def describe(self) -> contract.Description:
        await self._answer()
        return contract.Description(kind="process", version="simulated", limits="none")

    async def open(self, target: contract.OpenTarget) -> contract.ByteStream:
        """The metrics of an instance; a simulated site has no other byte streams."""
        await self._answer()
        instance = self._site.instances.get(target.uid, {}).get(target.instance)
        if instance is None or not instance.ready:
            raise ShimError(f"{self._site.name} has no instance {target.instance} that answers")
        return Exposition(versions.metrics(instance.command, asyncio.get_running_loop().time() - instance.began))

    async def reconcile(self, desired: AsyncIterator[contract.Desired]) -> AsyncIterator[contract.Observed]:
        site = self._site
        await self._answer()
        session = Session()
        listening = asyncio.create_task(self._listen(desired, session), name="shim/desired")
        try:
            while not session.began:
                await self._woken(session)
            site.session = session
            session.dirty.clear()
            works = tuple(one for uid in dict.fromkeys((*site.works, *site.instances)) if (one := site.said(uid)) is not None)
            yield contract.Observed(works=works, nodes=(site.node(),), full=True)
            while True:
                await self._woken(session)
                dirty, session.dirty = list(session.dirty), {}
                seen = {uid: site.said(uid) for uid in dirty}
                said = contract.Observed(
                    works=tuple(each for each in seen.values() if each is not None),
                    removed=tuple(uid for uid, each in seen.items() if each is None),
                )
                yield said
                if site._rng.random() < site.habits.repeats:
                    yield said
        finally:
            listening.cancel()
            if site.session is session:
                site.session = None

    async def _listen(self, desired: AsyncIterator[contract.Desired], session: Session) -> None:
        async for each in desired:
            try:
                await self._answer()
            except ShimError as error:
                session.failed = error
                session.wake.set()
                return
            self._site.session = session
            self._site.desire(each)
            if not session.began:
                session.began = True
                session.wake.set()

    async def _woken(self, session: Session) -> None:
        await session.wake.wait()
        session.wake.clear()
        if session.failed is not None:
            raise session.failed
        if self._site.habits.lost:
            raise ShimError(f"the shim of {self._site.name} does not answer")

    async def _answer(self) -> None:
        await asyncio.sleep(self._site._rng.uniform(*self._site.habits.late))
        if self._site.habits.lost:
            raise ShimError(f"the shim of {self._site.name} does not answer")
