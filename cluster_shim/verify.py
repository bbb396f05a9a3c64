"""The contract as a suite: what every shim must do, whoever wrote it and whatever cluster it adapts.

`verify` runs it against any `contract.Shim` and returns one result per check; pytest runs it against ours, in process and over
gRPC, and ``banyan shim verify ADDRESS`` against anybody's. It takes the cluster for itself: whatever else runs there is stopped,
because the first Desired of a reconciliation is full. It needs ``python3`` in the instances' PATH.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Self

from msgspec import Struct, structs

from cluster_shim.contract import Component, Desired, File, Observed, ObservedWork, OpenTarget, Probe, Shim, ShimError, Volume, Work

PATIENCE_SECONDS = 60.0
MAX_READ = 1 << 20

PROGRAM = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("hello from", os.environ.get("SAY"), flush=True)
if os.environ.get("FAIL"): sys.exit(3)
if os.environ.get("KEEP"): open("data/kept", "a").write(os.environ["SAY"])
if os.environ.get("LISTEN_FDS"): listener = socket.socket(fileno=3)
elif os.environ.get("PORT"):
    listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((os.environ.get("HOST", "0.0.0.0"), int(os.environ["PORT"]))); listener.listen()
else:
    while True: time.sleep(3600)
while True:
    connection, _ = listener.accept()
    with connection:
        heard = connection.recv(1024).decode()
        kept = open("data/kept").read() if os.environ.get("KEEP") else ""
        given = open("given.txt").read() if os.path.exists("given.txt") else ""
        said = [os.environ["SAY"], heard, os.environ.get("HIDDEN", ""), given, kept]
        connection.sendall("|".join(said).encode())
"""


class Failed(Exception):
    """The shim broke the contract; the text says how."""


class Result(Struct, frozen=True):
    """``ok`` None: left out, because this cluster says that it cannot run what the check needs."""

    name: str
    ok: bool | None
    message: str = ""


class Driver:
    """A controller's side of one reconciliation: says what is desired, keeps what was observed. Use as a context manager."""

    def __init__(self, shim: Shim, patience: float = PATIENCE_SECONDS) -> None:
        self.shim = shim
        self.works: dict[str, ObservedWork] = {}
        self.history: list[Observed] = []
        self._patience = patience
        self._desired: asyncio.Queue[Desired | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="verify/reconcile")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._desired.put(None)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._patience)
            if not self._task.done():
                self._task.cancel()
                raise Failed("Reconcile did not end when the controller ended its direction")
            if not isinstance(self._task.exception(), ShimError):
                self._task.result()

    def want(self, *works: Work, full: bool = True, removed: Sequence[str] = ()) -> None:
        self._desired.put_nowait(Desired(works=works, full=full, removed=tuple(removed)))

    async def until(self, condition: Callable[[dict[str, ObservedWork]], object], what: str = "it") -> dict[str, ObservedWork]:
        """Wait until ``condition`` holds of what was observed; Failed when it does not come, or when the reconciliation ends."""
        try:
            async with asyncio.timeout(self._patience):
                while not (self.history and condition(self.works)):
                    self._changed.clear()
                    await self._next()
        except TimeoutError:
            raise Failed(f"{what} did not come within {self._patience:g} s; last seen: {self.works}") from None
        return self.works

    async def until_ready(self, uid: str, count: int = 1, revision: str = "") -> ObservedWork:
        """Until exactly ``count`` instances are there, all ready and of ``revision``."""

        def condition(works: dict[str, ObservedWork]) -> bool:
            seen = works[uid].instances if uid in works else ()
            return len(seen) == count and all(instance.ready and revision in ("", instance.revision) for instance in seen)

        return (await self.until(condition, f"{uid} with {count} ready instances {revision}"))[uid]

    async def _next(self) -> None:
        assert self._task is not None
        waiting = asyncio.create_task(self._changed.wait(), name="verify/wait")
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._task.done():
            self._task.result()
            raise Failed("the reconciliation ended")

    async def _states(self) -> AsyncIterator[Desired]:
        while (desired := await self._desired.get()) is not None:
            yield desired

    async def _run(self) -> None:
        async for observed in self.shim.reconcile(self._states()):
            self.history.append(observed)
            if observed.full:
                self.works.clear()
            self.works.update({work.uid: work for work in observed.works})
            for uid in observed.removed:
                self.works.pop(uid, None)
            self._changed.set()


