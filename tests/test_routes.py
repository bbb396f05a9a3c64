"""Where a request to an application goes: the nearest ready instance in reach."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from cluster_controller.documents import encode
from cluster_controller.errors import NotFound, Unreachable
from cluster_controller.resources import kinds
from cluster_controller.routes import Routes, Target
from cluster_controller.store import Key, Store


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
