"""A reconciler on a real store, with a shim and a model library that do what the test says."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
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
        self.swept: list[set[str]] = []

    def ready(self, need: ModelNeed) -> str | None:
        return f"/models/{need.version}" if need.version in self.here else None

    async def ensure(self, need: ModelNeed) -> str:
        self.asked.append(need.version)
        await self.arrival.wait()
        if need.version not in self.here:
            raise Unreachable("the parent is out of reach")
        return f"/models/{need.version}"

    async def keep_only(self, needed: Callable[[], Collection[str]]) -> None:
        self.swept.append(set(needed()))


class Bench:
    def __init__(self, store: Store, models: FakeModels) -> None:
        self.store = store
        self.shim = FakeShim()
        self.models = models
        self.nodes: list[int] = []
        self.reconciler = Reconciler(
            store, self.shim, models, uid="me", name="edge-1", nodes_changed=lambda nodes: self.nodes.append(len(nodes))
        )
        store.subscribe(self.reconciler.changed, kinds=self.reconciler.heeds)
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
