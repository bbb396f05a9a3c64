"""Rollouts in whole trees: real stores and placement, links and shims played by the test."""

import random
from pathlib import Path

import msgspec
import pytest

from cluster_controller.resources import kinds
from cluster_controller.rollout import keeping
from cluster_controller.store import Key, Tx
from tests.placement.test_references import write
from tests.placement.tree import Tree, application, component, delete_application
from tests.rollout.shop import EDGES, condition, played, put, reasons, resume, rollout, runs, status


def test_the_first_version_starts_everywhere_at_once_and_the_next_goes_wave_by_wave(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "pauseSeconds": 10}
        await put(root, "v1", plan)
        await tree.quiet()
        assert runs(tree) == ["v1"] * 3
        assert (rollout(root).phase, status(root).phase) == ("Complete", "Running")
        await put(root, "v2", plan)
        await tree.quiet()
        assert runs(tree) == ["v2", "v1", "v1"]
        assert (status(root).ready, status(root).updated, status(root).phase) == (3, 1, "Progressing")
        assert rollout(root).message.startswith("wave 1 of 1: waits for region (wave 1 of 3 is well")
        levels = {"/".join(each.path): (each.phase, each.wave, each.waves, each.updated) for each in rollout(root).below}
        assert levels["region"] == ("Progressing", 1, 3, 1)
        assert levels["region/edge-1"] == ("Complete", 1, 1, 1)
        await tree.wait(10)
        await tree.quiet()
        assert runs(tree) == ["v2", "v2", "v1"]
        await tree.wait(10)
        await tree.quiet()
        assert runs(tree) == ["v2", "v2", "v2"]
        assert (rollout(root).phase, status(root).phase, status(root).updated) == ("Complete", "Running", 3)
        assert condition(root, "Progressing").reason == "Complete"

    played(main, tmp_path)


