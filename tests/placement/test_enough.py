"""Where what stands is enough, only those who hold it are looked at: the decision is the one that looking at everybody gives."""

import random

import pytest

from cluster_controller.placement import place as placing
from cluster_controller.placement.assign import assign
from cluster_controller.placement.filters import DRAIN
from cluster_controller.placement.model import (
    ClusterRecord,
    Demand,
    Dividing,
    Given,
    NodeRecord,
    Objective,
    Request,
    Requirement,
    Spread,
    Taint,
    Weight,
)
from cluster_controller.placement.place import place
from tests.placement.test_place import MEBI, cluster, demand

CASES = 3000
SPREADS = ((), (), (Spread("zone", 1),), (Spread("zone", 1), Spread("tier", 2, hard=False)))


def drawn(chooser: random.Random, index: int) -> ClusterRecord:
    runs = chooser.choice([0, 0, 1, 2])
    node = NodeRecord(
        name=f"n{index}",
        architecture="amd64",
        free_cpu_millis=250 * chooser.randint(0, 4),
        free_memory_bytes=8192 * MEBI,
        hourly_micros=1000 * chooser.randint(0, 9),
        whole=Request(1000, 8192 * MEBI),
    )
    away = chooser.choice([*[()] * 8, (Taint("maintenance", "", "NoExecute"),), (Taint(DRAIN, "", "NoExecute"),)])
    return cluster(
        f"c{index}",
        via=chooser.choice([f"c{index}", "v0", "v1", "v2"]),
        nodes=(node,),
        running={"serve": runs} if runs else {},
        labels={"tier": chooser.choice(["edge", "edge", "edge", "hub"]), "zone": chooser.choice("xyz")},
        cordoned=chooser.random() < 0.1,
        reachable=chooser.random() < 0.9,
        taints=away,
        parent="v0",
        rtt_millis=chooser.choice([1.0, 9.0]),
    )


def standing(chooser: random.Random) -> Given:
    share = chooser.randint(0, 4)
    return Given(
        share=share,
        ceiling=share + chooser.choice([0, 0, 1]),
        unplaced=chooser.choice([0, 0, 0, min(1, share)]),
        reachable=chooser.random() < 0.85,
        counted=chooser.randint(0, share),
        refused=chooser.random() < 0.05,
    )


def asked(chooser: random.Random, replicas: int) -> Demand:
    way = chooser.choice(["Even", "Weights", "FreeCapacity", "LowestCost"])
    weights = (Weight(2, (Requirement("zone", "In", ("x",)),)), Weight(1)) if way == "Weights" else ()
    return demand(
        replicas,
        dividing=Dividing(by=way, weights=weights, most=chooser.choice([0, 0, 2]), least=chooser.choice([0, 0, 1])),
        spread=chooser.choice(SPREADS),
        selector=(Requirement("tier", "In", ("edge",)),),
        objective=Objective(to=("v0",)) if chooser.random() < 0.2 else None,
        single=chooser.random() < 0.2,
    )


def test_the_decision_is_the_one_that_looking_at_everybody_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    short: list[bool] = []
    real = placing._enough

    def counted(*arguments: object, **named: object) -> object:
        found = real(*arguments, **named)  # type: ignore[arg-type]
        short.append(found is not None)
        return found

    monkeypatch.setattr(placing, "_enough", counted)
    chooser = random.Random(5)
    for case in range(CASES):
        clusters = [drawn(chooser, index) for index in range(chooser.randint(1, 6))]
        targets = sorted({each.via for each in clusters}) + (["gone"] if chooser.random() < 0.1 else [])
        given = {target: {"serve": standing(chooser)} for target in targets if chooser.random() < 0.7}
        held = sum(per["serve"].share for per in given.values())
        wanted = asked(chooser, max(0, held + chooser.choice([-2, -1, 0, 0, 0, 0, 1])))
        pending = {target: Request(250, 0) for target in given if chooser.random() < 0.3}
        whole, quick = place(wanted, clusters, given, pending), place(wanted, clusters, given, pending, reasons=False)
        assert (quick.shares, quick.unplaced, quick.waiting) == (whole.shares, whole.unplaced, whole.waiting), f"case {case}"
        assert (quick.plan, quick.stuck) == (whole.plan, whole.stuck), f"case {case}"
    assert len(short) == CASES and CASES / 4 < sum(short) < CASES


def test_nobody_who_holds_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = placing.refuse_itself

    def watched(wanted: Demand, component: object, record: ClusterRecord) -> object:
        looked.append(record.uid)
        return real(wanted, component, record)  # type: ignore[arg-type]

    monkeypatch.setattr(placing, "refuse_itself", watched)
    clusters = [cluster(f"c{index}") for index in range(50)]
    given = {"c7": {"serve": Given(share=2, ceiling=2, counted=2)}}
    assert place(demand(2), clusters, given, reasons=False).shares == {"c7": {"serve": 2}}
    assert looked == ["c7"]
    assert sum(per["serve"] for per in place(demand(3), clusters, given, reasons=False).shares.values()) == 3
    assert len(looked) > 40


@pytest.mark.parametrize("by", ["Even", "Weights", "FreeCapacity", "LowestCost"])
@pytest.mark.parametrize("spreads", [(), (Spread("zone", 1),), (Spread("zone", 1), Spread("rack", 1))])
def test_with_no_cluster_at_all_everything_is_missing(by: str, spreads: tuple[Spread, ...]) -> None:
    assert assign(3, [], by, spreads).missing == 3
