"""Orders of starts, and rollouts among controllers of an older version and in storms: whole trees, links and shims played by the test."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.resources import kinds
from cluster_controller.store import Key
from openapi.hooks.explain import explanation
from tests.placement.tree import Tree, component
from tests.rollout.shop import EDGES, condition, played, put, resume, rollout, runs, status


def test_components_start_in_order_and_the_status_says_who_waits(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        for site in tree.sites.values():
            site.sick["app-shop"] = 1
        parts = [component("db", command=["db"]), component("web", command=["web"], replicas=2, dependsOn=["db"])]
        await put(root, "", components=parts)
        await tree.quiet()
        assert sorted(runs(tree)) == ["", "", "db"]
        web = next(each for each in status(root).components if each.name == "web")
        assert (web.reason, web.message, status(root).phase) == ("WaitsForDependency", "waits for db (0 of 1 ready)", "Progressing")
        assert condition(root, "Ready").message == "0 of 3 replicas ready; web waits for db (0 of 1 ready)"
        region = tree.sites["region"]
        told = explanation(region.store, region.engine.explain, lambda _: None, "app-shop")  # type: ignore[arg-type]
        waits = [part.get("reason") for row in told["clusters"] for part in row["components"] if part["component"] == "web"]
        assert sum("waits for db (0 of 1 ready)" in str(why) for why in waits) == 2
        for site in tree.sites.values():
            site.sick.clear()
        await tree.quiet()
        assert status(root).phase == "Running"
        assert ",".join(runs(tree)).count("web") == 2
        for site in tree.sites.values():
            site.sick["app-shop"] = 1
        await tree.quiet()
        assert ",".join(runs(tree)).count("web") == 2, "what has started is not taken back"

    played(main, tmp_path)


def test_waiting_for_others_is_no_delay_of_its_own(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        for site in tree.sites.values():
            site.sick["app-store"] = 1
        await put(root, "store", name="store")
        await put(root, "v1", {"progressDeadlineSeconds": 60}, dependsOn=["store"])
        await tree.quiet()
        await tree.wait(1000)
        await tree.quiet()
        assert (rollout(root).phase, runs(tree)) == ("Progressing", [""] * 3)
        for site in tree.sites.values():
            site.sick.clear()
        await tree.quiet()
        assert (rollout(root).phase, runs(tree)) == ("Complete", ["v1"] * 3)

    played(main, tmp_path)


def test_applications_start_in_order_at_their_origin(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        root = tree.sites["root"]
        await put(root, "v1", dependsOn=["store"])
        await tree.quiet()
        assert runs(tree) == [""] * 3
        assert condition(root, "Ready").message.endswith("serve waits for application store, which does not exist")
        for site in tree.sites.values():
            site.sick["app-store"] = 1
        await put(root, "store", name="store")
        await tree.quiet()
        assert condition(root, "Ready").message.endswith("serve waits for application store (0 of 3 ready)")
        for site in tree.sites.values():
            site.sick.clear()
        await tree.quiet()
        assert (runs(tree), status(root).phase) == (["v1"] * 3, "Running")

    played(main, tmp_path)


def test_a_parent_of_an_older_version_that_passes_on_no_revision_is_understood(tmp_path: Path) -> None:
    async def main(tree: Tree) -> None:
        edge = tree.sites["edge-1"]
        tree.set_cut("edge-1", True)
        for number, program in enumerate(("v1", "v2", "v3"), 1):
            document = {
                "kind": "Work",
                "metadata": {"name": "app-shop", "uid": "w"},
                "spec": {
                    "application": {"uid": "app-shop", "name": "shop", "namespace": "default"}, "cluster": edge.uid,
                    "shares": [{"allotter": "uid-region", "id": number}], "rollout": {"wave": 1},
                    "components": [component(command=[program])],
                },
            }  # fmt: skip
            edge.slow = {"v2"}  # one version in between is never ready: the next must go out all the same
            encoded = msgspec.json.encode(document)
            await edge.store.commit(lambda tx, encoded=encoded: tx.put(Key("desired", "Work", "", "app-shop"), encoded, uid="w"))  # type: ignore[misc]
            await tree.quiet()
            await tree.wait(700)
            await tree.quiet()
            assert runs(tree)[0] == program
            stored = edge.store.get(Key("report", "WorkStatus", "", "app-shop"))
            assert stored is not None
            told = msgspec.json.decode(stored.document, type=kinds.WorkStatus).status.rollout
            assert told is not None
            assert told.phase == ("Failed" if program == "v2" else "Complete")

    played(main, tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_after_any_storm_a_good_version_reaches_everybody(tmp_path: Path, seed: int) -> None:
    """Good and bad versions, cuts, crashes, pauses and people, in any order; whoever serves has something that works to serve with."""

    async def main(tree: Tree) -> None:
        chooser = random.Random(seed)
        root = tree.sites["root"]
        for site in tree.sites.values():
            site.broken.add("bad")
        await put(root, "v0", {"wave": 1})
        await tree.quiet()
        plan: dict[str, Any] = {"wave": 1, "rollback": "Automatic"}
        for step in range(160):
            what = chooser.random()
            if what < 0.06:
                plan = {
                    "wave": chooser.choice([0, 1, 2]),
                    "rollback": chooser.choice(["Automatic", "Never"]),
                    "pauseSeconds": chooser.choice([0, 5]),
                }
                if chooser.random() < 0.3:
                    plan["paused"] = True
                await put(root, chooser.choice(["bad", f"v{step}"]), plan)
            elif what < 0.10:
                await resume(root, str(step))
            elif what < 0.16:
                name = chooser.choice([*EDGES, "region"])
                tree.set_cut(name, name not in tree.cut)
            elif what < 0.20:
                await tree.crash(chooser.choice(list(tree.sites)))
            elif what < 0.25:
                await tree.wait(5)
            await tree.step(chooser)
        for name in list(tree.cut):
            tree.set_cut(name, False)
        await put(root, "last", {"wave": 1, "pauseSeconds": 5})
        for _ in range(4):
            await tree.quiet()
            await tree.wait(5)
        await tree.quiet()
        assert (runs(tree), rollout(root).phase, status(root).phase) == (["last"] * 3, "Complete", "Running")

    played(main, tmp_path)
