"""Candidates are those that comparing with every cluster would find, also after a cluster has changed."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement.filters import matches
from cluster_controller.placement.fleet import MOST_QUESTIONS, Fleet
from cluster_controller.placement.model import ClusterRecord, Requirement

labels = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
requirements = st.lists(
    st.builds(Requirement, st.sampled_from("abc"), st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]), st.just(("x", "z"))),
    max_size=3,
)


def record(index: int, has: dict[str, str]) -> ClusterRecord:
    return ClusterRecord(uid=f"u{index}", name=f"c{index}", via=f"v{index % 2}", labels=has)


@given(st.lists(labels, min_size=1, max_size=6), requirements, st.lists(st.sampled_from(["c0", "c1", "zz"]), max_size=2), labels)
def test_an_index_finds_what_comparing_finds(
    each: list[dict[str, str]], selector: list[Requirement], names: list[str], later: dict[str, str]
) -> None:
    fleet = Fleet(record(index, has) for index, has in enumerate(each))
    for _ in range(2):
        wanted = [item for item in fleet if matches(selector, item.labels) and (not names or item.name in names)]
        assert list(fleet.candidates(selector, names)) == wanted
        fleet.update(record(0, later))
        assert fleet.labels["u0"] == later


def test_a_view_replaces_a_few_and_shares_the_rest() -> None:
    fleet = Fleet(record(index, {"a": "x"}) for index in range(3))
    busy = ClusterRecord(uid="u1", name="c1", via="v1", labels={"a": "x"}, running={"serve": 1})
    view = fleet.view({"u1": busy})
    assert (view[1], view.get("u1"), view.behind("v1"), list(view)[1]) == (busy, busy, [busy], busy)
    assert list(view.candidates((Requirement("a", "In", ("x",)),), ()))[1] is busy
    assert fleet.get("u1") is not busy
    assert fleet.get("nobody") is None
    assert (len(view), view[0:2]) == (3, [fleet[0], busy])


def test_questions_are_few() -> None:
    fleet = Fleet(())
    first = fleet.memo(0)
    for number in range(MOST_QUESTIONS + 1):
        fleet.memo(number)["u"] = (1, 2)
    assert fleet.memo(0) is not first
    assert fleet.memo(MOST_QUESTIONS) == {"u": (1, 2)}