def component(say: str = "one", **fields: object) -> Component:
    base = Component(name="main", replicas=1, revision=say, command=("python3", "-c", PROGRAM), env={"SAY": say}, grace_seconds=5.0)
    return structs.replace(base, **fields)


def application(*components: Component, uid: str = "", version: int = 1) -> Work:
    uid = uid or f"verify-{secrets.token_hex(4)}"
    return Work(uid=uid, name="verify", namespace="default", origin="verify", version=version, components=components)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def require(condition: object, message: str) -> None:
    if not condition:
        raise Failed(message)


async def say(shim: Shim, uid: str, text: str) -> list[str]:
    """What the application answers, field by field."""
    stream = await shim.open(OpenTarget(kind="application", uid=uid, component="main"))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await stream.write(text.encode())
            return (await read_all(stream.read)).decode().split("|")
    finally:
        stream.abort("asked")


async def read_all(read: Callable[[], Awaitable[bytes]]) -> bytes:
    data = b""
    while more := await read():
        data += more
        require(len(data) <= MAX_READ, "a stream that should be short does not end")
    return data


async def describes_itself(shim: Shim) -> None:
    """Describe names the kind and speaks banyan.shim.v1."""
    description = await shim.describe()
    require(description.kind, "Description.kind is empty")
    require(description.contract == "banyan.shim.v1", f"Description.contract is {description.contract!r}")
    require(description.component_kinds, "Description.component_kinds is empty: nothing can run here")


async def first_observed_is_full(shim: Shim) -> None:
    """The first Observed is full and names at least one node with an architecture and something to allocate."""
    async with Driver(shim) as driver:
        driver.want()
        await driver.until(lambda works: not works, "an empty cluster")
        first = driver.history[0]
        require(first.full, "the first Observed is not full")
        require(first.nodes, "the first Observed has no nodes")
        for node in first.nodes or ():
            require(node.name and node.architecture, f"node {node.name!r} has no name or architecture")
            require(0 <= node.allocatable_cpu_millis <= node.cpu_millis, f"node {node.name}: allocatable cpu is not within its cpu")
        require(any(node.allocatable_cpu_millis for node in first.nodes or ()), "no node has anything to allocate")


async def starts_and_stops(shim: Shim) -> None:
    """A component becomes ready, counts are right, the Work's version comes back, and a full Desired without it stops it."""
    async with Driver(shim) as driver:
        wanted = application(component(replicas=2), version=7)
        driver.want(wanted)
        seen = await driver.until_ready(wanted.uid, 2)
        require(seen.version == 7, f"ObservedWork.version is {seen.version}, the Work's is 7")
        (part,) = seen.components
        require((part.name, part.desired, part.ready, part.updated) == ("main", 2, 2, 2), f"the counts are wrong: {part}")
        require(len({instance.id for instance in seen.instances}) == 2, "two instances have one id")
        driver.want()
        await driver.until(lambda works: not works, "the end of a withdrawn application")


async def same_again_changes_nothing(shim: Shim) -> None:
    """Applying a Desired twice, or another application, leaves a running instance alone."""
    async with Driver(shim) as driver:
        wanted, other = application(component()), application(component())
        driver.want(wanted)
        before = await driver.until_ready(wanted.uid)
        driver.want(wanted)
        driver.want(other, full=False)
        await driver.until_ready(other.uid)
        after = driver.works[wanted.uid]
        require(_runs(after) == _runs(before), f"an instance was restarted or replaced: {before} became {after}")
        driver.want(full=False, removed=[other.uid])
        await driver.until(lambda works: other.uid not in works, "the end of a removed application")
        require(wanted.uid in driver.works, "removing one application removed another")
        driver.want()
        await driver.until(lambda works: not works)