def test_a_version_that_was_well_everywhere_is_marked_in_the_history_and_one_that_failed_is_not(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        for site in tree.sites.values():
            site.broken.add("bad")

        def note(tx: Tx) -> None:
            stored = tx.get(Key("own", "Application", "default", "shop"))
            assert stored is not None
            document = msgspec.json.decode(stored.document)
            known = document["status"].get("history", [])
            document["status"]["history"] = [*known, {"revision": len(known) + 1, "generation": document["metadata"]["generation"]}]
            tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

        for program in ("v1", "bad"):
            await put(root, program, {"wave": 1})
            await root.store.commit(note)
            await tree.quiet()
        assert [entry.healthy for entry in status(root).history] == [True, False]

    played(main, tmp_path)


def test_without_a_rollout_everything_changes_at_once_and_nothing_is_kept(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        for program in ("v1", "v2"):
            await put(root, program)
            await tree.quiet()
            assert runs(tree) == [program] * 3
        assert keeping.state_of(root.store, "app-shop") is None
        assert status(root).rollout is None

    played(main, tmp_path)


def test_a_rollout_that_comes_with_the_change_itself_keeps_what_runs(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        await put(root, "v1")
        await tree.quiet()
        await put(root, "v2", {"waves": [{"clusterSelector": {"matchLabels": {"canary": "true"}}, "manual": True}]})
        await tree.quiet()
        assert runs(tree) == ["v1", "v1", "v2"]
        assert rollout(root).phase == "Paused"
        assert condition(root, "Progressing").status == "Unknown"
        await resume(root, "1")
        await tree.quiet()
        assert runs(tree) == ["v2"] * 3
        # The region went on; the root has one wave, with the region in it: nothing is left to ask about.
        assert rollout(root).phase in {"Complete", "Paused"}
        await delete_application(root, "shop")
        await tree.quiet()
        assert application(root, "shop") is None
        assert [keeping.state_of(site.store, "app-shop") for site in tree.sites.values()] == [None] * 5

    played(main, tmp_path)


def test_a_bad_version_stops_at_the_first_wave_and_the_origin_goes_back(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "rollback": "Automatic"}
        for site in tree.sites.values():
            site.broken.add("bad")
        await put(root, "v1", plan)
        await tree.quiet()
        seen: set[str] = set()
        tree.watch = lambda: seen.update(name for name, told in zip(EDGES, runs(tree), strict=True) if told == "bad")
        await put(root, "bad", plan)
        await tree.quiet()
        assert seen == {"edge-1"}, "nobody but the first wave ever had it"
        assert runs(tree) == ["v1"] * 3
        found = rollout(root)
        assert (found.phase, found.reason, status(root).phase) == ("Complete", "RolledBack", "Running")
        assert "region (wave 1 of 3 failed: edge-1 (wave 1 of 1 failed: edge-1 (serve: CrashLoopBackOff)))" in found.message
        assert [(entry.user, entry.cause.split(":")[0]) for entry in status(root).history] == [("banyan", "rolled back")]
        assert {"RolloutFailed", "RolledBack"} <= set(reasons(root))
        await put(root, "v2", plan)
        await tree.quiet()
        assert runs(tree) == ["v2"] * 3
        assert rollout(root).reason == "Complete"

    played(main, tmp_path)


def test_without_a_rollback_it_stops_says_so_and_a_person_may_say_go_on(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root, plan = tree.sites["root"], {"wave": 1, "progressDeadlineSeconds": 60}
        for site in tree.sites.values():
            site.slow.add("v2")
        await put(root, "v1", plan)
        await tree.quiet()
        await put(root, "v2", plan)
        await tree.quiet()
        await tree.wait(60)
        await tree.quiet()
        assert runs(tree) == ["v2", "v1", "v1"]
        assert (rollout(root).phase, status(root).phase, condition(root, "Progressing").status) == ("Failed", "Degraded", "False")
        assert [tree.sites[name].engine.rollouts() for name in ("root", "edge-2")] == [{"Failed": 1}, {"Complete": 1}]
        assert "not ready after 60 s" in rollout(root).message
        for site in tree.sites.values():
            site.slow.clear()
        await tree.quiet()
        assert runs(tree) == ["v2", "v1", "v1"], "it stopped: a person decides"
        await resume(root, "again")
        await tree.quiet()
        assert (runs(tree), rollout(root).phase, status(root).phase) == (["v2"] * 3, "Complete", "Running")

    played(main, tmp_path)


def test_created_paused_nothing_starts_until_somebody_says_so(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        await put(root, "v1", {"paused": True})
        await tree.quiet()
        assert (runs(tree), rollout(root).phase, status(root).phase) == ([""] * 3, "Paused", "Progressing")
        await put(root, "v1", {})
        await tree.quiet()
        assert (runs(tree), status(root).phase) == (["v1"] * 3, "Running")

    played(main, tmp_path)


def test_paused_below_too_and_scaled_all_the_same(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "pauseSeconds": 10}
        await put(root, "v1", plan)
        await tree.quiet()
        await put(root, "v2", plan)
        await tree.quiet()
        await put(root, "v2", plan | {"paused": True})
        await tree.quiet()
        await tree.wait(1000)
        await tree.quiet()
        assert (runs(tree), rollout(root).phase) == (["v2", "v1", "v1"], "Paused")
        await put(root, "v2", plan | {"paused": True}, components=[component(command=["v2"], replicas=6)])
        await tree.quiet()
        assert (runs(tree), status(root).ready, status(root).updated) == (["v2", "v1", "v1"], 6, 2)
        await put(root, "v2", plan, components=[component(command=["v2"], replicas=6)])
        for _ in range(3):
            await tree.wait(10)
            await tree.quiet()
        assert (runs(tree), status(root).updated) == (["v2"] * 3, 6)

    played(main, tmp_path)


def test_components_that_come_and_go_do_so_wave_by_wave(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "pauseSeconds": 10}
        each = {"strategy": "Duplicated"}
        parts = [component("a", command=["a1"]), component("b", command=["b1"])]
        await put(root, "", plan, components=parts, placement=each)
        await tree.quiet()
        parts = [component("b", command=["b2"]), component("c", command=["c2"])]
        await put(root, "", plan, components=parts, placement=each)
        await tree.quiet()
        assert runs(tree) == ["b2,c2", "a1,b1", "a1,b1"]
        for _ in range(2):
            await tree.wait(10)
            await tree.quiet()
        assert (runs(tree), rollout(root).phase) == (["b2,c2"] * 3, "Complete")

    played(main, tmp_path)


def test_who_keeps_the_version_before_keeps_the_documents_that_it_needs(tmp_path: Path) -> None:
    def shop(program: str, settings: str) -> list[dict[str, object]]:
        return [component("serve", 3, command=[program], envFrom=[{"configMapRef": {"name": settings}}])]

    def settings(tree: Tree) -> list[list[str]]:
        return [[stored.uid for stored in tree.sites[name].store.list("desired", "ConfigMap")] for name in EDGES]

    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "pauseSeconds": 10}
        one, two = await write(root, "ConfigMap", "one", data={}), await write(root, "ConfigMap", "two", data={})
        await put(root, "", plan, components=shop("v1", "one"))
        await tree.quiet()
        await put(root, "", plan, components=shop("v2", "two"))
        await tree.quiet()
        await root.store.commit(lambda tx: tx.delete(Key("own", "ConfigMap", "default", "one")))
        await tree.crash("region")
        await tree.quiet()
        assert settings(tree) == [[one, two], [one], [one]], "below a child that has the newest somebody may still need the older"
        for _ in range(2):
            await tree.wait(10)
            await tree.quiet()
        assert settings(tree) == [[two]] * 3
        assert [stored.uid for stored in tree.sites["region"].store.list("desired", "ConfigMap")] == [two]

    played(main, tmp_path)


def test_a_site_that_joins_in_the_middle_gets_the_version_before_until_it_is_due(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan, each = {"wave": 1, "pauseSeconds": 10}, {"strategy": "Duplicated"}
        await put(root, "v1", plan, placement=each)
        await tree.quiet()
        await put(root, "v2", plan, placement=each)
        await tree.quiet()
        late = await tree.add("edge-4", "region", 1000)
        await tree.quiet()
        assert runs(tree) == ["v2", "v1", "v1"]
        work = late.store.get(Key("local", "Work", "", "app-shop"))
        assert work is not None
        assert msgspec.json.decode(work.document, type=kinds.Work).spec.components[0].command == ["v1"]
        for _ in range(3):
            await tree.wait(10)
            await tree.quiet()
        assert (runs(tree), rollout(root).phase, status(root).updated) == (["v2"] * 3, "Complete", 12)

    played(main, tmp_path)


def test_a_cut_off_branch_goes_on_by_itself_and_stops_at_its_first_failed_wave(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        plan = {"wave": 1, "pauseSeconds": 10, "rollback": "Automatic"}
        await put(root, "v1", plan)
        await tree.quiet()
        await put(root, "v2", plan)
        await tree.quiet()
        tree.set_cut("region", True)
        tree.sites["edge-2"].broken.add("v2")
        for _ in range(3):
            await tree.wait(10)
            await tree.quiet()
        assert runs(tree) == ["v2", "v2", "v1"], "its own waves, without anybody above"
        tree.set_cut("region", False)
        await tree.quiet()
        assert (runs(tree), rollout(root).reason) == (["v1"] * 3, "RolledBack")

    played(main, tmp_path)


def test_who_is_out_of_reach_follows_later(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        await put(root, "v1", {"wave": 1})
        await tree.quiet()
        tree.set_cut("edge-2", True)
        await put(root, "v2", {"wave": 1})
        await tree.quiet()
        assert runs(tree) == ["v2", "v1", "v2"]
        assert rollout(root).phase == "Complete"
        tree.set_cut("edge-2", False)
        await tree.quiet()
        assert (runs(tree), status(root).phase) == (["v2"] * 3, "Running")

    played(main, tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_anywhere_in_the_middle_goes_on_where_it_was(tmp_path: Path, seed: int) -> None:
    """Never two edges that do not have it yet are changed at once, and in the end all have the newest."""

    async def main(tree: Tree) -> None:
        chooser = random.Random(seed)
        root = tree.sites["root"]
        await put(root, "v0", {"wave": 1})
        await tree.quiet()

        def one_at_a_time() -> None:
            told = runs(tree)
            going = [
                name for name, program in zip(EDGES, told, strict=True)
                if tree.sites[name].slow and program in tree.sites[name].slow
            ]  # fmt: skip
            assert len(going) <= 1, f"{going} at once"

        tree.watch = one_at_a_time
        await put(root, "v1", {"wave": 1})
        for name in EDGES:
            tree.sites[name].slow.add("v1")
        for _ in range(150):
            what = chooser.random()
            if what < 0.08:
                await tree.crash(chooser.choice(list(tree.sites)))
            elif what < 0.2:
                tree.set_cut("region", "region" not in tree.cut)  # an edge that is cut off is skipped: then two may be under way
            elif what < 0.25:
                tree.sites[chooser.choice(EDGES)].slow.clear()
            await tree.step(chooser)
        for name in list(tree.cut):
            tree.set_cut(name, False)
        for name in EDGES:
            tree.sites[name].slow.clear()
        await tree.quiet()
        assert (runs(tree), rollout(root).phase, status(root).phase) == (["v1"] * 3, "Complete", "Running")

    played(main, tmp_path)
