"""A taint that is tolerated for a while: what runs stays so long, then it moves, and no clock but this controller's counts."""

import asyncio
from pathlib import Path

import msgspec

from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import ClusterRecord, Demand, Given, Taint, Toleration
from cluster_controller.placement.place import place
from cluster_controller.placement.taints import TaintAges
from cluster_controller.store import Key, Tx
from tests.placement.test_place import cluster, demand, reason
from tests.placement.tree import Tree, put_application

FLAKY = Taint("flaky", "", "NoExecute")
PATIENT = Toleration(key="flaky", operator="Exists", effect="NoExecute", seconds=30)


def ages(tainted: ClusterRecord, now: float, looked: TaintAges, asked: Demand) -> tuple[float, float | None]:
    fleet, again = looked.look(asked, Fleet([tainted, cluster("plain")]), now)
    return fleet[0].taints[0].age if fleet[0].taints else -1.0, again


def test_it_counts_from_when_it_was_seen_and_anew_when_it_was_gone() -> None:
    looked, asked = TaintAges(), demand(tolerations=(PATIENT,))
    tainted = cluster("a", taints=(FLAKY,))
    assert ages(tainted, 100.0, looked, asked) == (0.0, 30.0)
    assert ages(tainted, 120.0, looked, asked) == (20.0, 10.0)
    assert ages(tainted, 131.0, looked, asked) == (31.0, None)
    assert ages(cluster("a"), 132.0, looked, asked) == (-1.0, None)
    assert ages(tainted, 140.0, looked, asked) == (0.0, 30.0)
    assert TaintAges().look(demand(), Fleet([tainted]), 1.0)[1] is None


def test_what_runs_stays_until_then_and_nothing_new_comes() -> None:
    stands = {"a": {"serve": Given(share=1, ceiling=1)}}
    asked = demand(2, tolerations=(PATIENT,))
    for age, shares in ((29.0, {"a": {"serve": 1}, "b": {"serve": 1}}), (30.0, {"b": {"serve": 1}})):
        young = cluster("a", taints=(msgspec.structs.replace(FLAKY, age=age),), running={"serve": 1})
        assert place(asked, [young, cluster("b")], stands).shares == shares
    other = cluster("a", taints=(FLAKY, Taint("gone", "", "NoExecute")), running={"serve": 1})
    assert place(asked, [other, cluster("b")], stands).shares == {"b": {"serve": 1}}, "one that is not tolerated at all counts at once"
    assert reason(place(asked, [other], {}), "a") == "Taint"
    assert reason(place(asked, [cluster("a", taints=(FLAKY,))], {}), "a") == "TaintGrace"


def test_the_application_moves_when_its_time_is_over(tmp_path: Path) -> None:
    async def main() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        await tree.add("edge-1", "root", 300, {"zone": "1"})
        try:
            await tree.quiet()
            tolerations = [{"key": "flaky", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}]
            uid = await put_application(root, "emotion", 1, tolerations=tolerations)
            await tree.quiet()
            await tree.add("edge-2", "root", 300, {"zone": "2"})
            await tree.quiet()

            def taint(tx: Tx) -> None:
                stored = tx.get(Key("own", "Cluster", "", "edge-1"))
                assert stored is not None
                document = msgspec.json.decode(stored.document)
                document["spec"] = document.get("spec", {}) | {"taints": [{"key": "flaky", "effect": "NoExecute"}]}
                tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

            def where() -> list[str]:
                return [name for name, site in tree.sites.items() if site.running.get(uid, {}).get("serve")]

            await root.store.commit(taint)
            await tree.quiet()
            assert where() == ["edge-1"]
            tree.clock.now += 29
            root.engine.ring()
            await tree.quiet()
            assert where() == ["edge-1"]
            tree.clock.now += 2
            root.engine.ring()
            await tree.quiet()
            assert where() == ["edge-2"]
        finally:
            await tree.close()

    asyncio.run(main())
