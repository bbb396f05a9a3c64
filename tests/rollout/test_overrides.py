"""Overrides in whole trees: who is told what, in which order, in waves, and when the neighbour is of the version before."""

from pathlib import Path
from typing import Any

import msgspec

from cluster_controller.resources import kinds
from cluster_controller.store import Key
from tests.placement.test_references import write
from tests.placement.tree import Site, Tree, component
from tests.rollout.shop import EDGES, played, put, reasons, rollout, runs, status

CANARY = {"selector": {"matchLabels": {"canary": "true"}}}


def work(site: Site, space: str = "local") -> kinds.WorkSpec:
    stored = site.store.get(Key(space, "Work", "", "app-shop"))
    assert stored is not None
    return msgspec.json.decode(stored.document, type=kinds.Work).spec


def program(name: str, clusters: dict[str, Any] = CANARY, **more: Any) -> dict[str, Any]:
    return {"clusters": clusters, "merge": {"command": [name]}} | more


def shares(tree: Tree) -> list[int]:
    return [work(tree.sites[name]).shares[-1].id for name in EDGES]


def test_each_cluster_runs_what_the_overrides_make_of_it_in_their_order(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        arm = {"clusters": {"names": ["edge-1", "edge-3"]}, "name": "arm", "merge": {"env": [{"name": "A", "value": "1"}]}}
        await put(root, "v1", overrides=[program("x"), arm, program("y", {"names": ["edge-3"]}, component="serve")])
        await tree.quiet()
        assert runs(tree) == ["v1", "v1", "y"]
        assert [[each.value for each in work(tree.sites[name]).components[0].env] for name in EDGES] == [["1"], [], ["1"]]
        rows = {row.name: row.overrides for row in status(root).clusters}
        assert rows == {"edge-1": ["arm"], "edge-2": [], "edge-3": ["overrides[0]", "arm", "overrides[2]"]}
        assert (status(root).phase, status(root).updated) == ("Running", 3)
        assert work(tree.sites["region"], "desired").components[0].command == ["v1"]
        explained = root.store

        async def look() -> Any:
            return await explained.commit(lambda tx: root.engine.explain(tx, "app-shop"))

        assert (await look()).overrides["uid-edge-3"] == ["overrides[0]", "arm", "overrides[2]"]
        await put(root, "v1")
        await tree.quiet()
        assert runs(tree) == ["v1"] * 3
        assert not any(row.overrides for row in status(root).clusters)

    played(main, tmp_path)


def test_a_changed_override_goes_in_waves_through_those_that_it_is_for_and_nobody_else_is_told_anything_new(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "pauseSeconds": 10}
        two = {"names": ["edge-2", "edge-3"]}
        await put(root, "v1", plan, overrides=[program("a", two)])
        await tree.quiet()
        assert runs(tree) == ["v1", "a", "a"]
        assert rollout(root).phase == "Complete"
        revision = work(tree.sites["edge-1"]).revision
        await put(root, "v1", plan, overrides=[program("b", two)])
        await tree.quiet()
        assert runs(tree) == ["v1", "b", "a"]
        assert rollout(root).phase == "Progressing"
        await tree.wait(10)
        await tree.quiet()
        assert runs(tree) == ["v1", "b", "b"]
        assert (rollout(root).phase, status(root).phase, status(root).updated) == ("Complete", "Running", 3)
        assert work(tree.sites["edge-1"]).revision == revision

    played(main, tmp_path)


def test_an_override_that_fails_takes_its_wave_back_with_the_overrides_of_before(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "rollback": "Automatic"}
        for site in tree.sites.values():
            site.broken.add("bad")
        await put(root, "v1", plan, overrides=[program("a")])
        await tree.quiet()
        await put(root, "v1", plan, overrides=[program("bad")])
        await tree.quiet()
        assert runs(tree) == ["v1", "v1", "a"]
        assert "RolledBack" in reasons(root)
        assert status(root).phase == "Running"

    played(main, tmp_path)


def test_where_an_override_does_not_fit_the_version_before_runs_on_and_says_so(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root, edge = tree.sites["root"], tree.sites["edge-3"]
        await put(root, "v1")
        await tree.quiet()
        away = {"clusters": CANARY, "merge": {"env": None}}
        second = {"clusters": {"names": ["edge-3"]}, "name": "two", "jsonPatch": [{"op": "replace", "path": "/env/0/value", "value": "2"}]}
        components = [component(command=["v2"], replicas=3, env=[{"name": "A", "value": "1"}])]
        await put(root, "v2", components=components, overrides=[away, second])
        await tree.quiet()
        assert runs(tree) == ["v2", "v2", "v1"]
        assert status(root).phase == "Degraded"
        found = next(row for row in status(root).clusters if row.name == "edge-3")
        assert (found.reason, found.ready) == ("OverrideFailed", 1)
        assert "two: jsonPatch" in found.message
        assert (status(root).components[0].reason, status(root).updated) == ("OverrideFailed", 2)
        assert "OverrideFailed" in reasons(edge)
        await put(root, "v2", components=components, overrides=[second])
        await tree.quiet()
        assert runs(tree) == ["v2", "v2", "v2"]
        assert status(root).phase == "Running"
        assert "OverrideApplied" in reasons(edge)

    played(main, tmp_path)


def test_a_neighbour_of_the_version_before_is_told_the_result_or_nothing_new(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root, region = tree.sites["root"], tree.sites["region"]
        for name in ("region", *EDGES):
            tree.sites[name].understands = []
            tree.sites[name].census.self_changed()
        await put(root, "v1")
        await tree.quiet()
        await put(root, "v1", overrides=[program("a", {"names": list(EDGES)})])
        await tree.quiet()
        assert work(region, "desired").overrides == []
        assert runs(tree) == ["a"] * 3  # all the same: told as components
        await put(root, "v2", overrides=[program("b")])
        await tree.quiet()
        assert runs(tree) == ["a"] * 3  # not the same for all: nothing new, and nobody runs v2 unpatched
        assert status(root).components[0].reason == "OverrideFailed"
        assert "region does not know overrides" in status(root).components[0].message
        for name in ("region", *EDGES):
            tree.sites[name].understands = ["overrides"]
            tree.sites[name].census.self_changed()
        await tree.quiet()
        assert runs(tree) == ["v2", "v2", "b"]
        assert status(root).phase == "Running"

    played(main, tmp_path)


def test_a_cluster_that_joins_a_branch_that_is_cut_off_runs_what_is_meant_for_it(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        later = {"selector": {"matchLabels": {"late": "true"}}}
        await put(root, "v1", overrides=[program("a", later)], placement={"strategy": "Duplicated"})
        await tree.quiet()
        tree.set_cut("region", True)
        await tree.quiet()
        newcomer = await tree.add("edge-4", "region", 1000, {"late": "true"})
        await tree.quiet()
        assert [each.command for each in work(newcomer).components] == [["a"]]
        assert runs(tree) == ["v1"] * 3

    played(main, tmp_path)


def test_a_document_that_only_an_override_names_goes_where_it_is_needed(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        secret = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
        await write(root, "Secret", "s", data={"k": "aQ=="})
        await put(root, "v1", overrides=[{"clusters": CANARY, "merge": {"env": [secret]}}])
        await tree.quiet()
        assert [[link.name for link in work(tree.sites[name]).references] for name in EDGES] == [[], [], ["s"]]
        assert [bool(tree.sites[name].store.list("desired", "Secret")) for name in EDGES] == [False, False, True]

    played(main, tmp_path)
