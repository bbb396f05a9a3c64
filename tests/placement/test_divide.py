"""The allotment holds whatever is asked, in whatever order answers come."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.placement.divide import Division, Target, divide
from cluster_controller.placement.model import Given

counts = st.integers(min_value=0, max_value=12)


@st.composite
def standing(draw: st.DrawFn) -> Target:
    share = draw(counts)
    return Target(
        name=draw(st.sampled_from("abcdef")),
        room=draw(counts),
        clusters=draw(st.integers(min_value=0, max_value=3)),
        given=Given(
            share=share,
            ceiling=share + draw(st.integers(min_value=0, max_value=4)),
            unplaced=draw(st.integers(min_value=0, max_value=share)),
            reachable=draw(st.booleans()),
            refused=draw(st.booleans()),
        ),
    )


targets = st.dictionaries(st.sampled_from(["t1", "t2", "t3", "t4"]), standing(), max_size=4)


def exposure(shares: dict[str, int], among: dict[str, Target]) -> int:
    return sum(max(shares[uid], target.given.ceiling) for uid, target in among.items())


@given(counts, targets)
@settings(max_examples=1000)
def test_a_division_never_lets_more_run_than_was_allotted(allotted: int, among: dict[str, Target]) -> None:
    division = divide(allotted, among)
    before = sum(target.given.ceiling for target in among.values())
    assert exposure(division.shares, among) <= max(allotted, before)
    assert sum(division.shares.values()) + division.waiting + division.unplaced == max(allotted, sum(division.shares.values()))


@given(counts, targets)
@settings(max_examples=500)
def test_nothing_moves_that_may_stay(allotted: int, among: dict[str, Target]) -> None:
    division = divide(allotted, among)
    standing_now = sum(
        target.given.share if not target.given.reachable else (target.given.share - target.given.unplaced) * (target.clusters > 0)
        for target in among.values()
    )
    if standing_now <= allotted:
        for uid, target in among.items():
            if target.given.reachable and target.clusters > 0:
                assert division.shares[uid] >= target.given.share - target.given.unplaced
            elif not target.given.reachable:
                assert division.shares[uid] == target.given.share


@given(counts, targets)
@settings(max_examples=500)
def test_room_is_respected(allotted: int, among: dict[str, Target]) -> None:
    division = divide(allotted, among)
    for uid, target in among.items():
        stays = target.given.share - (target.given.unplaced if target.given.reachable else 0)
        offered = target.given.unplaced if target.given.reachable and division.offered else 0
        assert division.shares[uid] <= max(0, stays) + offered + (target.room if target.given.reachable and not offered else 0)


@given(counts, targets)
@settings(max_examples=500)
def test_what_somebody_could_not_place_goes_to_others_and_is_left_with_it_only_when_nobody_has_room(
    allotted: int, among: dict[str, Target]
) -> None:
    division = divide(allotted, among)
    able = [
        uid
        for uid, target in among.items()
        if target.given.reachable and target.clusters and not target.given.unplaced and not target.given.refused
    ]
    for uid, target in among.items():
        if target.given.reachable and (target.given.unplaced or target.given.refused):
            assert division.shares[uid] <= target.given.share, "more is given to whom it does not fit"
    if division.offered or division.unplaced:
        for uid in able:
            raised = division.shares[uid] - target_stays(among[uid])
            assert raised >= among[uid].room, f"{uid} still has room"


def target_stays(target: Target) -> int:
    return target.given.share - target.given.unplaced


def answer(target: Target, share: int) -> Target:
    """The target has acknowledged its share and found room for it."""
    return Target(
        name=target.name,
        room=max(0, target.room - max(0, share - target.given.share)),
        clusters=target.clusters,
        given=Given(share=share, ceiling=share, reachable=target.given.reachable),
    )


@given(counts, targets)
@settings(max_examples=300)
def test_dividing_again_after_all_have_answered_changes_nothing_more(allotted: int, among: dict[str, Target]) -> None:
    last: Division | None = None
    for _ in range(8):
        division = divide(allotted, among)
        among = {uid: answer(target, division.shares[uid]) for uid, target in among.items()}
        if last is not None and last.shares == division.shares:
            break
        last = division
    again = divide(allotted, among)
    assert again.shares == division.shares
    assert again.waiting == 0


def test_a_move_goes_lower_then_acknowledge_then_raise() -> None:
    full = Target(name="a", room=0, clusters=1, given=Given(share=2, ceiling=2, unplaced=1))
    free = Target(name="b", room=5, clusters=1)
    first = divide(2, {"a": full, "b": free})
    assert first.shares == {"a": 1, "b": 0}
    assert first.waiting == 1
    lowered = Target(name="a", room=0, clusters=1, given=Given(share=1, ceiling=1))
    assert divide(2, {"a": lowered, "b": free}).shares == {"a": 1, "b": 1}


def test_a_target_out_of_reach_keeps_its_share() -> None:
    silent = Target(name="a", room=9, clusters=0, given=Given(share=2, ceiling=2, reachable=False))
    free = Target(name="b", room=9, clusters=1)
    assert divide(3, {"a": silent, "b": free}).shares == {"a": 2, "b": 1}


def test_replicas_are_spread_by_the_number_of_clusters() -> None:
    shares = divide(6, {"a": Target(name="a", room=9, clusters=2), "b": Target(name="b", room=9, clusters=1)}).shares
    assert shares == {"a": 4, "b": 2}
