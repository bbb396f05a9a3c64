"""Shares held apart from a branch, taken over again, and moved: nothing is lost, nothing is doubled, and the newer word is told."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement.moving import Apart, apart, caught_up, newest, share_of, shifted, taken_over, together, unheard, within
from cluster_controller.resources.kinds import ApplicationReference, Component, Lent, Placement, Share, Transfer, WorkSpec

NAMES = st.sampled_from(["serve", "index", "train"])
COUNTS = st.dictionaries(NAMES, st.integers(0, 9), max_size=3)
HELD = st.dictionaries(st.sampled_from(["edge-1", "edge-2", "edge-3"]), COUNTS, max_size=3)
APPLICATION = ApplicationReference(uid="app", name="app", namespace="default", origin="root", origin_name="root")


def work(*chain: tuple[str, int], replicas: int = 1, **fields: object) -> WorkSpec:
    shares = [Share(allotter=allotter, id=number) for allotter, number in chain]
    spec = WorkSpec(application=APPLICATION, cluster="edge-1", shares=shares, components=[Component(name="serve", replicas=replicas)])
    return msgspec.structs.replace(spec, **fields)


@given(COUNTS, HELD, HELD)
def test_a_share_is_divided_and_put_together_without_loss(
    share: dict[str, int], reported: dict[str, dict[str, int]], before: dict[str, dict[str, int]]
) -> None:
    parts = apart(share, reported, before)
    assert together(parts) == share
    assert parts.held.keys() == reported.keys() | before.keys()
    for cluster, counts in parts.held.items():
        known = before.get(cluster, reported.get(cluster, {}))
        assert all(0 <= count <= known.get(name, 0) for name, count in counts.items())
    assert all(count >= 0 for count in parts.left.values())
    again = apart(share, reported, parts.held)
    assert again == parts  # applied twice, nothing changes


@given(COUNTS, HELD)
def test_who_was_served_first_gives_back_last(share: dict[str, int], reported: dict[str, dict[str, int]]) -> None:
    first = apart(share, {}, {"zz": dict.fromkeys(share, 9)}).held["zz"]
    both = apart(share, reported, {"zz": first})
    assert both.held["zz"] == first


def test_a_duplicated_share_is_everybodys() -> None:
    assert apart({"serve": 2}, {"edge-1": {"serve": 1}}, {}, duplicated=True) == Apart({"serve": 2}, {"edge-1": {"serve": 2}})


@given(COUNTS, COUNTS, COUNTS)
def test_a_move_keeps_the_sum_and_never_gives_what_was_not_there(
    giver: dict[str, int], taker: dict[str, int], held: dict[str, int]
) -> None:
    lowered, raised = shifted(giver, taker, held)
    for name in {*giver, *taker, *held}:
        assert lowered.get(name, 0) + raised.get(name, 0) == giver.get(name, 0) + taker.get(name, 0)
        assert 0 <= lowered.get(name, 0) <= giver.get(name, 0) and raised.get(name, 0) >= taker.get(name, 0)


def test_the_word_that_knows_of_the_others_counts() -> None:
    home = work(("root", 5), ("region", 3))
    served = work(("root", 6), replicas=4)
    assert newest(home, [served]) is served and newest(home, []) is home
    assert newest(work(("root", 7), ("region", 1)), [served]).shares[-1].id == 1  # home has heard of something later
    assert newest(work(("other", 1)), [served]).shares[-1].allotter == "other"  # it came by another way: they cannot be compared


def test_of_two_ancestors_the_one_that_knows_of_the_other_counts() -> None:
    home = work(("root", 5), ("region", 3), ("site", 8))
    near, far = work(("root", 5), ("region", 4)), work(("root", 6))
    assert newest(home, [near, far]) is newest(home, [far, near]) is far
    later = work(("root", 7), ("region", 9))
    assert newest(home, [far, later]) is newest(home, [later, far]) is later


@given(st.permutations([work(("root", 5), ("region", 4)), work(("root", 6)), work(("root", 4)), work(("root", 9), ("region", 6))]))
def test_the_order_in_which_words_came_does_not_matter(words: list[WorkSpec]) -> None:
    assert newest(work(("root", 3), ("region", 1), ("site", 1)), words).shares[0].id == 9


def test_nobody_runs_more_than_home_gave() -> None:
    assert within(work(("root", 6), replicas=3), work(("root", 5), replicas=2))[0].replicas == 2
    assert within(work(("root", 6), replicas=1), work(("root", 5), replicas=2))[0].replicas == 1
    everywhere = work(("root", 6), replicas=3, placement=Placement(strategy="Duplicated"))
    assert within(everywhere, work(("root", 5), replicas=2))[0].replicas == 3
    assert within(work(("root", 6), components=[]), work(("root", 5))) == []  # withdrawn


def test_home_takes_over_what_an_ancestor_gave_until_it_has_given_its_own() -> None:
    given_ = work(("root", 5), ("region", 3), replicas=2)
    lent = [Lent(cluster="edge-1", allotter="root", id=6, components={"serve": 1})]
    assert taken_over(given_, "edge-1", {"serve": 2}, lent) == {"serve": 1}
    assert taken_over(given_, "edge-2", {"serve": 2}, lent) == {"serve": 2}
    assert taken_over(work(("root", 7), ("region", 4)), "edge-1", {"serve": 2}, lent) == {"serve": 2}
    assert share_of(given_, "nobody") == 0


@given(COUNTS, COUNTS)
def test_who_has_not_heard_of_a_move_is_counted_as_if_it_had(counts: dict[str, int], moved: dict[str, int]) -> None:
    transfer = Transfer(move="m", cluster="edge-1", out=["region", "zone", "edge-1"], into=["other", "edge-1"], components=moved)
    held = {name: counts.get(name, 0) + moved.get(name, 0) for name in {**counts, **moved}}
    after = caught_up(held, [transfer], "zone")
    assert {name: count for name, count in after.items() if count} == {name: count for name, count in counts.items() if count}
    assert caught_up(after, [transfer], "zone", back=True) == held == caught_up(after, [transfer], "other")
    for who in ("edge-1", "edge-2", "root"):  # the cluster itself takes what it has along; others have nothing to do with it
        assert caught_up(held, [transfer], who) == held
    assert unheard([transfer], ["m"]) == [] and unheard([transfer], ["n"]) == [transfer]
