"""Applications beside others and away from them, on real stores and real placement."""

import asyncio
from pathlib import Path

from cluster_controller.placement.model import Neighbour, Spread
from cluster_controller.placement.place import place
from tests.placement.test_place import cluster, demand, reason
from tests.placement.tree import Tree, application, delete_application, put_application


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


def test_what_comes_later_does_not_land_beside_one_that_stays_away_from_it(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        await tree.add("region", "root")
        await tree.add("edge-1", "region", 300, {"zone": "1"})
        await tree.add("edge-2", "region", 300, {"zone": "2"})
        try:
            await tree.quiet()

            def where(uid: str) -> list[str]:
                return [name for name, site in tree.sites.items() if site.running.get(uid, {}).get("serve")]

            shy = {"antiAffinity": {"applications": [{"name": "noisy"}]}}
            hermit = await put_application(root, "hermit", 1, **shy)
            await tree.quiet()
            [there] = where(hermit)
            noisy = await put_application(root, "noisy", 2)
            await tree.quiet()
            assert where(noisy) == [name for name in ("edge-1", "edge-2") if name != there]
            other = await put_application(root, "other", 1, clusterNames=[there])
            late = await put_application(root, "loud", 1, clusterNames=[there])
            await put_application(root, "hermit", 1, antiAffinity={"applications": [{"name": "noisy"}, {"name": "late"}]})
            await tree.quiet()
            assert (where(other), where(late)) == ([there], [there]), "it is about that one only"
            barred = await put_application(root, "late", 1, clusterNames=[there])
            await tree.quiet()
            assert where(barred) == []
            said = application(root, "late").status.components[0].message  # type: ignore[union-attr]
            assert "has application hermit there, which stays apart from this one" in said
            await delete_application(root, "hermit")
            await tree.quiet()
            assert where(barred) == [there], "it waited for that"
        finally:
            await tree.close()

    asyncio.run(main())


def test_keeping_apart_is_a_wish_of_both_where_it_has_a_weight() -> None:
    clusters = [cluster("a"), cluster("b")]
    theirs = Neighbour(name="hermit", where=frozenset({"a"}), apart=True, theirs=True, weight=7)
    assert place(demand(1, neighbours=(theirs,)), clusters, {}).shares == {"b": {"serve": 1}}
    assert place(demand(1, neighbours=(theirs,)), clusters[:1], {}).shares == {"a": {"serve": 1}}
