"""History, undo and explain of Applications, on a real store and real placement."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.errors import Conflict, InvalidInput, NotFound
from cluster_controller.placement.status import FINALIZER
from cluster_controller.resources import kinds
from cluster_controller.resources.registry import REGISTRY
from cluster_controller.store import Key, Store, Tx
from openapi.hooks.application import KEPT, KIND, SPACE, ApplicationHooks
from openapi.hooks.dispatch import Hooks
from openapi.services import Ask, User, Write
from tests.placement.tree import Tree, put_application

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = REGISTRY["Application"]
KEY = Key("own", "Application", "shop", "emotion")


class Bench:
    """The API's part of a write, as far as the hooks see it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hooks = Hooks({"Application": ApplicationHooks(store, lambda tx, uid: None)})

    def write(self, tx: Tx, document: dict[str, Any], previous: Mapping[str, Any] | None) -> Write:
        return Write(tx, RESOURCE, "shop", "emotion", User("ada"), document, previous, NOW)

    async def create(self, image: int = 0) -> None:
        document = {"metadata": {"name": "emotion", "namespace": "shop", "uid": "u", "generation": 1}, "spec": {"components": [image]}}

        def work(tx: Tx) -> None:
            assert self.hooks.prepare_create(self.write(tx, document, None)) is None
            tx.put(KEY, msgspec.json.encode(document), uid="u")

        await self.store.commit(work)

    async def update(self, image: int, generation: int) -> None:
        previous = self.document()
        document = {**self.document(), "spec": {"components": [image]}}
        document["metadata"] = {**document["metadata"], "generation": generation}

        def work(tx: Tx) -> None:
            self.hooks.prepare_update(self.write(tx, document, previous))
            tx.put(KEY, msgspec.json.encode(document), uid="u")

        await self.store.commit(work)

    def document(self) -> dict[str, Any]:
        stored = self.store.get(KEY)
        assert stored is not None
        document: dict[str, Any] = msgspec.json.decode(stored.document)
        return document

    def image(self) -> int:
        return int(self.document()["spec"]["components"][0])

    async def ask(self, what: str, dry_run: bool = False, method: str = "POST", **body: Any) -> dict[str, Any]:
        return dict(await self.hooks.subresource(Ask(RESOURCE, "shop", "emotion", what, method, {}, body, User("bob"), dry_run)))

    def kept(self) -> list[str]:
        return [stored.key.name for stored in self.store.list(SPACE, KIND)]


