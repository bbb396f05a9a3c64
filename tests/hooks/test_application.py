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
from cluster_controller.resources.validate import InvalidDocument
from cluster_controller.rollout.history import KEPT, KIND, SPACE
from cluster_controller.store import Key, Store, Tx
from openapi.hooks.application import ApplicationHooks
from openapi.hooks.dispatch import Hooks
from openapi.services import Ask, User, Write
from tests.placement.tree import Tree, application, put_application

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = REGISTRY["Application"]
KEY = Key("own", "Application", "shop", "emotion")


class Bench:
    """The API's part of a write, as far as the hooks see it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hooks = Hooks({"Application": ApplicationHooks(store, lambda *_: None, lambda uid: None)})

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


def test_undo_goes_to_the_last_other_version_that_was_well_and_never_to_one_that_was_taken_back(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        def mark(revision: int, **marks: Any) -> None:
            document = bench.document()
            for entry in document["status"]["history"]:
                entry.update(marks if entry["revision"] == revision else {})
            bench_put.append(document)

        bench_put: list[dict[str, Any]] = []

        async def marked(revision: int, **marks: Any) -> None:
            mark(revision, **marks)
            await bench.store.commit(lambda tx: tx.put(KEY, msgspec.json.encode(bench_put[-1]), uid="u"))

        await bench.create()
        await bench.update(1, 2)
        await bench.update(2, 3)  # nobody saw it well
        await bench.update(1, 4)  # as a controller writes it when it takes revision 3 back
        await marked(4, user="banyan", cause="rolled back: not ready")
        await bench.ask("undo")
        assert bench.image() == 0  # neither 3, which was taken back, nor 2, which is what runs
        await bench.ask("undo", toRevision=4)
        await marked(1, healthy=True)
        await bench.update(5, 7)
        await bench.ask("undo")
        assert bench.image() == 0  # the only one that is known to have been well

    play(tmp_path, main)


def test_undo_says_when_no_other_version_is_known_to_be_good(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        await bench.update(1, 2)
        document = bench.document()
        document["status"]["history"].append({"revision": 3, "generation": 3, "user": "banyan", "cause": "rolled back"})
        document["spec"] = {"components": [0]}
        await bench.store.commit(lambda tx: tx.put(KEY, msgspec.json.encode(document), uid="u"))
        with pytest.raises(Conflict, match="no other version that is known to be good; say which with --to-revision"):
            await bench.ask("undo")

    play(tmp_path, main)


def test_how_it_goes_out_is_no_version_and_going_back_leaves_it_as_it_is(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.create()
        await bench.update(1, 2)
        for rollout in ({"wave": 1}, {"wave": 1, "paused": True}):
            previous = bench.document()
            document = {**previous, "spec": {**previous["spec"], "rollout": rollout}}

            def work(tx: Tx, document: dict[str, Any] = document, previous: dict[str, Any] = previous) -> None:
                bench.hooks.prepare_update(bench.write(tx, document, previous))
                tx.put(KEY, msgspec.json.encode(document), uid="u")

            await bench.store.commit(work)
        assert len((await bench.ask("history"))["items"]) == 2
        await bench.ask("undo")
        assert bench.document()["spec"] == {"components": [0], "rollout": {"wave": 1, "paused": True}}

    play(tmp_path, main)


def test_applications_that_wait_for_each_other_are_refused_by_name(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        def put(name: str, *wants: str) -> None:
            document = {"metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": {"components": [], "dependsOn": list(wants)}}

            def work(tx: Tx) -> None:
                write = Write(tx, RESOURCE, "shop", name, User("ada"), document, None, NOW)
                bench.hooks.prepare_create(write)
                tx.put(Key("own", "Application", "shop", name), msgspec.json.encode(document), uid=name)

            pending.append(work)

        pending: list[Callable[[Tx], None]] = []
        put("web", "api")
        put("api", "db")
        put("other", "api", "db")
        put("db", "web")
        *good, bad = pending
        for work in good:
            await bench.store.commit(work)
        with pytest.raises(InvalidDocument, match="db waits for web waits for api waits for db: none of them could ever start"):
            await bench.store.commit(bad)

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
            hooks = ApplicationHooks(root.store, root.engine.explain, root.census.heard)
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
            assert rows["edge-2"]["reason"] == "does not match placement.clusterSelector: wants tier=edge, has tier=other"
            assert rows["edge-2"]["remedy"] == "kubectl label cluster edge-2 tier=edge --overwrite, or change placement.clusterSelector"
            assert rows["region"] == {"component": "serve", "replicas": 0, "reason": "region was given 1 and put them on edge-1 (1)"}
            assert rows["root"]["filter"] == "NoShim"
            assert (rows["edge-1"]["planned"], rows["edge-1"]["score"]["room"]) == (1, 2)
            assert rows["edge-1"]["nodes"] == [{"node": "edge-1-node", "room": 2}]
            assert (answer["decision"]["clusters"], answer["decision"]["supposed"], answer["decision"]["time"][:4]) == (5, False, "2026")
            clusters = await hooks.subresource(msgspec.structs.replace(ask, subresource="clusters"))
            assert {row["name"] for row in clusters["items"]} == {"edge-1", "edge-3"}
        finally:
            await tree.close()

    asyncio.run(main())


def test_what_if_another_spec_or_a_cluster_less_and_nothing_changes(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        for name in ("edge-1", "edge-2"):
            await tree.add(name, "root", 300, {"zone": name})
        try:
            await tree.quiet()
            await put_application(root, "emotion", 2)
            await tree.quiet()
            hooks = ApplicationHooks(root.store, root.engine.explain, root.census.heard)
            revision = root.store.revision

            async def ask(**body: Any) -> dict[str, Any]:
                answer = await hooks.subresource(Ask(RESOURCE, "default", "emotion", "explain", "POST", {}, body, User("bob")))
                assert root.store.revision == revision, "nothing is changed"
                assert answer["decision"]["supposed"]
                return {row["cluster"]: row["components"][0] for row in answer["clusters"]}

            alone = await ask(without=["edge-1"])
            assert "edge-1" not in alone
            assert alone["edge-2"]["planned"] == 2
            spec = msgspec.json.decode(root.store.get(Key("own", "Application", "default", "emotion")).document)["spec"]  # type: ignore[union-attr]
            other = await ask(spec=spec | {"placement": {"clusterSelector": {"matchLabels": {"zone": "edge-2"}}}})
            assert (other["edge-1"]["filter"], other["edge-2"]["planned"]) == ("ClusterSelector", 2)
            for body, wrong in (({"withot": []}, InvalidInput), ({"without": "edge-1"}, InvalidInput), ({"without": ["x"]}, NotFound)):
                with pytest.raises(wrong):
                    await ask(**body)
            with pytest.raises(InvalidInput):
                await ask(spec={"components": []})
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
            hooks = ApplicationHooks(root.store, root.engine.explain, root.census.heard)
            answer = await hooks.subresource(Ask(RESOURCE, "default", "pump", "explain", "GET", {}, {}, User("bob")))
            assert "takes no socket" in answer["components"][0]["notes"][0]
            said = {row["cluster"]: row["components"][0]["reason"] for row in answer["clusters"]}
            assert said == {"edge": "given, not yet reported as running", "root": "would take it; enough runs elsewhere"}
        finally:
            await tree.close()

    asyncio.run(main())


def test_explain_says_of_every_cluster_what_is_measured_what_is_wanted_and_what_would_help(tmp_path: Path) -> None:
    """One line for each thing that can be in the way; and where the share of a branch went."""

    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        region = await tree.add("region", "root")
        await tree.add("edge-1", "region", 300, {"tier": "edge"})
        await tree.add("edge-2", "region", 300, {"tier": "edge"})
        await tree.add("edge-3", "root", 200, {"tier": "edge"})
        hooks = ApplicationHooks(root.store, root.engine.explain, root.census.heard)

        async def explained(name: str) -> tuple[dict[str, Any], dict[str, tuple[str, str, str]]]:
            answer = await hooks.subresource(Ask(RESOURCE, "default", name, "explain", "GET", {}, {}, User("bob")))
            rows = {row["cluster"]: row["components"][0] for row in answer["clusters"]}
            said = {name: (row.get("filter", ""), row.get("reason", ""), row.get("remedy", "")) for name, row in rows.items()}
            return answer["components"][0], said

        async def asked(**placement: object) -> tuple[dict[str, Any], dict[str, tuple[str, str, str]]]:
            await put_application(root, "emotion", 1, **placement)
            await tree.quiet()
            return await explained("emotion")

        try:
            await tree.quiet()
            _, said = await asked(clusterName="edge-1")
            assert said["edge-1"] == ("", "", "")
            assert said["edge-2"] == ("ClusterName", "is not meant: placement.clusterName is edge-1", "set placement.clusterName to edge-2")
            assert said["region"][1] == "region was given 1 and put them on edge-1 (1)"
            _, said = await asked(clusterNames=["edge-1", "edge-3"])
            assert said["edge-2"][1:] == ("is not meant: placement.clusterNames are edge-1, edge-3", "add edge-2 to placement.clusterNames")
            whole, said = await asked(clusterName="edge-9")
            assert whole["unplaced"] == 1
            assert whole["notes"] == [
                "placement.clusterName names edge-9, and this tree has no cluster of that name that runs applications: "
                "correct the name, or join the cluster; there are edge-1, edge-2, edge-3"
            ]
            message = application(root, "emotion").status.components[0].message  # type: ignore[union-attr]
            assert message.startswith("placement.clusterName names edge-9,")
            _, said = await asked(nodeName="no-such")
            assert said["edge-1"] == (
                "NodeName",
                "has no ready node named no-such; ready is edge-1-node",
                "name a node that exists in placement.nodeName: banyan --at edge-1 get nodes",
            )
            _, said = await asked(nodeSelector={"disk": "ssd"})
            assert said["edge-1"][:2] == ("NodeSelector", "has no ready node with the labels disk=ssd")
            _, said = await asked(architecture="arm64")
            assert said["edge-1"] == (
                "Architecture",
                "has amd64; placement.architecture is arm64",
                "set placement.architecture to amd64 if it runs there too, or add such a node to edge-1",
            )
            await put_application(root, "emotion", 1, clusterName="edge-3")
            uid = await put_application(root, "wide", 9)
            await tree.quiet()
            whole, said = await explained("wide")
            assert (whole["unplaced"], tree.total(uid)) == (2, 7)
            assert said["edge-1"][:2] == ("Capacity", "has no room: cpu: asks 100m, free 0m")
            assert said["edge-1"][2] == "free something on edge-1, or add a node"
            assert said["region"][1] == "region was given 6 and put them on edge-1 (3), edge-2 (3)"
            tree.set_cut("region", True)
            await tree.quiet()
            _, said = await explained("wide")
            assert said["edge-1"] == (
                "Unreachable",
                "is out of reach behind root → region: gets nothing new until it is back; last heard 0s ago; it had 3 then and keeps them",
                "mend the link root → region; what runs there goes on",
            )
            tree.set_cut("region", False)
            await tree.quiet()
            await taint(region, "uid-edge-1")
            await tree.quiet()
            _, said = await explained("wide")  # the region's own taint is not known here: but the region said so
            assert "could not place" not in said["region"][1], "what runs stays: NoSchedule is for what is new"
        finally:
            await tree.close()

    asyncio.run(main())


async def taint(site: Any, cluster: str) -> None:
    def write(tx: Any) -> None:
        stored = site.store.find("own", "Cluster", cluster)
        document = msgspec.json.decode(stored.document)
        document["spec"] = {"taints": [{"key": "gpu", "value": "only", "effect": "NoSchedule"}], "unschedulable": True}
        tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

    await site.store.commit(write)


def test_what_only_a_region_knows_comes_up_with_its_reason_and_goes_elsewhere_when_there_is_room(tmp_path: Path) -> None:
    """A taint that the region laid over its leaf is not in the root's records; the region reports what it could not place."""

    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        region = await tree.add("a-region", "root")
        await tree.add("edge-1", "a-region", 300)
        hooks = ApplicationHooks(root.store, root.engine.explain, root.census.heard)
        try:
            await tree.quiet()
            await taint(region, "uid-edge-1")
            await tree.quiet()
            uid = await put_application(root, "emotion", 2)
            await tree.quiet()
            status = application(root, "emotion").status  # type: ignore[union-attr]
            assert (tree.total(uid), status.unplaced, status.phase) == (0, 2, "Pending")
            assert "a-region: edge-1 is cordoned" in status.components[0].message
            answer = await hooks.subresource(Ask(RESOURCE, "default", "emotion", "explain", "GET", {}, {}, User("bob")))
            said = {row["cluster"]: row["components"][0].get("reason", "") for row in answer["clusters"]}
            assert said["a-region"].startswith("a-region was given 2 and could not place 2: edge-1 is cordoned")
            assert said["edge-1"].startswith("has room; a-region was given 2 and could not place 2: edge-1 is cordoned")
            await tree.add("edge-2", "root", 100)  # somebody has room for one
            await tree.quiet()
            status = application(root, "emotion").status  # type: ignore[union-attr]
            assert (tree.total(uid), status.unplaced, status.ready) == (1, 1, 1)
            await tree.add("edge-3", "root", 300)
            await tree.quiet()
            status = application(root, "emotion").status  # type: ignore[union-attr]
            assert (tree.total(uid), status.unplaced, status.phase) == (2, 0, "Running")
        finally:
            await tree.close()

    asyncio.run(main())