async def survives_a_new_reconciliation(shim: Shim) -> None:
    """When a controller goes and another comes, what runs is neither restarted nor started twice."""
    wanted = application(component())
    async with Driver(shim) as driver:
        driver.want(wanted)
        before = await driver.until_ready(wanted.uid)
    async with Driver(shim) as driver:
        driver.want(wanted)
        after = await driver.until_ready(wanted.uid)
        require(_runs(after) == _runs(before), f"it was restarted or replaced: {before} became {after}")
        driver.want()
        await driver.until(lambda works: not works)


async def new_revision_replaces_the_old(shim: Shim) -> None:
    """A changed component ends with only instances of the new revision, and the port still answers."""
    async with Driver(shim) as driver:
        port = free_port()
        wanted = application(component(port=port))
        driver.want(wanted)
        await driver.until_ready(wanted.uid)
        require((await say(shim, wanted.uid, "a"))[:2] == ["one", "a"], "the application's answer did not come through")
        driver.want(application(component("two", port=port), uid=wanted.uid, version=2))
        seen = await driver.until_ready(wanted.uid, revision="two")
        require(seen.components[0].port == port, f"the port moved from {port} to {seen.components[0].port}")
        require((await say(shim, wanted.uid, "b"))[0] == "two", "the old revision still answers")
        driver.want()
        await driver.until(lambda works: not works)


async def bad_revision_replaces_nothing(shim: Shim) -> None:
    """A revision that cannot run, or is never ready, leaves the one that serves in place, gets no connection, and says why."""
    async with Driver(shim) as driver:
        port = free_port()
        wanted = application(component(port=port))
        driver.want(wanted)
        before = await driver.until_ready(wanted.uid)
        driver.want(application(component("bad", port=port, env={"SAY": "bad", "FAIL": "1"}), uid=wanted.uid, version=2))
        await driver.until(lambda works: any(i.revision == "bad" and i.restarts for i in works[wanted.uid].instances), "its failing")
        serving = [instance for instance in driver.works[wanted.uid].instances if instance.revision == "one"]
        require([i.id for i in serving] == [i.id for i in before.instances] and serving[0].ready, "the serving revision was replaced")
        require(driver.works[wanted.uid].components[0].reason, "the component does not say why its new revision does not come")
        never = Probe(command=("false",), period_seconds=1.0, failure_threshold=1)
        unready = component("unready", port=port, readiness=never)
        driver.want(application(unready, uid=wanted.uid, version=3))
        await driver.until(lambda works: works[wanted.uid].components[0].reason == "NotReady", "its not being ready")
        for _ in range(20):
            require((await say(shim, wanted.uid, "c"))[0] == "one", "a revision that is not ready gets connections")
        require((await say(shim, wanted.uid, "c"))[0] == "one", "the bad revision answers")
        driver.want()
        await driver.until(lambda works: not works)


async def scales(shim: Shim) -> None:
    """More replicas are added to those that run, fewer are taken from them, none leaves none."""
    async with Driver(shim) as driver:
        wanted = application(component())
        driver.want(wanted)
        one = await driver.until_ready(wanted.uid, 1)
        driver.want(application(component(replicas=3), uid=wanted.uid, version=2))
        three = await driver.until_ready(wanted.uid, 3)
        require(_runs(one) <= _runs(three), "the running instance was replaced when two were added")
        driver.want(application(component(replicas=1), uid=wanted.uid, version=3))
        await driver.until_ready(wanted.uid, 1)
        driver.want(application(component(replicas=0), uid=wanted.uid, version=4))
        await driver.until_ready(wanted.uid, 0)
        driver.want()
        await driver.until(lambda works: not works)


