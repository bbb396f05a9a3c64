"""The reconciler on a real store, with a shim and a model library that do what the test says."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from cluster_controller.documents import decode, encode
from cluster_controller.errors import Unreachable
from cluster_controller.reconcile.reconciler import Reconciler
from cluster_controller.reconcile.resolve import ModelNeed
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_shim.contract import (
    ByteStream,
    Component,
    Description,
    Desired,
    Instance,
    Node,
    Observed,
    ObservedComponent,
    ObservedWork,
    OpenTarget,
    Phase,
    Work,
)

SECONDS = 10.0
"""Bound of every wait; none is expected to take as long."""


class FakeShim:
    """Remembers what it is told, says what the test puts into ``news``."""

    def __init__(self) -> None:
        self.told: list[Desired] = []
        self.news: asyncio.Queue[Observed | None] = asyncio.Queue()

    async def describe(self) -> Description:
        return Description(kind="fake", version="1")

    async def open(self, target: OpenTarget) -> ByteStream:
        raise NotImplementedError

    async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        async def listen() -> None:
            async for one in desired:
                self.told.append(one)

        listening = asyncio.create_task(listen())
        try:
            while (news := await self.news.get()) is not None:
                yield news
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def last(self, uid: str = "app") -> Work:
        return next(work for one in reversed(self.told) for work in one.works if work.uid == uid)


class FakeModels:
    """``here``: versions that have arrived."""

    def __init__(self, *here: str) -> None:
        self.here = set(here)
        self.asked: list[str] = []
        self.arrival = asyncio.Event()

    def ready(self, need: ModelNeed) -> str | None:
        return f"/models/{need.version}" if need.version in self.here else None

    async def ensure(self, need: ModelNeed) -> str:
        self.asked.append(need.version)
        await self.arrival.wait()
        if need.version not in self.here:
            raise Unreachable("the parent is out of reach")
        return f"/models/{need.version}"


class Bench:
    def __init__(self, store: Store, models: FakeModels) -> None:
        self.store = store
        self.shim = FakeShim()
        self.models = models
        self.nodes: list[int] = []
        self.reconciler = Reconciler(
            store, self.shim, models, uid="me", name="edge-1", nodes_changed=lambda nodes: self.nodes.append(len(nodes))
        )
        store.subscribe(self.reconciler.changed)
        self.task = asyncio.create_task(self.reconciler.run())

    async def told(self, count: int) -> Desired:
        await until(lambda: len(self.shim.told) >= count)
        await self.quiet()
        assert len(self.shim.told) == count
        return self.shim.told[-1]

    async def see(self, *works: ObservedWork, **more: Any) -> None:
        before = self.store.revision
        self.shim.news.put_nowait(Observed(works=works, **more))
        await self.quiet()
        self.wrote = self.store.revision - before

    async def quiet(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
            await self.store.commit(lambda tx: tx.set_fact("test/turn", str(id(tx)).encode()))

    def status(self, uid: str = "app") -> kinds.WorkStatusStatus | None:
        stored = self.store.get(Key("observed", "WorkStatus", "", uid))
        return decode(stored.document, kinds.WorkStatus).status if stored is not None else None

    def pods(self) -> list[str]:
        return [stored.key.name for stored in self.store.list("observed", "Pod")]

    async def put(self, key: Key, document: msgspec.Struct, uid: str) -> None:
        await self.store.commit(lambda tx: tx.put(key, encode(document), uid=uid))

    async def work(self, share: int, *components: kinds.Component, uid: str = "app", **spec: Any) -> None:
        references = [
            kinds.WorkReference(kind="Model", name="emotion", uid="m"),
            kinds.WorkReference(kind="Secret", name="s", uid="secret"),
        ]
        document = kinds.Work(
            metadata=kinds.Metadata(name=uid, uid=uid),
            spec=kinds.WorkSpec(
                application=kinds.ApplicationReference(uid=uid, name="emotion", namespace="shop", origin="o", origin_name="root"),
                cluster="me", shares=[kinds.Share(allotter="me", id=share)], components=list(components), references=references, **spec,
            ),
        )  # fmt: skip
        await self.put(Key("local", "Work", "", uid), document, uid)

    async def model(self, *versions: str) -> None:
        listed = [kinds.ModelVersion(name=one, files=[kinds.ModelFile(path="model.onnx", sha256=one * 64, size=1)]) for one in versions]
        document = kinds.Model(metadata=kinds.Metadata(name="emotion", uid="m"), spec=kinds.ModelSpec(versions=listed))
        await self.put(Key("desired", "Model", "", "m"), document, "m")

    async def secret(self, value: str) -> None:
        document = kinds.Secret(data={"key": base64.b64encode(value.encode()).decode()})
        await self.put(Key("desired", "Secret", "", "secret"), document, "secret")

    async def delete(self, key: Key) -> None:
        await self.store.commit(lambda tx: tx.delete(key))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def running(folder: Path, models: FakeModels) -> AsyncIterator[Bench]:
    bench = Bench(await Store.open(folder), models)
    try:
        yield bench
    finally:
        bench.task.cancel()
        await asyncio.gather(bench.task, return_exceptions=True)
        await bench.store.close()


def play(main: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await main()

    asyncio.run(whole())


def serve(version: str = "1", replicas: int = 1, **changes: Any) -> kinds.Component:
    return kinds.Component(name="serve", model=kinds.ModelReference(name="emotion", version=version), replicas=replicas, **changes)


def command(name: str = "pump", **changes: Any) -> kinds.Component:
    return kinds.Component(name=name, command=["pump"], **changes)


PASSWORD = [
    kinds.EnvVar(name="P", value_from=kinds.EnvSource(secret_key_ref=kinds.KeySelector(name="s", key="key"))),
]


def saw(work: Work, *, ready: int | None = None, instances: int | None = None) -> ObservedWork:
    """The shim runs what it was told."""
    components, running = [], []
    for item in work.components:
        count = item.replicas if ready is None else ready
        components.append(ObservedComponent(name=item.name, desired=item.replicas, ready=count, updated=count))
        running += [
            Instance(id=f"{item.name}-{number}", component=item.name, revision=item.revision, phase=Phase.RUNNING, ready=number < count)
            for number in range(item.replicas if instances is None else instances)
        ]
    return ObservedWork(uid=work.uid, version=work.version, components=tuple(components), instances=tuple(running))


def component(work: Work, name: str) -> Component:
    return next(item for item in work.components if item.name == name)


# --- down


def test_the_shim_is_told_everything_first_and_then_changes(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            first = await bench.told(1)
            assert (first.full, first.works) == (True, ())
            await bench.work(1, command(), uid="a")
            second = await bench.told(2)
            assert (second.full, [work.uid for work in second.works], second.removed) == (False, ["a"], ())
            assert (second.works[0].version, second.works[0].name, second.works[0].origin) == (1, "emotion", "root")
            await bench.delete(Key("local", "Work", "", "a"))
            third = await bench.told(3)
            assert (third.works, third.removed) == ((), ("a",))
            assert bench.store.fact("reconcile/applied/a") is None

    play(main)


def test_a_model_that_has_not_arrived_keeps_the_component_as_it_was_also_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels("1")
        async with running(tmp_path, models) as bench:
            await bench.told(1)
            await bench.model("1", "2")
            await bench.work(1, serve("1", 2, env=[kinds.EnvVar(name="A", value="old")]), command())
            before = (await bench.told(2)).works[0]
            assert component(before, "serve").model.version == "1"  # type: ignore[union-attr]
            await bench.see(saw(before), full=True)

            await bench.work(
                2, serve("2", 3, env=[kinds.EnvVar(name="A", value="new")]), command(), placement=kinds.Placement(node_name="b")
            )
            held = (await bench.told(3)).works[0]
            kept = component(held, "serve")
            assert (kept.revision, kept.replicas, kept.env) == (component(before, "serve").revision, 3, {"A": "old"})
            assert component(held, "pump").node == "b"
            assert models.asked == ["2"]
            await bench.see(saw(held))
            status = bench.status()
            assert status is not None
            assert (status.components[0].updated, status.components[0].message) == (0, "model emotion version 2 is on its way here")

        models = FakeModels("1")
        async with running(tmp_path, models) as bench:
            again = (await bench.told(1)).works[0]
            assert component(again, "serve").revision == component(before, "serve").revision
            await bench.work(3, serve("2", 1), command(), placement=kinds.Placement(node_name="c"))
            assert component((await bench.told(2)).works[0], "serve").revision == component(before, "serve").revision
            models.here.add("2")
            models.arrival.set()
            last = (await bench.told(3)).works[0]
            assert component(last, "serve").model.version == "2"  # type: ignore[union-attr]
            assert component(last, "serve").node == "c"

    play(main)


def test_a_work_that_cannot_be_told_at_all_says_why_and_is_told_when_it_can(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels()
        async with running(tmp_path, models) as bench:
            await bench.told(1)
            await bench.model("1")
            await bench.work(5, serve("1", 2))
            await until(lambda: bench.status() is not None)
            status = bench.status()
            assert status is not None
            (part,) = status.components
            assert (part.desired, part.ready, part.reason, part.message) == (
                2, 0, "NotReady", "model emotion version 1 is on its way here",
            )  # fmt: skip
            assert (status.version, len(bench.shim.told)) == (5, 1)
            for share in range(6, 16):  # looked at again and again while it is on its way: asked for once
                await bench.work(share, serve("1", 2))
            await bench.quiet()
            assert models.asked == ["1"]
            models.here.add("1")
            models.arrival.set()
            assert component((await bench.told(2)).works[0], "serve").replicas == 2

    play(main)


def test_two_applications_wait_for_one_model_even_when_the_first_goes(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels()
        async with running(tmp_path, models) as bench:
            await bench.told(1)
            await bench.model("1")
            await bench.work(1, serve(), uid="a")
            await until(lambda: models.asked)
            await bench.work(1, serve(), uid="b")
            await bench.delete(Key("local", "Work", "", "a"))
            await until(lambda: len(bench.shim.told) == 2)
            assert bench.shim.told[-1].removed == ("a",)
            models.here.add("1")
            models.arrival.set()
            await until(lambda: any(work.uid == "b" for one in bench.shim.told for work in one.works))
            assert models.asked == ["1"]

    play(main)


def test_a_secret_that_is_gone_stops_nothing_that_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("hunter2")
            await bench.work(1, command("a", env=PASSWORD), command("b"))
            before = (await bench.told(2)).works[0]
            assert component(before, "a").secret_env == {"P": "hunter2"}
            fact = bench.store.fact("reconcile/applied/app")
            assert fact is not None and b"hunter2" not in fact
            await bench.see(saw(before), full=True)
            await bench.delete(Key("desired", "Secret", "", "secret"))
            await bench.work(2, command("a", env=PASSWORD, replicas=2), command("b", env=[kinds.EnvVar(name="N", value="1")]))
            await until(lambda: bench.shim.last().version == 2)
            after = bench.shim.last()
            assert component(after, "a") == msgspec.structs.replace(component(before, "a"), replicas=2)
            assert component(after, "b").revision != component(before, "b").revision
            status = bench.status()
            assert status is not None and status.components[0].message == "Secret s is not here yet"  # said at once
            await bench.secret("hunter2")
            await bench.quiet()
            status = bench.status()
            assert status is not None and [part.message for part in status.components] == ["", ""]

    play(main)


def test_a_changed_secret_is_told_and_an_unchanged_world_is_not_told_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("one")
            await bench.work(1, command(env=PASSWORD))
            first = (await bench.told(2)).works[0]
            await bench.secret("one")  # no change, no event
            await bench.told(2)
            await bench.secret("two")
            second = (await bench.told(3)).works[0]
            assert first.components[0].revision != second.components[0].revision

    play(main)


# --- up


def test_pods_and_status_follow_what_is_seen_and_nothing_is_rewritten(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=2))
            work = (await bench.told(2)).works[0]
            nodes = (Node(name="box", architecture="amd64"),)
            await bench.see(saw(work), nodes=nodes, full=True)
            assert bench.pods() == ["pump-0", "pump-1"]
            assert bench.nodes == [1]
            assert [(name, instance.id) for name, instance in bench.reconciler.instances()] == [
                ("emotion", "pump-0"),
                ("emotion", "pump-1"),
            ]
            await bench.see(saw(work), nodes=nodes, full=True)
            assert bench.wrote == 0
            used = (Node(name="box", architecture="amd64", used_cpu_millis=500),)
            await bench.see(nodes=used)
            assert (bench.wrote, bench.reconciler.nodes) == (0, used)  # usage is measured, never stored
            await bench.see(saw(work, instances=1))
            assert bench.pods() == ["pump-0"]
            await bench.see(nodes=(Node(name="other", architecture="arm64"),))
            assert [stored.key.name for stored in bench.store.list("observed", "Node")] == ["other"]

    play(main)


def test_a_removed_work_is_listed_until_the_shim_has_let_go_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=1))
            work = (await bench.told(2)).works[0]
            await bench.see(saw(work), full=True)
            await bench.delete(Key("local", "Work", "", "app"))
            await bench.told(3)
            status = bench.status()
            assert status is not None and bench.pods() == ["pump-0"]
            ending = Instance(id="pump-0", component="pump", revision="r", phase=Phase.STOPPING)
            await bench.see(ObservedWork(uid="app", version=0, instances=(ending,)))
            status = bench.status()
            assert status is not None and status.version == 0
            await bench.see(removed=("app",))
            assert (bench.status(), bench.pods(), list(bench.reconciler.instances())) == (None, [], [])

    play(main)


def test_a_removed_work_without_instances_is_listed_until_the_shim_says_so_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=1))
            work = (await bench.told(2)).works[0]
            await bench.see(saw(work, ready=0, instances=0), full=True)
            await bench.delete(Key("local", "Work", "", "app"))
            await bench.told(3)
            assert bench.status() is not None
            await bench.see(removed=("app",))
            assert bench.status() is None

    play(main)


def test_a_full_observation_without_a_work_takes_its_pods_and_its_readiness(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("x")
            await bench.work(1, command(replicas=1, env=PASSWORD))
            await bench.see(saw((await bench.told(2)).works[0]), full=True)
            await bench.see(full=True)
            status = bench.status()
            assert bench.pods() == []
            assert status is not None  # the Work is still wanted
            assert (status.components[0].ready, status.components[0].desired, status.version) == (0, 1, 0)

            await bench.delete(Key("local", "Work", "", "app"))
            await bench.told(3)
            await bench.see(full=True)
            assert bench.status() is None

    play(main)


def test_what_was_ready_before_a_reboot_is_not_ready_when_it_cannot_be_started(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("x")
            await bench.work(1, command(replicas=1, env=PASSWORD))
            await bench.see(saw((await bench.told(2)).works[0]), full=True)
            await bench.delete(Key("desired", "Secret", "", "secret"))
        async with running(tmp_path, FakeModels()) as bench:
            first = await bench.told(1)
            assert first.works == ()
            assert bench.pods() == ["pump-0"]  # until the shim has looked
            await bench.see(full=True)
            status = bench.status()
            assert status is not None and bench.pods() == []
            (part,) = status.components
            assert (part.ready, part.reason, part.message) == (0, "NotReady", "Secret s is not here yet")

    play(main)


def test_what_the_shim_runs_and_nobody_knows_is_not_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            instance = Instance(id="x-0", component="x", revision="r", phase=Phase.STOPPING)
            await bench.see(ObservedWork(uid="stranger", version=0, instances=(instance,)), full=True)
            assert (bench.status("stranger"), bench.pods()) == (None, [])
            assert [name for name, _ in bench.reconciler.instances()] == ["stranger"]

    play(main)


def test_a_lower_share_is_acknowledged_when_the_rest_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=3))
            await bench.see(saw((await bench.told(2)).works[0]), full=True)
            await bench.work(2, command(replicas=1))
            work = (await bench.told(3)).works[0]
            await bench.see(saw(work, instances=3))
            status = bench.status()
            assert status is not None and status.version == 0
            await bench.see(saw(work, instances=1))
            status = bench.status()
            assert status is not None and status.version == 2

    play(main)


def test_a_lost_shim_ends_the_run_and_the_next_one_tells_everything_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command())
            await bench.told(2)
            bench.shim.news.put_nowait(None)
            await asyncio.wait_for(bench.task, SECONDS)
            bench.task = asyncio.create_task(bench.reconciler.run())
            again = await bench.told(3)
            assert again.full and [work.uid for work in again.works] == ["app"]

    play(main)
