"""Applications written below, as an ancestor sees them: NAME.ORIGIN, read-only, without settings."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from cluster_controller.documents import decode, encode
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_controller.tree.upward import KIND, Upward


class Bench:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.silent: dict[str, str] = {}
        self.strays: set[str] = set()
        self.upward = Upward(
            store,
            Reporter("me", 1),
            uid="me",
            name="region",
            silent=lambda: self.silent,
            timestamp=lambda: "2026-01-01T00:00:00Z",
            strays=lambda: self.strays,
        )
        self.upward.load()
        store.subscribe(self.upward.changed, kinds=self.upward.heeds)
        self.task = asyncio.create_task(self.upward.run())

    async def close(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def quiet(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
            await self.store.commit(lambda tx: tx.set_fact("test/turn", str(id(tx)).encode()))

    async def put(self, key: Key, document: msgspec.Struct, uid: str) -> None:
        await self.store.commit(lambda tx: tx.put(key, encode(document), uid=uid))
        await self.quiet()

    async def delete(self, key: Key) -> None:
        await self.store.commit(lambda tx: tx.delete(key))
        await self.quiet()

    async def writes(self, name: str, replicas: int = 1) -> None:
        component = kinds.Component(
            name="serve", command=["run"], replicas=replicas, env=[kinds.EnvVar(name="PASSWORD", value="hunter2")],
            env_from=[kinds.EnvFrom()], files=[kinds.FileMount(path="x")],
        )  # fmt: skip
        document = kinds.Application(
            metadata=kinds.Metadata(
                name=name, namespace="shop", uid=f"uid-{name}", generation=3, creation_timestamp="2026-01-01T00:00:00Z"
            ),
            spec=kinds.ApplicationSpec(components=[component]),
            status=kinds.ApplicationStatus(phase="Running", history=[kinds.Revision(revision=1)]),
        )
        await self.put(Key("own", "Application", "shop", name), document, f"uid-{name}")

    async def reported(self, child: str, uid: str, name: str, origin: str, phase: str = "Running") -> None:
        document = kinds.SubtreeApplication(
            metadata=kinds.Metadata(name=uid, uid=uid, creation_timestamp="2026-01-01T00:00:00Z"),
            spec=kinds.SubtreeApplicationSpec(
                application=kinds.ApplicationReference(
                    uid=uid, name=name, namespace="shop", origin=f"uid-{origin}-{child}", origin_name=origin
                ),
            ),
            status=kinds.ApplicationStatus(phase=phase),
        )
        await self.put(Key(child if "/" in child else f"up/{child}", KIND, "", uid), document, uid)

    def shown(self) -> dict[str, str]:
        return {stored.key.name: stored.uid for stored in self.store.list("own", KIND)}

    def reports(self) -> list[str]:
        return [stored.key.name for stored in self.store.list("report", KIND)]


def play(folder: Path, main: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = await Store.open(folder)
        bench = Bench(store)
        try:
            await main(bench)
        finally:
            await bench.close()
            await store.close()

    asyncio.run(whole())


def test_an_own_application_is_reported_without_its_settings_and_not_listed_twice(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.writes("emotion", 2)
        assert (bench.shown(), bench.reports()) == ({}, ["uid-emotion"])
        stored = bench.store.get(Key("report", KIND, "", "uid-emotion"))
        assert stored is not None and b"hunter2" not in stored.document
        said = decode(stored.document, kinds.SubtreeApplication)
        reference = said.spec.application
        assert (reference.name, reference.origin, reference.origin_name, reference.generation) == ("emotion", "me", "region", 3)
        (component,) = said.spec.components
        assert (component.replicas, component.env, component.env_from, component.files) == (2, [], [], [])
        assert (said.status.phase, said.status.history) == ("Running", [])
        revision = bench.store.revision
        bench.upward.load()
        await bench.quiet()
        assert bench.store.revision == revision
        await bench.delete(Key("own", "Application", "shop", "emotion"))
        assert bench.reports() == []

    play(tmp_path, main)


def test_what_is_written_below_is_listed_as_name_origin_and_passed_on(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.reported("e1", "a", "emotion", "edge-1")
        assert (bench.shown(), bench.reports()) == ({"emotion.edge-1": "a"}, ["a"])
        await bench.reported("e1", "a", "emotion", "edge-1", "Degraded")
        stored = bench.store.get(Key("own", KIND, "shop", "emotion.edge-1"))
        assert stored is not None
        shown = decode(stored.document, kinds.SubtreeApplication)
        assert (shown.status.phase, shown.metadata.creation_timestamp) == ("Degraded", "2026-01-01T00:00:00Z")
        await bench.delete(Key("up/e1", KIND, "", "a"))
        assert (bench.shown(), bench.reports()) == ({}, [])

    play(tmp_path, main)


def test_equal_names_of_two_origins_of_one_name_never_meet(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.reported("e1", "a", "emotion", "edge")
        await bench.reported("e2", "b", "emotion", "edge")
        assert bench.shown() == {"emotion.edge": "a", "emotion.uid-edge-e2": "b"}
        await bench.reported("e2", "b", "emotion", "edge", "Degraded")
        assert len(bench.shown()) == 2
        await bench.delete(Key("up/e1", KIND, "", "a"))
        assert bench.shown() == {"emotion.uid-edge-e2": "b"}
        await bench.reported("e2", "b", "emotion", "edge", "Running")
        assert bench.shown() == {"emotion.edge": "b"}

    play(tmp_path, main)


def test_an_application_whose_origin_moved_stays_when_the_old_way_forgets_it(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.reported("e1", "a", "emotion", "edge")
        await bench.reported("e2", "a", "emotion", "edge")
        await bench.delete(Key("up/e1", KIND, "", "a"))
        assert list(bench.shown().values()) == ["a"]
        await bench.reported("e1", "a", "emotion", "edge")
        await bench.delete(Key("up/e1", KIND, "", "a"))
        assert (list(bench.shown().values()), bench.reports()) == (["a"], ["a"])
        await bench.delete(Key("up/e2", KIND, "", "a"))
        assert (bench.shown(), bench.reports()) == ({}, [])

    play(tmp_path, main)


def test_what_went_while_this_was_stopped_goes_at_the_start(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.writes("own")
        await bench.reported("e1", "a", "emotion", "edge")
        await bench.close()
        await bench.delete(Key("own", "Application", "shop", "own"))
        await bench.delete(Key("up/e1", KIND, "", "a"))
        assert bench.reports() == ["a", "uid-own"]
        again = Bench(bench.store)
        await again.quiet()
        assert (again.shown(), again.reports()) == ({}, [])
        await again.close()

    play(tmp_path, main)


def test_a_stray_speaks_for_its_own_while_it_is_heard(tmp_path: Path) -> None:
    def phase(bench: Bench, name: str) -> str:
        stored = bench.store.get(Key("own", KIND, "shop", name))
        assert stored is not None
        return decode(stored.document, kinds.SubtreeApplication).status.phase

    async def main(bench: Bench) -> None:
        await bench.reported("home", "app-1", "beacon", "edge")
        bench.silent = {"home": "region → home"}
        bench.upward.link_changed("home")
        await bench.quiet()
        assert phase(bench, "beacon.edge") == "Unknown"
        bench.strays = {"edge"}
        await bench.reported("stray/edge", "app-1", "beacon", "edge", phase="Running")
        await bench.reported("stray/edge", "app-2", "new", "edge", phase="Running")
        assert phase(bench, "beacon.edge") == phase(bench, "new.edge") == "Running"
        await bench.reported("home", "app-1", "beacon", "edge", phase="Degraded")  # late, and not what the stray says
        assert phase(bench, "beacon.edge") == "Running"
        bench.strays = set()
        bench.upward.link_changed("edge")
        await bench.quiet()
        assert phase(bench, "beacon.edge") == phase(bench, "new.edge") == "Unknown"
        bench.silent = {}
        await bench.reported("home", "app-1", "beacon", "edge", phase="Running ")
        assert phase(bench, "beacon.edge") == "Running "

    play(tmp_path, main)
