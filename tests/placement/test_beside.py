"""Applications beside others and away from them, on real stores and real placement."""

import asyncio
from pathlib import Path

from cluster_controller.placement.model import Neighbour, Spread
from cluster_controller.placement.place import place
from tests.placement.test_place import cluster, demand, reason
from tests.placement.tree import Tree, put_application


def test_what_must_be_beside_or_apart_is_a_filter_and_what_runs_stays() -> None:
    clusters = [
        cluster("a", labels={"zone": "x"}),
        cluster("b", labels={"zone": "x"}),
        cluster("c", labels={"zone": "y"}),
        cluster("d", labels={}),
    ]
    there = frozenset({"a"})
    beside = place(demand(4, neighbours=(Neighbour(name="cache", where=there, topology="zone"),)), clusters, {})
    assert beside.shares == {"a": {"serve": 2}, "b": {"serve": 2}}
    assert reason(beside, "c") == reason(beside, "d") == "Affinity"
    apart = place(demand(2, neighbours=(Neighbour(name="noisy", where=there, apart=True),), spread=(Spread(),)), clusters, {})
    assert (reason(apart, "a"), apart.plan["serve"]) == ("AntiAffinity", {"b": 1, "c": 1})
    nowhere = place(demand(1, neighbours=(Neighbour(name="cache"),)), clusters, {})
    assert nowhere.unplaced == {"serve": 1}
    wish = place(demand(1, neighbours=(Neighbour(name="cache", where=frozenset({"c"}), weight=5),)), clusters, {})
    assert wish.shares == {"c": {"serve": 1}}


def test_one_waits_for_the_other_and_a_third_keeps_away(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        await tree.add("region", "root")
        await tree.add("edge-1", "region", 300, {"zone": "1"})
        await tree.add("edge-2", "region", 300, {"zone": "2"})
        try:
            await tree.quiet()
            follower = await put_application(root, "follower", 1, affinity={"applications": [{"name": "leader"}]})
            await tree.quiet()
            running = {name: site.running for name, site in tree.sites.items()}
            assert not any(each.get(follower, {}).get("serve") for each in running.values()), "it waits"
            leader = await put_application(root, "leader", 1, clusterSelector={"matchLabels": {"zone": "2"}})
            hermit = await put_application(root, "hermit", 1, antiAffinity={"applications": [{"name": "leader"}]})
            await tree.quiet()

            def where(uid: str) -> list[str]:
                return [name for name, site in tree.sites.items() if site.running.get(uid, {}).get("serve")]

            assert (where(leader), where(follower)) == (["edge-2"], ["edge-2"])
            assert where(hermit) == ["edge-1"]
            await tree.add("edge-3", "root", 300, {"zone": "2"})
            near = {"affinity": {"applications": [{"name": "leader", "topologyKey": "zone"}]}}
            neighbour = await put_application(root, "neighbour", 1, clusterNames=["edge-3"], **near)
            await tree.quiet()
            assert where(neighbour) == ["edge-3"], "its own level has no leader, and takes the word of the one above"
        finally:
            await tree.close()

    asyncio.run(main())