def play(folder: Path, main: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = await Store.open(folder)
        try:
            await main(Bench(store))
        finally:
            await store.close()

    asyncio.run(whole())


def test_every_change_of_the_spec_is_kept_with_who_and_why(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        assert bench.document()["metadata"]["finalizers"] == [FINALIZER]
        await bench.update(0, 1)  # the same again is no revision
        await bench.update(1, 2)
        items = (await bench.ask("history"))["items"]
        assert [(item["revision"], item["generation"], item["user"], item["cause"]) for item in items] == [
            (1, 1, "ada", "created"), (2, 2, "ada", "updated"),
        ]  # fmt: skip
        assert [item["spec"]["components"] for item in items] == [[0], [1]]
        assert items[0]["time"] == "2026-01-01T00:00:00Z"

    play(tmp_path, main)


def test_the_history_is_bounded_and_goes_with_the_application(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        for number in range(1, KEPT + 5):
            await bench.update(number, number + 1)
        history = bench.document()["status"]["history"]
        assert [entry["revision"] for entry in history] == list(range(6, KEPT + 6))
        assert len(bench.kept()) == KEPT
        with pytest.raises(NotFound, match="has no revision 1; it has 6, 7"):
            await bench.ask("undo", toRevision=1)
        await bench.store.commit(lambda tx: tx.put(Key(SPACE, KIND, "shop", "u2.1"), b"{}", uid="other"))
        await bench.store.commit(lambda tx: bench.hooks.prepare_delete(bench.write(tx, bench.document(), None)))
        assert bench.kept() == ["u2.1"]

    play(tmp_path, main)


def test_undo_goes_back_and_is_a_revision_itself(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        with pytest.raises(Conflict, match="only one revision"):
            await bench.ask("undo")
        await bench.update(1, 2)
        await bench.update(2, 3)
        answer = await bench.ask("undo")
        assert (bench.image(), answer["metadata"]["generation"]) == (1, 4)
        assert bench.document()["status"]["history"][-1]["cause"] == "undo to 2"
        assert bench.document()["status"]["history"][-1]["user"] == "bob"
        await bench.ask("undo", toRevision=1)
        assert bench.image() == 0
        with pytest.raises(Conflict, match="already is as in revision 1"):
            await bench.ask("undo", toRevision=1)
        assert [entry["revision"] for entry in bench.document()["status"]["history"]] == [1, 2, 3, 4, 5]

    play(tmp_path, main)


@pytest.mark.parametrize("wanted", ["1", True, 1.0, [1]])
def test_undo_to_something_that_is_no_revision(tmp_path: Path, wanted: Any) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        with pytest.raises(InvalidInput) as refused:
            await bench.ask("undo", toRevision=wanted)
        assert refused.value.field == "toRevision"

    play(tmp_path, main)


def test_a_dry_undo_shows_and_changes_nothing(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        await bench.update(1, 2)
        revision = bench.store.revision
        answer = await bench.ask("undo", dry_run=True)
        assert answer["spec"] == {"components": [0]}
        assert (bench.store.revision, bench.image(), len(bench.kept())) == (revision, 1, 2)

    play(tmp_path, main)


def test_an_application_that_is_going_or_gone_is_not_undone(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        for what in ("undo", "history", "explain", "clusters"):
            with pytest.raises(NotFound, match="shop/emotion does not exist"):
                await bench.ask(what)
        await bench.create()
        await bench.update(1, 2)
        document = bench.document()
        document["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await bench.store.commit(lambda tx: tx.put(KEY, msgspec.json.encode(document), uid="u"))
        with pytest.raises(Conflict, match="being deleted"):
            await bench.ask("undo")
        with pytest.raises(NotFound, match="no subresource nonsense"):
            await bench.ask("nonsense")
        with pytest.raises(NotFound, match="nothing is placed"):
            await bench.ask("explain")

    play(tmp_path, main)


def test_explain_says_per_cluster_what_it_has_or_what_would_help(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        await tree.add("region", "root")
        await tree.add("edge-1", "region", 300, {"tier": "edge"})
        await tree.add("edge-2", "region", 300, {"tier": "other"})
        await tree.add("edge-3", "root", 300, {"tier": "edge"})
        try:
            await tree.quiet()
            selector = {"matchLabels": {"tier": "edge"}}
            await put_application(root, "emotion", 2, clusterSelector=selector)
            await tree.quiet()
            hooks = ApplicationHooks(root.store, root.engine.explain)
            revision = root.store.revision
            ask = Ask(RESOURCE, "default", "emotion", "explain", "GET", {}, {}, User("bob"))
            answer = await hooks.subresource(ask)
            assert root.store.revision == revision
            assert (answer["strategy"], answer["missing"], answer["application"]["name"]) == ("Divided", [], "emotion")
            assert [(one["name"], one["replicas"], one["unplaced"], one["notes"]) for one in answer["components"]] == [("serve", 2, 0, [])]
            rows = {row["cluster"]: row["components"][0] for row in answer["clusters"]}
            assert sorted(rows) == ["edge-1", "edge-2", "edge-3", "region", "root"]
            assert (rows["edge-1"]["replicas"], rows["edge-3"]["replicas"]) == (1, 1)
            assert rows["edge-2"]["filter"] == "ClusterSelector"
            assert rows["edge-2"]["reason"] == "labels do not match tier in (edge) (has other)"
            assert "label the cluster" in rows["edge-2"]["remedy"]
            assert rows["region"]["filter"] == "NoShim"
            clusters = await hooks.subresource(msgspec.structs.replace(ask, subresource="clusters"))
            assert {row["name"] for row in clusters["items"]} == {"edge-1", "edge-3"}
        finally:
            await tree.close()

    asyncio.run(main())


def test_explain_before_anything_is_reported_and_of_what_takes_no_socket(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root", cpu_millis=1000)
        await tree.add("edge", "root", 1000)
        try:
            await tree.quiet()
            document = kinds.Application(
                metadata=kinds.Metadata(name="pump", namespace="default", uid="pump"),
                spec=kinds.ApplicationSpec(components=[kinds.Component(name="pump", command=["x"], takes_socket=False)]),
            )
            await root.store.commit(
                lambda tx: tx.put(Key("own", "Application", "default", "pump"), msgspec.json.encode(document), uid="pump")
            )
            await tree.settled()
            hooks = ApplicationHooks(root.store, root.engine.explain)
            answer = await hooks.subresource(Ask(RESOURCE, "default", "pump", "explain", "GET", {}, {}, User("bob")))
            assert "takes no socket" in answer["components"][0]["notes"][0]
            said = {row["cluster"]: row["components"][0]["reason"] for row in answer["clusters"]}
            assert said == {"edge": "given, not yet reported as running", "root": "would take it; enough runs elsewhere"}
        finally:
            await tree.close()

    asyncio.run(main())
