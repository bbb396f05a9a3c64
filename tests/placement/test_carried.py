"""What goes on below a silent child and is heard by way of an adopter counts, and is not replaced."""

from cluster_controller.placement.aggregate import Stray, TargetReport, aggregate, carried
from cluster_controller.placement.replace import Target, settle
from cluster_controller.resources.kinds import ClusterRow, Component, ComponentStatus, WorkStatusStatus

COMPONENTS = [Component(name="serve", replicas=3)]


def row(cluster: str, ready: int) -> ClusterRow:
    return ClusterRow(cluster=cluster, name=cluster, ready=ready, desired=ready)


def status(ready: int, *rows: ClusterRow) -> WorkStatusStatus:
    part = ComponentStatus(name="serve", desired=ready, ready=ready, updated=ready)
    return WorkStatusStatus(version=7, components=[part], clusters=list(rows), cluster_count=len(rows))


def region(*strays: Stray) -> TargetReport:
    said = status(3, row("edge-1", 2), row("edge-2", 1))
    return TargetReport(name="region", shares={"serve": 3}, share_id=7, status=said, silent="root → region", strays=strays)


def fold(report: TargetReport) -> WorkStatusStatus:
    return aggregate(components=COMPONENTS, duplicated=False, reports=[report], unplaced={}, messages={}, version=1)


def test_rows_of_strays_are_fresh_and_take_the_place_of_stale_ones() -> None:
    stray = Stray(path=("region", "edge-1"), status=status(2, row("edge-1", 2)))
    folded = fold(region(stray))
    assert (folded.components[0].ready, folded.components[0].updated) == (2, 2)
    assert folded.components[0].reason == "Unreachable"  # one of three is not heard
    rows = {item.cluster: (item.ready, item.reason, item.path) for item in folded.clusters}
    assert rows == {"edge-1": (2, "", ["region", "edge-1"]), "edge-2": (0, "Unreachable", ["region"])}


def test_when_all_are_heard_nothing_is_unreachable() -> None:
    strays = (
        Stray(path=("region", "edge-1"), status=status(2, row("edge-1", 2))),
        Stray(path=("region", "edge-2"), status=status(1, row("edge-2", 1))),
    )
    assert (fold(region(*strays)).components[0].ready, fold(region(*strays)).components[0].reason) == (3, "")
    assert carried("another", strays) == [] and fold(region()).components[0].ready == 0


def test_what_is_heard_is_not_replaced_also_when_it_is_heard_late() -> None:
    silent = {"region": Target(share=3, ceiling=3, silent=20.0, carried=2), "other": Target(share=0, ceiling=0, confirmed=0)}
    assert settle(3, 10.0, silent).replaced == {"region": 1}
    all_replaced = {"region": Target(share=3, ceiling=3, silent=20.0, replaced=3, carried=2), "other": Target(share=3, stands_in=3)}
    assert settle(3, 10.0, all_replaced).replaced == {"region": 1}
    assert settle(3, 10.0, {"region": Target(share=3, silent=20.0, carried=9)}).replaced == {}
    assert settle(3, None, silent).replaced == {}  # Keep