async def delivers_configuration(shim: Shim) -> None:
    """Environment, secret environment and files arrive; a volume's content is there for the next revision."""
    volume = (Volume(name="data", path="data"),)

    def revision(name: str, port: int) -> Component:
        files = (File(path="given.txt", content=b"given", secret=True),)
        env = {"SAY": name, "KEEP": "1"}
        return component(name, port=port, env=env, secret_env={"HIDDEN": "h"}, files=files, volumes=volume)

    async with Driver(shim) as driver:
        port = free_port()
        wanted = application(revision("x", port))
        driver.want(wanted)
        await driver.until_ready(wanted.uid)
        require(await say(shim, wanted.uid, "q") == ["x", "q", "h", "given", "x"], "configuration did not arrive as it was given")
        driver.want(application(revision("y", port), uid=wanted.uid, version=2))
        await driver.until_ready(wanted.uid, revision="y")
        require((await say(shim, wanted.uid, "q"))[4] == "xy", "the volume did not survive a new revision")
        driver.want()
        await driver.until(lambda works: not works)


async def without_a_socket_it_binds_by_itself(shim: Shim) -> None:
    """A command that takes no socket serves on PORT: every replica where each has an address, else one, and the reason is told."""

    def settled(works: dict[str, ObservedWork]) -> bool:
        seen = works.get(wanted.uid)
        if seen is None or not all(instance.ready for instance in seen.instances):
            return False
        return len(seen.instances) == 2 or (len(seen.instances) == 1 and bool(seen.components[0].reason))

    async with Driver(shim) as driver:
        wanted = application(component(port=free_port(), takes_socket=False, replicas=2))
        driver.want(wanted)
        await driver.until(settled, "two ready replicas, or one and the reason why it is one")
        require((await say(shim, wanted.uid, "d"))[:2] == ["one", "d"], "it does not answer")
        driver.want()
        await driver.until(lambda works: not works)


async def shows_logs(shim: Shim) -> None:
    """Logs can be read whole and from the end."""
    async with Driver(shim) as driver:
        wanted = application(component("logged"))
        driver.want(wanted)
        seen = await driver.until_ready(wanted.uid)
        name = seen.instances[0].id
        for options in ({}, {"tailLines": "1"}):
            stream = await shim.open(OpenTarget(kind="logs", uid=wanted.uid, instance=name, options=options))
            data = await read_all(stream.read)
            require(data == b"hello from logged\n", f"the log with {options} is {data!r}")
        driver.want()
        await driver.until(lambda works: not works)


async def refuses_what_it_does_not_know(shim: Shim) -> None:
    """An unknown kind of target and an unknown application are refused with a message, not with silence."""
    for target in (OpenTarget(kind="nonsense"), OpenTarget(kind="application", uid="nobody"), OpenTarget(kind="logs", instance="nobody")):
        try:
            stream = await shim.open(target)
        except ShimError as error:
            require(str(error), f"the refusal of {target} says nothing")
        else:
            stream.abort()
            raise Failed(f"{target} was opened")


COMMANDS: tuple[Callable[[Shim], Awaitable[None]], ...] = (
    starts_and_stops,
    same_again_changes_nothing,
    survives_a_new_reconciliation,
    new_revision_replaces_the_old,
    bad_revision_replaces_nothing,
    scales,
    delivers_configuration,
    without_a_socket_it_binds_by_itself,
    shows_logs,
)
CHECKS = (describes_itself, first_observed_is_full, *COMMANDS, refuses_what_it_does_not_know)


async def check(shim: Shim, wanted: Callable[[Shim], Awaitable[None]]) -> Result:
    """One check as a result; whatever it left running is stopped by the next one's full Desired."""
    name = wanted.__name__.replace("_", " ")
    try:
        if wanted in COMMANDS and "command" not in (await shim.describe()).component_kinds:
            return Result(name, None, "this cluster runs no commands")
        async with asyncio.timeout(PATIENCE_SECONDS * 5):
            await wanted(shim)
    except TimeoutError:
        return Result(name, False, "it did not end")
    except (Failed, ShimError, OSError) as error:
        return Result(name, False, str(error))
    return Result(name, True, (wanted.__doc__ or "").strip())


async def verify(shim: Shim, report: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """Run every check in turn; ``report`` hears each result as it comes."""
    results = []
    for wanted in CHECKS:
        results.append(await check(shim, wanted))
        report(results[-1])
    return results


def _runs(work: ObservedWork) -> set[tuple[str, int, int]]:
    return {(instance.id, instance.pid, instance.restarts) for instance in work.instances}
