"""Where a request to an application goes: the nearest ready instance in reach."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from cluster_controller.documents import Documents, encode
from cluster_controller.errors import NotFound, Unreachable
from cluster_controller.resources import kinds
from cluster_controller.routes import Routes, Target, Whereabouts
from cluster_controller.store import Key, Limits, Store


class Bench:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.distances: dict[str, float | None] = {}
        self.routes = Routes(store, "me", "root", self.distances.get)

    async def put(self, key: Key, document: msgspec.Struct, uid: str) -> None:
        await self.store.commit(lambda tx: tx.put(key, encode(document), uid=uid))

    async def child(self, uid: str, name: str, distance: float | None = 0.01) -> None:
        self.distances[uid] = distance
        await self.put(Key("own", "Cluster", "", name), kinds.Cluster(), uid)

    async def application(self, name: str = "emotion", uid: str = "app") -> None:
        component = kinds.Component(name="serve", command=["x"])
        await self.put(Key("own", "Application", "shop", name), kinds.Application(spec=kinds.ApplicationSpec(components=[component])), uid)

    async def status(self, space: str, *rows: kinds.ClusterRow, ready: int = 1, uid: str = "app") -> None:
        document = kinds.WorkStatus(
            spec=kinds.WorkStatusSpec(application=reference(uid), cluster="x"),
            status=kinds.WorkStatusStatus(components=[kinds.ComponentStatus(name="serve", ready=ready)], clusters=list(rows)),
        )
        await self.put(Key(space, "WorkStatus", "", uid), document, uid)

    def paths(self, name: str = "emotion") -> list[tuple[str, ...]]:
        return [target.path for target in self.routes.all("shop", name)]


def reference(uid: str = "app") -> kinds.ApplicationReference:
    return kinds.ApplicationReference(uid=uid, name="emotion", namespace="shop", origin="o", origin_name="hq")


def row(uid: str, *path: str, ready: int = 1, reason: str = "", message: str = "") -> kinds.ClusterRow:
    return kinds.ClusterRow(cluster=uid, name=uid, path=list(path), ready=ready, desired=1, reason=reason, message=message)


def play(folder: Path, main: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = await Store.open(folder)
        try:
            await main(Bench(store))
        finally:
            await store.close()

    asyncio.run(whole())


def test_the_own_cluster_then_the_shortest_round_trip_then_the_shortest_way(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.application()
        await bench.child("a", "region-a", 0.05)
        await bench.child("b", "region-b", 0.01)
        await bench.status("up/a", row("a"))
        await bench.status("up/b", row("e2", "edge-2"), row("e1", "edge-1"), row("b"))
        await bench.status("observed", row("me"))
        assert bench.paths() == [
            ("root",),
            ("root", "region-b"),
            ("root", "region-b", "edge-1"),
            ("root", "region-b", "edge-2"),
            ("root", "region-a"),
        ]
        assert bench.routes.nearest("shop", "emotion") == Target("app", "me", ("root",))
        await bench.status("observed", row("me", ready=0), ready=0)
        assert bench.routes.nearest("shop", "emotion") == Target("app", "b", ("root", "region-b"))

    play(tmp_path, main)


def test_what_is_silent_or_not_ready_is_not_asked_and_the_error_says_what_stands_in_the_way(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.application()
        with pytest.raises(Unreachable, match="it runs nowhere yet"):
            bench.routes.nearest("shop", "emotion")
        await bench.child("a", "region-a", None)
        await bench.child("b", "region-b")
        await bench.status("up/a", row("e1", "edge-1"))
        await bench.status(
            "up/b",
            row("e2", "edge-2", ready=1, reason="Unreachable", message="out of reach: region-b → edge-2 is cut"),
            row("e3", "edge-3", ready=0, reason="BackOff", message="exit 1"),
            row("me"),
        )
        assert bench.paths() == []
        with pytest.raises(Unreachable) as refused:
            bench.routes.nearest("shop", "emotion")
        said = str(refused.value)
        assert "region-b → edge-2 is cut" in said and "edge-3: exit 1" in said and "banyan explain application/emotion" in said
        bench.distances["a"] = 0.2
        assert bench.paths() == [("root", "region-a", "edge-1")]

    play(tmp_path, main)


def test_applications_are_found_by_the_names_under_which_they_are_known_here(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        with pytest.raises(NotFound, match=r"no application shop/emotion at root; those written below are named NAME\.ORIGIN"):
            bench.routes.find("shop", "emotion")
        below = kinds.SubtreeApplication(
            spec=kinds.SubtreeApplicationSpec(application=reference("low")),
            status=kinds.ApplicationStatus(clusters=[row("e1", "edge-1")]),
        )
        await bench.put(Key("own", "SubtreeApplication", "shop", "emotion.region-a"), below, "low")
        await bench.child("a", "region-a")
        await bench.put(Key("up/a", "SubtreeApplication", "", "low"), below, "low")
        assert bench.routes.find("shop", "emotion.region-a") == "low"
        assert bench.paths("emotion.region-a") == [("root", "region-a", "edge-1")]

        work = kinds.Work(spec=kinds.WorkSpec(application=reference("high"), cluster="me"))
        await bench.put(Key("desired", "Work", "", "high"), work, "w")
        assert bench.routes.find("shop", "emotion") == bench.routes.find("shop", "emotion.hq") == "high"
        with pytest.raises(NotFound):
            bench.routes.find("other", "emotion")
        await bench.application(uid="mine")
        assert bench.routes.find("shop", "emotion") == "mine"
        assert bench.routes.find("shop", "emotion.hq") == "high"
        await bench.store.commit(lambda tx: tx.delete(Key("desired", "Work", "", "high")))
        with pytest.raises(NotFound):
            bench.routes.find("shop", "emotion.hq")

    play(tmp_path, main)


def test_a_child_without_a_cluster_object_is_named_by_its_uid(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.application()
        bench.distances["x"] = 0.0
        await bench.status("up/x", row("x"))
        assert bench.paths() == [("root", "x")]

    play(tmp_path, main)


def test_what_is_delivered_and_reported_is_found_without_walking_it_whatever_happened_meanwhile(tmp_path: Path) -> None:
    """The remembered whereabouts against a walk of the whole store, over random changes, also past the journal's end."""
    chance = random.Random(3)

    def walked(bench: Bench, name: str) -> str | None:
        for stored in bench.store.list("desired", "Work"):
            application = msgspec.json.decode(stored.document, type=kinds.Work).spec.application
            if name in {application.name, f"{application.name}.{application.origin_name}"}:
                return application.uid
        return None

    async def change(bench: Bench) -> None:
        uid, name = f"uid-{chance.randrange(6)}", f"app-{chance.randrange(3)}"
        child, kind = f"up/{chance.choice('abc')}", chance.choice(["WorkStatus", "SubtreeApplication"])
        origin = kinds.ApplicationReference(uid=uid, name=name, namespace="shop", origin="o", origin_name=chance.choice(["hq", "far"]))
        work = kinds.Work(spec=kinds.WorkSpec(application=origin, cluster="me"))
        match chance.randrange(4):
            case 0:
                await bench.put(Key("desired", "Work", "", uid), work, uid)
            case 1 if bench.store.get(Key("desired", "Work", "", uid)):
                await bench.store.commit(lambda tx: tx.delete(Key("desired", "Work", "", uid)))
            case 2:
                await bench.put(
                    Key(child, kind, "", uid), kinds.SubtreeApplication(spec=kinds.SubtreeApplicationSpec(application=origin)), uid
                )
            case 3 if bench.store.get(Key(child, kind, "", uid)):
                await bench.store.commit(lambda tx: tx.delete(Key(child, kind, "", uid)))

    async def main() -> None:
        store = await Store.open(tmp_path, Limits(journal_rows=8))
        bench = Bench(store)
        whereabouts = Whereabouts(store, Documents())
        try:
            for number in range(300):
                await change(bench)
                if chance.random() < 0.3:
                    continue  # nobody asks for a while: past the end of the journal at times
                for name in ("app-0", "app-1.hq", "app-2.far"):
                    found = whereabouts.work("shop", name)
                    assert (found.spec.application.uid if found else None) == walked(bench, name), number
                for uid in ("uid-0", "uid-3"):
                    reporting = {
                        space.removeprefix("up/")
                        for space in store.spaces()
                        if space.startswith("up/") and any(store.get(Key(space, k, "", uid)) for k in ("WorkStatus", "SubtreeApplication"))
                    }
                    assert whereabouts.reporters(uid) == sorted(reporting), number
        finally:
            await store.close()

    asyncio.run(main())


