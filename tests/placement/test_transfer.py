"""What a moved cluster takes along: the books change hands, and nobody else's share does."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.placement import transfer
from cluster_controller.placement.model import Given
from cluster_controller.placement.transfer import KEPT, kept, shift, targets
from cluster_controller.resources.kinds import Transfer

MOVE = Transfer(move="m", cluster="e", out=["o", "q", "e"], into=["n", "p", "e"], components={"main": 2}, after=90)


def book(**shares: tuple[int, int]) -> dict[str, dict[str, Given]]:
    return {target: {"main": Given(share=share, ceiling=ceiling)} for target, (share, ceiling) in shares.items()}


def test_everybody_on_the_way_knows_whose_share_changes() -> None:
    assert [targets(MOVE, me) for me in ("c", "o", "q", "n", "p", "e")] == [
        ("o", "n"),
        ("q", ""),
        ("e", ""),
        ("", "p"),
        ("", "e"),
        ("", ""),
    ]


def test_the_ancestor_moves_it_in_one() -> None:
    shifted = shift(book(o=(4, 4), x=(1, 1)), [MOVE], "c", duplicated=False, reachable={"n": True})
    assert {target: (per["main"].share, per["main"].ceiling) for target, per in shifted.given.items()} == {
        "o": (2, 2),
        "x": (1, 1),
        "n": (2, 2),
    }
    assert {target: [one.move for one in found] for target, found in shifted.onward.items()} == {"o": ["m"], "n": ["m"]}


def test_below_only_the_branch_of_the_cluster_changes() -> None:
    out = shift(book(q=(3, 3), r=(1, 1)), [MOVE], "o", duplicated=False, reachable={})
    assert (out.given["q"]["main"].share, out.given["r"]["main"].share) == (1, 1) and set(out.onward) == {"q"}
    into = shift(book(p=(1, 1)), [MOVE], "n", duplicated=False, reachable={})
    assert (into.given["p"]["main"].share, into.given["p"]["main"].ceiling) == (3, 3) and not into.after


def test_the_parents_give_and_take_the_cluster_itself() -> None:
    old = shift(book(e=(3, 3), r=(1, 1)), [MOVE], "q", duplicated=False, reachable={})
    assert (old.given["e"]["main"].share, old.given["e"]["main"].ceiling) == (0, 0) and not old.onward
    new = shift(book(), [MOVE], "p", duplicated=False, reachable={"e": False})
    assert new.given["e"]["main"] == Given(share=2, ceiling=2, reachable=False)
    assert new.after == 90 and not new.onward  # its shares are numbered on from those that the cluster knows


def test_what_was_lowered_meanwhile_stays_lowered() -> None:
    """The cluster took two along; one of them was taken back from its branch, and it had not heard of that."""
    shifted = shift(book(o=(1, 2)), [MOVE], "c", duplicated=False, reachable={})
    assert (shifted.given["o"]["main"].share, shifted.given["o"]["main"].ceiling) == (0, 0)
    assert (shifted.given["n"]["main"].share, shifted.given["n"]["main"].ceiling) == (1, 2)


def test_where_each_has_the_whole_of_it_the_old_branch_keeps_its_share_and_the_new_one_has_it_too() -> None:
    shifted = shift(book(o=(2, 2)), [MOVE], "c", duplicated=True, reachable={})
    assert shifted.given["o"]["main"].share == 2 and shifted.given["n"]["main"] == Given(share=2, ceiling=2)


COUNTS = st.integers(0, 6)


@given(st.dictionaries(st.sampled_from("onx"), st.tuples(COUNTS, COUNTS)), COUNTS)
def test_nothing_is_added_and_nothing_is_lost(shares: dict[str, tuple[int, int]], count: int) -> None:
    before = {target: {"main": Given(share=share, ceiling=share + more)} for target, (share, more) in shares.items()}
    one = Transfer(move="m", cluster="e", out=["o", "e"], into=["n", "e"], components={"main": count})
    after = shift(before, [one], "c", duplicated=False, reachable={}).given
    assert sum(per["main"].share for per in after.values()) == sum(per["main"].share for per in before.values())
    held = before["o"]["main"].ceiling if "o" in before else 0
    if count <= held:  # what a cluster holds never exceeds what its branch may run
        assert sum(per["main"].ceiling for per in after.values()) == sum(per["main"].ceiling for per in before.values())
    assert after.get("x") == before.get("x")
    assert all(0 <= per["main"].share <= per["main"].ceiling for per in after.values())


def test_a_work_names_the_last_few() -> None:
    many = [Transfer(move=str(number), cluster="e") for number in range(KEPT + 3)]
    assert kept(many[:2], []) == many[:2]
    assert [one.move for one in kept(many[:-1], many[-1:])] == [str(number) for number in range(3, KEPT + 3)]
    assert kept(many[:2], [many[1]]) == many[:2]
    assert transfer.Shifted({}).onward == {}
