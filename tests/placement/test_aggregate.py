"""What targets report becomes one status: sums, the worst rows, and nothing silent counts as ready."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement.aggregate import WORST_ROWS, TargetReport, aggregate
from cluster_controller.resources.kinds import ClusterRow, Component, ComponentStatus, WorkStatusStatus

SERVE = Component(name="serve", command=["x"], replicas=5)


def status(version: int = 1, rows: int = 1, **counts: object) -> WorkStatusStatus:
    part = ComponentStatus(**({"name": "serve", "desired": 1, "ready": 1, "updated": 1} | counts))  # type: ignore[arg-type]
    listed = [ClusterRow(cluster=f"u{index}", name=f"c{index}", ready=part.ready, desired=part.desired) for index in range(rows)]
    return WorkStatusStatus(version=version, components=[part], clusters=listed, cluster_count=rows)


def report(name: str = "a", share: int = 1, share_id: int = 1, said: WorkStatusStatus | None = None, silent: str = "") -> TargetReport:
    return TargetReport(name=name, shares={"serve": share}, share_id=share_id, status=said, silent=silent)


def fold(*reports: TargetReport, duplicated: bool = False, unplaced: int = 0, message: str = "") -> WorkStatusStatus:
    return aggregate(
        components=[SERVE],
        duplicated=duplicated,
        reports=reports,
        unplaced={"serve": unplaced},
        messages={"serve": message} if message else {},
        version=7,
    )


targets = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.booleans(), st.integers(0, 2)), max_size=6).map(
    lambda made: [
        report(f"t{index}", share, 1, status(version, desired=share, ready=ready, updated=updated), "root → t" if silent else "")
        for index, (share, ready, updated, silent, version) in enumerate(made)
    ]
)


@given(targets)
def test_only_what_is_in_reach_is_counted_as_ready(reports: list[TargetReport]) -> None:
    folded = fold(*reports)
    (component,) = folded.components
    heard = [one for one in reports if not one.silent and one.status is not None]
    assert component.ready == sum(one.status.components[0].ready for one in heard if one.status)
    assert component.updated == sum(one.status.components[0].updated for one in heard if one.status and one.status.version >= 1)
    assert component.desired == 5 and folded.version == 7
    assert folded.cluster_count == len(reports)
    silent = {one.name for one in reports if one.silent}
    for row in folded.clusters:
        assert (row.ready == 0 and row.reason == "Unreachable") if row.path[0] in silent else row.reason == ""


@given(st.permutations(range(5)))
def test_the_worst_clusters_are_listed_first(order: list[int]) -> None:
    reports = [report(f"t{number}", 4, said=status(desired=4, ready=number)) for number in order]
    assert [row.ready for row in fold(*reports).clusters] == [0, 1, 2, 3, 4]
    many = fold(*(report(f"t{number}", said=status(rows=10, ready=number)) for number in (1, 0, 1)))
    assert (len(many.clusters), many.cluster_count) == (WORST_ROWS, 30)
    assert [row.ready for row in many.clusters[:10]] == [0] * 10


def test_the_own_cluster_is_no_hop_and_a_silent_one_names_the_broken_hop() -> None:
    own, far = fold(report("", said=status()), report("region", said=status(), silent="root → region")).clusters[::-1]
    assert (own.path, own.ready) == ([], 1)
    assert (far.path, far.ready, far.message) == (["region"], 0, "out of reach: root → region is cut")


def test_reasons_go_up_and_the_first_one_stays() -> None:
    trouble = status(reason="BackOff", message="exit 1", ready=0)
    (component,) = fold(report(said=trouble), report("b", silent="root → b")).components
    assert (component.reason, component.message) == ("BackOff", "exit 1")
    (component,) = fold(report("b", silent="root → b"), report(said=trouble)).components
    assert (component.reason, component.message) == ("Unreachable", "out of reach: root → b is cut")
    (component,) = fold(report("b", share=0, silent="root → b"), unplaced=2, message="no room").components
    assert (component.reason, component.message, component.unplaced) == ("Unplaced", "no room", 2)
    (component,) = fold(report("b", share=0, silent="root → b")).components
    assert component.reason == ""  # it was given nothing: that it is silent matters to nobody


def test_an_answer_to_an_older_share_is_not_counted_as_updated() -> None:
    (component,) = fold(report(share_id=3, said=status(version=2)), report("b", said=None)).components
    assert (component.ready, component.updated) == (1, 0)


def test_duplicated_counts_what_is_below() -> None:
    (component,) = fold(
        report(share=2, said=status(desired=6, ready=5, unplaced=1)), report("b", share=2, said=None), duplicated=True
    ).components
    assert (component.desired, component.ready, component.unplaced) == (8, 5, 1)
    (component,) = fold(duplicated=True, unplaced=2, message="nobody").components
    assert (component.desired, component.unplaced, component.message) == (2, 2, "nobody")