def test_a_request_reads_nothing_of_other_applications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: Bench) -> None:
        work = kinds.Work(spec=kinds.WorkSpec(application=reference("high"), cluster="me"))
        await bench.put(Key("desired", "Work", "", "high"), work, "w")
        await bench.status("observed", row("me"), uid="high")
        assert bench.paths("emotion.hq") == [("root",)]

        def walk(*_: object) -> None:
            raise AssertionError("the store was walked")

        monkeypatch.setattr(bench.store, "list", walk)
        monkeypatch.setattr(bench.store, "spaces", walk)
        assert bench.paths("emotion.hq") == [("root",)]
        await bench.child("a", "region-a")
        await bench.status("up/a", row("e1", "edge-1"), uid="high")
        assert bench.paths("emotion.hq") == [("root",), ("root", "region-a", "edge-1")]

    play(tmp_path, main)


def test_only_workers_of_models_are_trusted_to_answer_once_more(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.status("observed", row("me"))
        model = kinds.Component(name="serve", model=kinds.ModelReference(name="emotion"))
        command = kinds.Component(name="other", command=["x"])
        for components, promised in (([model], True), ([model, command], False), ([command], False)):
            await bench.put(
                Key("own", "Application", "shop", "emotion"), kinds.Application(spec=kinds.ApplicationSpec(components=components)), "app"
            )
            assert bench.routes.nearest("shop", "emotion").answers_once_more is promised

    play(tmp_path, main)
